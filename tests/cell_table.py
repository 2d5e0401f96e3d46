"""The table of cells: what each is called with, its oracle and its weights. A new cell
is a row here."""

import functools
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import cells
from tests import oracles, oracles_gated, oracles_linear, oracles_structured

D, H = 3, 4


class Row(NamedTuple):
    cell_type: Any
    oracle: Any
    # The shape of every weight, for D inputs and H features.
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = {}  # noqa: RUF012
    features: int = H


def _lstm_like(**others):
    return {"w_x": (D, 4 * H), "w_h": (H, 4 * H), "b": (4 * H,), **others}


def _gates(number, **others):
    shapes = {"w_x": (D, number * H), "w_h": (H, number * H), "b": (number * H,)}
    return {**shapes, **others}


CELLS = {
    "rnn": Row(cells.RNNCell, oracles.rnn, _gates(1)),
    "lstm": Row(cells.LSTMCell, oracles.lstm, _lstm_like()),
    "gru": Row(cells.GRUCell, oracles.gru, _gates(3, b_n=(H,))),
    "reset-before-gru": Row(
        cells.ResetBeforeGRUCell, oracles.reset_before_gru, _gates(3)
    ),
    "peephole-lstm": Row(
        cells.PeepholeLSTMCell, oracles_gated.peephole_lstm, _lstm_like(w_c=(3 * H,))
    ),
    "coupled-lstm": Row(cells.CoupledLSTMCell, oracles_gated.coupled_lstm, _gates(3)),
    "janet": Row(cells.JANETCell, oracles_gated.janet, _gates(2)),
    "layer-norm-lstm": Row(
        cells.LayerNormLSTMCell,
        oracles_gated.layer_norm_lstm,
        _lstm_like(scale_x=(4 * H,), scale_h=(4 * H,), scale_c=(H,), b_c=(H,)),
    ),
    "layer-norm-lstm-plain-cell": Row(
        cells.LayerNormLSTMCell,
        oracles_gated.layer_norm_lstm,
        _lstm_like(scale_x=(4 * H,), scale_h=(4 * H,)),
        {"norm_cell": False},
    ),
    "layer-norm-gru": Row(
        cells.LayerNormGRUCell,
        oracles_gated.layer_norm_gru,
        _gates(3, scale_x=(3 * H,), scale_h=(3 * H,), b_n=(H,)),
    ),
    "multiplicative-lstm": Row(
        cells.MultiplicativeLSTMCell,
        oracles_gated.multiplicative_lstm,
        {"w_x": (D, 5 * H), "w_h": (H, H), "w_mh": (H, 4 * H), "b": (4 * H,)},
    ),
    "mogrifier-lstm": Row(
        cells.MogrifierLSTMCell,
        functools.partial(oracles_gated.mogrifier_lstm, rounds=3),
        _lstm_like(mogrify_1=(H, D), mogrify_2=(D, H), mogrify_3=(H, D)),
        {"rounds": 3},
    ),
    "mogrifier-lstm-rank": Row(
        cells.MogrifierLSTMCell,
        functools.partial(oracles_gated.mogrifier_lstm, rounds=2),
        _lstm_like(
            mogrify_1_left=(H, 2),
            mogrify_1_right=(2, D),
            mogrify_2_left=(D, 2),
            mogrify_2_right=(2, H),
        ),
        {"rounds": 2, "rank": 2},
    ),
    "mgu": Row(cells.MGUCell, oracles_gated.mgu, _gates(2)),
    "ugrnn": Row(cells.UGRNNCell, oracles_gated.ugrnn, _gates(2)),
    "li-gru": Row(cells.LiGRUCell, oracles_gated.li_gru, _gates(2, scale_x=(2 * H,))),
    "rhn": Row(
        cells.RHNCell,
        functools.partial(oracles_gated.rhn, depth=3),
        {"w_x": (D, 2 * H), "w_h": (H, 6 * H), "b": (6 * H,)},
        {"depth": 3},
    ),
    "minimal-rnn": Row(
        cells.MinimalRNNCell,
        oracles_gated.minimal_rnn,
        _gates(1, w_v=(H, H), b_v=(H,)),
    ),
    "scrn": Row(
        cells.SCRNCell,
        oracles_gated.scrn,
        {"w_x": (D, H), "w_h": (H - 1, H - 1), "w_sh": (1, H - 1), "b": (H - 1,)},
    ),
    "ind-rnn": Row(
        cells.IndRNNCell,
        oracles_structured.ind_rnn,
        {"w_x": (D, H), "u": (H,), "b": (H,)},
    ),
    "antisymmetric-rnn": Row(
        cells.AntisymmetricRNNCell, oracles_structured.antisymmetric, _gates(1)
    ),
    "antisymmetric-rnn-gated": Row(
        cells.AntisymmetricRNNCell,
        functools.partial(
            oracles_structured.antisymmetric, gated=True, epsilon=0.5, gamma=0.25
        ),
        {"w_x": (D, 2 * H), "w_h": (H, H), "b": (2 * H,)},
        {"gated": True, "step_size": 0.5, "diffusion": 0.25},
    ),
    "co-rnn": Row(
        cells.CoRNNCell,
        oracles_structured.co_rnn,
        {"w_x": (D, H), "w_h": (H, 2 * H), "b": (H,)},
    ),
    "lem": Row(
        cells.LEMCell,
        functools.partial(oracles_structured.lem, dt=0.5),
        {"w_x": (D, 4 * H), "w_h": (H, 3 * H), "w_y": (H, H), "b": (4 * H,)},
        {"dt": 0.5},
    ),
    "leaky-rnn": Row(cells.LeakyRNNCell, oracles_structured.leaky_rnn, _gates(1)),
    "leaky-rnn-excitatory": Row(
        cells.LeakyRNNCell,
        functools.partial(
            oracles_structured.leaky_rnn, rate=np.tanh, dt=3.0, tau=4.0, dale=3
        ),
        _gates(1),
        {"excitatory": 0.8, "rate": "tanh", "dt": 3.0, "time_constant": 4.0},
    ),
    "leaky-rnn-time": Row(
        cells.LeakyRNNCell,
        functools.partial(
            oracles_structured.leaky_rnn, rate=np.tanh, tau=2.0, dt=None, exact=True
        ),
        _gates(1, w_x=(D - 1, H)),
        {
            "rate": "tanh",
            "time_constant": 2.0,
            "time_feature": True,
            "integration": "exponential",
        },
    ),
    "cfc": Row(
        cells.CfCCell,
        functools.partial(oracles_structured.cfc, dt=0.5),
        _gates(1, w_y=(H, 3 * H), b_y=(3 * H,)),
        {"dt": 0.5},
    ),
    "cfc-time": Row(
        cells.CfCCell,
        functools.partial(oracles_structured.cfc, dt=None),
        {
            "w_x": (D - 1, 5),
            "w_h": (H, 5),
            "w_y": (5, 3 * H),
            "b": (5,),
            "b_y": (3 * H,),
        },
        {"time_feature": True, "hidden_features": 5},
    ),
    "min-gru": Row(
        cells.MinGRUCell, oracles_linear.min_gru, {"w_x": (D, 2 * H), "b": (2 * H,)}
    ),
    "min-lstm": Row(
        cells.MinLSTMCell, oracles_linear.min_lstm, {"w_x": (D, 3 * H), "b": (3 * H,)}
    ),
    "sru": Row(cells.SRUCell, oracles_linear.sru, {"w_x": (D, 4 * H), "b": (2 * H,)}),
    "sru-same-features": Row(
        cells.SRUCell, oracles_linear.sru, {"w_x": (D, 3 * D), "b": (2 * D,)}, {}, D
    ),
    "sru-peephole": Row(
        cells.SRUCell,
        oracles_linear.sru,
        {"w_x": (D, 4 * H), "b": (2 * H,), "v": (2 * H,)},
        {"peephole": True},
    ),
    **{
        f"qrnn-{pooling}-{window}": Row(
            cells.QRNNCell,
            functools.partial(oracles_linear.qrnn, pooling=pooling, window=window),
            {"w_x": (D, gates * window * H), "b": (gates * H,)},
            {"pooling": pooling, "window": window},
        )
        for pooling, gates, window in [("f", 2, 1), ("fo", 3, 2), ("ifo", 4, 2)]
    },
    "lru": Row(
        cells.LRUCell,
        oracles_linear.lru,
        {
            "w_x": (D, 2 * 5 + H),
            "w_y": (2 * 5, H),
            **dict.fromkeys(("nu", "theta", "gamma"), (5,)),
        },
        {"state_features": 5},
    ),
    "rg-lru": Row(
        cells.RGLRUCell,
        oracles_linear.rg_lru,
        {"w_in": (D, H), "w_x": (H, 2 * H), "b": (2 * H,), "decay": (H,)},
    ),
    "rg-lru-same-features": Row(
        cells.RGLRUCell,
        oracles_linear.rg_lru,
        {"w_x": (D, 2 * D), "b": (2 * D,), "decay": (D,)},
        {},
        D,
    ),
    "s5": Row(
        cells.S5Cell,
        oracles_linear.s5,
        {
            "w_x": (D, 2 * 6 + H),
            "w_y": (2 * 6, H),
            **dict.fromkeys(("log_decay", "frequency", "log_step"), (6,)),
        },
        {"state_features": 6, "blocks": 2},
    ),
}


def make(name, **options):
    row = CELLS[name]
    return row.cell_type(row.features, **row.options, **options)
