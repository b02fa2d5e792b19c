"""What is decided before step 1 and kept in plan.json: shape, dtype, compile, evaluations, expected cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luban.console import Show, duration, short
from luban.durable import FileSystem, folder_bytes
from luban.machine import (
    BFLOAT16_GAIN,
    MachineReport,
    emulates_bfloat16,
    matrix_rates,
    probe,
)
from luban.planning.forecast import Forecast, evaluations_of, forecast
from luban.planning.rehearsal import Rehearsal, rehearse
from luban.recipe import BUDGETS, Recipe, TrainRecipe
from luban.signals import StopRequest
from luban.tasks.base import Choice, Data, Learner, Machine, Task
from luban.training.compiling import pays
from luban.training.kernels import choose_kernels, kernels_expected
from luban.training.memory import bytes_left
from luban.training.precision import dtype_named, forward_in

_TRIED_ROWS, _TRIALS, _MOST_TRIALS, _TRIAL_SECONDS = 32, 4, 20, 2.0


def settle(recipe: Recipe, kind: type[Task], data: Any, start: Any) -> tuple[Recipe, dict[str, Choice]]:
    """Choose what the recipe leaves open; return the recipe with the values in it, and the reasons."""
    takes = getattr(kind, "takes_kernels", False)  # who does not is spared their compiling
    rates = matrix_rates()
    between = (
        None if torch.cuda.is_available() else rates[0]
    )  # a GPU's memory does not go by its float32 products
    machine = Machine(max(rates), bytes_left(), takes and kernels_expected(recipe.train), between)
    chosen = dict(kind.choose(recipe, data, machine, start))
    return with_values(recipe, {key: choice.value for key, choice in chosen.items()}), chosen


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with values at `section.key` places, checked again.

    Example:
        >>> from luban.text_recipe import LanguageModelRecipe
        >>> recipe = LanguageModelRecipe.model_validate({"data": {"source": "a.txt"}, "train": {"steps": 9}})
        >>> with_values(recipe, {"train.batch": 8}).train.batch
        8
    """
    if not values:
        return recipe
    mapping = recipe.model_dump(mode="json")
    for place, value in values.items():
        section, _, key = place.partition(".")
        if (
            section == "train" and key in BUDGETS
        ):  # a recipe has one: this takes the place of what stood there
            mapping[section].update(dict.fromkeys(BUDGETS))
        mapping[section][key] = value
    return type(recipe).model_validate(mapping)


def measure_machine(task: Learner, wanted: str) -> MachineReport:
    """Measure the machine at the shape of the task's matrix products; with convolutions, at its own steps."""
    width = max((min(p.shape) for p in task.model.parameters() if p.ndim == 2), default=1)
    dtype, why = wanted, None
    device = next(task.model.parameters()).device.type
    convolves = any(isinstance(module, nn.Conv2d) for module in task.model.modules())
    if wanted == "auto" and convolves and not emulates_bfloat16(device):
        dtype, why = faster_dtype(task)
    report = probe(width, task.batches(task.short_steps, 0, 1)[0].tokens, wanted=dtype)
    return report if why is None else dataclasses.replace(report, why=why)


def faster_dtype(task: Learner) -> tuple[str, str]:
    """Return the dtype to compute in, and why, from forward and backward over a few rows in each.

    What a convolution takes does not follow from a matrix product of its size. The model is left as it was.
    """
    batch = task.batches(0, 0, 1, _TRIED_ROWS)[0]
    device = next(task.model.parameters()).device
    statistics = [(buffer, buffer.clone()) for buffer in task.model.buffers()]
    taken: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    task.model.train()
    begun = time.perf_counter()
    while len(taken["float32"]) < _TRIALS or (
        len(taken["float32"]) < _MOST_TRIALS and time.perf_counter() - begun < _TRIAL_SECONDS
    ):
        for dtype, seconds in taken.items():
            started = time.perf_counter()
            with forward_in(dtype_named(dtype), device)():
                loss = task.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    task.model.zero_grad(set_to_none=True)
    for buffer, before in statistics:
        buffer.copy_(before)
    # The shortest: the first allocates, and neighbours on the machine can only make one longer.
    gain = min(taken["float32"]) / min(taken["bfloat16"])
    why = f"a step in bfloat16 runs at {gain:.2g}x of float32 here"
    return ("bfloat16" if gain >= BFLOAT16_GAIN else "float32"), why


@dataclass(frozen=True)
class Decisions:
    """What was decided, and what it rests on."""

    dtype: str
    threads: int
    kernels: bool
    kernels_why: str
    compile: bool
    compile_why: str
    evaluations: int
    rehearsal: Rehearsal
    expected: Forecast


def decide(
    task: Learner,
    settings: TrainRecipe,
    machine: MachineReport,
    folder: Path,
    *,
    ranks: int,
    data_bytes: int,
    stop: StopRequest,
    fs: FileSystem,
) -> Decisions:
    """Rehearse the run, then fix what must not change within it.

    Arguments:
        task: with its model as it will start.
        folder: the run's; the rehearsal writes and removes a checkpoint on its disk.
        ranks: how many processes share each batch.
        data_bytes: prepared data within the run folder.
    """
    dtype = dtype_named(machine.dtype)
    kernels, by = choose_kernels(settings, task.model)
    rehearsal = rehearse(task, settings, folder, ranks=ranks, dtype=dtype, kernels=kernels, stop=stop, fs=fs)
    evaluations = evaluations_of(settings, rehearsal)
    model_bytes = sum(p.numel() * p.element_size() for p in task.model.parameters())

    def expect(*, compiled: bool) -> Forecast:
        return forecast(
            settings,
            rehearsal,
            evaluations=evaluations,
            compiled=compiled,
            data_bytes=data_bytes,
            model_bytes=model_bytes,
            epoch=task.epoch,
            short_steps=task.short_steps,
        )

    eager = expect(compiled=False)
    pay = kernels is None and task.compiles_well and pays(eager.training_seconds, task.short_steps)
    on = settings.compile == "on" or (settings.compile == "auto" and pay)
    if settings.compile != "auto":
        why = "asked for"
    elif kernels is not None:
        why = "kernels are as fast"
    elif not task.compiles_well:
        why = "only language models are known to gain by it"
    else:
        why = f"{'pays' if on else 'does not pay'} in a run of about {duration(eager.training_seconds)}"
    expected = expect(compiled=True) if on else eager
    expected = dataclasses.replace(expected, figures=dict(task.expected(expected.tokens)))
    return Decisions(
        machine.dtype, machine.threads, kernels is not None, by, on, why, evaluations, rehearsal, expected
    )


def plan_of(
    decisions: Decisions, task: Learner, data: Data, own_data: Path, chosen: Mapping[str, Choice], ranks: int
) -> dict[str, Any]:
    """Return plan.json.

    Arguments:
        own_data: where the run would keep data of its own; the path of any other is noted.
    """
    usage = task.usage()
    return {
        "unit": usage.unit,
        "continues_text": usage.continues_text,
        "dtype": decisions.dtype,
        "threads": decisions.threads,
        "kernels": decisions.kernels,
        "kernels_why": decisions.kernels_why,
        "compile": decisions.compile,
        "compile_why": decisions.compile_why,
        "evaluations": decisions.evaluations,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "step_flops": decisions.rehearsal.step_flops,
        "step_tokens": decisions.rehearsal.step_tokens,
        "ranks": ranks,
        "data": str(data.folder.absolute()) if data.folder != own_data else None,
        "fingerprint": data.fingerprint["sha256"],
        "model": task.config(),
        "chosen": {key: choice.as_json() for key, choice in chosen.items()},
        "rehearsal": dataclasses.asdict(decisions.rehearsal),
        "predicted": decisions.expected.as_json(),
    }


def tell_chosen(show: Show, chosen: Mapping[str, Any]) -> None:
    """Say what was chosen, and why this shape; `luban plan` and the report give every reason."""
    if not chosen:
        return
    values = ", ".join(f"{key.split('.')[1].replace('_', ' ')} {c['value']:g}" for key, c in chosen.items())
    show.line(f"chosen: {values}")
    shape = next((c["why"] for key, c in chosen.items() if key.startswith("model.")), None)
    if shape:
        show.line(f"  {shape}")


def tell_expected(show: Show, predicted: Mapping[str, Any]) -> None:
    """Say what the run is expected to come to, in one line."""
    parts = [
        f"{predicted['steps']:,} steps",
        f"{short(predicted['tokens'])} {show.unit}",
        duration(predicted["seconds"]),
        f"{short(predicted['peak_bytes'])}B memory",
        f"{short(predicted['disk_bytes'])}B disk",
        *(f"{name.replace('_', ' ')} {value:.2f}" for name, value in predicted["figures"].items()),
    ]
    show.line(f"expected: {', '.join(parts)}")


def data_bytes_of(data: Data, own_data: Path) -> int:
    """Return the bytes of prepared data that lie within the run."""
    return folder_bytes(data.folder) if data.folder == own_data else 0
