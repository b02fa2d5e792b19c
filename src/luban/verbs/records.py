"""Where the loop's figures go: the run's own logs, and TensorBoard or MLflow beside them."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from luban.durable import read_json, write_json
from luban.errors import MissingExtra
from luban.run import Run


class Sink(Protocol):
    """Another logger: takes numbers by step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self, ended: str) -> None:
        """End the sitting: `finished`, `stopped` or `failed`."""


class SilentRecord:
    """For ranks other than the first: the figures are the same everywhere, one writes them."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def timings(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> Mapping[str, int]:
        """Return no sizes."""
        return {}

    def close(self, ended: str) -> None:
        """Do nothing."""


class RunRecord:
    """Write to metrics.jsonl and timings.jsonl, and hand numbers on to other loggers.

    Arguments:
        run: whose logs.
        loggers: `tensorboard` and `mlflow`, each an extra.
        peak_flops: the measured matrix rate of all ranks, in FLOP/s; the share of it is noted.
    """

    def __init__(self, run: Run, loggers: Sequence[str], peak_flops: float) -> None:
        self._run, self._peak = run, peak_flops
        require_loggers(loggers)
        self._loggers, self._sinks = loggers, list[Sink]()
        for log in (run.metrics, run.timings):
            log.keep_open()

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Note what does not depend on the clock."""
        self._run.metrics.append(record)
        prefix = "evaluation/" if record.get("kind") == "evaluation" else "train/"
        numbers = {
            prefix + name: float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "tokens")
        }
        step = int(record["step"])
        if self._loggers and not self._sinks:
            # Only now is it known which steps a resumed run does again.
            first = step if record.get("kind") == "train" else step + 1
            self._sinks = [_SINKS[name](self._run, first) for name in self._loggers]
        for sink in self._sinks:
            sink.write(step, numbers)

    def timings(self, record: Mapping[str, Any]) -> None:
        """Note what does; a training step with its tokens/s, FLOP/s and share of the machine's peak."""
        if record["kind"] != "train":
            self._run.timings.append(record)
            return
        took = max(float(record["took"]), 1e-9)
        flops = record["flops"] / took
        self._run.timings.append(
            {
                "kind": "train",
                "step": record["step"],
                "seconds": round(record["seconds"], 4),
                "tokens_per_second": round(record["tokens"] / took, 1),
                "flops_per_second": round(flops),
                "peak_share": round(flops / self._peak, 4) if self._peak else None,
                "data_share": round(record["waited"] / took, 4),
            }
        )

    def sync(self) -> Mapping[str, int]:
        """Make the logs durable."""
        return self._run.sync_logs()

    def close(self, ended: str) -> None:
        """Close the logs and end the other loggers: the sitting is `finished`, `stopped` or `failed`."""
        for log in (self._run.metrics, self._run.timings):
            log.close()
        for sink in self._sinks:
            sink.close(ended)


def write_page(run: Run) -> None:
    """Write the run's report.html from its files.

    What draws it is imported here: a tenth of a second for which step 1 need not wait.
    """
    from luban.evaluation.report import write_report

    write_report(run.folder, run.fs)


def require_loggers(loggers: Sequence[str]) -> None:
    """Refuse a logger that is not installed, before anything is prepared for it.

    Raises:
        MissingExtra: naming the extra.
    """
    for name in loggers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, extra=name, purpose=f"log to it (train.loggers={name})")


class _TensorBoard:
    """Scalars in the run's folder `tensorboard/`; steps from `first` on that a killed sitting wrote are dropped."""

    def __init__(self, run: Run, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=first if folder.is_dir() else None)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ended: str) -> None:
        del ended
        self._writer.close()


_MLFLOW_ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class _MLflow:
    """A run of MLflow, kept open over resumes: its id stands in the run's folder, in mlflow.json."""

    def __init__(self, run: Run, first: int) -> None:
        del first
        import mlflow

        self._client = mlflow.MlflowClient()
        self._metric = mlflow.entities.Metric
        note = run.folder / "mlflow.json"
        self._id = str(read_json(note)["run_id"]) if note.is_file() else self._begin(run)
        if note.is_file():
            self._client.update_run(self._id, status="RUNNING")
        else:
            write_json(note, {"run_id": self._id}, run.fs)

    def _begin(self, run: Run) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", experiment)
        return str(self._client.create_run(experiment, run_name=run.folder.name).info.run_id)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        entries = [self._metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=entries)

    def close(self, ended: str) -> None:
        self._client.set_terminated(self._id, status=_MLFLOW_ENDS[ended])


_SINKS: dict[str, Callable[[Run, int], Sink]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow}
