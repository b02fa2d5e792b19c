"""Measuring and continuing text with finished models, ours and others'."""

import gzip
import io
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import luban
from luban.cli import luban as command
from luban.errors import InputError
from luban.verbs.predict import predict


def by_hand(folder: Path, texts: list[str], length: int) -> tuple[float, int]:
    """Sum the loss of every text's own tokens with transformers, window by window, without our code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).double(),
        AutoTokenizer.from_pretrained(folder),
    )
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    nats, tokens = 0.0, 0
    for text in texts:
        ids = [end, *tokenizer(text).input_ids]
        for start in range(0, len(ids) - 1, length):
            window = torch.tensor([ids[start : start + length + 1]])
            with torch.no_grad():
                logits = model(window[:, :-1]).logits
            nats += float(torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum"))
            tokens += window.shape[1] - 1
    return nats, tokens


def test_the_figures_are_those_of_a_plain_computation(finished: Path, tmp_path: Path) -> None:
    texts = ["the king of the hills had a small friend", "春眠不觉晓", "to see his old house " * 20]
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    evaluation = luban.evaluate(finished, str(path))
    nats, tokens = by_hand(finished / "model", texts, 32)
    size, characters = sum(len(text.encode()) for text in texts), sum(len(text) for text in texts)
    assert evaluation.counts == {"documents": 3, "tokens": tokens, "bytes": size, "characters": characters}
    assert evaluation.figures["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert evaluation.figures["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert evaluation.figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert evaluation.figures["nats_per_character"] == pytest.approx(nats / characters, rel=1e-5)
    for name, value in evaluation.figures.items():
        low, high = evaluation.intervals[name]
        assert low <= value <= high


def test_a_run_is_measured_again_as_training_measured_it(finished: Path) -> None:
    again = luban.evaluate(finished, bootstrap=50)
    told = json.loads((finished / "evaluation.json").read_text())
    assert again.figures["loss"] == pytest.approx(told["metrics"]["loss"]["value"], rel=1e-6)
    assert again.counts == told["counts"]


def test_intervals_are_of_as_many_resamples_as_the_recipe_says(finished: Path, tmp_path: Path) -> None:
    """The fixture's recipe says 50; a model folder has none."""
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": "the king of " + "wood " * n}) + "\n" for n in range(1, 20)))
    fifty, thousand = (luban.evaluate(finished, str(path), bootstrap=n).intervals for n in (50, 1000))
    assert fifty != thousand
    assert luban.evaluate(finished, str(path)).intervals == fifty
    assert luban.evaluate(finished / "model", str(path)).intervals == thousand


def test_more_context_is_measured_with_a_stride(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text(
        "the king of a small house had no wood and went to see his old friend in the hills. " * 30
    )
    plain, overlapping = luban.evaluate(finished, str(path)), luban.evaluate(finished, str(path), stride=8)
    assert plain.counts["tokens"] == overlapping.counts["tokens"]
    assert plain.figures["loss"] != overlapping.figures["loss"]
    with pytest.raises(InputError, match="stride"):
        luban.evaluate(finished, str(path), stride=99)


def test_a_folder_that_others_wrote(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from luban.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(
        "bpe", iter(["the king had no wood"] * 20), vocab_size=270, byte_fallback=True
    )
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).eval().save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    texts = ["the king had no wood and no friend " * 5]
    (tmp_path / "a.txt").write_text(texts[0])
    evaluation = luban.evaluate(tmp_path / "theirs", str(tmp_path / "a.txt"), length=32)
    nats, tokens = by_hand(tmp_path / "theirs", texts, 32)
    assert evaluation.figures["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_what_cannot_be_measured_is_said(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no held-out data"):
        luban.evaluate(finished / "model")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError):
        luban.evaluate(finished, str(tmp_path / "empty.txt"))


def test_logits_of_the_module_are_plain_tensors(finished: Path) -> None:
    model = luban.load(finished)
    ids = torch.tensor(np.array([model.tokenizer.encode("the king")]))
    assert model.module(ids).shape == (1, ids.shape[1], model.tokenizer.vocab_size)


def test_prompts_come_from_everywhere_and_bad_rows_are_named(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "the king"}\n{"text": "a small"}\n{"other": 1}\nnot json\n"bare"\n"half \\ud83d"\n'
    )
    answers = list(predict(finished, ["first"], source=path, max_tokens=4, temperature=0))
    assert [answer["row"] for answer in answers] == list(range(7))
    assert [answer.get("prompt") for answer in answers] == [
        "first",
        "the king",
        "a small",
        None,
        None,
        "bare",
        None,
    ]
    assert "error" in answers[3] and "error" in answers[4] and "error" in answers[6]
    lines = io.StringIO("the king\n\na small\n")
    again = list(predict(finished, source=lines, max_tokens=4, temperature=0))
    assert [answer["text"] for answer in again] == [answers[1]["text"], answers[2]["text"]]


@pytest.mark.parametrize("how", ["file", "packed", "open", "pipe"])
def test_a_prompt_that_is_no_utf_8_is_named_and_the_others_are_answered(
    finished: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "prompts.txt"
    content = b"the king\r\ncaf\xe9 of the king\n\na small\n"
    path.write_bytes(content)
    source: Any = path
    if how == "packed":
        source = tmp_path / "prompts.txt.gz"
        source.write_bytes(gzip.compress(content))
    elif how == "open":
        source = io.BytesIO(content)
    elif how == "pipe":
        source = tmp_path / "pipe"
        os.mkfifo(source)
        threading.Thread(target=source.write_bytes, args=(content,), daemon=True).start()
    answers = list(predict(finished, source=source, max_tokens=4, temperature=0))
    assert [answer.get("prompt") for answer in answers] == ["the king", None, "a small"]
    name = source.name if how in ("file", "packed") else "-"
    assert answers[1] == {"row": 1, "error": f"{name}:2: byte 4 of the row is not UTF-8 (0xe9)"}


def test_streamed_text_is_the_text(finished: Path) -> None:
    model, how = luban.load(finished), {"max_tokens": 12, "seed": 5, "temperature": 0.9, "top_k": 20}
    whole = model.generate("the king", **how)
    assert "".join(model.stream("the king", **how)) == whole
    assert model.generate(["a small", "the king"], **{**how, "temperature": 0})[1] == model.generate(
        "the king", **{**how, "temperature": 0}
    )
    stop = whole[3:5]
    assert stop and model.generate("the king", **how, stop=[stop]) == whole[: whole.index(stop)]


def test_an_unknown_setting_is_refused_whichever_way_the_text_comes(finished: Path) -> None:
    model = luban.load(finished)
    ways = (
        lambda: model.generate("the king", beam=4),
        lambda: model.stream("the king", beam=4),
        lambda: model.predict([7], beam=4),  # with no prompt among the rows, too
    )
    for way in ways:
        with pytest.raises(InputError, match="a language model has no such setting") as caught:
            way()
        assert caught.value.received == ["beam"] and "max_tokens" in str(caught.value.fix)
    how = {"max_tokens": 3, "temperature": 0.0}
    assert "".join(model.stream("the king", **how, beam=None, seed=None)) == model.generate("the king", **how)
    result = CliRunner().invoke(command, ["predict", str(finished), "the king", "--beam", "4"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: a language model has no such setting")


def test_tensorboard_gets_the_figures(small: dict[str, dict[str, object]], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = {**small, "train": {**small["train"], "steps": 3, "loggers": ["tensorboard"]}}
    run = luban.train(recipe, out=tmp_path / "run").folder
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([line["loss"] for line in lines if line["kind"] == "train"], rel=1e-6)
