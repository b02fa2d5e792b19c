"""Which sizes the named axes of a trace may have.

A branch of the network on a size is traced one way only. torch.export notes for which sizes that way is the right
one, but ONNX has no place for it, and on the other side a file is wrong without a word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from luban.errors import InputError
from luban.exporting.onnx_module import OnnxModule
from luban.exporting.parity import parity

_CLOSE = 1e-4


def axis_ranges(
    program: torch.onnx.ONNXProgram,
    example: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, str]],
    module: nn.Module | None,
) -> dict[str, tuple[int, int | None]]:
    """Return the smallest and the largest size of each named axis for which the trace holds; None is no bound.

    About the size 1 the notes say too much and too little. torch asks in many places, of contiguity and of
    broadcasting, whether a size is 1, which makes no difference to ONNX's operators; and what the network itself asks,
    it answers with no and notes nothing. So it is measured: 1 is allowed where network and trace agree on it.

    Arguments:
        example: what the trace was made from, in the order of its inputs. dynamic: the names of axes, by input.
        module: what was traced; None believes the notes.

    Raises:
        InputError: the trace fixes a named axis to one size.
    """
    ranges = _traced(program, example, dynamic)
    if module is None:
        return ranges
    with tempfile.TemporaryDirectory(prefix="luban-export-") as scratch:
        path = Path(scratch) / "trace.onnx"
        path.write_bytes(program.model_proto.SerializeToString())
        single: list[str] = []
        for label, (least, most) in ranges.items():
            if least > 2:
                continue
            batches = [_cut(example, dynamic, labels) for labels in ([label], [*single, label])]
            if _agree(module, path, batches):
                single.append(label)
            ranges[label] = (1 if label in single else 2, most)
    return ranges


def _traced(
    program: torch.onnx.ONNXProgram, example: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]]
) -> dict[str, tuple[int, int | None]]:
    traced = program.exported_program
    assert traced is not None  # torch.onnx.export(dynamo=True) always keeps it
    values = {node.name: node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"}
    inputs = [values[name] for name in traced.graph_signature.user_inputs]
    ranges: dict[str, tuple[int, int | None]] = {}
    for name, symbols in zip(example, inputs, strict=True):
        for axis, label in dynamic.get(name, {}).items():
            size = symbols.shape[axis]
            if not isinstance(size, torch.SymInt):
                fix = "mend the network, or leave the axis out of dynamic"
                raise InputError(
                    f"the network fixes axis {label} of input {name}", received=int(size), fix=fix
                )
            least, most = ranges.get(label, (1, None))
            if (bound := traced.range_constraints.get(size.node.expr)) is not None:
                least = max(least, int(bound.lower))
                if bound.upper.is_Integer:  # and not torch's infinity
                    most = min(int(bound.upper), int(bound.upper) if most is None else most)
            ranges[label] = (least, most)
    return ranges


def _cut(
    example: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]], labels: Sequence[str]
) -> dict[str, Tensor]:
    """Return the example cut to one entry along the axes of these names."""
    cut = dict(example)
    for name, axes in dynamic.items():
        for axis, label in axes.items():
            if label in labels:
                cut[name] = cut[name].narrow(axis, 0, 1)
    return cut


def _agree(module: nn.Module, path: Path, batches: Sequence[Mapping[str, Tensor]]) -> bool:
    try:
        return parity(module, OnnxModule(path), batches).max_rel < _CLOSE
    except Exception:  # where network or trace cannot compute a single entry, or in another shape, 2 it is
        return False
