"""Where the loop's figures go: the run's own logs, and TensorBoard or MLflow beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luban.errors import MissingExtra
from luban.run import Run

Sink = Callable[[int, Mapping[str, float]], None]


class SilentRecord:
    """For ranks other than the first: the figures are the same everywhere, one writes them."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def timings(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def sync(self) -> Mapping[str, int]:
        """Return no sizes."""
        return {}


class RunRecord:
    """Write to metrics.jsonl and timings.jsonl, and hand numbers on to other loggers.

    Arguments:
        run: whose logs.
        loggers: `tensorboard` and `mlflow`, each an extra.
        peak_flops: the measured matrix rate of all ranks, in FLOP/s; the share of it is noted.
    """

    def __init__(self, run: Run, loggers: Sequence[str], peak_flops: float) -> None:
        self._run, self._peak = run, peak_flops
        self._sinks = [_SINKS[name](run) for name in loggers]

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Note what does not depend on the clock."""
        self._run.metrics.append(record)
        prefix = "evaluation/" if record.get("kind") == "evaluation" else "train/"
        numbers = {
            prefix + name: float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "tokens")
        }
        for sink in self._sinks:
            sink(int(record["step"]), numbers)

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
            }
        )

    def sync(self) -> Mapping[str, int]:
        """Make the logs durable."""
        return self._run.sync_logs()


def _tensorboard(run: Run) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", extra="tensorboard", purpose="log to TensorBoard") from error
    writer = SummaryWriter(str(run.folder / "tensorboard"))

    def write(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _mlflow(run: Run) -> Sink:
    try:
        import mlflow
    except ImportError as error:
        raise MissingExtra("mlflow", extra="mlflow", purpose="log to MLflow") from error
    mlflow.start_run(run_name=run.folder.name)

    def write(step: int, numbers: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(numbers), step=step)

    return write


_SINKS: dict[str, Callable[[Run], Sink]] = {"tensorboard": _tensorboard, "mlflow": _mlflow}
