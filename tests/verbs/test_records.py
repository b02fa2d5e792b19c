"""Other loggers: they get the figures of each step once, over resumes too, and end when the run does."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from luban.errors import MissingExtra, Stopped
from luban.run import Run
from luban.signals import StopRequest
from luban.training.faults import Faults
from luban.verbs import records
from luban.verbs.records import RunRecord, require_loggers
from luban.verbs.train import Show, Tools, train


def train_row(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "tokens": step * 10, "loss": loss}


def evaluation_row(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "tokens": step * 10, "loss": loss}


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(e.step, round(e.value, 3)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = Run(tmp_path)
    first = RunRecord(run, ["tensorboard"], 1.0)
    for step in range(1, 8):
        first.metrics(train_row(step, float(step)))
        if step in (3, 6):
            first.metrics(evaluation_row(step, 10.0 + step))
    first.close("stopped")
    again = RunRecord(run, ["tensorboard"], 1.0)  # killed after step 7, goes on from the checkpoint of step 4
    for step in range(5, 9):
        again.metrics(train_row(step, float(step)))
    again.metrics(evaluation_row(8, 18.0))
    again.close("finished")
    shown = scalars(run)
    assert shown["train/loss"] == [(step, float(step)) for step in range(1, 9)]
    assert shown["evaluation/loss"] == [(3, 13.0), (8, 18.0)]


def test_tensorboard_keeps_the_step_whose_evaluation_is_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = Run(tmp_path)
    first = RunRecord(run, ["tensorboard"], 1.0)
    for step in (1, 2):
        first.metrics(train_row(step, float(step)))
    first.close("failed")
    again = RunRecord(run, ["tensorboard"], 1.0)
    again.metrics(evaluation_row(2, 12.0))
    again.close("finished")
    assert scalars(run) == {"train/loss": [(1, 1.0), (2, 2.0)], "evaluation/loss": [(2, 12.0)]}


class FakeMLflow(types.ModuleType):
    """The calls of MLflow's client that are used, by its documentation; what they did is kept."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        kept: dict[str, dict[str, Any]] = {}
        self.kept = kept

        class Metric:
            def __init__(self, key: str, value: float, timestamp: int, step: int) -> None:
                self.key, self.value, self.step = key, value, step

        class Client:
            def get_experiment_by_name(self, name: str) -> Any:
                return types.SimpleNamespace(experiment_id="0") if name == "Default" else None

            def create_experiment(self, name: str) -> str:
                return name

            def create_run(self, experiment_id: str, run_name: str | None = None) -> Any:
                name = f"id-{len(kept)}"
                kept[name] = {"experiment": experiment_id, "name": run_name, "status": "RUNNING", "steps": []}
                return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))

            def update_run(self, run_id: str, status: str | None = None) -> None:
                kept[run_id]["status"] = status

            def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
                assert kept[run_id]["status"] == "RUNNING"
                kept[run_id]["steps"] += [(metric.key, metric.step) for metric in metrics]

            def set_terminated(self, run_id: str, status: str) -> None:
                kept[run_id]["status"] = status

        self.MlflowClient = Client
        self.entities = types.SimpleNamespace(Metric=Metric)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    fake = FakeMLflow()
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    return fake


@pytest.mark.parametrize(
    ("ended", "status"), [("stopped", "KILLED"), ("failed", "FAILED"), ("finished", "FINISHED")]
)
def test_mlflow_has_one_run_over_all_sittings_and_ends_it(
    tmp_path: Path, mlflow: FakeMLflow, ended: str, status: str
) -> None:
    run = Run(tmp_path)
    for step in (1, 2):
        record = RunRecord(run, ["mlflow"], 1.0)
        record.metrics(train_row(step, 1.0))
        record.close(ended)
    (kept,) = mlflow.kept.values()
    assert kept == {
        "experiment": "0",
        "name": tmp_path.name,
        "status": status,
        "steps": [("train/loss", 1), ("train/loss", 2)],
    }


def test_a_training_that_stops_and_goes_on_ends_its_loggers(
    small: dict[str, Any], tmp_path: Path, mlflow: FakeMLflow
) -> None:
    stop = StopRequest()
    faults = Faults({("step", 5, 0): lambda: stop.ask("SIGTERM")})
    settings = {**small, "train": {**small["train"], "loggers": ["mlflow"]}}
    with pytest.raises(Stopped):
        train(settings, out=tmp_path / "run", tools=Tools(Show(quiet=True), stop, faults))
    assert [kept["status"] for kept in mlflow.kept.values()] == ["KILLED"]
    train(resume=tmp_path / "run")
    (kept,) = mlflow.kept.values()
    assert kept["status"] == "FINISHED"
    assert [step for key, step in kept["steps"] if key == "train/loss"] == list(range(1, 13))


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_made(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = records.importlib.util.find_spec
    monkeypatch.setattr(
        records.importlib.util, "find_spec", lambda name: None if name == "mlflow" else plain(name)
    )
    require_loggers([])
    settings = {**small, "train": {**small["train"], "loggers": ["mlflow"]}}
    with pytest.raises(MissingExtra, match=r"train\.loggers=mlflow"):
        train(settings, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("[!.]*"))
