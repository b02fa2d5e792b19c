"""A finished language model: it continues prompts, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from luban.data.tokenizer import Tokenizer
from luban.durable import member, read_json, write_json
from luban.errors import CheckpointError, InputError
from luban.exporting.onnx_module import OnnxModule
from luban.model_folder import CONFIG, FORMAT, GRAPH, LUBAN, load_model
from luban.models.generation import LanguageModel, Rereading
from luban.models.layouts import read_config, write_config
from luban.models.sampling import Sampling
from luban.tasks.asked_lines import lines_of_file
from luban.tasks.base import Graph, Usage
from luban.tasks.text_evaluation import LanguageModule
from luban.tasks.text_generation import generate_text, stream_text

DEFAULTS = {"max_tokens": 200, "temperature": 0.8}
"""Of `generate`, `stream` and `predict`, and so of the command line."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_SETTINGS = ("max_tokens", *_SAMPLING, "stop", "seed", "batch")
USAGE = Usage(
    unit="tokens",
    continues_text=True,
    pipeline="text-generation",
    library="transformers",
    code="""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this folder")
model = AutoModelForCausalLM.from_pretrained("this folder")""",
    caution="The model has learned from the text it was given and from nothing else: it repeats that text's "
    "errors and\nopinions, and what it says may be untrue.",
)


class TextModel:
    """A language model ready to use.

    Attributes:
        task: the task's name.
        module: called with token ids (batch, length) it gives logits (batch, length, vocab_size); a `Rereading` where
            the model is an exported graph.
        tokenizer: text to ids and back.
        state: what the task kept besides.
    """

    task = "language-model"
    rows_at_once = 16

    def __init__(self, module: LanguageModel, tokenizer: Tokenizer, state: Mapping[str, Any]) -> None:
        self.module: Any = module
        self.tokenizer, self.state = tokenizer, state

    def row_of_line(self, line: str) -> Any:
        """Return the line: it is the prompt."""
        return line

    def read(self, path: Path) -> Iterator[Any]:
        """Yield the prompts of a file; a `Broken` in the place of a line that is none."""
        return prompts_of(path)

    def generate(self, prompt: str | Sequence[str], **settings: Any) -> Any:
        """Continue one prompt (returns a string) or several (returns a list).

        Arguments:
            prompt: the text to continue.
            settings: those of `luban.tasks.text_generation.generate_text`: max_tokens, temperature (0 is greedy),
                top_k, top_p, min_p, repetition_penalty, stop, seed.

        Raises:
            InputError: for a setting it does not know.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts = generate_text(self.module, self.tokenizer, prompts, **_asked(settings))
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """Continue one prompt, giving the text piece by piece as it is made."""
        asked = _asked(settings)
        tokens = asked.pop("max_tokens")
        sampling = Sampling(**{name: asked.pop(name) for name in _SAMPLING if name in asked})
        pieces = stream_text(self.module, self.tokenizer, [prompt], tokens, sampling, **asked)
        return (piece for _, piece in pieces)

    def predict(self, rows: Sequence[str | Mapping[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        """Answer rows: each a prompt, or an object with `prompt` or `text`.

        Returns:
            for each row, in order, `{"prompt", "text"}`, or `{"row", "error"}` for a row that is none.
        """
        asked = _asked(settings)
        prompts, answers = [], []
        for index, row in enumerate(rows):
            prompt = row.get("prompt", row.get("text")) if isinstance(row, Mapping) else row
            answers.append({"prompt": prompt} if _is_text(prompt) else _refusal(index, row))
            if _is_text(prompt):
                prompts.append(prompt)
        texts = iter(self.generate(prompts, **asked) if prompts else [])
        return [answer if "error" in answer else {**answer, "text": next(texts)} for answer in answers]


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how to write, with the defaults of what is left open."""
    given = {name: value for name, value in settings.items() if value is not None}
    if unknown := sorted(given.keys() - set(_SETTINGS)):
        fix = f"settings: {', '.join(_SETTINGS)}"
        raise InputError("a language model has no such setting", received=unknown, fix=fix)
    return {**DEFAULTS, **given}


def _is_text(value: object) -> TypeGuard[str]:
    """Whether `value` is a string that UTF-8 can write: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _refusal(index: int, row: object) -> dict[str, Any]:
    return {
        "row": index,
        "error": f"a row is a text, or an object with prompt or text; received {str(row)[:80]!r}",
    }


class _Logits(nn.Module):
    """A decoder as a function of token ids alone."""

    def __init__(self, module: LanguageModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits: (batch, length) int64 -> (batch, length, vocab_size)."""
        found: Tensor = self.module(ids)
        return found


def text_graph(model: TextModel) -> Graph:
    """Return a language model as a graph: token ids in, logits out, no cache."""

    def probe(rows: int, seed: int) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        length = min(8 + seed, model.module.config.max_length)
        return {"ids": torch.randint(model.tokenizer.vocab_size, (rows, length), generator=draws)}

    def beside(folder: Path) -> None:
        write_json(folder / CONFIG, write_config(model.module.config))
        model.tokenizer.save(folder)
        write_json(folder / LUBAN, {"format": FORMAT, "task_state": {**model.state, "task": model.task}})

    return Graph(_Logits(model.module), ["logits"], {"ids": {0: "batch", 1: "length"}}, probe, beside)


def load_text_model(folder: Path) -> TextModel:
    """Load a model folder of the Llama, Mistral, Qwen2, Qwen3 or GPT-2 layout.

    Raises:
        InputError: when the folder is no model, has no tokenizer, or asks for what luban does not have.
    """
    loaded = load_model(folder)
    if loaded.tokenizer is None:
        raise InputError(
            "the model folder has no tokenizer",
            received=str(folder),
            fix="put its tokenizer.json beside config.json",
        )
    loaded.module.eval()
    return TextModel(loaded.module, loaded.tokenizer, loaded.task_state)


def load_text_graph(folder: Path) -> TextModel:
    """Load the exported graph of a language model; it writes without a cache, and so the slower the longer the text.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed. InputError: a file is absent or damaged.
    """
    fields, written = read_json(member(folder, CONFIG)), read_json(member(folder, LUBAN))
    state = written.get("task_state") if isinstance(written, dict) else None
    if not isinstance(fields, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{folder} holds no model of a task", received=state)
    config, graph = read_config(fields, folder / CONFIG), OnnxModule(member(folder, GRAPH))
    least, most = graph.ranges.get("length", (1, None))

    def logits(ids: Tensor) -> Tensor:
        return torch.from_numpy(graph(ids=ids.numpy())["logits"])

    longest = min(config.max_length, most or config.max_length)
    module = Rereading(logits, config.vocab_size, longest, min_length=least)
    return TextModel(module, Tokenizer.load(folder), state)


def prompts_of(path: Path) -> Iterator[Any]:
    """Yield the prompts of a file, one on each line; a `Broken` in the place of a line that is none.

    Raises:
        InputError: it is a folder.
    """
    if path.is_dir():
        raise InputError(
            "prompts stand in a file, one on each line, or in .jsonl as texts or objects with prompt",
            received=str(path),
            fix="name a file of the folder",
        )
    yield from lines_of_file(path)
