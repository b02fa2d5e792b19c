"""Whether a run trains by kernels: chosen once, kept, told; and what it comes to is the same."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from luban.console import Show, switches
from luban.errors import RecipeError, Stopped
from luban.kernels import Library, NoKernelsError, find
from luban.models.decoder import Decoder, DecoderConfig
from luban.recipe import TrainRecipe
from luban.signals import StopRequest
from luban.training import kernels
from luban.training.faults import Faults
from luban.training.kernels import choose_kernels, kernels_again
from luban.verbs.train import Tools, train


def gone(*_: Any) -> Library:
    raise NoKernelsError("there is no gcc")


def decoder(width: int = 32) -> Decoder:
    return Decoder(DecoderConfig(vocab_size=9, layers=1, width=width, heads=1))


def recipe(**changes: Any) -> TrainRecipe:
    return TrainRecipe(steps=1, **changes)


def test_a_decoder_on_a_cpu_takes_them(library: Library) -> None:
    assert choose_kernels(recipe(), decoder()) == (find(), "this network takes them")
    assert choose_kernels(recipe(kernels="on"), decoder()) == (find(), "asked for")


def test_kernels_and_a_compiler_are_not_asked_for_together() -> None:
    with pytest.raises(ValueError, match="what is compiled uses no kernels"):
        recipe(kernels="on", compile="on")


@pytest.mark.parametrize(
    ("settings", "model", "why"),
    [
        ({"kernels": "off"}, decoder(), "asked for"),
        ({"compile": "on"}, decoder(), "it is compiled instead"),
        ({}, decoder().to("meta"), "they are for a CPU"),
        ({}, decoder(width=20), "no part of this network takes them"),
        ({}, nn.Linear(2, 2), "no part of this network takes them"),
    ],
)
def test_what_does_not_take_them(settings: dict[str, Any], model: nn.Module, why: str) -> None:
    assert choose_kernels(recipe(**settings), model) == (None, why)


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find", gone)
    assert choose_kernels(recipe(), decoder()) == (None, "there is no gcc")
    told: list[str] = []
    with pytest.raises(RecipeError, match=r"train\.kernels: there is no gcc"):
        kernels_again(recipe(kernels="on"), told.append)
    assert kernels_again(recipe(), told.append) is None
    assert told == [
        "the run began with kernels, and now there is no gcc: results may differ in the last bits"
    ]
    with pytest.raises(RecipeError, match=r"train\.kernels: there is no gcc") as error:
        choose_kernels(recipe(kernels="on"), decoder())
    assert "install gcc" in str(error.value)


def test_asking_for_them_where_they_do_not_serve_is_told() -> None:
    with pytest.raises(RecipeError, match=r"train\.kernels: no part of this network takes them"):
        choose_kernels(recipe(kernels="on"), nn.Linear(2, 2))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    draw = random.Random(3)
    path.write_text(
        "\n\n".join(
            " ".join(draw.choices(["the", "king", "of", "a", "small", "house"], k=60)) for _ in range(60)
        )
    )
    return {
        "data": {"source": str(path), "vocab_size": 300, "length": 32, "validation_fraction": 0.2},
        "model": {"layers": 2, "width": 64, "heads": 2, "dropout": 0.1},
        "train": {"steps": 10, "batch": 6, "micro_batch": 4, "checkpoint_every": 3, "dtype": "float32"},
        "evaluate": {"sample_tokens": 2, "bootstrap": 0},
    }


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def stops_at(step: int) -> Tools:
    stop = StopRequest()

    return Tools(Show(quiet=True), stop, faults=Faults({("step", step, 0): lambda: stop.ask("a test")}))


def test_a_run_with_them_learns_as_one_without_and_goes_on_to_the_same_bytes(
    library: Library, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = train(settings, out=tmp_path / "whole").folder
    plan = json.loads((whole / "plan.json").read_text("utf-8"))
    assert (plan["kernels"], plan["kernels_why"], plan["compile"]) == (True, "this network takes them", False)
    assert switches(plan) == "kernels on, compile off" and plan["compile_why"] == "kernels are as fast"
    assert losses(
        train({**settings, "train": {**settings["train"], "kernels": "off"}}, out=tmp_path / "torch").folder
    ) == (pytest.approx(losses(whole), abs=1e-4))
    for name, forgets in (("stopped", False), ("bare", True)):
        with pytest.raises(Stopped):
            train(settings, out=tmp_path / name, tools=stops_at(5))
        if forgets:
            monkeypatch.setattr(kernels, "find", gone)
        train(resume=tmp_path / name)
    assert weights(tmp_path / "stopped") == weights(whole)
    assert losses(tmp_path / "bare") == pytest.approx(losses(whole), abs=1e-4)
    events = (tmp_path / "bare" / "events.jsonl").read_text("utf-8")
    assert "the run began with kernels, and now there is no gcc" in events
