"""What a budget buys: the shape, length, batch and rate of a language model for so much time, on this machine and text.

Two laws fitted to our own runs decide: how long a step takes at a shape, and what loss a shape reaches after so many
tokens of such a text. `benchmarks/scaling.py` fits them again; the runs lie in `benchmarks/results/scaling.jsonl`.
Of a ladder of shapes the one with the lowest expected loss is taken. Keys that the recipe names stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from luban.data.prepare import Prepared
from luban.data.shards import TokenShards
from luban.learner import whole_steps
from luban.metrics.ngrams import MOST_TOKENS, ngram_loss
from luban.model_folder import LoadedModel
from luban.recipe import BUDGETS
from luban.tasks.base import Choice, Machine
from luban.text_recipe import LanguageModelRecipe

LADDER = (
    (2, 48), (2, 64), (3, 96), (4, 128), (4, 192), (5, 256), (6, 320), (6, 384), (8, 512), (10, 640), (12, 768),
    (16, 1024), (20, 1280), (24, 1536), (24, 2048),
)  # fmt: skip
"""Blocks and width; up to (5, 256) they were fitted, above they follow the same proportions."""
LAW = (0.5144, 0.2178, 0.1505, 0.1841, 0.3893, 12.82, 4.504e-05)
"""Constants of `loss_law`, as `benchmarks/scaling.py fit` prints them."""
FITTED_STEPS = 200
"""The runs that the law was fitted to have this many steps and more; shorter ones have hardly begun."""
LEAST_HALVED, MOST_IN_HALVES = 256, 2_000_000
"""The shortest window that first steps halve, and the most tokens of a training that has such steps."""
COUNTED_TOKENS = 500_000
"""How much of a text the n-gram model counts: enough to tell texts apart, in a second."""
_NEAR, _FEWER = 1.001, 0.94
_PIECE_TOKENS = 4096
_MEMORY_SHARE = 0.7
_BYTES_PER_WEIGHT = 20.0
"""Weights, gradients, two moments, and what a checkpoint and the optimizer hold in between, in float32."""


@dataclass(frozen=True)
class Text:
    """What the laws know of a text.

    Attributes:
        tokens: of the training split. vocab_size: of its tokenizer.
        ngram: held-out loss in nats per token of the best n-gram model.
        tokens_per_character: in the held-out text. document_tokens: in a document, on average.
    """

    tokens: int
    vocab_size: int
    ngram: float
    tokens_per_character: float
    document_tokens: float


@dataclass(frozen=True)
class Shape:
    """What is chosen together: blocks, width and heads; tokens of a window, windows of a step."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int

    @property
    def step_tokens(self) -> int:
        """Tokens in a step."""
        return self.batch * self.length


@dataclass(frozen=True)
class Offer:
    """What a shape would come to within the budget.

    Attributes:
        tokens: what it is trained on. seconds: how long that takes. loss: expected, held out, nats per token.
    """

    shape: Shape
    learning_rate: float
    tokens: int
    seconds: float
    loss: float


@lru_cache(maxsize=1)
def text_of(data: Prepared) -> Text:
    """Measure a prepared text; takes a second or two, so the choice and the forecast of a run share it."""
    train, held_out = data.train, data.validation
    asked, counted = _spread(held_out), _spread(train)
    known = min(len(asked), len(counted)) >= MOST_TOKENS
    return Text(
        tokens=len(train),
        vocab_size=train.vocab_size,
        ngram=ngram_loss(counted, asked, train.vocab_size) if known else math.log(train.vocab_size),
        tokens_per_character=len(held_out) / max(1, held_out.characters),
        document_tokens=len(train) / max(1, len(train.documents)),
    )


def _spread(shards: TokenShards) -> npt.NDArray[np.int64]:
    """Return about half a million tokens of a split at most, in pieces from all over it: texts change on the way."""
    pieces = COUNTED_TOKENS // _PIECE_TOKENS
    if len(shards) <= COUNTED_TOKENS:
        return shards.read(0, len(shards))
    starts = [(len(shards) - _PIECE_TOKENS) * piece // (pieces - 1) for piece in range(pieces)]
    return np.concatenate([shards.read(start, start + _PIECE_TOKENS) for start in starts])


def expected_loss(text: Text, *, layers: int, width: int, tokens: int) -> float:
    """Return the held-out loss in nats per token that a shape reaches after so many tokens, repeats included."""
    return loss_law(LAW, text, layers, width, tokens)


def loss_law(constants: Sequence[float], text: Text, layers: int, width: int, tokens: int) -> float:
    """Return the loss in nats per token by a law with these constants.

    The form is that of J. Hoffmann et al., "Training compute-optimal large language models" (2022): a floor, a term
    of the model's size and a term of the data's, here in units of what an n-gram model reaches on the same text.
    Repeated tokens are worth less than new ones, after N. Muennighoff et al., "Scaling data-constrained language
    models" (2023). A last term is of our own runs: many weights that see few tokens often learn them by heart, and
    what that costs grows with the square of weights times tokens seen over the square of the text's tokens.

    Arguments:
        constants: floor; factor and power of the size; factor and power of the data; how many repeats a text is worth;
            factor of learning by heart.
    """
    floor, size, size_power, data, data_power, worth, by_heart = constants
    weights = 12.0 * layers * float(width) ** 2 + text.vocab_size * width
    repeats = max(0.0, tokens / text.tokens - 1.0)
    fresh = (min(tokens, text.tokens) - text.tokens * worth * math.expm1(-repeats / worth)) / 1e6
    memorised = weights * tokens / float(text.tokens) ** 2
    loss = floor + size * (weights / 1e6) ** -size_power + data * fresh**-data_power + by_heart * memorised**2
    return float(text.ngram * loss)


def step_seconds(
    shape: Shape,
    vocab_size: int,
    peak_flops: float,
    *,
    kernels: bool = False,
    float32_flops: float | None = None,
) -> float:
    """Return how long a step takes on a CPU, Muon included: a sum of work over the measured matrix rate.

    Each kind of work runs at its own share of that rate, fitted to 40 measured steps of 10 to 26 M parameters;
    the mean error was 4 %, the largest 13 %. With kernels the work between products was fitted again, to 23 shapes
    with and without (mean error of the ratio 5 %, the largest 18 %).

    Arguments:
        peak_flops: the rate of products. float32_flops: in float32, by which what lies between them goes too, where
            products are faster in another type; None: the same.
    """
    layers, width, tokens = shape.layers, float(shape.width), shape.step_tokens
    inner = math.ceil(8.0 * width / 3.0 / 32.0) * 32.0
    products = 6.0 * tokens * (layers * (4.0 * width**2 + 3.0 * width * inner) + vocab_size * width)
    attention = 12.0 * tokens * shape.length * layers * width
    elementwise = 1e3 * tokens * layers * width
    logits = 1e3 * tokens * vocab_size
    orthogonalising = 16.0 * layers * (6.0 * width**3 + 3.0 * width**2 * inner + 1.5 * width**3)
    multiplied = 0.90 * products + 0.245 * attention + 0.88 * orthogonalising
    between = (5.4 if kernels else 11.2) * elementwise + 0.34 * logits
    return float(multiplied / peak_flops + between / (float32_flops or peak_flops) + 0.015)


def learning_rate_of(optimizer: str, width: int, step_tokens: int) -> float:
    """Return the highest rate: for Muon 1.3 / width at 1,024 tokens a step, and more for larger steps.

    Fitted for Muon; AdamW takes half, the others what is usual.
    """
    if optimizer in ("sgd", "rmsprop"):
        return {"sgd": 0.1, "rmsprop": 1e-3}[optimizer]
    rate = min(2e-2, 1.3 / width) * min(2.0, math.sqrt(step_tokens / 1024.0))
    return float(f"{rate * (1.0 if optimizer == 'muon' else 0.5):.2g}")


def offers(recipe: LanguageModelRecipe, text: Text, machine: Machine) -> list[Offer]:
    """Return what each rung of the ladder would come to, smallest first; what the recipe names is kept.

    Rungs that would not fit in memory are left out, but never all.
    """
    model = recipe.model
    # A head has an even number of dimensions, so a width is a multiple of twice the heads that the recipe names.
    step = 2 * (model.heads or 1) if model.head_dim is None else 1
    rungs = {
        (model.layers or layers, model.width or math.ceil(width / step) * step) for layers, width in LADDER
    }
    made = [
        _offer(recipe, text, machine, layers, width)
        for layers, width in sorted(rungs, key=lambda rung: rung[0] * rung[1] ** 2)
    ]
    most = _MEMORY_SHARE * machine.memory_bytes
    return [offer for offer in made if _memory(offer.shape, text.vocab_size) <= most] or made[:1]


def best(made: list[Offer]) -> Offer:
    """Return the smallest offer whose expected loss is within a thousandth of the lowest."""
    least = min(offer.loss for offer in made)
    return next(offer for offer in made if offer.loss <= _NEAR * least)


def choose(
    recipe: LanguageModelRecipe, data: Prepared, machine: Machine, start: LoadedModel | None = None
) -> dict[str, Choice]:
    """Choose a value for each open key of the recipe, with the reason.

    Arguments:
        start: the model that training starts from, whose shape then is given.
    """
    train = recipe.train
    open_keys = {
        "data.length": recipe.data.length,
        "train.batch": train.batch,
        "train.learning_rate": train.learning_rate,
    }
    if start is None:
        open_keys |= {
            "model.layers": recipe.model.layers,
            "model.width": recipe.model.width,
            "model.heads": recipe.model.heads,
        }
    shape_is_given = all(value is not None for value in open_keys.values())
    if shape_is_given and (recipe.data.short_steps is not None or start is not None):
        return {}
    text = text_of(data)
    if start is not None:
        offer = _going_on(recipe, text, machine, start)
    elif train.minutes is not None:
        offer = best(offers(recipe, text, machine))
    else:
        offer = for_tokens(recipe, text, machine)
    shape = offer.shape
    values: dict[str, int | float] = {
        "model.layers": shape.layers,
        "model.width": shape.width,
        "model.heads": shape.heads,
        "data.length": shape.length,
        "train.batch": shape.batch,
        "train.learning_rate": offer.learning_rate,
    }
    why = _why(recipe, text, machine, offer, started=start is not None)
    chosen = {key: Choice(values[key], why[key]) for key, value in open_keys.items() if value is None}
    if recipe.data.short_steps is None and start is None and (short := short_steps_of(offer, train.steps)):
        chosen["data.short_steps"] = Choice(
            short,
            f"about a third of the tokens in windows of {shape.length // 2}: while little is learnt, twice as many "
            "steps teach more than a longer context",
        )
    if not shape_is_given and train.minutes is not None and offer.seconds < 0.9 * 60.0 * train.minutes:
        chosen["train.tokens"] = Choice(
            offer.tokens,
            f"{offer.tokens / text.tokens:.2g} times through {text.tokens:,} tokens is all that helps, then they are "
            f"learnt by heart: about {offer.seconds / 60.0:.2g} of {train.minutes:g} minutes; more text would use them",
        )
    return chosen


def heads_of(width: int, multiple: int = 1) -> int:
    """Return how many heads of 32 dimensions, or of 64 from a width of 256 on, a width has.

    Arguments:
        multiple: what the number is a multiple of: the heads of keys and values.

    Example:
        >>> heads_of(96), heads_of(512), heads_of(100), heads_of(96, multiple=2)
        (3, 8, 5, 4)
    """
    size = 64 if width >= 256 else 32
    sizes = [d for d in range(2, width + 1, 2) if width % d == 0 and (width // d) % multiple == 0]
    return width // min(sizes, key=lambda d: (abs(d - size), d)) if sizes else multiple


def length_of(tokens: int, text: Text) -> int:
    """Return the window's length: longer ones for longer training, and none much longer than a document."""
    for_budget = 128 if tokens < 20_000_000 else 256 if tokens < 200_000_000 else 512
    for_text = max(64, 1 << math.ceil(math.log2(max(2.0, 2.0 * text.document_tokens))))
    return int(min(for_budget, for_text))


def batch_of(tokens: int, length: int) -> int:
    """Return windows in a step: steps of 1,024 tokens, and twice as many for every four times the training."""
    doublings = max(0, round(0.5 * math.log2(max(1, tokens) / 5_000_000)))
    return max(1, (1024 << doublings) // length)


def short_steps_of(offer: Offer, steps: int | None = None) -> int:
    """Return how many first steps read half windows: those of a third of the tokens, where that was seen to help.

    Measured for windows of 256: the less is read in all, the more it helps, and at 2.4 million tokens it costs
    (benchmarks/LOG.md).

    Arguments:
        steps: the budget, where it is one of steps; of these it is every other.
    """
    shape = offer.shape
    if shape.length < LEAST_HALVED or shape.length % 2 or offer.tokens > MOST_IN_HALVES:
        return 0
    if steps is not None:
        return steps // 2
    return round(offer.tokens / 3.0 / (0.5 * shape.step_tokens))


def _offer(recipe: LanguageModelRecipe, text: Text, machine: Machine, layers: int, width: int) -> Offer:
    """Return what a rung comes to; batch and length follow its tokens, and its tokens follow them."""
    train, model = recipe.train, recipe.model
    length, batch = recipe.data.length or 128, train.batch or 8
    heads = model.heads or heads_of(width, model.kv_heads or 1)
    whole = (model.head_dim or width // heads) % 32 == 0 and width % 16 == 0
    kernels = machine.kernels and whole and model.layout not in ("gpt2", "qwen2")
    for _ in range(3):
        shape = Shape(layers, width, heads, length, batch)
        step = step_seconds(
            shape, text.vocab_size, machine.peak_flops, kernels=kernels, float32_flops=machine.float32_flops
        )
        tokens = _tokens(recipe, text, shape, step)
        length = recipe.data.length or length_of(tokens, text)
        batch = train.batch or batch_of(tokens, length)
    rate = train.learning_rate or learning_rate_of(train.optimizer, width, shape.step_tokens)
    loss = expected_loss(text, layers=layers, width=width, tokens=tokens)
    return Offer(shape, rate, tokens, tokens / shape.step_tokens * step, loss)


def _tokens(recipe: LanguageModelRecipe, text: Text, shape: Shape, step: float) -> int:
    """Return how many tokens the budget is; of minutes, no more than lower the expected loss."""
    train = recipe.train
    if train.tokens is not None:
        return train.tokens
    if train.steps is not None:
        return int(whole_steps(train.steps, recipe.data.short_steps or 0) * shape.step_tokens)
    if train.epochs is not None:
        return max(1, round(train.epochs * text.tokens))
    assert train.minutes is not None, "a recipe has a budget"
    within = max(1, int(60.0 * train.minutes / step * shape.step_tokens))
    once = min(within, text.tokens)
    parts = math.ceil(math.log(within / once) / -math.log(_FEWER))
    return min(
        (max(once, int(within * _FEWER**part)) for part in range(parts + 1)),
        key=lambda tokens: expected_loss(text, layers=shape.layers, width=shape.width, tokens=tokens),
    )


def for_tokens(recipe: LanguageModelRecipe, text: Text, machine: Machine) -> Offer:
    """Return the rung for a budget of steps or tokens: the largest that would be chosen for the time it takes."""
    rungs = offers(recipe, text, machine)
    for offer in reversed(rungs):
        train = recipe.train.model_copy(
            update={**dict.fromkeys(BUDGETS), "minutes": max(offer.seconds, 1.0) / 60.0}
        )
        in_time = best(offers(recipe.model_copy(update={"train": train}), text, machine))
        if in_time.shape.width >= offer.shape.width:
            return offer
    return rungs[0]


def _going_on(recipe: LanguageModelRecipe, text: Text, machine: Machine, start: LoadedModel) -> Offer:
    """Return how a model that is there already is trained on: its own length, and a third of the rate."""
    config = start.module.config
    own = start.task_state.get("length")
    known = isinstance(own, int) and 2 <= own <= config.max_length
    length = recipe.data.length or (own if known else min(config.max_length, 256))
    given = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"length": length}),
            "model": recipe.model.model_copy(update={"heads": config.heads}),
        }
    )
    offer = _offer(given, text, machine, config.layers, config.width)
    rate = recipe.train.learning_rate or float(f"{offer.learning_rate / 3.0:.2g}")
    return Offer(offer.shape, rate, offer.tokens, offer.seconds, offer.loss)


def _memory(shape: Shape, vocab_size: int) -> float:
    """Return about how many bytes training holds: what belongs to weights, and a micro-batch's activations."""
    weights = 12.0 * shape.layers * float(shape.width) ** 2 + vocab_size * shape.width
    activations = 4.0 * min(shape.step_tokens, 16_384) * shape.width * shape.layers * 34.0
    return _BYTES_PER_WEIGHT * weights + activations


def _why(
    recipe: LanguageModelRecipe, text: Text, machine: Machine, offer: Offer, *, started: bool
) -> dict[str, str]:
    """Say of each key in one sentence what its choice rests on."""
    train, shape = recipe.train, offer.shape
    budget = (
        f"{train.minutes:g} minutes at {machine.peak_flops / 1e9:.0f} GFLOP/s"
        if train.minutes is not None
        else f"{train.tokens:,} tokens"
        if train.tokens is not None
        else f"{train.epochs:g} epochs"
        if train.epochs is not None
        else f"{train.steps:,} steps"
    )
    times = offer.tokens / max(1, text.tokens)
    loss = offer.loss * text.tokens_per_character
    size = (
        f"least expected loss for {budget} on this text of {text.tokens:,} tokens: about {offer.tokens:,} tokens seen "
        f"({times:.2g} times through), {loss:.2f} nats per character"
    )
    kind = train.optimizer
    rate = f"fitted: {kind} learns best at a rate that falls with the width, here {shape.width}"
    return {
        "model.layers": size,
        "model.width": size,
        "model.heads": size,
        "data.length": "what the model it starts from reads"
        if started
        else f"enough for about {offer.tokens:,} tokens of training and documents of {text.document_tokens:,.0f}",
        "train.batch": f"steps of {shape.step_tokens:,} tokens: in so short a training many small steps learn most",
        "train.learning_rate": f"a third of what a new model gets ({rate})" if started else rate,
    }
