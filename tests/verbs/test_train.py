"""Training as a user starts, stops and repeats it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import luban
from luban.console import Show
from luban.durable import FileSystem, sha256
from luban.errors import InputError, LubanError, RecipeError, Stopped, StorageError
from luban.signals import StopRequest
from luban.tensors import read_safetensors
from luban.training.faults import POINTS, Faults
from luban.verbs.train import Tools, train

SAME = ("model/model.safetensors", "metrics.jsonl", "samples.jsonl", "evaluation.json")


def same(a: Path, b: Path) -> bool:
    return all(sha256(a / name) == sha256(b / name) for name in SAME)


def tools(**changes: Any) -> Tools:
    return Tools(Show(quiet=True), changes.pop("stop", StopRequest()), **changes)


def test_a_run_leaves_what_programs_are_promised(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert set(result) == {
        "status", "task", "unit", "continues_text", "primary", "metrics", "seconds", "steps", "tokens", "flops",
        "peak_rss_bytes", "model", "measured",
    }  # fmt: skip
    assert (result["status"], result["task"], result["steps"], result["tokens"]) == (
        "done",
        "language-model",
        12,
        12 * 4 * 32,
    )
    assert result["primary"]["name"] == "bits_per_byte" and result["primary"]["direction"] == "min"
    assert result["primary"]["value"] == result["metrics"]["bits_per_byte"] > 0
    assert result["flops"] > 0 and result["seconds"] > 0 and result["peak_rss_bytes"] > 10**7
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert (finished / "report.html").stat().st_size > 10_000
    assert (finished / "model" / "config.json").is_file()
    events = [json.loads(line)["event"] for line in (finished / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "finished"]


def test_the_same_recipe_gives_the_same_bytes(finished: Path, small: dict[str, Any], tmp_path: Path) -> None:
    assert same(train(small, out=tmp_path / "again").folder, finished)


def test_the_model_opens_in_transformers_as_written(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(finished / "model"),
        AutoTokenizer.from_pretrained(finished / "model"),
    )
    ours, text = luban.load(finished), "the king 春眠不觉晓 🙂\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == ours.tokenizer.encode(text)
    torch.testing.assert_close(ours.module(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    greedy = theirs.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert ours.generate(text, max_tokens=8, temperature=0) == tokenizer.decode(
        greedy, skip_special_tokens=True
    )


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process and return its wait status; forking spares the seconds torch takes to import."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize(
    ("point", "step"),
    [(point, step) for point in POINTS for step in (4, 7) if not (point.endswith("save") and step == 7)],
)
def test_killed_at_any_point_it_goes_on_to_the_same_bytes(
    point: str, step: int, finished: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    if point == "evaluate" and step == 7:
        step = 8
    die = Faults({(point, step, 0): lambda: os.kill(os.getpid(), signal.SIGKILL)})
    status = in_child(lambda: train(small, out=tmp_path / "run", tools=tools(faults=die)))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    assert same(train(resume=tmp_path / "run").folder, finished)


@pytest.mark.parametrize("at", [1, 2, 5, 9, 14, 40, 60, 80, 100, 120])
def test_killed_at_any_write_it_goes_on_to_the_same_bytes(
    at: int, finished: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    plain = {"write": FileSystem.write, "replace": FileSystem.replace}
    left = [at]

    def counted(name: str) -> Callable[..., None]:
        def operation(self: FileSystem, *arguments: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            plain[name](self, *arguments)

        return operation

    def doomed() -> None:
        FileSystem.write, FileSystem.replace = counted("write"), counted("replace")  # type: ignore[method-assign]
        train(small, out=tmp_path / "run")

    status = in_child(doomed)
    assert os.WIFSIGNALED(status)
    begun = (tmp_path / "run" / "recipe.json").exists()
    went_on = train(resume=tmp_path / "run") if begun else train(small, out=tmp_path / "run")
    assert same(went_on.folder, finished)
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_signal_saves_and_says_how_to_go_on(finished: Path, small: dict[str, Any], tmp_path: Path) -> None:
    stop = StopRequest()
    with pytest.raises(Stopped, match="step 6; saved"):
        train(
            small,
            out=tmp_path / "run",
            tools=tools(stop=stop, faults=Faults({("step", 5, 0): lambda: stop.ask("SIGTERM")})),
        )
    assert (tmp_path / "run" / "report.html").is_file()
    assert same(train(resume=tmp_path / "run").folder, finished)
    assert train(resume=tmp_path / "run").result["steps"] == 12  # a finished run says so again


def test_a_run_whose_first_steps_are_short_goes_on_to_the_same_bytes_from_either_side(
    small: dict[str, Any], tmp_path: Path
) -> None:
    short = {**small, "data": {**small["data"], "short_steps": 6}}
    whole = train(short, out=tmp_path / "whole")
    assert whole.result["tokens"] == (6 * 4 * 16) + (6 * 4 * 32)
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    assert plan["predicted"]["tokens"] == whole.result["tokens"]
    assert plan["predicted"]["flops"] == whole.result["flops"]
    for step in (4, 8):
        stop = StopRequest()
        ask = Faults({("step", step, 0): partial(stop.ask, "SIGTERM")})
        with pytest.raises(Stopped):
            train(short, out=tmp_path / f"at-{step}", tools=tools(stop=stop, faults=ask))
        assert same(train(resume=tmp_path / f"at-{step}").folder, whole.folder)


def test_a_full_disk_loses_nothing(
    finished: Path, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FileSystem.write

    def full(self: FileSystem, file: Any, data: bytes | memoryview) -> None:
        # In the run's own folder: a rehearsal, too, may happen to end with its eighth step.
        place = Path(file.name)
        if (
            place.parent.parent.name == "checkpoints"
            and "step-00000008" in str(place)
            and "optimizer" in place.name
        ):
            raise OSError(28, "No space left on device")
        plain(self, file, data)

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "write", full)
        with pytest.raises(StorageError, match=r"step-00000008.*No space left on device.*bytes free"):
            train(small, out=tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert same(train(resume=tmp_path / "run").folder, finished)


def test_a_damaged_checkpoint_is_passed_over(finished: Path, small: dict[str, Any], tmp_path: Path) -> None:
    folder, stop = tmp_path / "run", StopRequest()
    with pytest.raises(Stopped):
        train(
            small,
            out=folder,
            tools=tools(stop=stop, faults=Faults({("step", 9, 0): lambda: stop.ask("test")})),
        )
    newest = folder / "checkpoints" / "step-00000010" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert same(train(resume=folder).folder, finished)
    warned = [
        e["message"]
        for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if e["event"] == "warning"
    ]
    assert "checkpoint of step 10 is not whole" in warned[0]


def test_changed_data_stops_a_resume_and_names_both(
    small: dict[str, Any], text_file: Path, tmp_path: Path
) -> None:
    copy, stop = tmp_path / "stories.jsonl", StopRequest()
    shutil.copy(text_file, copy)
    recipe = {**small, "data": {**small["data"], "source": str(copy)}}
    with pytest.raises(Stopped):
        train(
            recipe,
            out=tmp_path / "run",
            tools=tools(stop=stop, faults=Faults({("step", 2, 0): lambda: stop.ask("test")})),
        )
    before = copy.read_bytes()
    copy.write_bytes(before + b'{"text": "one more"}\n')
    with pytest.raises(InputError, match=r"the data changed.*stories\.jsonl"):
        train(resume=tmp_path / "run")
    copy.write_bytes(before)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert train(resume=tmp_path / "moved").result["status"] == "done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nonsense"], "no recipe of that name"),
        (["train", "text"], "data.source is missing"),
        (
            ["train", "text", "data.source=/no/such/file", "train.lerning_rate=1"],
            "did you mean learning_rate",
        ),
        (["train", "text", "data.source=/no/such/file"], "/no/such/file"),
        (["train", "--resume", "/no/such/run"], "no run"),
        (["train"], "give a recipe"),
        (["evaluate", "/no/such/run", "--data", "x"], "neither a run nor a model"),
        (["predict", "/no/such/run", "hello"], "neither a run nor a model"),
    ],
)
def test_wrong_input_ends_with_two_and_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from luban import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["luban", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert message in err
    assert json.loads(out.splitlines()[-1])["status"] == "error"


def test_a_folder_in_use_or_not_empty_is_left_alone(
    finished: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        train(small, out=finished)
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train(small, out=tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_a_recipe_file_with_overrides(small: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**small, "train": {**small["train"], "steps": 3}}))
    assert same(train(path, "train.steps=12", out=tmp_path / "run").folder, finished)
    with pytest.raises(RecipeError, match=r"unknown key model\.widht"):
        train(path, "model.widht=8", out=tmp_path / "other")


def test_starting_from_a_model_keeps_its_tokenizer(
    finished: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {
        **small,
        "model": {"start": str(finished)},
        "train": {"steps": 1, "batch": 2, "learning_rate": 1e-9},
    }
    outcome = train(recipe, out=tmp_path / "run")
    before, after = luban.load(finished), luban.load(outcome.folder)
    assert before.tokenizer.encode("the king") == after.tokenizer.encode("the king")
    ids = torch.tensor([before.tokenizer.encode("the king of the hills")])
    torch.testing.assert_close(before.module(ids), after.module(ids), atol=1e-5, rtol=1e-4)


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_sigterm_ends_with_75_and_two_ranks_train_the_same_model(
    small: dict[str, Any], finished: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({**small, "model": {**small["model"], "dropout": 0.0}}))
    alone = train(recipe, out=tmp_path / "alone").folder
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "luban",
    ]
    torchrun = [*command, "train", str(recipe), "--out", str(tmp_path / "together")]
    subprocess.run(torchrun, check=True, env=environment, capture_output=True, timeout=120)
    one, two = (
        read_safetensors(run / "model" / "model.safetensors") for run in (alone, tmp_path / "together")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)

    long = [
        sys.executable,
        "-m",
        "luban",
        "train",
        str(recipe),
        "train.steps=100000",
        "--json",
        "--out",
        str(tmp_path / "long"),
    ]
    process = subprocess.Popen(long, env=environment, stdout=subprocess.PIPE, text=True)
    for _ in waiting(60):
        if (tmp_path / "long" / "checkpoints" / "step-00000004").is_dir():
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"


def waiting(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    raise TimeoutError


def test_a_model_that_is_none_yet_is_said_to_be_none(small: dict[str, Any], tmp_path: Path) -> None:
    stop = StopRequest()
    with pytest.raises(Stopped):
        train(
            small,
            out=tmp_path / "run",
            tools=tools(stop=stop, faults=Faults({("step", 2, 0): lambda: stop.ask("test")})),
        )
    with pytest.raises(LubanError, match="did not finish"):
        luban.load(tmp_path / "run")
