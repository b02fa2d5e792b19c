"""Language models: text in, the next token out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from luban.data.fingerprint import FINGERPRINT, Fingerprint, fingerprint_of
from luban.data.prepare import Prepared, prepare
from luban.data.tokenizer import Tokenizer
from luban.data.windows import WindowBatch, Windows
from luban.durable import FileSystem, member, read_json
from luban.errors import InputError
from luban.metrics.text_loss import TextLoss
from luban.model_folder import GRAPH, LoadedModel, load_model, save_model
from luban.models.decoder import DecoderConfig
from luban.models.flops import step_flops
from luban.models.generation import Rereading
from luban.models.gpt2 import GPT2Config
from luban.models.layouts import new_module, read_config, write_config
from luban.models.loss import cross_entropy_sum, token_losses
from luban.models.rope import Llama3Scaling
from luban.recipe import settled
from luban.tasks.base import Choice, Evaluation, Graph, Machine, Usage
from luban.tasks.prepared_data import held_to
from luban.tasks.starting import with_its_tokenizer
from luban.tasks.text_budget import FITTED_STEPS, choose, expected_loss, text_of
from luban.tasks.text_evaluation import (
    EVALUATION_TOKENS,
    LanguageModule,
    batches_between,
    evaluation_of,
    measure,
    measure_text,
    openings,
)
from luban.tasks.text_generation import generate_text
from luban.tasks.text_model import USAGE, TextModel, load_text_graph, load_text_model, text_graph
from luban.text_recipe import DecoderModel, LanguageModelRecipe

MICRO_BATCH_TOKENS = 16_384
QUICK_TOKENS = 16_384
SHOWN_TOKENS = 16


@dataclass(frozen=True)
class TextBatch:
    """Windows of text as tensors."""

    inputs: Tensor
    targets: Tensor
    segments: Tensor | None
    positions: Tensor | None
    count: int
    describe: Callable[[], Mapping[str, Any]]
    """Names the windows: their places in the order of training, and where each begins."""

    @property
    def rows(self) -> int:
        """Windows."""
        return len(self.inputs)

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model."""
        return self.inputs.numel()


class LanguageModel:
    """Predict the next token of text."""

    name: ClassVar[str] = "language-model"
    recipe: ClassVar[type[LanguageModelRecipe]] = LanguageModelRecipe
    quick_answers: ClassVar[Mapping[str, Any]] = {"max_tokens": 5, "temperature": 0.0}
    minimise = True
    compiles_well = True
    takes_kernels: ClassVar[bool] = True
    """Its decoders train by luban's kernels on a CPU: what a step takes depends on whether there are any."""

    @staticmethod
    def prepare(
        recipe: LanguageModelRecipe,
        folder: Path,
        *,
        stop: Callable[[], None],
        progress: Callable[[str, float], None],
    ) -> Prepared:
        """Clean, tokenise and pack the text; see luban.data.prepare."""
        return prepare(recipe.data, folder, stop=stop, progress=progress)

    @staticmethod
    def choose(
        recipe: LanguageModelRecipe, prepared: Prepared, machine: Machine, start: LoadedModel | None = None
    ) -> dict[str, Choice]:
        """Choose shape, length, batch, rate and tokens where the recipe leaves them open."""
        return choose(recipe, prepared, machine, start)

    @staticmethod
    def open(folder: Path) -> Prepared:
        """Open prepared text."""
        return Prepared(folder)

    @staticmethod
    def fingerprint(recipe: LanguageModelRecipe) -> Fingerprint:
        """Return the fingerprint the text would have now."""
        return fingerprint_of(recipe.data)

    @classmethod
    def as_prepared(cls, recipe: LanguageModelRecipe, folder: Path) -> LanguageModelRecipe:
        """Return the recipe with the fold the text was prepared for; windows are cut from it while training.

        Raises:
            InputError: it was prepared for another task. RecipeError: the recipe asks for another fold, or for all.
        """
        settings = Fingerprint.from_dict(read_json(folder / FINGERPRINT)).settings
        task = settings.get("task", cls.name)
        if task != cls.name:
            raise InputError(
                f"the prepared data is not of the task {cls.name}",
                received=task,
                where=folder,
                fix="give texts, or a folder that luban prepare made of texts for a language model",
            )
        made = {f"data.{key}": settings.get(key) for key in ("folds", "fold")}
        found: LanguageModelRecipe = held_to(recipe, made, folder)
        return found

    @classmethod
    def learner(
        cls, recipe: LanguageModelRecipe, prepared: Prepared, *, start: LoadedModel | None = None
    ) -> LanguageModel:
        """Build the model: a language model is its own learner."""
        return cls(recipe, prepared, start=start)

    @staticmethod
    def adopted(recipe: LanguageModelRecipe, folder: Path) -> LanguageModelRecipe:
        """Return the recipe with the tokenizer of the model to start from, unless it names one."""
        found: LanguageModelRecipe = with_its_tokenizer(recipe, folder)
        return found

    @staticmethod
    def start(folder: Path) -> LoadedModel:
        """Read the model that a run starts from, of any family luban reads."""
        return load_model(folder)

    @staticmethod
    def start_again(config: Mapping[str, Any]) -> LoadedModel:
        """Return a model of that shape; its weights come from a checkpoint."""
        module = new_module(read_config(dict(config)))
        return LoadedModel(module, None, module.config.layout, {})

    @staticmethod
    def load(folder: Path) -> TextModel:
        """Read a model folder of any family luban reads, or the graph of one."""
        if member(folder, GRAPH).is_file() and not any(folder.glob("*.safetensors*")):
            return load_text_graph(folder)
        return load_text_model(folder)

    @staticmethod
    def measure(
        model: TextModel,
        source: Any,
        *,
        recipe: LanguageModelRecipe | None,
        stop: Callable[[], None],
        progress: Callable[[str, float], None],
        **options: Any,
    ) -> Evaluation:
        """Measure a model on text; see luban.tasks.text_evaluation."""
        if isinstance(model.module, Rereading):
            raise InputError(
                "a graph of a language model answers prompts and is not measured: how far it is from the model that it "
                "came from stands in its parity.json",
                fix="give the run or the model folder that it was exported from, for example RUN/model",
            )
        return measure_text(model, source, recipe=recipe, stop=stop, progress=progress, **options)

    @staticmethod
    def sample(count: int, draws: random.Random) -> list[dict[str, Any]]:
        """Return lines with a pattern to learn: who likes what."""
        likes = {"Ann": "plums", "Bo": "tea", "小明": "苹果"}
        names = [draws.choice(sorted(likes)) for _ in range(count)]
        return [
            {"text": f"{n}. {name} likes {likes[name]}, {name} eats {likes[name]}."}
            for n, name in enumerate(names)
        ]

    @staticmethod
    def example(rows: str) -> dict[str, Any]:
        """Return a recipe of a very small model of characters."""
        return {
            "task": "language-model",
            "data": {
                "source": rows,
                "tokenizer": "char",
                "vocab_size": 400,
                "length": 32,
                "validation_fraction": 0.2,
            },
            "model": {"layers": 1, "width": 32, "heads": 2},
            "train": {"learning_rate": 0.01},
            "evaluate": {"sample_tokens": 0, "bootstrap": 20},
        }

    @staticmethod
    def graph(model: TextModel) -> Graph:
        """Return the model as a graph: token ids in, logits out."""
        return text_graph(model)

    def __init__(
        self, recipe: LanguageModelRecipe, prepared: Prepared, *, start: LoadedModel | None = None
    ) -> None:
        self.settings, self.data, self.tokenizer = recipe, prepared, prepared.tokenizer
        self._started = start is not None
        self._length = length = settled(recipe.data.length, "data.length")
        self._batch = settled(recipe.train.batch, "train.batch")
        self.short_steps = recipe.data.short_steps or 0
        torch.manual_seed(recipe.train.seed)
        if start is not None:
            _check_start(start, self.tokenizer, length)
            self.model: LanguageModule = start.module
        else:
            self.model = build(recipe.model, vocab_size=self.tokenizer.vocab_size, length=length)
        self._windows = Windows(
            prepared.train, length=length, seed=recipe.train.seed, attention=recipe.data.attention
        )

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> list[TextBatch]:
        """Return the rank's share of the step's windows, cut into micro-batches of at most `size` windows."""
        batch, short = self._batch, step < self.short_steps
        # In half windows up to the first whole step, which begins at a whole one; in whole windows from there on.
        begin = step * batch if short else self._windows_seen(step)
        first, last = begin + batch * rank // ranks, begin + batch * (rank + 1) // ranks
        size = size or self.settings.train.micro_batch or max(1, MICRO_BATCH_TOKENS // self._length)
        read = self._windows.halves if short else self._windows.batch
        device = next(self.model.parameters()).device
        shares = [(at, min(size, last - at)) for at in range(first, last, size)]
        return [
            _tensors(read(at, count), partial(self._describe, at, count, short), device)
            for at, count in shares
        ]

    def _windows_seen(self, step: int) -> int:
        """Return how many windows `step` steps have begun to read."""
        short = min(step, self.short_steps)
        return -(-short * self._batch // 2) + (step - short) * self._batch

    def _describe(self, first: int, count: int, halves: bool) -> dict[str, Any]:
        """Name windows by place, by the document of the training side each begins in, and by their first words."""
        shards = self.data.train
        if halves:
            first, count = first // 2, -(-(first + count) // 2) - first // 2
        begins = self._windows.starts(first, count)[:, 0]
        rows = [
            {
                "document": int(document),
                "text": self.tokenizer.decode(shards.read(at, min(at + SHOWN_TOKENS, len(shards))).tolist()),
            }
            for at, document in zip(begins.tolist(), shards.document_of(begins), strict=True)
        ]
        return {"first_window": first, "windows": count, "rows": rows}

    def epoch(self, step: int) -> float:
        """Return how many times the training text was seen after `step` steps."""
        return self._windows_seen(step) / self._windows.per_epoch

    def loss(self, batch: TextBatch) -> Tensor:
        """Return the negative log-likelihood in nats, summed over the target tokens."""
        hidden = self.model.hidden(batch.inputs, positions=batch.positions, segments=batch.segments)
        loss, _ = cross_entropy_sum(
            hidden,
            self.model.output_weight,
            batch.targets,
            count=batch.count,
            label_smoothing=self.settings.objective.label_smoothing,
        )
        return loss

    def flops(self, batch: TextBatch) -> int:
        """Return the FLOPs of the matrix multiplications of forward and backward."""
        return step_flops(self.model.config, *batch.inputs.shape)

    def quick(self) -> Mapping[str, float]:
        """Measure about the first 16,000 tokens spread over the held-out documents."""
        figures = self._measure(limit=QUICK_TOKENS, stop=lambda: None).figures()
        primary = self.settings.evaluate.primary
        return {primary: figures[primary], **figures}

    def rehearse_quick(self) -> float:
        """Measure every fourth batch of `quick`, and return what share of its tokens that was."""
        measured = self._measure(limit=QUICK_TOKENS, stop=lambda: None, thinned=4)
        held_out = self.data.validation
        quick = len(held_out) / batches_between(held_out, QUICK_TOKENS)  # tokens; up to twice QUICK_TOKENS
        return min(1.0, sum(measured.tokens.values()) / max(1.0, quick)) or 1.0

    def evaluate(self, *, stop: Callable[[], None]) -> Evaluation:
        """Measure all held-out text, with intervals, and show the best and worst predicted documents."""
        return evaluation_of(
            self._measure(limit=None, stop=stop), self.settings.evaluate, self.data.validation, self.tokenizer
        )

    def evaluation_tokens(self) -> int:
        """Return how many tokens pass through the model in `evaluate`; overlapping contexts count each time."""
        stride = self.settings.evaluate.stride or self._length
        return len(self.data.validation) * self._length // stride

    def largest_evaluation(self) -> int:
        """Compute the largest batch of `evaluate` and return its tokens."""
        rows = max(1, EVALUATION_TOKENS // self._length)
        ids = torch.arange(rows * self._length, device=next(self.model.parameters()).device)
        ids = (ids % self.tokenizer.vocab_size).view(rows, self._length)
        token_losses(self.model.hidden(ids), self.model.output_weight, ids)
        return ids.numel()

    def views(self, count: int) -> list[str]:
        """Show windows as the model reads them: its tokens, with a bar between them."""
        windows = self._windows.batch(0, count).inputs.tolist()
        return ["|".join(map(self._shown, ids)) for ids in windows]

    def _shown(self, token: int) -> str:
        end = token == self.tokenizer.end_id
        return self.tokenizer.token(token) or "" if end else self.tokenizer.decode([token])

    def expected(self, tokens: int) -> dict[str, float]:
        """Return the nats per character that models of this shape reached on such text after so many tokens.

        Nothing for what the law was not fitted to: other optimizers, GPT-2, models that begin trained, and runs of
        few steps.
        """
        steps = tokens // (self._batch * self._length)
        fitted = self.settings.train.optimizer == "muon" and steps >= FITTED_STEPS
        if self._started or self.settings.model.layout == "gpt2" or not fitted:
            return {}
        config = self.model.config
        text = text_of(self.data)
        loss = expected_loss(text, layers=config.layers, width=config.width, tokens=tokens)
        return {"nats_per_character": loss * text.tokens_per_character}

    def samples(self) -> list[dict[str, str]]:
        """Continue the recipe's prompts, or the openings of held-out documents where it has none."""
        tokens = self.settings.evaluate.sample_tokens
        if not tokens:
            return []
        prompts = self.settings.evaluate.prompts or openings(self.data.validation, self.tokenizer)
        texts = generate_text(
            self.model,
            self.tokenizer,
            prompts,
            max_tokens=tokens,
            temperature=0.8,
            top_p=0.95,
            seed=self.settings.train.seed,
        )
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]

    def started(self) -> None:
        """Say nothing: a model to start from comes over whole."""

    def config(self) -> dict[str, Any]:
        """Return config.json of the model folder."""
        return write_config(self.model.config)

    def usage(self) -> Usage:
        """Say how others use the model."""
        return USAGE

    def save(self, folder: Path, card: str, fs: FileSystem) -> None:
        """Write the model folder, with what is needed to evaluate the model the same way elsewhere."""
        state = {"task": self.name, "length": self._length, "primary": self.settings.evaluate.primary}
        save_model(folder, self.model, self.tokenizer, task_state=state, card=card, fs=fs)

    def _measure(self, *, limit: int | None, stop: Callable[[], None], thinned: int = 1) -> TextLoss:
        return measure(
            self.model,
            self.data.validation,
            self.tokenizer.end_id,
            length=self._length,
            stride=self.settings.evaluate.stride or self._length,
            limit=limit,
            thinned=thinned,
            stop=stop,
        )


def build(recipe: DecoderModel, *, vocab_size: int, length: int) -> LanguageModule:
    """Build the model a recipe describes, freshly initialised from torch's generator.

    Arguments:
        recipe: the shape.
        vocab_size: rows of the embedding.
        length: the longest text it is trained on, in tokens.

    Raises:
        InputError: when the layout's folder could not say what the model has; better now than after training.
    """
    config = (
        _gpt2(recipe, vocab_size, length) if recipe.layout == "gpt2" else _decoder(recipe, vocab_size, length)
    )
    write_config(config)
    return new_module(config)


def _gpt2(recipe: DecoderModel, vocab_size: int, length: int) -> GPT2Config:
    width = settled(recipe.width, "model.width")
    return GPT2Config(
        vocab_size=vocab_size,
        layers=settled(recipe.layers, "model.layers"),
        width=width,
        heads=settled(recipe.heads, "model.heads"),
        mlp_width=recipe.mlp_width or 4 * width,
        dropout=recipe.dropout,
        max_length=length,
    )


def _decoder(recipe: DecoderModel, vocab_size: int, length: int) -> DecoderConfig:
    scaling, width = recipe.rope_scaling, settled(recipe.width, "model.width")
    return DecoderConfig(
        layout=recipe.layout,
        vocab_size=vocab_size,
        layers=settled(recipe.layers, "model.layers"),
        width=width,
        heads=settled(recipe.heads, "model.heads"),
        kv_heads=recipe.kv_heads or 0,
        head_dim=recipe.head_dim or 0,
        mlp_width=recipe.mlp_width or 0,
        rope_theta=recipe.rope_theta,
        rope_scaling=Llama3Scaling(**scaling.model_dump(exclude={"rope_type"})) if scaling else None,
        norm_eps=recipe.norm_eps,
        qk_norm=recipe.layout == "qwen3",
        qkv_bias=recipe.attention_bias or recipe.layout == "qwen2",
        output_bias=recipe.attention_bias and recipe.layout in ("llama", "qwen3"),
        tied=recipe.tied,
        dropout=recipe.dropout,
        max_length=max(length, 2048),
        # Measured: benchmarks/LOG.md.
        init_std=width**-0.5,
        zero_init_projections=True,
    )


def _tensors(
    windows: WindowBatch, describe: Callable[[], Mapping[str, Any]], device: torch.device
) -> TextBatch:
    def tensor(array: Any) -> Tensor:
        made = torch.from_numpy(array)
        # From pinned memory a GPU takes it while it still works at the step before.
        return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)

    return TextBatch(
        tensor(windows.inputs),
        tensor(windows.targets),
        None if windows.segments is None else tensor(windows.segments),
        None if windows.positions is None else tensor(windows.positions),
        int(windows.targets_count),
        describe,
    )


def _check_start(start: LoadedModel, tokenizer: Tokenizer, length: int) -> None:
    """A model is trained on only with the tokens it knows, and no longer text than it can read."""
    fix = "leave data.tokenizer out, or prepare the data with the tokenizer of the model to start from"
    rows = start.module.output_weight.shape[0]
    if tokenizer.vocab_size > rows:
        message = f"the tokenizer has {tokenizer.vocab_size} tokens, the model to start from has {rows}"
        raise InputError(message, fix=fix)
    if start.tokenizer is not None:
        for number in range(tokenizer.vocab_size):
            mine, its = tokenizer.token(number), start.tokenizer.token(number)
            if mine != its:
                message = f"token {number} is {mine!r} in the data and {its!r} in the model to start from"
                raise InputError(message, fix=fix)
    if length > start.module.config.max_length:
        longest = start.module.config.max_length
        raise InputError(
            f"the model to start from reads at most {longest} tokens", received=length, where="data.length"
        )
