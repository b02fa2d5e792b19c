"""`luban train`: from a recipe to a run folder with a trained, evaluated model; and on from where a run stopped."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban import tasks
from luban.console import Show
from luban.durable import folder_bytes, read_json, write_json
from luban.errors import InputError, LubanError, Stopped
from luban.evaluation.records import said_by_task
from luban.machine import MachineReport, peak_rss_bytes
from luban.planning.forecast import Forecast
from luban.recipe import Recipe
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.tasks.base import Evaluation, Learner, Usage
from luban.training.checkpoints import Checkpoint, Checkpoints, bytes_needed, check_space
from luban.training.compiling import Compiling
from luban.training.faults import NO_FAULTS, Faults
from luban.training.kernels import kernels_again
from luban.training.loop import EVALUATIONS, Loop, Progress
from luban.training.memory import memory_errors
from luban.training.parallel import Plan, plan_from_environment, together
from luban.training.precision import dtype_named
from luban.verbs.beginning import begin, started_from, with_what_is_given
from luban.verbs.card import model_card
from luban.verbs.folds import folds_of, train_folds
from luban.verbs.records import RunRecord, SilentRecord, require_loggers, write_page


@dataclass(frozen=True)
class Outcome:
    """What a training left behind."""

    folder: Path
    result: Mapping[str, Any]

    def samples(self) -> list[dict[str, Any]]:
        """Return what the model wrote at its last evaluation: `{"step", "prompt", "text"}` each."""
        path = self.folder / "samples.jsonl"
        lines = path.read_text("utf-8").split("\n") if path.is_file() else []
        written = [json.loads(line) for line in lines if line]
        return [sample for sample in written if sample["step"] == written[-1]["step"]]

    @property
    def prompt(self) -> str | None:
        """A prompt that suits the model, one it was shown with; None for a model that continues none."""
        if not self.result or not said_by_task(self.result).continues_text:
            return None
        prompts = (sample["prompt"] for sample in self.samples() if sample["prompt"].strip())
        return next((str(prompt).strip().splitlines()[0] for prompt in prompts), "Once")


@dataclass
class Tools:
    """What a test replaces: time, signals, faults, and what a person sees."""

    show: Show
    stop: StopRequest
    faults: Faults = NO_FAULTS
    clock: Callable[[], float] = time.monotonic


def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    *overrides: str,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    tools: Tools | None = None,
) -> Outcome:
    """Train a model, or go on with a run.

    Arguments:
        recipe: a shipped recipe's name, a YAML file, or a mapping; not with `resume`.
        overrides: `section.key=value`.
        out: the run's folder, new or empty; a folder under `runs/` when left out.
        resume: the folder of a run to go on with.
        tools: clock, signals and faults, for tests.

    Returns:
        The folder and what its result.json says.

    Raises:
        InputError: when recipe, data or folder cannot be used.
        Stopped: when a signal asked for a stop; a checkpoint was saved.
    """
    tools = tools or Tools(Show(quiet=True), StopRequest())
    if resume is not None and recipe is not None and "=" in str(recipe):
        overrides, recipe = (str(recipe), *overrides), None
    if (recipe is None) == (resume is None):
        raise InputError(
            "give a recipe to start with, or a run to go on with",
            fix="luban train RECIPE, or luban train --resume DIR",
        )
    if resume is not None and (overrides or out is not None):
        fix = "leave the rest out; to change a setting, start a new run"
        raise InputError(
            "a run goes on with its own recipe, in its own folder",
            received=list(overrides) or str(out),
            fix=fix,
        )
    plan = plan_from_environment()
    if plan.ranks > 1 and out is None and resume is None:
        plan.close()
        raise InputError("several processes need one folder", fix="add --out DIR")
    if plan.rank > 0:
        tools.show = Show(quiet=True)
    try:
        with tools.stop.listening():
            if resume is not None:
                run = Run(Path(resume))
                settings = read_recipe(run.read_recipe(), (), tasks.schema_of, str(run.recipe))
            else:
                assert recipe is not None
                settings = with_what_is_given(read_recipe(recipe, overrides, tasks.schema_of))
                run = Run(Path(out) if out is not None else _new_folder(settings))
            with run.lock() if plan.rank == 0 else contextlib.nullcontext():
                if folds_of(settings) is not None:
                    return _in_folds(run, settings, plan, tools, resuming=resume is not None)
                return _Training(run, settings, plan, tools, resuming=resume is not None).do()
    finally:
        plan.close()


def _in_folds(run: Run, recipe: Recipe, plan: Plan, tools: Tools, *, resuming: bool) -> Outcome:
    """Train the folds of a run one after another, in this process."""
    if plan.ranks > 1:
        raise InputError(
            "folds are trained by one process", received=f"{plan.ranks} processes", fix="start one"
        )
    if not resuming:
        run.begin(recipe.model_dump(mode="json"))
        run.event("started", "luban train, in folds")

    def part(one: Run, settings: Recipe, begun: bool) -> Mapping[str, Any]:
        if begun:
            settings = read_recipe(one.read_recipe(), (), tasks.schema_of, str(one.recipe))
        with one.lock():
            return _Training(one, settings, plan, tools, resuming=begun).do().result

    return Outcome(run.folder, train_folds(run, recipe, part, tools.show))


class _Training:
    """One sitting at a run: from what lies in its folder to its end, or to the next stop."""

    def __init__(self, run: Run, recipe: Recipe, plan: Plan, tools: Tools, *, resuming: bool) -> None:
        self.run, self.recipe, self.plan, self.tools, self.resuming = run, recipe, plan, tools, resuming
        self.first = plan.rank == 0
        self.record: RunRecord | SilentRecord = SilentRecord()

    def do(self) -> Outcome:
        run, show = self.run, self.tools.show
        if self.resuming and run.result.is_file():
            result: dict[str, Any] = read_json(run.result)
            show.line(f"{run.folder} is finished")
            if self.first and not (run.folder / "report.html").is_file():
                write_page(run)
            return Outcome(run.folder, result)
        require_loggers(self.recipe.train.loggers)
        if self.first and not self.resuming:
            run.begin(self.recipe.model_dump(mode="json"))
        # The loop says more of its own shortages; this is for what comes before and after it.
        advice = (
            f"close other programs, then go on: luban train --resume {run.folder}; or train a smaller model"
        )
        with self._noted(), memory_errors("preparing or finishing the run", advice):
            with together(self.plan):
                begun = begin(
                    run,
                    self.recipe,
                    self.plan,
                    resuming=self.resuming,
                    stop=self.tools.stop,
                    show=self.tools.show,
                )
            self.recipe, task = begun.recipe, begun.task
            loop = self._loop(task, begun.machine, begun.plan)
            with together(self.plan):
                self._check_space(task, loop)
            checkpoint = loop.checkpoints.newest() if self.resuming else None
            if self.first:
                self._open_logs(checkpoint)
            progress = loop.run(checkpoint)
            with together(self.plan):
                if self.first:
                    return self._finish(task, progress, loop)
                self.plan.wait()
            return Outcome(run.folder, {})

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Note in events.jsonl how this sitting ended, and leave a report of what there is."""
        try:
            yield
            self.record.close("finished")
        except BaseException as error:
            self.tools.show.clear()
            with contextlib.suppress(Exception):  # a logger that is not there must not hide why
                self.record.close("stopped" if isinstance(error, Stopped) else "failed")
            if self.first:
                with contextlib.suppress(LubanError, OSError):
                    self.run.ended(error)
                with contextlib.suppress(
                    Exception
                ):  # nor a report that cannot be written: memory may be short
                    write_page(self.run)
            raise

    def _loop(self, task: Learner, machine: MachineReport, plan: Mapping[str, Any]) -> Loop:
        run, show, settings = self.run, self.tools.show, self.recipe.train

        def evaluate(step: int) -> Mapping[str, float]:
            figures = task.quick()
            if self.first:
                for sample in task.samples():
                    run.samples.append({"step": step, **sample})
            return figures

        def watch(progress: Progress, loss: float, share: float) -> None:
            show.step(
                step=progress.step,
                tokens=progress.tokens,
                seconds=progress.seconds,
                flops=progress.flops,
                loss=loss,
                fraction=share,
                peak_flops=machine.peak_flops * self.plan.ranks,
            )

        if self.first:
            self.record = RunRecord(run, settings.loggers, machine.peak_flops * self.plan.ranks)
        return Loop(
            task,
            settings,
            plan=self.plan,
            evaluate=evaluate,
            minimise=task.minimise,
            checkpoints=Checkpoints(
                run.checkpoints, keep=settings.keep, warn=self._warn, fs=run.fs, sets_aside=self.first
            ),
            record=self.record,
            dtype=dtype_named(plan["dtype"]),
            kernels=kernels_again(settings, self._warn) if plan.get("kernels") else None,
            stop=self.tools.stop,
            compiling=Compiling(task.model, wanted=bool(plan["compile"]), tell=self._warn),
            faults=self.tools.faults,
            clock=self.tools.clock,
            evaluations=plan.get("evaluations") or EVALUATIONS,
            watch=watch,
            tell=self._warn,
        )

    def _check_space(self, task: Learner, loop: Loop) -> None:
        """Refuse before step 1 what could not be saved."""
        if self.first:
            settings, tensors = self.recipe.train, task.model.state_dict().values()
            model = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            best = settings.keeps_best
            needed = bytes_needed(model, loop.optimizer.state_bytes(), keep=settings.keep, best=best)
            check_space(self.run.checkpoints, needed)
        self.plan.wait()

    def _warn(self, message: str) -> None:
        self.tools.show.line(message)
        if self.first:
            self.run.event("warning", message)

    def _open_logs(self, checkpoint: Checkpoint | None) -> None:
        """Cut the logs back to where the run goes on, and note that it does."""
        if not self.resuming:
            self.run.event("started", f"luban train, process of {self.plan.ranks}")
            plan = self.run.read_plan()
            if plan["started"]:
                self.run.event("taken", started_from(plan))
            return
        step = checkpoint.step if checkpoint else 0
        self.run.cut_logs(checkpoint.state["progress"]["logs"] if checkpoint else {})
        message = f"goes on from step {step}" if checkpoint else "no checkpoint yet: starts from step 0"
        self.run.event("resumed", message, step=step)
        self.tools.show.line(f"{self.run.folder}: {message}")

    def _finish(self, task: Learner, progress: Progress, loop: Loop) -> Outcome:
        """Evaluate on all held-out data, write the model folder, the result and the report."""
        run, show = self.run, self.tools.show
        if self.recipe.train.keeps_best and progress.best_step not in (None, progress.step):
            assert progress.best_step is not None
            if best := loop.checkpoints.best(progress.best_step):
                task.model.load_state_dict(dict(best.model))
                show.line(f"kept the best model: that of step {progress.best_step}")
            else:
                self._warn(f"the model is the last one, of step {progress.step}, and not the best")
        started = self.tools.clock()
        show.stage("evaluating", 0.0)
        task.model.eval()
        with loop.compiling.paused():
            evaluation = task.evaluate(stop=self.tools.stop.check)
        if evaluation.documents is not None:
            evaluation.documents.write(run.documents, run.fs)
        if evaluation.rows is not None:
            evaluation.rows.write(run.rows, run.fs)
        write_json(run.evaluation, evaluation.as_json(), run.fs)
        usage = task.usage()
        result = self._result(evaluation, progress, usage)
        task.save(run.model, model_card(self.recipe, evaluation, result, usage), run.fs)
        seconds = progress.seconds + self.tools.clock() - started
        result["measured"] = self._measured(evaluation, progress, seconds)
        write_json(run.result, result, run.fs)
        run.event("finished", f"{evaluation.primary} {evaluation.figures[evaluation.primary]:.4f}")
        write_page(run)
        show.clear()
        self.plan.wait()
        return Outcome(run.folder, result)

    def _result(self, evaluation: Evaluation, progress: Progress, usage: Usage) -> dict[str, Any]:
        measured = evaluation.as_json()
        return {
            "status": "done",
            "task": self.recipe.task,
            "unit": usage.unit,
            "continues_text": usage.continues_text,
            "primary": measured["primary"],
            "metrics": {name: figure["value"] for name, figure in measured["metrics"].items()},
            "seconds": round(progress.seconds, 3),
            "steps": progress.step,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "peak_rss_bytes": peak_rss_bytes(),
            "model": "model",
        }

    def _measured(self, evaluation: Evaluation, progress: Progress, seconds: float) -> dict[str, Any]:
        """Return what came of the run, by the names of what was expected of it."""
        came = Forecast(
            steps=progress.step,
            tokens=progress.tokens,
            flops=progress.flops,
            training_seconds=round(progress.seconds, 2),
            seconds=round(seconds, 2),
            peak_bytes=peak_rss_bytes(),
            disk_bytes=folder_bytes(self.run.folder),
            figures={n: v for n, v in evaluation.figures.items() if math.isfinite(v)},
        )
        return came.as_json()


def _new_folder(recipe: Recipe) -> Path:
    """Return a folder under runs/ that does not exist yet, named by task and time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{recipe.task}-{stamp}"
    return next(
        p for p in (base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000))) if not p.exists()
    )


__all__: Sequence[str] = ["Outcome", "Tools", "train"]
