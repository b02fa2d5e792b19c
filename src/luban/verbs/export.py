"""`luban export`: a model as an ONNX graph in a folder that answers as the model does, with the difference measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from luban import tasks
from luban.console import Show
from luban.durable import folder_bytes, new_folder, write_json
from luban.errors import InputError, LubanError
from luban.exporting.onnx_file import write_onnx
from luban.exporting.onnx_module import OnnxModule
from luban.exporting.parity import parity
from luban.machine import set_threads
from luban.model_folder import GRAPH, LUBAN
from luban.verbs.load import load, model_folder_of, task_of

PARITY = "parity.json"
FURTHEST = 1e-3
"""Of what a graph may differ from its model, as a share of the largest output: rounding is a thousandth of that."""


def export(folder: str | Path, out: str | Path, *, show: Show | None = None) -> dict[str, Any]:
    """Write a model as a graph.

    Arguments:
        folder: a run or a model folder. out: the folder to make.

    Returns:
        `folder`, `bytes`, and `parity`: the largest difference between model and graph over made-up rows in batches of
        1, 3 and 8, in absolute terms and as a share of the outputs' size.

    Raises:
        InputError: the model cannot be read, or the folder exists already.
        MissingExtra: onnx is not installed.
    """
    show, target = show or Show(quiet=True), Path(out)
    if target.exists():
        raise InputError(
            "the folder to export to exists already", received=str(target), fix="choose a new one"
        )
    source = model_folder_of(Path(folder))
    if (source / GRAPH).is_file():
        fix = "export the run, or its model folder, again: luban export RUN --out DIR"
        raise InputError("the folder holds a graph already", received=str(source), fix=fix)
    set_threads()
    model = load(source)
    task = tasks.find(task_of(source))
    graph = task.graph(model)
    module = graph.module.eval()
    example = graph.probe(2, 0)
    show.stage("exporting", 0.0)
    with new_folder(target) as new:
        metadata = {"task": model.task, "luban": json.dumps({"outputs": list(graph.outputs)})}
        write_onnx(module, example, graph.outputs, graph.dynamic, new / GRAPH, metadata=metadata)
        graph.beside(new)
        show.stage("comparing", 0.5)
        sizes = (1, 3, 8)
        found = parity(module, OnnxModule(new / GRAPH), [graph.probe(rows, 1 + rows) for rows in sizes])
        if found.max_rel > FURTHEST:
            raise LubanError(
                "the graph does not say what the model says; nothing was written",
                received=f"a difference of {found.max_rel:.2g} of the largest output",
                fix="this is an error of the exporter: report it with the model's recipe",
            )
        told = {**dataclasses.asdict(found), "rows": sum(sizes)}
        write_json(new / PARITY, told)
        assert (new / LUBAN).is_file(), "an exported folder says what task it is of"
    show.clear()
    return {"folder": str(target), "bytes": folder_bytes(target), "parity": told}
