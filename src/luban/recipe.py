"""What every recipe may say, typed. `luban.recipe_reader` reads one from YAML, Python or the command line."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from luban.errors import RecipeError

T = TypeVar("T")
_STEPS = re.compile(r"[0-9]{1,18}")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are checked, nothing changes after reading.

    The text under a field is its description: `docs/recipes.md` is made from it.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where a number or a text stands: `near_duplicates: false` is not 0.0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = (annotation, *get_args(annotation))
        if isinstance(value, bool) and bool not in kinds:
            off = "; null switches it off" if type(None) in kinds else ""
            raise ValueError(f"true and false mean nothing here{off}")
        return value


class Interval(BaseModel):
    """Every so many steps, or every so many seconds; written `200`, `30s`, `5m` or `1h`.

    Example:
        >>> Interval.parse("5m").seconds, Interval.parse(200).steps
        (300.0, 200)
    """

    model_config = ConfigDict(frozen=True)
    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: object) -> Interval:
        """Read an interval as a recipe writes it."""
        if isinstance(value, Interval):
            return value
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
        if _STEPS.fullmatch(text) and int(text) > 0:
            return cls(steps=int(text))
        if match := _DURATION.fullmatch(text):
            seconds = float(match[1]) * _SECONDS[match[2]]
            if 0 < seconds < math.inf:
                return cls(seconds=seconds)
        raise ValueError("write a number of steps (200) or a time (30s, 5m, 1h)")

    def __str__(self) -> str:
        if self.steps is not None:
            return str(self.steps)
        # All digits and no exponent, so that what is written reads back as the same number.
        return f"{Decimal(repr(self.seconds)):f}".removesuffix(".0") + "s"


def _written(interval: Interval) -> int | str:
    return interval.steps if interval.steps is not None else str(interval)


def settled(value: T | None, key: str) -> T:
    """Return the value of a key that a recipe may leave open, once it is chosen.

    Raises:
        RecipeError: when nothing chose it.

    Example:
        >>> settled(8, "train.batch")
        8
    """
    if value is None:
        raise RecipeError(f"{key} is open, and nothing has chosen it", fix=f"give {key}")
    return value


Every = Annotated[Interval, BeforeValidator(Interval.parse), PlainSerializer(_written)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
FoldCount = Annotated[int, Field(ge=2, le=100)]
FoldNumber = Annotated[int, Field(ge=0)]
Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]

BUDGETS = ("minutes", "epochs", "tokens", "steps")
"""What a training may be given of; a recipe names exactly one."""


def check_folds(folds: int | None, fold: int | None, *, of: str, judge: str, given: object) -> None:
    """Refuse a number that is no fold's, and folds beside data that judges already.

    Arguments:
        of: the key of the data that is cut into folds. judge: that of the data a fold stands in for.
        given: what the recipe has there.

    Raises:
        ValueError: as a validator does.
    """
    if folds is not None and given is not None:
        raise ValueError(f"folds are parts of {of}, each the {judge} of one run; leave data.{judge} out")
    if fold is not None and (folds is None or fold >= folds):
        raise ValueError(f"fold counts from 0 to folds - 1 ({folds} folds)")


class ParameterGroup(Section):
    """Parameters that learn at a rate of their own; of several groups that match one, the first has it."""

    match: str
    """Pattern of parameter names, such as `*embed*`; `*` is any characters, dots too."""
    rate: Annotated[float, Field(gt=0.0)] = 1.0
    """Their learning rate, as a multiple of `train.learning_rate`."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """Of the matrices among them; null means `train.weight_decay`."""


class TrainRecipe(Section):
    """How training goes; the same for every task. Exactly one of minutes, epochs, tokens and steps is the budget."""

    minutes: Annotated[float, Field(gt=0.0)] | None = None
    """Budget in minutes of the training clock: steps, evaluations and checkpoints, not preparation."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Budget in passes over the training data; the step that completes it is the last."""
    tokens: Positive | None = None
    """Budget in tokens seen; the step that reaches it is the last."""
    steps: Positive | None = None
    """Budget in optimizer steps."""
    batch: Positive | None = None
    """Windows of `data.length` tokens in a step, over all micro-batches and processes; null means chosen."""
    micro_batch: Positive | None = None
    """Windows computed at once; null means about 16,384 tokens. The gradient is the same for every split."""
    optimizer: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] = "muon"
    """`muon` takes the matrices and filters of hidden layers and leaves all else to AdamW."""
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """The highest rate of the schedule; Muon's is in AdamW's units. null means chosen."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """On matrices only; decoupled from the gradient with adamw and muon, added to it with the others."""
    l1: Annotated[float, Field(ge=0.0)] = 0.0
    """Adds this times the sum of absolute weights to the loss per term, on matrices only; the loss in the logs is
    without it."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Of sgd and muon."""
    nesterov: bool = True
    """Nesterov's form of that momentum."""
    hold_norms: bool = False
    """With muon: a step turns each matrix and filter bank by 10 times the rate and leaves its length as it was, so
    that weight decay has nothing to do; for layers that a norm follows."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the means of gradients and of their squares, for adam, adamw and muon's AdamW; rmsprop takes
    the second."""
    groups: list[ParameterGroup] = []
    """Parameters with a learning rate or a weight decay of their own; all others have the recipe's."""
    freeze: Patterns = []
    """Patterns of parameter names, such as `*embed*`, that stay as they start; a norm all of whose parameters
    are frozen keeps its running statistics too."""
    schedule: Literal["constant", "linear", "cosine", "wsd", "plateau"] = "wsd"
    """`wsd` is warm-up, stable, then straight down over `decay`; `linear` and `cosine` come down from the end
    of the warm-up on; `plateau` comes down when evaluations stop getting better."""
    warmup: Fraction = 0.02
    """Share of the budget in which the rate rises from a tenth to all of it."""
    decay: Fraction = 0.5
    """With `wsd`: share of the budget, at its end, in which the rate comes down."""
    final_rate: Fraction = 0.0
    """Where the rate comes down to, as a share of `learning_rate`; with `plateau`, the lowest it may reach."""
    plateau_patience: Positive = 3
    """With `plateau`: so many evaluations in a row without a better primary figure bring the rate down."""
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """With `plateau`: what the rate is multiplied by then."""
    clip: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Longest gradient (2-norm over all parameters); a longer one is shortened to it. null clips nothing."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When a loss or a gradient is NaN or infinite, the step is not applied: `stop` ends the run there, `skip`
    leaves the step out, counts it, and ends the run at the fifth in a row."""
    on_out_of_memory: Literal["stop", "halve"] = "stop"
    """When memory does not suffice for a micro-batch: `stop` ends the run and names a smaller one, `halve` does
    the step again, and the rest of the run, in micro-batches of half as many windows. The batch of a step stays
    the same, its gradient too but for rounding and for what dropout draws."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` takes bfloat16 only where it is measured 1.25 times as fast as float32; for matrix products narrower than
    64 never."""
    kernels: Literal["auto", "on", "off"] = "auto"
    """Train by luban's own kernels in place of torch's operations: `auto` where the network takes them (a decoder, on a
    CPU) and there is a GCC to compile them, once, in two to three seconds; `on` ends a run that cannot have them."""
    compile: Literal["auto", "on", "off"] = "auto"
    """`auto` compiles a language model that trains without kernels, where the budget is long enough to win back twice
    the time that compiling takes."""
    patience: Positive | None = None
    """Stop after so many evaluations in a row without a better primary figure, and keep the best model; null
    never stops."""
    keep_best: bool = False
    """End with the model of the best evaluation instead of the last one; `patience` does so in any case."""
    target: float | None = None
    """Stop when an evaluation's primary figure is this good; null trains on."""
    evaluate_every: Every | None = None
    """A number of steps (`200`) or a time (`30s`, `5m`, `1h`) between evaluations on about 16,000 held-out
    tokens; null means ten over the budget."""
    checkpoint_every: Every = Interval(seconds=60.0)
    """A number of steps or a time between checkpoints; one is also written at the end and when a signal asks
    to stop."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest checkpoints stay; with `keep_best` or `patience` the best one stays besides."""
    loggers: list[Literal["tensorboard", "mlflow"]] = []
    """Write the figures of metrics.jsonl to these as well; each is an extra to install."""
    seed: int = 0
    """Of the initial weights, the order of the text, dropout and the samples."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        named = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"give exactly one budget of {', '.join(BUDGETS)}; received {named or 'none'}")
        return self

    @model_validator(mode="after")
    def _kernels_or_compiler(self) -> Self:
        if self.kernels == "on" and self.compile == "on":
            raise ValueError("what is compiled uses no kernels: set kernels or compile to auto")
        return self

    @model_validator(mode="after")
    def _holds_with_muon(self) -> Self:
        if self.hold_norms and self.optimizer != "muon":
            raise ValueError(f"hold_norms is muon's; received optimizer {self.optimizer}")
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint stays and gives the model at the end."""
        return self.keep_best or self.patience is not None


class About(Section):
    """What `luban recipes` shows of a shipped recipe."""

    makes: str = ""
    """What the recipe makes."""
    data: str = ""
    """On what data."""
    time: str = ""
    """In what time."""


class Recipe(Section):
    """The parts every recipe has; a task narrows `data`, `model` and `evaluate` to its own sections."""

    task: str
    """What is learned."""
    about: About = About()
    """What `luban recipes` shows; training does not read it."""
    train: TrainRecipe
    """How training goes."""
