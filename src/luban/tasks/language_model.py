"""Language models: text in, the next token out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from luban.data.prepare import Prepared, prepare
from luban.data.shards import TokenShards
from luban.data.tokenizer import Tokenizer
from luban.data.windows import WindowBatch, Windows, sequential
from luban.errors import InputError
from luban.metrics.document_losses import document_losses
from luban.metrics.text_loss import LN2, TextLoss
from luban.model_folder import LoadedModel
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.flops import step_flops
from luban.models.gpt2 import GPT2, GPT2Config
from luban.models.layouts import new_module, write_config
from luban.models.loss import cross_entropy_sum, token_losses
from luban.models.rope import Llama3Scaling
from luban.recipe import DecoderModel, LanguageModelRecipe, settled
from luban.tasks.base import Choice, Evaluation, Machine
from luban.tasks.text_budget import FITTED_STEPS, choose, expected_loss, text_of
from luban.tasks.text_generation import generate_text

LanguageModule = Decoder | GPT2

MICRO_BATCH_TOKENS = 16_384
QUICK_TOKENS = 16_384
EVALUATION_TOKENS = 8_192
SHOWN = 5
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
    minimise = True

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

    def __init__(
        self, recipe: LanguageModelRecipe, prepared: Prepared, *, start: LoadedModel | None = None
    ) -> None:
        self.settings, self.data, self.tokenizer = recipe, prepared, prepared.tokenizer
        self._started = start is not None
        self._length = length = settled(recipe.data.length, "data.length")
        self._batch = settled(recipe.train.batch, "train.batch")
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
        batch = self._batch
        first, last = step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks
        size = size or self.settings.train.micro_batch or max(1, MICRO_BATCH_TOKENS // self._length)
        device = next(self.model.parameters()).device
        return [
            _tensors(
                self._windows.batch(at, min(size, last - at)),
                partial(self._describe, at, min(size, last - at)),
                device,
            )
            for at in range(first, last, size)
        ]

    def _describe(self, first: int, count: int) -> dict[str, Any]:
        """Name windows by place, by the document of the training side each begins in, and by their first words."""
        shards = self.data.train
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
        return step * self._batch / self._windows.per_epoch

    def loss(self, batch: TextBatch) -> Tensor:
        """Return the negative log-likelihood in nats, summed over the target tokens."""
        hidden = self.model.hidden(batch.inputs, positions=batch.positions, segments=batch.segments)
        return cross_entropy_sum(hidden, self.model.output_weight, batch.targets)[0]

    def flops(self, batch: TextBatch) -> int:
        """Return the FLOPs of the matrix multiplications of forward and backward."""
        return step_flops(self.model.config, *batch.inputs.shape)

    def quick(self) -> Mapping[str, float]:
        """Measure about the first 16,000 tokens spread over the held-out documents."""
        figures = self._measure(limit=QUICK_TOKENS, stop=lambda: None).figures()
        primary = self.settings.evaluate.primary
        return {primary: figures[primary], **figures}

    def evaluate(self, *, stop: Callable[[], None]) -> Evaluation:
        """Measure all held-out text, with intervals, and show the best and worst predicted documents."""
        return evaluation_of(
            self._measure(limit=None, stop=stop), self.settings, self.data.validation, self.tokenizer
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
        prompts = self.settings.evaluate.prompts or _openings(self.data.validation, self.tokenizer)
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

    def state(self) -> dict[str, Any]:
        """Return what is needed to evaluate the model the same way elsewhere."""
        return {
            "task": self.name,
            "length": self._length,
            "primary": self.settings.evaluate.primary,
        }

    def _measure(self, *, limit: int | None, stop: Callable[[], None]) -> TextLoss:
        return measure(
            self.model,
            self.data.validation,
            self.tokenizer.end_id,
            length=self._length,
            stride=self.settings.evaluate.stride or self._length,
            limit=limit,
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


def measure(
    model: LanguageModule,
    shards: TokenShards,
    end_id: int,
    *,
    length: int,
    stride: int,
    limit: int | None = None,
    stop: Callable[[], None] = lambda: None,
) -> TextLoss:
    """Sum the loss of every token of every document as a target exactly once; the end token is not counted.

    Arguments:
        model: any decoder of luban.models.
        shards: the documents.
        end_id: the token that separates documents; each document is read with it in front.
        length: context in tokens.
        stride: with `stride < length` each token but the first ones sees at least `length - stride` tokens before it.
        limit: measure only about so many target tokens: every n-th batch.
        stop: called between batches; raises to stop.
    """
    total, device = TextLoss(), next(model.parameters()).device
    tokens = EVALUATION_TOKENS if limit is None else min(EVALUATION_TOKENS, max(length, limit // 8))
    batches = sequential(shards, length, stride, rows=max(1, tokens // length), begin=end_id)
    every = 1 if limit is None else max(1, len(shards) // limit)
    with torch.no_grad():
        for batch in islice(batches, 0, None, every):
            stop()
            inputs = torch.from_numpy(batch.inputs).to(device)
            targets = torch.from_numpy(batch.targets).to(device)
            targets = targets.masked_fill(targets == end_id, -100)
            losses = token_losses(model.hidden(inputs), model.output_weight, targets)
            nats = losses.double().sum(1).tolist()
            counts = (targets != -100).sum(1).tolist()
            assert batch.documents is not None
            for document, row_nats, row_count in zip(batch.documents.tolist(), nats, counts, strict=True):
                if row_count:
                    total.add(document=document, nats=row_nats, tokens=row_count)
    for document in total.tokens:
        size = shards.documents[document]
        share = total.tokens[document] / max(1, int(size[1]) - 1) if limit is not None else 1.0
        total.size(
            document=document, bytes=round(int(size[2]) * share), characters=round(int(size[3]) * share)
        )
    return total


def evaluation_of(
    measured: TextLoss, settings: LanguageModelRecipe, shards: TokenShards, tokenizer: Tokenizer
) -> Evaluation:
    """Put figures, intervals and the passages predicted best and worst together."""
    per_document = [
        (measured.nats[d] / LN2 / measured.bytes[d], d)
        for d in measured.tokens
        if measured.bytes.get(d, 0) >= 20
    ]
    per_document.sort()
    shown = min(SHOWN, len(per_document) // 2)

    def passages(chosen: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
        return [{"text": _opening(shards, tokenizer, d, 120), "bits_per_byte": bits} for bits, d in chosen]

    return Evaluation(
        primary=settings.evaluate.primary,
        direction="min",
        figures=measured.figures(),
        intervals=measured.intervals(resamples=settings.evaluate.bootstrap),
        counts=measured.counts(),
        worst=passages(per_document[::-1][:shown]),
        best=passages(per_document[:shown]),
        documents=document_losses(measured, _texts(measured, shards, tokenizer)),
    )


def _texts(measured: TextLoss, shards: TokenShards, tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield text and token ids of each measured document, without the end token."""
    for document in sorted(measured.tokens):
        first, size = int(shards.documents[document][0]), int(shards.documents[document][1])
        ids = shards.read(first, first + size - 1).tolist()
        yield tokenizer.decode(ids), ids


def _tensors(
    windows: WindowBatch, describe: Callable[[], Mapping[str, Any]], device: torch.device
) -> TextBatch:
    def tensor(array: Any) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(device)

    inputs, targets = torch.from_numpy(windows.inputs), torch.from_numpy(windows.targets)
    return TextBatch(
        inputs.to(device),
        targets.to(device),
        tensor(windows.segments),
        tensor(windows.positions),
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


def _opening(shards: TokenShards, tokenizer: Tokenizer, document: int, tokens: int) -> str:
    first, size = int(shards.documents[document][0]), int(shards.documents[document][1])
    return tokenizer.decode(shards.read(first, first + min(tokens, size)).tolist())


def _openings(shards: TokenShards, tokenizer: Tokenizer) -> list[str]:
    """Return the first few words of three held-out documents, or of one document at three places."""
    documents = shards.documents
    if len(documents) >= 3:
        return [_opening(shards, tokenizer, document, 12) for document in range(3)]
    places = [len(shards) * part // 4 for part in range(3)]
    return [tokenizer.decode(shards.read(place, min(place + 12, len(shards))).tolist()) for place in places]
