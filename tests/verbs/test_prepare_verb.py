"""Data prepared once and shared by several runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import luban
from luban.console import Show
from luban.durable import sha256
from luban.errors import InputError, Stopped
from luban.signals import StopRequest
from luban.training.faults import Faults
from luban.verbs.prepare import prepare
from luban.verbs.train import Tools, train


def test_a_run_on_prepared_data_is_the_run_on_its_source(
    small: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = prepare(small, out=tmp_path / "data")
    assert report["split"]["train"]["documents"] + report["split"]["validation"]["documents"] == 80
    with pytest.raises(InputError, match="exists already"):
        prepare(small, out=tmp_path / "data")
    shared = {**small, "data": {**small["data"], "source": "data"}}
    run = train(shared, out=tmp_path / "run").folder
    monkeypatch.chdir(tmp_path / "run")
    assert luban.evaluate(run).counts == luban.evaluate(finished).counts
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert sha256(run / name) == sha256(finished / name)


def test_prepared_data_that_changed_stops_a_resume(small: dict[str, Any], tmp_path: Path) -> None:
    prepare(small, out=tmp_path / "data")
    shared = {**small, "data": {**small["data"], "source": str(tmp_path / "data")}}
    stop = StopRequest()
    tools = Tools(Show(quiet=True), stop, Faults({("step", 2, 0): lambda: stop.ask("test")}))
    with pytest.raises(Stopped):
        train(shared, out=tmp_path / "run", tools=tools)
    shutil.rmtree(tmp_path / "data")
    prepare(small, "data.validation_fraction=0.3", out=tmp_path / "data")
    with pytest.raises(InputError, match="changed since the run began"):
        train(resume=tmp_path / "run")


def test_a_layout_that_cannot_hold_the_model_is_refused_before_training(
    small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"gpt2 has no .*kv_heads|cannot be that"):
        train(small, "model.layout=gpt2", "model.kv_heads=1", out=tmp_path / "a")
    with pytest.raises(InputError, match="mistral"):
        train(small, "model.layout=mistral", "model.attention_bias=true", out=tmp_path / "b")
    assert train(small, out=tmp_path / "b").result["status"] == "done"  # the folder is not burnt


@pytest.mark.parametrize("layout", ["llama", "mistral", "qwen2", "gpt2"])
def test_every_layout_trains_and_opens_in_transformers(
    layout: str, small: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    run = train(small, f"model.layout={layout}", "train.steps=2", out=tmp_path / "run").folder
    ours, theirs = luban.load(run), AutoModelForCausalLM.from_pretrained(run / "model")
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours.module(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_files_that_are_not_a_runs_are_never_removed(
    small: dict[str, Any], text_file: Path, tmp_path: Path
) -> None:
    """A folder of the user's own may hold a recipe.json and a data folder."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    shutil.copy(text_file, project / "data" / "mine.jsonl")
    (project / "recipe.json").write_text("{}")
    with pytest.raises(InputError, match="already holds a run"):
        train(small, out=project)
    assert (project / "data" / "mine.jsonl").read_bytes() == text_file.read_bytes()


def test_another_models_tokens_are_refused(small: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(
        '{"text": "quite other words, zebra quartz jig vex"}\n' * 3 + '{"text": "and one more of them"}\n'
    )
    data = {**small["data"], "source": str(other), "clean": None}
    prepare({**small, "data": data}, out=tmp_path / "data")
    started = {**small, "data": {**data, "source": str(tmp_path / "data")}, "model": {"start": str(finished)}}
    with pytest.raises(InputError, match="in the model to start from"):
        train(started, out=tmp_path / "run")


def test_a_run_goes_on_without_the_model_it_started_from(
    small: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "start")
    recipe = {**small, "model": {"start": str(tmp_path / "start")}}
    whole = train(recipe, out=tmp_path / "whole").folder
    stop = StopRequest()
    tools = Tools(Show(quiet=True), stop, Faults({("step", 5, 0): lambda: stop.ask("test")}))
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "run", tools=tools)
    shutil.rmtree(tmp_path / "start")
    assert sha256(train(resume=tmp_path / "run").folder / "model/model.safetensors") == sha256(
        whole / "model/model.safetensors"
    )


def test_odd_line_ends_in_samples_do_no_harm(small: dict[str, Any], tmp_path: Path) -> None:
    prompts = {**small["evaluate"], "prompts": ["one\u2028two\u0085three"]}
    outcome = train({**small, "evaluate": prompts}, out=tmp_path / "run")
    assert [sample["prompt"] for sample in outcome.samples()] == ["one\u2028two\u0085three"]
