"""Writes a network as an ONNX file.

`torch.export` traces `forward` on an example with symbols for the sizes that may change; torch's exporter turns the
trace into ONNX operators; the file is written through `luban.durable`, so it appears whole or not at all. Equal
networks and examples give equal bytes under the same versions of torch and onnxscript, and nothing in them tells of the
machine that wrote them.

ONNX: https://github.com/onnx/onnx/blob/main/docs/IR.md
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from luban import durable
from luban.durable import DISK, FileSystem
from luban.errors import InputError
from luban.exporting.axis_ranges import axis_ranges
from luban.exporting.onnx_extra import require_onnx
from luban.exporting.onnx_module import AXES
from luban.exporting.parity import evaluating

INLINE_BYTES = 1_800_000_000
_LEAST_OPSET = 18  # torch's exporter writes no older one; a conversion down may fail without a word
_SMALL_TENSOR = 1024  # bytes; such tensors are often shapes, which readers want to find in the file itself
_PAGE = 4096  # an offset at a page's beginning lets a reader map the tensor
_CHATTY = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def write_onnx(
    module: nn.Module,
    example: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int = 18,
    inline_bytes: int = INLINE_BYTES,
    fs: FileSystem = DISK,
) -> None:
    """Write `module.forward(**example)` to `path` as ONNX.

    The file computes what the module computes in evaluation mode. Weights stand in the file; above `inline_bytes` they
    stand in `NAME.DIGEST.data` beside it. The metadata entry `luban.axes` says, as JSON, which sizes each named axis
    may have: a branch of the network that depends on a size is traced one way only, and on the other side of it the
    file would be wrong without a word. `OnnxModule` refuses such sizes.

    Arguments:
        example: one tensor per argument of `forward`, on the module's device. The file's inputs bear these names.
        outputs: a name for each tensor that `forward` returns.
        dynamic: of each input the axes whose size may change, each with a name; axes of one name have one size, in the
            example too, and there it is at least 2: a size of 1 is traced as something that is always 1.
        metadata: kept in the file.
        opset: version of ONNX's operators, at least 18.
        inline_bytes: bytes of weights that still go into the file; protobuf ends at 2 GiB. Above, whether it holds
            for an axis of 1 is not measured (`axis_ranges`).

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        InputError: names that do not fit `forward`, or a network that cannot be traced, with torch's reason.
        StorageError: the disk refuses.

    Example:
        >>> import tempfile
        >>> from luban.exporting.onnx_module import OnnxModule
        >>> double = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(double.weight, 2.0)
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "double.onnx"
        >>> write_onnx(double, {"input": torch.ones(2, 1)}, ["y"], {"input": {0: "batch"}}, path)
        >>> rows = torch.tensor([[1.0], [2.0], [3.0]]).numpy()
        >>> OnnxModule(path)(input=rows)["y"].ravel().tolist()
        [2.0, 4.0, 6.0]
    """
    require_onnx("write ONNX files", "onnx", "onnxscript", "onnxruntime")
    ordered = _in_order(module, example)
    _check(module, ordered, dynamic, opset)
    program = _exported(module, ordered, outputs, dynamic, opset)
    model: Any = program.model
    _forget_origin(model)
    model.metadata_props.update(sorted((metadata or {}).items()))
    inline = sum(value.const_value.nbytes for value in model.graph.initializers.values()) <= inline_bytes
    ranges = axis_ranges(program, ordered, dynamic, module if inline else None)
    model.metadata_props[AXES] = json.dumps(ranges)
    data = None if inline else _write_weights(model, path, fs)
    durable.write_bytes(path, program.model_proto.SerializeToString(deterministic=True), fs)
    _remove_older_weights(path, data, fs)


def _in_order(module: nn.Module, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `example` in the order of forward's arguments, in which the exporter counts inputs."""
    try:
        return dict(inspect.signature(module.forward).bind(**example).arguments)
    except TypeError as error:
        where = f"{type(module).__name__}.forward"
        raise InputError(
            f"the example does not fit forward: {error}", where=where, received=list(example)
        ) from None


def _check(
    module: nn.Module, example: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]], opset: int
) -> None:
    if opset < _LEAST_OPSET:
        raise InputError(f"opset must be at least {_LEAST_OPSET}", received=opset)
    if unknown := sorted(dynamic.keys() - example.keys()):
        raise InputError("dynamic names inputs that the example lacks", received=unknown)
    sizes: dict[str, int] = {}
    for name, axes in dynamic.items():
        shape = tuple(example[name].shape)
        for axis, label in axes.items():
            if not 0 <= axis < len(shape):
                raise InputError(f"input {name} has no axis {axis}", received=shape)
            if shape[axis] < 2:
                fix = "give an example that is larger there"
                raise InputError(f"axis {label} of input {name} must be at least 2", received=shape, fix=fix)
            if sizes.setdefault(label, shape[axis]) != shape[axis]:
                where = f"axis {axis} of input {name}"
                raise InputError(f"axis {label} is {sizes[label]} elsewhere", received=shape, where=where)
    for name, tensor in module.state_dict().items():
        if tensor.dtype == torch.bfloat16:
            raise InputError(
                "onnxruntime computes nothing in bfloat16 on a CPU",
                received=name,
                fix="convert the module with .float() before",
            )


def _exported(
    module: nn.Module,
    example: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    opset: int,
) -> torch.onnx.ONNXProgram:
    shapes = {name: dict(dynamic.get(name, {})) for name in example}
    try:
        with evaluating(module), torch.no_grad(), _quietly(), _recurrent_shapes():
            program = torch.onnx.export(
                module,
                (),
                kwargs=dict(example),
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the network's code or the exporter's: here nothing else runs
        message = f"this network cannot be written as ONNX: {_reason(error)}"
        raise InputError(message, received=type(module).__name__) from error
    assert program is not None  # with dynamo=True it never is
    names = [value.name for value in program.model.graph.outputs]
    if names != list(outputs):
        raise InputError(
            "outputs must name each tensor that forward returns", received=list(outputs), where=names
        )
    return program


def _reason(error: Exception) -> str:
    """Return what went wrong and in which line of the network, without torch's advice on debugging torch."""
    what, *more = _COLOURS.sub("", str(error.__cause__ or error)).strip().split("\n\n")
    where = [part for part in more if part.startswith("The following call raised this error")]
    return "\n".join([what, *where])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter prints, warns and logs from the terminal; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _recurrent_shapes() -> Iterator[None]:
    """Keep the length of what nn.LSTM and nn.GRU return a symbol.

    Torch 2.13 does so while it traces, but not while it decomposes the trace, where it fixes the length to the
    example's: https://github.com/pytorch/pytorch/pull/193192. Both still become one operator of ONNX.
    """
    from torch.export import _patches

    with _patches.register_lstm_while_loop_decomposition(), _patches.register_gru_while_loop_decomposition():
        yield


def _forget_origin(model: Any) -> None:
    """Remove what the exporter notes at each node: torch's names and the lines and paths of the source."""
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()


def _write_weights(model: Any, path: Path, fs: FileSystem) -> Path:
    """Write the weights beside `path` and let the model point at them; return where they are.

    Their name holds their digest, so an older file of the same name goes on pointing at its own weights until it
    is replaced.
    """
    import onnx_ir

    large = [
        value for value in model.graph.initializers.values() if value.const_value.nbytes >= _SMALL_TENSOR
    ]
    digest = hashlib.sha256()
    for value in large:
        digest.update(value.const_value.tobytes())
    target = path.with_name(f"{path.name}.{digest.hexdigest()[:16]}.data")
    offsets: list[int] = []

    def fill(file: BinaryIO) -> None:
        end = 0
        for value in large:
            padding = -end % _PAGE
            offsets.append(end + padding)
            fs.write(file, b"\0" * padding)
            fs.write(file, value.const_value.tobytes())
            end = offsets[-1] + value.const_value.nbytes

    durable.write_file(target, fill, fs, needed=sum(value.const_value.nbytes for value in large))
    for value, offset in zip(large, offsets, strict=True):
        tensor = value.const_value
        value.const_value = onnx_ir.ExternalTensor(
            target.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=value.name,
            base_dir=path.parent,
        )
    return target


def _remove_older_weights(path: Path, kept: Path | None, fs: FileSystem) -> None:
    """Delete the weights that an earlier file at `path` pointed at."""
    older = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    with durable.storage_errors(path):
        for neighbour in sorted(path.parent.iterdir()):
            if neighbour != kept and older.fullmatch(neighbour.name):
                fs.remove(neighbour)
