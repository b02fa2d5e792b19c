"""`luban.load`: a run or a model folder as an object that answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from luban.data.tokenizer import Tokenizer
from luban.errors import InputError
from luban.model_folder import load_model
from luban.models.sampling import Sampling
from luban.run import run_of
from luban.tasks.language_model import LanguageModule
from luban.tasks.text_generation import generate_text, stream_text


class Model:
    """A language model ready to use.

    Attributes:
        module: called with token ids (batch, length) it gives logits (batch, length, vocab_size).
        tokenizer: text to ids and back.
        state: what the task kept besides.
    """

    def __init__(self, module: LanguageModule, tokenizer: Tokenizer, state: Mapping[str, Any]) -> None:
        self.module, self.tokenizer, self.state = module, tokenizer, state

    def generate(self, prompt: str | Sequence[str], **settings: Any) -> Any:
        """Continue one prompt (returns a string) or several (returns a list).

        Arguments:
            prompt: the text to continue.
            settings: those of `luban.tasks.text_generation.generate_text`: max_tokens, temperature (0 is greedy),
                top_k, top_p, min_p, repetition_penalty, stop, seed.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts = generate_text(self.module, self.tokenizer, prompts, **{"max_tokens": 200, **settings})
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """Continue one prompt, giving the text piece by piece as it is made."""
        asked = dict(settings)
        tokens, stop, seed = asked.pop("max_tokens", 200), asked.pop("stop", ()), asked.pop("seed", 0)
        pieces = stream_text(
            self.module, self.tokenizer, [prompt], tokens, Sampling(**asked), stop=stop, seed=seed
        )
        return (piece for _, piece in pieces)

    def predict(self, rows: Sequence[str | Mapping[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        """Answer rows: each a prompt, or an object with `prompt` or `text`.

        Returns:
            for each row, in order, `{"prompt", "text"}`, or `{"row", "error"}` for a row that is none.
        """
        prompts, answers = [], []
        for index, row in enumerate(rows):
            prompt = row.get("prompt", row.get("text")) if isinstance(row, Mapping) else row
            answers.append({"prompt": prompt} if _is_text(prompt) else _refusal(index, row))
            if _is_text(prompt):
                prompts.append(prompt)
        texts = iter(self.generate(prompts, **settings) if prompts else [])
        return [answer if "error" in answer else {**answer, "text": next(texts)} for answer in answers]


def _is_text(value: object) -> TypeGuard[str]:
    """Whether `value` is a string that UTF-8 can write: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _refusal(index: int, row: object) -> dict[str, Any]:
    return {
        "row": index,
        "error": f"a row is a text, or an object with prompt or text; received {str(row)[:80]!r}",
    }


def model_folder_of(folder: Path) -> Path:
    """Return the model folder of a run, or `folder` itself when it is one.

    Raises:
        InputError: when there is neither.
    """
    run = run_of(folder)
    if run is not None:
        if not (run.model / "config.json").is_file():
            fix = f"go on with it first: luban train --resume {folder}"
            raise InputError("the run has no model yet: it did not finish", received=str(folder), fix=fix)
        return run.model
    if not (folder / "config.json").is_file():
        fix = "give a folder that luban train made, or one with config.json and model.safetensors"
        raise InputError("neither a run nor a model folder", received=str(folder), fix=fix)
    return folder


def load(folder: str | Path) -> Model:
    """Load a model from a run or from any folder of the Llama, Mistral, Qwen2, Qwen3 and GPT-2 layouts.

    Raises:
        InputError: when the folder is no model, has no tokenizer, or asks for what luban does not have.
    """
    path = model_folder_of(Path(folder))
    loaded = load_model(path)
    if loaded.tokenizer is None:
        raise InputError(
            "the model folder has no tokenizer",
            received=str(path),
            fix="put its tokenizer.json beside config.json",
        )
    loaded.module.eval()
    return Model(loaded.module, loaded.tokenizer, loaded.task_state)
