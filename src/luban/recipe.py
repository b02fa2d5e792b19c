"""What a recipe may say, typed. `luban.recipe_reader` reads one from YAML, Python or the command line."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Literal, Self, get_args

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

_STEPS = re.compile(r"[0-9]{1,18}")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are checked, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

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


Every = Annotated[Interval, BeforeValidator(Interval.parse), PlainSerializer(_written)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]


class CleanRecipe(Section):
    """Steps that clean text; each can be switched off, each is counted with examples in the data report."""

    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    control_characters: bool = True
    min_characters: Annotated[int, Field(ge=0)] = 1
    max_characters: Positive | None = None
    max_repetition: Fraction | None = None
    max_symbols: Fraction | None = None
    language: Literal["en", "zh"] | None = None
    min_language_share: Fraction = 0.5
    exact_duplicates: bool = True
    near_duplicates: Fraction | None = 0.85
    mask_personal: bool = False


class TextData(Section):
    """Where text comes from and how it becomes tokens."""

    source: str | list[str]
    validation: str | list[str] | None = None
    text: str = "text"
    document: Literal["auto", "file", "passage", "line"] = "auto"
    on_bad_row: Literal["error", "skip", "quarantine"] = "quarantine"
    max_row_bytes: Positive = 10_000_000
    clean: CleanRecipe | None = CleanRecipe()
    split: Literal["document", "tail"] = "document"
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    tokenizer: str = "bpe"
    vocab_size: Annotated[int, Field(ge=2)] = 4096
    byte_fallback: bool = True
    length: Annotated[int, Field(ge=2)] = 256
    attention: Literal["stream", "document"] = "stream"
    workers: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


class RopeScaling(Section):
    """RoPE scaling of Llama 3: stretches low frequencies so that longer texts than trained on are read."""

    rope_type: Literal["llama3"] = "llama3"
    factor: Annotated[float, Field(ge=1.0)] = 8.0
    low_freq_factor: Annotated[float, Field(gt=0.0)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0.0)] = 4.0
    original_max_position_embeddings: Positive = 8192


class DecoderModel(Section):
    """The decoder's shape. `layout` says which family's folder is written; its rules fill in the rest."""

    layout: Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"] = "qwen3"
    start: str | None = None
    layers: Positive = 6
    width: Positive = 256
    heads: Positive = 4
    kv_heads: Positive | None = None
    head_dim: Positive | None = None
    mlp_width: Positive | None = None
    rope_theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: Annotated[float, Field(gt=0.0)] = 1e-6
    attention_bias: bool = False
    tied: bool = True
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"width ({self.width}) is not a multiple of heads ({self.heads}); set head_dim or change one"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads})")
        return self


class TrainRecipe(Section):
    """How training goes; the same for every task. Exactly one of minutes, tokens and steps is the budget."""

    minutes: Annotated[float, Field(gt=0.0)] | None = None
    tokens: Positive | None = None
    steps: Positive | None = None
    batch: Positive = 16
    micro_batch: Positive | None = None
    optimizer: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] = "muon"
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    nesterov: bool = True
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "wsd"
    warmup: Fraction = 0.02
    decay: Fraction = 0.5
    final_rate: Fraction = 0.0
    clip: Annotated[float, Field(gt=0.0)] | None = 1.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    average: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    patience: Positive | None = None
    evaluate_every: Every | None = None
    checkpoint_every: Every = Interval(seconds=60.0)
    keep: Annotated[int, Field(ge=2)] = 2
    loggers: list[Literal["tensorboard", "mlflow"]] = []
    seed: int = 0

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        named = [name for name in ("minutes", "tokens", "steps") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"give exactly one budget of minutes, tokens, steps; received {named or 'none'}")
        return self


class TextEvaluation(Section):
    """What is measured on held-out text, and which figure counts."""

    primary: Literal["bits_per_byte", "loss", "nats_per_character", "perplexity"] = "bits_per_byte"
    stride: Positive | None = None
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    prompts: list[str] = []
    sample_tokens: Annotated[int, Field(ge=0)] = 120


class About(Section):
    """What `luban recipes` shows of a shipped recipe."""

    makes: str = ""
    data: str = ""
    time: str = ""


class Recipe(Section):
    """The parts every recipe has; a task narrows `data`, `model` and `evaluate` to its own sections."""

    task: str
    about: About = About()
    train: TrainRecipe


class LanguageModelRecipe(Recipe):
    """The recipe of a language model."""

    task: Literal["language-model"] = "language-model"
    data: TextData
    model: DecoderModel = DecoderModel()
    evaluate: TextEvaluation = TextEvaluation()
