"""Plans: two processes with unequal shares of a batch have the gradients of one process with all of it."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from luban.training.parallel import Alone, plan_from_environment

RANK = """
import json
import sys

import torch
from torch import nn

from luban.training.parallel import plan_from_environment

plan = plan_from_environment()
torch.manual_seed(plan.rank)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
model[0].bias.requires_grad_(False)
plan.start(model)
rows = torch.arange(15.0).reshape(5, 3).sin()
answers = {"weights": [p.tolist() for p in model.parameters()], "ranks": plan.ranks}
for name, shares in {"unequal": ([0, 3], [3, 5]), "empty": ([0, 5], [5, 5])}.items():
    model.zero_grad(set_to_none=True)
    begin, end = shares[plan.rank]
    if begin < end:
        (model[2](model[0](rows[begin:end])) ** 2).sum().backward()
    plan.reduce_gradients(model)
    answers[name] = [p.grad.tolist() if p.grad is not None else None for p in model.parameters()]
answers["sum"] = plan.sum([1e-17 + plan.rank, 2.0**53])
plan.wait()
plan.close()
with open(sys.argv[1] + f"/{plan.rank}.json", "w") as file:
    json.dump(answers, file)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder)],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
    finally:
        for process in ranks:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_all_begin_with_the_weights_of_rank_0(answers: list[dict[str, Any]]) -> None:
    assert answers[0]["ranks"] == 2
    assert answers[0]["weights"] == answers[1]["weights"]


@pytest.mark.parametrize("share", ["unequal", "empty"])
def test_gradients_are_those_of_one_process(answers: list[dict[str, Any]], share: str) -> None:
    weights = [torch.tensor(values) for values in answers[0]["weights"]]
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    for parameter, values in zip([*first.parameters(), *second.parameters()], weights, strict=True):
        parameter.data.copy_(values)
    rows = torch.arange(15.0).reshape(5, 3).sin()
    (second(first(rows)) ** 2).sum().backward()
    assert answers[0][share] == answers[1][share]
    found = answers[0][share]
    assert found[1] is None
    torch.testing.assert_close(torch.tensor(found[0]), first.weight.grad)
    torch.testing.assert_close(torch.tensor(found[2]), second.weight.grad)
    torch.testing.assert_close(torch.tensor(found[3]), second.bias.grad)


def test_sums_are_exact_to_float64_and_the_same_everywhere(answers: list[dict[str, Any]]) -> None:
    assert answers[0]["sum"] == answers[1]["sum"] == [1.0, 2.0**54]


def test_one_process_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    plan = plan_from_environment()
    assert isinstance(plan, Alone)
    assert (plan.rank, plan.ranks) == (0, 1)
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan.start(model)
    plan.reduce_gradients(model)
    plan.wait()
    plan.close()
    assert plan.sum(iter([1.5, 2])) == [1.5, 2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
