"""`luban evaluate`: how well a model predicts a text, with intervals."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from luban import tasks
from luban.console import Show
from luban.data.bad_rows import BadRows
from luban.data.prepare import Prepared, is_prepared
from luban.data.reading import read_rows
from luban.data.shards import ShardWriter, TokenShards
from luban.data.sources import find_files
from luban.errors import InputError
from luban.machine import set_threads
from luban.recipe import LanguageModelRecipe, TextData, TextEvaluation, TrainRecipe
from luban.recipe_reader import read_recipe
from luban.run import run_of
from luban.signals import StopRequest
from luban.tasks.base import Evaluation
from luban.tasks.language_model import evaluation_of, measure
from luban.training.memory import memory_errors
from luban.verbs.load import Model, load

ENCODE_ROWS = 256
WHOLE_FILE_BYTES = 1 << 30


def evaluate(
    folder: str | Path,
    data: str | Sequence[str] | None = None,
    *,
    text: str = "text",
    document: str | None = None,
    length: int | None = None,
    stride: int | None = None,
    bootstrap: int = 1000,
    show: Show | None = None,
) -> Evaluation:
    """Measure a run or a model folder on text.

    Arguments:
        folder: a run, or any model folder of the families luban reads.
        data: files, folders or globs; the run's held-out text when left out.
        text: the column of the text in tables.
        document: what a document of plain text is (`file`, `passage`, `line`, `auto`); as the run had it, else `file`.
        length: context in tokens; as the model was trained, when left out.
        stride: how far the context moves; smaller than `length` gives every token more context.
        bootstrap: resamples of the intervals.

    Returns:
        loss in nats per token, perplexity, bits per byte, nats per character, each with a 95 % interval. The
        end token that separates documents is not counted.

    Raises:
        InputError: when model, text, length or stride cannot be used.
        Stopped: when a signal came.
        OutOfMemory: when the model or a batch does not fit.
    """
    path, show, stop = Path(folder), show or Show(quiet=True), StopRequest()
    spare = memory_errors("measuring a model", "give a smaller --length, or close other programs")
    # Nothing is kept of a measurement that is stopped, so the first signal ends it, wherever it is.
    with stop.listening(), stop.at_once(), spare:
        settings = _run_settings(path)
        set_threads()
        model = load(path)
        length, stride = _context(model, settings, length, stride)
        policy = document or (settings.data.document if settings else "file")
        evaluation = TextEvaluation(
            primary=settings.evaluate.primary if settings else "bits_per_byte",
            bootstrap=bootstrap,
            stride=stride,
        )
        recipe = LanguageModelRecipe(
            data=TextData(source="-"), train=TrainRecipe(steps=1), evaluate=evaluation
        )
        with tempfile.TemporaryDirectory(prefix="luban-evaluate-") as scratch:
            if data is None:
                shards = _held_out(path)
            else:
                source = [data] if isinstance(data, str) else list(data)
                asked = TextData.model_validate(
                    {"source": source, "text": text, "document": policy, "clean": None}
                )
                show.stage("tokenising", 0.0)
                shards = _encode(model, asked, Path(scratch), stop)
            show.stage("evaluating", 0.0)
            measured = measure(
                model.module, shards, model.tokenizer.end_id, length=length, stride=stride, stop=stop.check
            )
            show.clear()
            return evaluation_of(measured, recipe, shards, model.tokenizer)


def _context(
    model: Model, settings: LanguageModelRecipe | None, length: int | None, stride: int | None
) -> tuple[int, int]:
    """Return the context in tokens and how far it moves, as asked for or as the model was trained."""
    longest = model.module.config.max_length
    length = length or model.state.get("length") or min(longest, 1024)
    stride = stride or min((settings.evaluate.stride if settings else None) or length, length)
    if not (2 <= length <= longest and 1 <= stride <= length):
        raise InputError(
            f"need 2 <= length <= {longest} (the model's longest text) and 1 <= stride <= length",
            received=f"length {length}, stride {stride}",
        )
    return length, stride


def _run_settings(folder: Path) -> LanguageModelRecipe | None:
    run = run_of(folder)
    if run is None:
        return None
    recipe = read_recipe(run.read_recipe(), (), tasks.schema_of, str(run.recipe))
    return recipe if isinstance(recipe, LanguageModelRecipe) else None


def _held_out(folder: Path) -> TokenShards:
    run = run_of(folder)
    if run is None:
        raise InputError(
            "a model folder has no held-out text of its own", received=str(folder), fix="add --data FILE"
        )
    elsewhere = run.read_plan().get("data") if run.plan.is_file() else None
    place = Path(elsewhere) if elsewhere else run.data
    if not is_prepared(place):
        raise InputError("the run has no prepared data", received=str(place), fix="add --data FILE")
    return Prepared(place).validation


def _encode(model: Model, asked: TextData, folder: Path, stop: StopRequest) -> TokenShards:
    """Write the text's tokens to a scratch folder, so that memory stays bounded."""
    tokenizer = model.tokenizer
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
        stop.check()
        rows.append(row.text)
        if len(rows) >= ENCODE_ROWS:
            flush()
    flush()
    if not writer.close()["documents"]:
        raise InputError("there is no text to evaluate on", received=asked.source)
    return TokenShards(folder, "validation")
