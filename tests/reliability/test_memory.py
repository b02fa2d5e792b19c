"""Too little memory: a message with advice, or smaller micro-batches; never a torn step."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from interruptions import by_two, in_child, recipe
from shortages import BATCH, ERRORS, Case, Sitting, sweep

from luban import machine
from luban.durable import FileSystem
from luban.errors import OutOfMemory
from luban.tasks.language_model import LanguageModel, TextBatch
from luban.training.memory import bytes_left, is_out_of_memory
from luban.verbs.evaluate import evaluate
from luban.verbs.train import train

TRIED = 16


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk() -> Any:
    """What is tested here is no matter of power cuts."""
    with (
        mock.patch.object(FileSystem, "sync", lambda self, file: file.flush()),
        mock.patch.object(FileSystem, "sync_folder", lambda self, folder: None),
    ):
        yield


def test_wherever_memory_runs_short_no_step_is_torn(tmp_path: Path) -> None:
    outcomes = sweep(tmp_path, count=TRIED, seed=0)
    assert not [outcome for outcome in outcomes if outcome.startswith("BROKEN")], outcomes
    assert outcomes.total() == TRIED
    assert len(outcomes) == 2


def test_a_single_row_cannot_be_halved(tmp_path: Path) -> None:
    case = Case("forward", 2, 0, "halve", "adamw")
    with pytest.raises(OutOfMemory, match=r"step 3 in micro-batches of 1 x 8 tokens") as caught:
        Sitting(tmp_path, "halve", "adamw", case).do()
    assert "a smaller data.length or model" in str(caught.value)


def test_each_halving_is_kept_before_it_is_used(tmp_path: Path) -> None:
    """A run killed in the step that it does again goes on in the micro-batches it had come to."""
    sitting = Sitting(tmp_path, "halve", "adamw", Case("forward", 4, 2, "halve", "adamw"))
    seen: list[int | None] = []
    plain = sitting.learner.batches

    def batches(step: int, rank: int, ranks: int, size: int | None = None) -> Any:
        if step == 4:
            kept = sitting.loop.checkpoints.newest()
            seen.append(kept.state["progress"]["micro_batch"] if kept and size else size)
        return plain(step, rank, ranks, size)

    sitting.learner.batches = batches  # type: ignore[method-assign]
    sitting.do()
    assert seen == [None, BATCH // 2, BATCH // 4]


@pytest.mark.parametrize("make", ERRORS)
def test_the_allocators_words_are_known(make: Any) -> None:
    assert is_out_of_memory(make())


def test_other_errors_are_none_of_memory() -> None:
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    for error in (
        OSError(errno.ENOSPC, "No space left"),
        RuntimeError("mat1 and mat2 shapes"),
        ValueError("no"),
    ):
        assert not is_out_of_memory(error)


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit_to(more: int) -> None:
    """Let this process take so many bytes more than it has."""
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + more, resource.RLIM_INFINITY))


def test_torch_fails_as_expected_under_a_limit_and_what_is_left_is_known() -> None:
    def work() -> None:
        limit_to(64 << 20)
        assert (32 << 20) < bytes_left() <= (64 << 20)
        with pytest.raises(Exception) as caught:
            torch.empty(1 << 30)
        assert is_out_of_memory(caught.value), repr(caught.value)

    code, said = in_child(work)
    assert code == 0, said


WHOLE = 2048
"""Windows of a step that takes more than tests before this one may have left to the process."""


def too_big(folder: Path, policy: str) -> dict[str, Any]:
    """A recipe whose step takes half a gigabyte as one micro-batch."""
    settings = recipe(folder)
    settings["model"] |= {"width": 64, "mlp_width": 256, "dropout": 0.0}
    settings["train"] |= {
        "steps": 1,
        "dtype": "float32",
        "batch": WHOLE,
        "micro_batch": WHOLE,
        "on_out_of_memory": policy,
    }
    return settings


def test_a_batch_that_is_really_too_big_is_halved_until_it_fits(tmp_path: Path) -> None:
    settings = too_big(tmp_path, "halve")

    # In small pieces without a limit; first, so that what is imported late is there, and little memory is kept.
    pieces = too_big(tmp_path, "stop")
    pieces["train"]["micro_batch"] = 64
    free = train(pieces, out=tmp_path / "free").folder

    def work() -> None:
        torch.set_num_threads(1)
        limit_to(60 << 20)
        # Measuring takes 64 MB for itself.
        with mock.patch.object(machine, "measure_bandwidth", lambda *device: 1e10):
            train(settings, out=tmp_path / "run")

    code, said = in_child(work)
    assert code == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    sizes = [line["micro_batch"] for line in lines if line["kind"] == "out-of-memory"]
    assert sizes
    assert sizes == [WHOLE >> n for n in range(1, len(sizes) + 1)]
    limited = [line["loss"] for line in lines if line["kind"] == "train"]
    whole = [json.loads(line) for line in (free / "metrics.jsonl").read_text().splitlines()]
    torch.testing.assert_close(
        limited, [line["loss"] for line in whole if line["kind"] == "train"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("policy", ["stop", "halve"])
def test_when_one_rank_is_short_all_do_the_same(tmp_path: Path, policy: str) -> None:
    settings = recipe(tmp_path)
    settings["train"]["on_out_of_memory"] = policy
    plain = LanguageModel.loss

    def work(rank: int) -> None:
        def loss(self: LanguageModel, batch: TextBatch) -> Any:
            if rank == 1 and batch.rows > 1:
                raise MemoryError
            return plain(self, batch)

        with mock.patch.object(LanguageModel, "loss", loss):
            train(settings, out=tmp_path / "run")

    code, said = by_two(work)
    if policy == "stop":
        assert code == 1, said
        assert said.count("out of memory at step 1 in micro-batches of 2 x 16 tokens") == 2
        return
    assert code == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["micro_batch"] for line in lines if line["kind"] == "out-of-memory"] == [1]


LIMITED = """
import resource, sys
import torch, luban.verbs.train
from pathlib import Path
from luban import cli
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (300 << 20), resource.RLIM_INFINITY))
sys.argv = ["luban", "train", *sys.argv[1:], "--json"]
cli.main()
"""


def test_a_true_process_under_a_limit_says_what_to_do(tmp_path: Path) -> None:
    settings = too_big(tmp_path, "stop")
    settings["train"] |= {"batch": 8192, "micro_batch": 8192}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings), "utf-8")
    command = [sys.executable, "-c", LIMITED, str(path), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["status"] == "error"
    assert "out of memory at step 1 in micro-batches of 8192 x 16 tokens" in answer["error"]
    assert "train.micro_batch=4096" in answer["details"]
    assert "Traceback" not in done.stderr


def test_measuring_a_model_says_what_to_do_too(tmp_path: Path) -> None:
    run = train({**recipe(tmp_path)}, out=tmp_path / "run").folder
    with (
        mock.patch("luban.tasks.text_evaluation.measure", side_effect=MemoryError),
        pytest.raises(OutOfMemory, match="while measuring a model") as caught,
    ):
        evaluate(run)
    assert "--length" in str(caught.value)
