"""`luban train`: from a recipe to a run folder with a trained, evaluated model; and on from where a run stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from luban import tasks
from luban.console import Show, duration, short
from luban.data.prepare import Prepared
from luban.durable import read_json, write_json
from luban.errors import InputError, LubanError, Stopped
from luban.evaluation.report import write_report
from luban.machine import MachineReport, peak_rss_bytes, probe, set_threads
from luban.model_folder import LoadedModel, load_model, save_model
from luban.models.layouts import new_module, read_config, write_config
from luban.recipe import LanguageModelRecipe, Recipe
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.tasks.base import Evaluation, Task
from luban.tasks.language_model import LanguageModule
from luban.training.checkpoints import Checkpoint, Checkpoints
from luban.training.compiling import Compiling, pays
from luban.training.faults import NO_FAULTS, Faults
from luban.training.loop import Loop, Progress
from luban.training.parallel import Plan, plan_from_environment
from luban.verbs.card import model_card
from luban.verbs.load import model_folder_of
from luban.verbs.records import RunRecord, SilentRecord
from luban.verbs.training_data import open_data


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
    def prompt(self) -> str:
        """A prompt that suits the model: one it was shown with."""
        return next(
            (
                str(sample["prompt"]).strip().splitlines()[0]
                for sample in self.samples()
                if sample["prompt"].strip()
            ),
            "Once",
        )


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
                settings = read_recipe(run.read_recipe(), (), tasks.schema_of)
            else:
                assert recipe is not None
                settings = with_its_tokenizer(read_recipe(recipe, overrides, tasks.schema_of))
                run = Run(Path(out) if out is not None else _new_folder(settings))
            with run.lock() if plan.rank == 0 else contextlib.nullcontext():
                return _Training(run, settings, plan, tools, resuming=resume is not None).do()
    finally:
        plan.close()


class _Training:
    """One sitting at a run: from what lies in its folder to its end, or to the next stop."""

    def __init__(self, run: Run, recipe: Recipe, plan: Plan, tools: Tools, *, resuming: bool) -> None:
        self.run, self.recipe, self.plan, self.tools, self.resuming = run, recipe, plan, tools, resuming
        self.first = plan.rank == 0

    def do(self) -> Outcome:
        run, show = self.run, self.tools.show
        if self.resuming and run.result.is_file():
            result: dict[str, Any] = read_json(run.result)
            show.line(f"{run.folder} is finished")
            if self.first and not (run.folder / "report.html").is_file():
                write_report(run.folder, run.fs)
            return Outcome(run.folder, result)
        if self.first and not self.resuming:
            run.begin(self.recipe.model_dump(mode="json"))
        with self._noted():
            task, machine, plan = self._set_up()
            loop = self._loop(task, machine, plan)
            checkpoint = loop.checkpoints.newest() if self.resuming else None
            if self.first:
                self._open_logs(checkpoint)
            progress = loop.run(checkpoint)
            if self.first:
                return self._finish(task, progress, loop)
            self.plan.wait()
            return Outcome(run.folder, {})

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Note in events.jsonl how this sitting ended, and leave a report of what there is."""
        try:
            yield
        except BaseException as error:
            self.tools.show.clear()
            if self.first:
                stopped = isinstance(error, Stopped)
                message = (
                    error.message if isinstance(error, LubanError) else f"{type(error).__name__}: {error}"
                )
                with contextlib.suppress(LubanError, OSError):
                    self.run.event("stopped" if stopped else "failed", message)
                    write_report(self.run.folder, self.run.fs)
            raise

    def _set_up(self) -> tuple[Task, MachineReport, dict[str, Any]]:
        """Prepare data, build the model, measure the machine, decide what is decided before step 1."""
        run, show, stop = self.run, self.tools.show, self.tools.stop
        kind = tasks.find(self.recipe.task)
        start = self._start_model()
        if self.first:
            data = open_data(run, self.recipe, kind, resuming=self.resuming, stop=stop.check, show=show)
            self.plan.wait()
        else:
            self.plan.wait()
            data = open_data(run, self.recipe, kind, resuming=True, stop=stop.check, show=show)
        set_threads()
        task = kind(self.recipe, data, start=start)
        task.model.to("cuda" if torch.cuda.is_available() else "cpu")
        plan: dict[str, Any] = read_json(run.plan) if run.plan.is_file() else {}
        machine = probe(*_shape(task), wanted=plan.get("dtype", self.recipe.train.dtype))
        stop.check()
        if self.first:
            if self.resuming and run.plan.is_file():
                machine = dataclasses.replace(machine, why="as when the run began")
            show.line(machine.first_line())
            write_json(run.machine, machine.as_json(), run.fs)
            if not plan:
                plan = self._decide(task, machine, data)
                write_json(run.plan, plan, run.fs)
            if machine.threads != plan["threads"]:
                show.line(
                    f"threads differ from when the run began ({plan['threads']}): results may differ in the last bits"
                )
        self.plan.wait()
        plan = plan or read_json(run.plan)
        return task, machine, plan

    def _start_model(self) -> LoadedModel | None:
        start = getattr(getattr(self.recipe, "model", None), "start", None)
        if not start:
            return None
        if self.resuming and self.run.plan.is_file() and any(self.run.checkpoints.glob("step-*")):
            # The weights come from a checkpoint; the folder the run started from may be gone or have changed.
            module = new_module(read_config(read_json(self.run.plan)["model"]))
            return LoadedModel(module, None, module.config.layout, {})
        return load_model(model_folder_of(Path(start)))

    def _decide(self, task: Task, machine: MachineReport, data: Prepared) -> dict[str, Any]:
        """Fix what must not change within a run: dtype, compile, and what a step costs."""
        settings = self.recipe.train
        batches = task.batches(0, 0, 1)
        flops = sum(task.flops(batch) for batch in batches)
        tokens = sum(batch.tokens for batch in batches)
        # Eager training reaches about half of the matrix rate; see benchmarks/LOG.md.
        seconds = flops / (0.5 * machine.peak_flops)
        steps = settings.steps or (math.ceil(settings.tokens / tokens) if settings.tokens else None)
        expected = settings.minutes * 60 if settings.minutes else (steps or 0) * seconds
        on = settings.compile == "on" or (settings.compile == "auto" and pays(expected))
        why = {
            "on": "asked for",
            "off": "asked for",
            "auto": f"{'pays' if on else 'does not pay'} in a run of about {duration(expected)}",
        }[settings.compile]
        return {
            "dtype": machine.dtype,
            "threads": machine.threads,
            "compile": on,
            "compile_why": why,
            "parameters": sum(p.numel() for p in task.model.parameters()),
            "steps": steps,
            "step_flops": flops,
            "step_tokens": tokens,
            "expected_seconds": round(expected, 1),
            "ranks": self.plan.ranks,
            "data": str(data.folder.absolute()) if data.folder != self.run.data else None,
            "fingerprint": data.fingerprint["sha256"],
            "model": write_config(cast(LanguageModule, task.model).config),
        }

    def _loop(self, task: Task, machine: MachineReport, plan: Mapping[str, Any]) -> Loop:
        run, show, settings = self.run, self.tools.show, self.recipe.train
        device = next(task.model.parameters()).device
        compiled = f"compile {'on' if plan['compile'] else 'off'} ({plan['compile_why']})"
        show.line(f"model: {short(plan['parameters'])} parameters; {compiled}")

        def forward() -> contextlib.AbstractContextManager[Any]:
            if plan["dtype"] == "bfloat16":
                return torch.autocast(device.type, torch.bfloat16)
            return contextlib.nullcontext()

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

        peak = machine.peak_flops * self.plan.ranks
        return Loop(
            task,
            settings,
            plan=self.plan,
            evaluate=evaluate,
            minimise=task.minimise,
            checkpoints=Checkpoints(run.checkpoints, keep=settings.keep, warn=self._warn, fs=run.fs),
            record=RunRecord(run, settings.loggers, peak) if self.first else SilentRecord(),
            forward=forward,
            stop=self.tools.stop,
            compiling=Compiling(task.model, wanted=bool(plan["compile"]), tell=self._warn),
            faults=self.tools.faults,
            clock=self.tools.clock,
            watch=watch,
        )

    def _warn(self, message: str) -> None:
        self.tools.show.line(message)
        if self.first:
            self.run.event("warning", message)

    def _open_logs(self, checkpoint: Checkpoint | None) -> None:
        """Cut the logs back to where the run goes on, and note that it does."""
        if not self.resuming:
            self.run.event("started", f"luban train, process of {self.plan.ranks}")
            return
        step = checkpoint.step if checkpoint else 0
        self.run.cut_logs(checkpoint.state["progress"]["logs"] if checkpoint else {})
        message = f"goes on from step {step}" if checkpoint else "no checkpoint yet: starts from step 0"
        self.run.event("resumed", message, step=step)
        self.tools.show.line(f"{self.run.folder}: {message}")

    def _finish(self, task: Task, progress: Progress, loop: Loop) -> Outcome:
        """Evaluate on all held-out data, write the model folder, the result and the report."""
        run, show = self.run, self.tools.show
        if self.recipe.train.patience is not None and progress.best_step not in (None, progress.step):
            assert progress.best_step is not None
            best = loop.checkpoints.load(progress.best_step)
            task.model.load_state_dict(dict(best.model))
            show.line(f"kept the best model: that of step {progress.best_step}")
        show.stage("evaluating", 0.0)
        task.model.eval()
        with loop.compiling.paused():
            evaluation = task.evaluate(stop=self.tools.stop.check)
        write_json(run.evaluation, evaluation.as_json(), run.fs)
        result = self._result(evaluation, progress)
        card = model_card(self.recipe, evaluation, result)
        save_model(
            run.model,
            cast(LanguageModule, task.model),
            task.tokenizer,
            task_state=task.state(),
            card=card,
            fs=run.fs,
        )
        write_json(run.result, result, run.fs)
        run.event("finished", f"{evaluation.primary} {evaluation.figures[evaluation.primary]:.4f}")
        write_report(run.folder, run.fs)
        show.clear()
        self.plan.wait()
        return Outcome(run.folder, result)

    def _result(self, evaluation: Evaluation, progress: Progress) -> dict[str, Any]:
        measured = evaluation.as_json()
        return {
            "status": "done",
            "task": self.recipe.task,
            "primary": measured["primary"],
            "metrics": {name: figure["value"] for name, figure in measured["metrics"].items()},
            "seconds": round(progress.seconds, 3),
            "steps": progress.step,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "peak_rss_bytes": peak_rss_bytes(),
            "model": "model",
        }


def with_its_tokenizer(recipe: Recipe) -> Recipe:
    """Let a model that is started from another read text with that one's tokenizer, unless the recipe names one."""
    if (
        not isinstance(recipe, LanguageModelRecipe)
        or recipe.model.start is None
        or recipe.data.tokenizer != "bpe"
    ):
        return recipe
    tokenizer = model_folder_of(Path(recipe.model.start)) / "tokenizer.json"
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"tokenizer": str(tokenizer)})})


def _shape(task: Task) -> tuple[int, int]:
    """Return the width and the tokens of a micro-batch: what the matrix multiplications look like."""
    width = max(min(p.shape) for p in task.model.parameters() if p.ndim == 2)
    return width, task.batches(0, 0, 1)[0].tokens


def _new_folder(recipe: Recipe) -> Path:
    """Return a folder under runs/ that does not exist yet, named by task and time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{recipe.task}-{stamp}"
    return next(
        p for p in (base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000))) if not p.exists()
    )


__all__: Sequence[str] = ["Outcome", "Tools", "train"]
