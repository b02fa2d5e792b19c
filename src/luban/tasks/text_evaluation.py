"""How well a language model predicts text: every held-out token as a target once, in nats and bits, with intervals."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luban.data.bad_rows import BadRows
from luban.data.prepare import Prepared
from luban.data.reading import read_rows
from luban.data.shards import ShardWriter, TokenShards
from luban.data.sources import find_files
from luban.data.tokenizer import Tokenizer
from luban.data.windows import sequential
from luban.errors import InputError
from luban.metrics.document_losses import document_losses
from luban.metrics.text_loss import LN2, TextLoss
from luban.models.decoder import Decoder
from luban.models.gpt2 import GPT2
from luban.models.loss import token_losses
from luban.tasks.base import Evaluation
from luban.text_recipe import LanguageModelRecipe, TextData, TextEvaluation

if TYPE_CHECKING:
    from luban.tasks.text_model import TextModel

LanguageModule = Decoder | GPT2

EVALUATION_TOKENS = 8_192
SHOWN = 5
ENCODE_ROWS = 256
WHOLE_FILE_BYTES = 1 << 30
_OPTIONS = ("text", "document", "length", "stride", "bootstrap")


def measure(
    model: LanguageModule,
    shards: TokenShards,
    end_id: int,
    *,
    length: int,
    stride: int,
    limit: int | None = None,
    thinned: int = 1,
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
        thinned: of the batches that are measured take the first, and every so many-th after it.
        stop: called between batches; raises to stop.
    """
    total, device = TextLoss(), next(model.parameters()).device
    tokens = EVALUATION_TOKENS if limit is None else min(EVALUATION_TOKENS, max(length, limit // 8))
    batches = sequential(shards, length, stride, rows=max(1, tokens // length), begin=end_id)
    every = 1 if limit is None else batches_between(shards, limit)
    with torch.no_grad():
        for batch in islice(batches, 0, None, every * thinned):
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


def batches_between(shards: TokenShards, limit: int) -> int:
    """Return n, where every n-th batch is measured so that together they are about `limit` tokens."""
    return max(1, len(shards) // limit)


def evaluation_of(
    measured: TextLoss, settings: TextEvaluation, shards: TokenShards, tokenizer: Tokenizer
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
        return [{"text": opening(shards, tokenizer, d, 120), "bits_per_byte": bits} for bits, d in chosen]

    return Evaluation(
        primary=settings.primary,
        direction="min",
        figures=measured.figures(),
        intervals=measured.intervals(resamples=settings.bootstrap),
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


def opening(shards: TokenShards, tokenizer: Tokenizer, document: int, tokens: int) -> str:
    """Return the first words of a document."""
    first, size = int(shards.documents[document][0]), int(shards.documents[document][1])
    return tokenizer.decode(shards.read(first, first + min(tokens, size)).tolist())


def openings(shards: TokenShards, tokenizer: Tokenizer) -> list[str]:
    """Return the first few words of three held-out documents, or of one document at three places."""
    documents = shards.documents
    if len(documents) >= 3:
        return [opening(shards, tokenizer, document, 12) for document in range(3)]
    places = [len(shards) * part // 4 for part in range(3)]
    return [tokenizer.decode(shards.read(place, min(place + 12, len(shards))).tolist()) for place in places]


def measure_text(
    model: TextModel,
    source: Prepared | Sequence[str],
    *,
    recipe: LanguageModelRecipe | None,
    stop: Callable[[], None],
    progress: Callable[[str, float], None],
    **options: Any,
) -> Evaluation:
    """Measure a loaded model on text.

    Arguments:
        source: files, folders or globs; or the data of a run, whose held-out text is measured.
        recipe: of the run the model came from; None where there is none.
        options: `text` (the column of the text in tables), `document` (what a document of plain text is),
            `length` (context in tokens), `stride` (how far it moves), `bootstrap` (resamples; the
            recipe's if left out).

    Raises:
        InputError: an option is unknown or cannot be, or there is no text.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - set(_OPTIONS)):
        raise InputError(
            "a language model has no such option", received=unknown, fix=f"options: {', '.join(_OPTIONS)}"
        )
    length, stride = _context(model, recipe, given.get("length"), given.get("stride"))
    asked_for = recipe.evaluate if recipe else TextEvaluation()
    settings = TextEvaluation(
        primary=asked_for.primary, bootstrap=given.get("bootstrap", asked_for.bootstrap), stride=stride
    )
    with tempfile.TemporaryDirectory(prefix="luban-evaluate-") as scratch:
        if isinstance(source, Prepared):
            shards = source.validation
        else:
            asked = TextData.model_validate(
                {
                    "source": source,
                    "text": given.get("text", "text"),
                    "document": given.get("document") or (recipe.data.document if recipe else "file"),
                    "clean": None,
                }
            )
            progress("tokenising", 0.0)
            shards = _encode(model.tokenizer, asked, Path(scratch), stop)
        progress("evaluating", 0.0)
        measured = measure(
            model.module, shards, model.tokenizer.end_id, length=length, stride=stride, stop=stop
        )
        return evaluation_of(measured, settings, shards, model.tokenizer)


def _context(
    model: TextModel, recipe: LanguageModelRecipe | None, length: int | None, stride: int | None
) -> tuple[int, int]:
    """Return the context in tokens and how far it moves, as asked for or as the model was trained."""
    longest = model.module.config.max_length
    length = length or model.state.get("length") or min(longest, 1024)
    stride = stride or min((recipe.evaluate.stride if recipe else None) or length, length)
    if not (2 <= length <= longest and 1 <= stride <= length):
        raise InputError(
            f"need 2 <= length <= {longest} (the model's longest text) and 1 <= stride <= length",
            received=f"length {length}, stride {stride}",
        )
    return length, stride


def _encode(tokenizer: Tokenizer, asked: TextData, folder: Path, stop: Callable[[], None]) -> TokenShards:
    """Write the text's tokens to a scratch folder, so that memory stays bounded."""
    writer = ShardWriter(folder, "validation", vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id)
    rows: list[str] = []

    def flush() -> None:
        for row, ids in zip(rows, tokenizer.encode_batch(rows), strict=True):
            writer.add(ids, bytes=len(row.encode()), characters=len(row))
        rows.clear()

    files = find_files(asked.source)
    bad = BadRows("error")
    for row in read_rows(
        files, column=asked.text, document=asked.document, max_row_bytes=WHOLE_FILE_BYTES, bad=bad
    ):
        stop()
        rows.append(row.text)
        if len(rows) >= ENCODE_ROWS:
            flush()
    flush()
    if not writer.close()["documents"]:
        raise InputError("there is no text to evaluate on", received=asked.source)
    return TokenShards(folder, "validation")
