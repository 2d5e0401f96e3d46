"""Whole networks on token ids, around any recurrent layer."""

from collections.abc import Sequence
from typing import get_args

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import ArrayLike

from jaxrnn import segments
from jaxrnn._validation import check_min, check_probability
from jaxrnn.calls import LayerModule, call_layer, layer_call, needs_variables
from jaxrnn.combinators import require_layer, supports_step
from jaxrnn.dropout import drop
from jaxrnn.types import Array, Float, Int, State, accumulation_dtype, sanitize_ids


class SequenceClassifier(LayerModule):
    """Classification or regression: logits, or predictions, for each sequence.

    An embedding, a recurrent encoder, pooling over time, and a linear output.

    Attributes:
        vocab_size: number of token ids.
        embed_features: features of the embedding.
        encoder: the layer that reads the embedded tokens.
        pooling: each gives one vector, and they stand side by side: the encoder's
            outputs at the `"first"` or `"last"` step, or their `"mean"` or `"max"` over
            all. A backward direction has read everything at the first step, a forward
            one at the last: with both directions, take both.
        dropout: probability of dropping a feature of the pooled vector, in training
            (rng stream `"dropout"`).
        word_dropout: probability of replacing a whole token by zeros, in training.
        num_classes: logits of a sequence; None for one logit, of yes against no. For
            regression, the logits are the predictions: `num_classes` numbers, or one;
            train them with the squared error.
        embed_init: makes the embedding, `[vocab_size, embed_features]`.

    >>> import jax
    >>> from jaxrnn import LSTM
    >>> model = SequenceClassifier(100, 16, LSTM(8, bidirectional=True))
    >>> tokens = jnp.array([[3, 1, 4], [1, 5, 0]])
    >>> logits, variables = model.init_with_output(
    ...     jax.random.key(0), tokens, lengths=jnp.array([3, 2])
    ... )
    >>> logits.shape
    (2,)
    """

    vocab_size: int
    embed_features: int
    encoder: nn.Module
    pooling: Sequence[segments.Pooling] = ("max", "mean")
    dropout: float = 0.0
    word_dropout: float = 0.0
    num_classes: int | None = None
    embed_init: Initializer = nn.initializers.normal(0.1)

    def __post_init__(self):
        _check(self)
        if self.num_classes is not None:
            check_min(1, num_classes=self.num_classes)
        check_probability(word_dropout=self.word_dropout)
        if isinstance(self.pooling, str):
            raise TypeError(
                f"pooling must be a tuple of names, got {self.pooling!r}: give "
                f"({self.pooling!r},)"
            )
        known = get_args(segments.Pooling)
        if not self.pooling or not {*self.pooling} <= {*known}:
            raise ValueError(
                f"pooling must be one or more of {[*known]}, got {self.pooling!r}"
            )
        object.__setattr__(self, "pooling", tuple(self.pooling))  # It is hashable.
        super().__post_init__()

    def setup(self):
        """Creates the submodules."""
        self.embed = nn.Embed(
            self.vocab_size, self.embed_features, embedding_init=self.embed_init
        )
        self.drop_words = nn.Dropout(self.word_dropout, broadcast_dims=(-1,))
        self.drop = nn.Dropout(self.dropout)
        self.output = nn.Dense(self.num_classes or 1)

    @layer_call
    def __call__(
        self,
        tokens: Int[ArrayLike, "b t"],
        lengths: Int[ArrayLike, "b"] | None = None,
        segment_ids: Int[ArrayLike, "b t"] | None = None,
        *,
        num_segments: int | None = None,
        train: bool = False,
    ) -> Float[Array, "b *s"] | Float[Array, "b *s c"]:
        """The logits of each row, or of each of the sequences that share it.

        With `num_segments` there is an axis for the sequences 1 to `num_segments` of a
        row; if None, a row holds one sequence, and there is no such axis. A sequence
        without steps has the logits of a vector of zeros.

        Raises:
            TypeError, ValueError: as the encoder does.

        >>> import jax
        >>> from jaxrnn import GRU
        >>> model = SequenceClassifier(9, 4, GRU(2))
        >>> tokens, ids = jnp.array([[5, 3, 7]]), jnp.array([[1, 2, 0]])
        >>> logits, _ = model.init_with_output(
        ...     jax.random.key(0), tokens, segment_ids=ids, num_segments=3
        ... )
        >>> logits.shape, float(logits[0, 2])  # there is no third
        ((1, 3), 0.0)
        """
        return self.from_embeddings(
            self.embed_tokens(tokens, train=train),
            lengths,
            segment_ids,
            num_segments=num_segments,
            train=train,
        )

    @needs_variables
    def embed_tokens(
        self, tokens: Int[ArrayLike, "b t"], *, train: bool = False
    ) -> Float[Array, "b t e"]:
        """The embeddings of the tokens, some of them zeros in training.

        Raises:
            ValueError: the tokens are not integers.

        >>> import jax
        >>> from jaxrnn import GRU
        >>> model, tokens = SequenceClassifier(9, 4, GRU(2)), jnp.array([[5, 3, 7]])
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> x = model.apply(variables, tokens, method="embed_tokens")
        >>> x.shape
        (1, 3, 4)
        """
        x = self.embed(_ids(tokens, self.vocab_size))
        return self.drop_words(x, deterministic=not train)

    @layer_call
    def from_embeddings(
        self,
        x: Float[ArrayLike, "b t e"],
        lengths: Int[ArrayLike, "b"] | None = None,
        segment_ids: Int[ArrayLike, "b t"] | None = None,
        *,
        num_segments: int | None = None,
        train: bool = False,
    ) -> Float[Array, "b *s"] | Float[Array, "b *s c"]:
        """The logits of embedded tokens; `__call__` is this after `embed_tokens`.

        With it a loss is a function of the embeddings, which can be differentiated and
        perturbed: see `jaxrnn.adversarial`.

        Raises:
            TypeError, ValueError: as the encoder does.

        >>> import jax
        >>> from jaxrnn import GRU
        >>> model, tokens = SequenceClassifier(9, 4, GRU(2)), jnp.array([[5, 3, 7]])
        >>> logits, variables = model.init_with_output(jax.random.key(0), tokens)
        >>> x = model.apply(variables, tokens, method="embed_tokens")
        >>> bool(logits == model.apply(variables, x, method="from_embeddings"))
        True
        """
        x = jnp.asarray(x)
        outputs, _ = call_layer(self.encoder, x, lengths, segment_ids, train=train)
        ids = segments.resolve(x.shape[:-1], lengths, segment_ids)
        if ids is None:
            ids = jnp.ones(x.shape[:-1], jnp.int32)
        number = 1 if num_segments is None else num_segments
        pooled = [segments.pool(outputs, ids, how, number) for how in self.pooling]
        pooled = self.drop(jnp.concatenate(pooled, axis=-1), deterministic=not train)
        if num_segments is None:
            pooled = pooled.squeeze(axis=-2)
        logits = self.output(pooled.astype(accumulation_dtype(pooled.dtype)))
        return logits.squeeze(-1) if self.num_classes is None else logits


class LanguageModel(LayerModule):
    """The logits of the token that follows each one.

    An embedding, a recurrent encoder, and a linear output. It has the three methods of
    a layer, with tokens for inputs. The encoder must support `step`: one that reads in
    reverse has seen the tokens it should predict.

    Attributes:
        vocab_size: number of token ids.
        embed_features: features of the embedding.
        encoder: the layer that reads the embedded tokens.
        dropout: probability of dropping a feature of the encoder's outputs, in training
            (rng stream `"dropout"`).
        locked_dropout: as in a `Stack`.
        tie_embeddings: the embedding is the output's matrix as well (Press and Wolf,
            2017; Inan et al., 2017); a linear layer comes before it where the encoder
            has not as many outputs as the embedding has features.
        embed_init: makes the embedding, `[vocab_size, embed_features]`.

    >>> import jax
    >>> from jaxrnn import LSTM
    >>> model = LanguageModel(100, 16, LSTM(8))
    >>> tokens = jnp.array([[3, 1, 4], [1, 5, 9]])
    >>> (logits, state), variables = model.init_with_output(jax.random.key(0), tokens)
    >>> logits.shape, state[0].h.shape
    ((2, 3, 100), (2, 8))
    """

    vocab_size: int
    embed_features: int
    encoder: nn.Module
    dropout: float = 0.0
    locked_dropout: bool = False
    tie_embeddings: bool = False
    embed_init: Initializer = nn.initializers.normal(0.1)

    def __post_init__(self):
        _check(self)
        if not supports_step(self.encoder):
            raise ValueError(
                "encoder must read forwards alone: one that reads in reverse has seen "
                "the tokens it should predict"
            )
        super().__post_init__()

    def setup(self):
        """Creates the submodules."""
        self.embed = nn.Embed(
            self.vocab_size, self.embed_features, embedding_init=self.embed_init
        )
        self.drop = nn.Dropout(
            self.dropout, broadcast_dims=(-2,) if self.locked_dropout else ()
        )
        if self.tie_embeddings:
            self.project = nn.Dense(self.embed_features)
            self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        else:
            self.output = nn.Dense(self.vocab_size)

    @layer_call
    def __call__(
        self,
        tokens: Int[ArrayLike, "*b t"],
        lengths: Int[ArrayLike, "*b"] | None = None,
        segment_ids: Int[ArrayLike, "*b t"] | None = None,
        *,
        state: State | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*b t v"], State]:
        """The logits after every step, and the state after the last one.

        Lengths, segment ids and state are the encoder's (see `Recurrent.__call__`). At
        padding the logits are those of an output of zeros; a token that is not in the
        vocabulary makes NaN.

        Raises:
            TypeError, ValueError: as the encoder does.

        >>> import jax
        >>> from jaxrnn import GRU
        >>> tokens, lengths = jnp.array([[2, 1]]), jnp.array([1])
        >>> (logits, state), variables = LanguageModel(3, 4, GRU(2)).init_with_output(
        ...     jax.random.key(0), tokens, lengths=lengths
        ... )
        >>> logits.shape, logits[0, 1].tolist()
        ((1, 2, 3), [0.0, 0.0, 0.0])
        """
        x, after = self.pre_logits(
            tokens, lengths, segment_ids, state=state, train=train
        )
        return self._logits(x), after

    @layer_call
    def pre_logits(
        self,
        tokens: Int[ArrayLike, "*b t"],
        lengths: Int[ArrayLike, "*b"] | None = None,
        segment_ids: Int[ArrayLike, "*b t"] | None = None,
        *,
        state: State | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*b t h"], State]:
        """What `__call__` multiplies with the output's matrix, and the last state.

        With it a loss need not compute the logits of all tokens: see
        `jaxrnn.sampled_softmax`. With tied embeddings it has their features.

        Raises:
            TypeError, ValueError: as the encoder does.

        >>> import jax
        >>> from jaxrnn import GRU
        >>> tokens, model = jnp.array([[2, 1]]), LanguageModel(9, 4, GRU(2))
        >>> (logits, _), variables = model.init_with_output(jax.random.key(0), tokens)
        >>> x, _ = model.apply(variables, tokens, method="pre_logits")
        >>> x.shape
        (1, 2, 2)
        >>> kernel = variables["params"]["output"]["kernel"]  # the bias is zero
        >>> bool(jnp.allclose(x @ kernel, logits, atol=1e-6))
        True
        """
        x = self.embed(_ids(tokens, self.vocab_size))
        outputs, after = call_layer(
            self.encoder, x, lengths, segment_ids, state=state, train=train
        )
        outputs = drop(self, self.drop, outputs, segment_ids, train=train)
        return self._project(outputs), after

    @needs_variables
    def input_projection_table(self) -> Float[Array, "v g"]:
        """The embedding of every token after the first layer's input projection.

        With it `step` looks up a row instead of multiplying, which pays off in
        generation.

        >>> import jax
        >>> from jaxrnn import GRU
        >>> model = LanguageModel(100, 16, GRU(8))
        >>> key, method = jax.random.key(0), "input_projection_table"
        >>> model.init_with_output(key, method=method)[0].shape
        (100, 24)
        """
        return self.encoder.project(self.embed.embedding)

    @needs_variables
    def step(
        self,
        tokens: Int[ArrayLike, "*b"],
        state: State,
        input_projection_table: Float[Array, "v g"] | None = None,
    ) -> tuple[Float[Array, "*b v"], State]:
        """The logits after one more token of each row, and the state after it.

        >>> import jax
        >>> from jaxrnn import GRU, sampling
        >>> model = LanguageModel(100, 16, GRU(8))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> table = model.apply(variables, method="input_projection_table")
        >>> def step(params, tokens, state):
        ...     return model.apply(params[0], tokens, state, params[1], method="step")
        >>> keys = jax.random.split(jax.random.key(0), 1)
        >>> state, params = model.initial_state((1,)), (variables, table)
        >>> drawn = sampling.generate(step, state, [[3]], 5, keys, params=params)
        >>> drawn.tokens.shape
        (1, 5)
        """
        tokens = _ids(tokens, self.vocab_size)
        if input_projection_table is None:
            output, state = self.encoder.step(self.embed(tokens), state)
        else:
            x_gates = jnp.take(
                input_projection_table, tokens, axis=0
            )  # NaN outside the vocabulary
            output, state = self.encoder.step(x_gates, state, projected=True)
        return self._logits(self._project(output)), state

    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The state before anything was read.

        >>> from jaxrnn import GRU
        >>> LanguageModel(100, 16, GRU(2)).initial_state((1,))
        (Array([[0., 0.]], dtype=float32),)
        """
        return self.encoder.initial_state(batch_shape)

    @nn.nowrap
    def _project(self, outputs: Float[Array, "*b h"]) -> Float[Array, "*b e"]:
        outputs = outputs.astype(accumulation_dtype(outputs.dtype))
        if self.tie_embeddings and outputs.shape[-1] != self.embed_features:
            return self.project(outputs)
        return outputs

    @nn.nowrap
    def _logits(self, x: Float[Array, "*b e"]) -> Float[Array, "*b v"]:
        if not self.tie_embeddings:
            return self.output(x)
        logits = self.embed.attend(x)
        return logits + jnp.expand_dims(self.bias, range(logits.ndim - 1))


def _check(model: SequenceClassifier | LanguageModel) -> None:
    check_min(1, vocab_size=model.vocab_size)
    check_min(1, embed_features=model.embed_features)
    check_probability(dropout=model.dropout)
    require_layer("encoder", model.encoder)


def _ids(tokens: Int[ArrayLike, "*b t"], vocab_size: int) -> Int[Array, "*b t"]:
    """For a lookup that makes NaN of ids outside the vocabulary."""
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    return sanitize_ids(tokens, vocab_size)
