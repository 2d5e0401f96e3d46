"""PyTorch's answers to compare with: live, or from a file made by

    python -m tests.torch_parity

which needs torch and writes what `golden()` reads. A row of length 0, which PyTorch
refuses, is left out there; the tests state what it must give.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

import jaxrnn

B, T, D, H, P = 4, 7, 3, 4, 2
LENGTHS = np.array([T, 3, 1, 0])
PRESENT = LENGTHS > 0

GOLDEN = Path(__file__).parent / "golden" / "torch_parity.safetensors"


class Case(NamedTuple):
    kind: str  # rnn-tanh, rnn-relu, lstm, lstm-proj or gru
    num_layers: int
    bidirectional: bool
    use_bias: bool

    def __str__(self):
        directions = "both" if self.bidirectional else "forward"
        bias = "bias" if self.use_bias else "no-bias"
        return f"{self.kind}-{self.num_layers}-{directions}-{bias}"

    @property
    def has_cells(self):
        return self.kind.startswith("lstm")

    @property
    def num_states(self):
        return self.num_layers * (1 + self.bidirectional)

    def layer(self, dtype):
        options = dict(zip(self._fields[1:], self[1:], strict=True))
        options["param_dtype"] = dtype
        if self.kind == "gru":
            return jaxrnn.GRU(H, **options)
        if self.has_cells:
            return jaxrnn.LSTM(H, proj_size=P * (self.kind != "lstm"), **options)
        return jaxrnn.RNN(H, activation=self.kind.removeprefix("rnn-"), **options)


KINDS = ["rnn-tanh", "rnn-relu", "lstm", "lstm-proj", "gru"]
# Every pair of depth, direction and bias, with every kind.
CASES = [
    Case(kind, num_layers, bidirectional, use_bias)
    for kind in KINDS
    for num_layers, bidirectional, use_bias in [
        (1, False, True),
        (1, True, False),
        (2, True, True),
        (2, False, False),
        (3, False, True),
        (3, True, False),
    ]
]
GOLDEN_CASES = [
    case
    for case in CASES
    if case[1:] in [(1, False, True), (1, True, False), (2, True, True)]
]


def inputs(case, dtype):
    """Seeded inputs, initial states and cotangents; of an LSTM's states h is the first,
    c the second, stacked as PyTorch does: [cells, b, h]."""
    rng = np.random.default_rng(KINDS.index(case.kind))
    outputs = P if case.kind == "lstm-proj" else H
    h = (case.num_states, B, outputs)
    states = [h, (case.num_states, B, H)] if case.has_cells else [h]
    shapes = {
        "x": (B, T, D),
        "cotangent": (B, T, outputs * (1 + case.bidirectional)),
        **{f"state_{k}": shape for k, shape in enumerate(states)},
        **{f"state_cotangent_{k}": shape for k, shape in enumerate(states)},
    }
    return {name: rng.normal(size=s).astype(dtype) for name, s in shapes.items()}


def live(case, dtype):
    """Weights, outputs, final states and all gradients of torch on packed rows."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.manual_seed(0)
    kind = {"rnn-tanh": torch.nn.RNN, "rnn-relu": torch.nn.RNN, "gru": torch.nn.GRU}
    options = {}
    if case.kind == "lstm-proj":
        options["proj_size"] = P
    if case.kind == "rnn-relu":
        options["nonlinearity"] = "relu"
    module = kind.get(case.kind, torch.nn.LSTM)(
        D,
        H,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        bias=case.use_bias,
        batch_first=True,
        dtype=getattr(torch, np.dtype(dtype).name),
        **options,
    )
    given = {name: torch.from_numpy(a) for name, a in inputs(case, dtype).items()}
    x = given["x"].requires_grad_()
    states = [s.requires_grad_() for k, s in given.items() if k.startswith("state_")]
    states = states[: len(states) // 2]
    present = torch.from_numpy(PRESENT)
    packed = pack_padded_sequence(
        x[present],
        torch.from_numpy(LENGTHS[PRESENT]),
        batch_first=True,
        enforce_sorted=False,
    )
    before = tuple(s[:, present].contiguous() for s in states)
    outputs, after = module(packed, before if case.has_cells else before[0])
    outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=T)
    after = after if case.has_cells else (after,)
    loss = (outputs * given["cotangent"][present]).sum()
    for k, state in enumerate(after):
        loss = loss + (state * given[f"state_cotangent_{k}"][:, present]).sum()
    loss.backward()
    results = {
        "outputs": outputs,
        "x_gradient": x.grad[present],
        **{f"final_{k}": state for k, state in enumerate(after)},
        **{f"state_gradient_{k}": s.grad[:, present] for k, s in enumerate(states)},
        **{f"weight/{name}": w for name, w in module.named_parameters()},
        **{f"gradient/{name}": w.grad for name, w in module.named_parameters()},
    }
    return {name: r.detach().numpy().copy() for name, r in results.items()}


def golden(case):
    """What `live` gave in float64 when the file was written."""
    prefix = f"{case}:"
    return {
        name.removeprefix(prefix): array
        for name, array in load_file(GOLDEN).items()
        if name.startswith(prefix)
    }


def main():
    GOLDEN.parent.mkdir(exist_ok=True)
    arrays = {
        f"{case}:{name}": np.ascontiguousarray(array)
        for case in GOLDEN_CASES
        for name, array in live(case, np.float64).items()
    }
    save_file(arrays, GOLDEN)


if __name__ == "__main__":
    main()
