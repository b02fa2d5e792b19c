"""Runs an ONNX file with onnxruntime, on the CPU.

A file from elsewhere is looked through before onnxruntime sees it: external weights must lie in the file's own folder,
and operators must be those of the standard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.durable import member
from luban.errors import CheckpointError, InputError, nearest
from luban.exporting.onnx_extra import require_onnx

AXES = "luban.axes"  # the metadata entry that says which sizes the named axes may have
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_FIX = "export the model again: luban export"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class OnnxInput:
    """What a file takes under one name: its dtype, and of each axis its size or its name."""

    dtype: str
    shape: tuple[int | str | None, ...]


class OnnxModule:
    """A network read from an ONNX file.

    Attributes:
        inputs: what it takes, by name. outputs: names of what it returns, in order.
        metadata: what the file says of itself.
        ranges: the smallest and largest size of axes; None is no bound.

    Arguments:
        path: an ONNX file.
        threads: cores that one call uses.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        InputError: the file is absent, torn, no ONNX, leads out of its folder, or has operators that are not ONNX's.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        require_onnx("run ONNX files", "onnx", "onnxruntime")
        self.path = path
        content = _read(path)
        self._session = _session(content, path, threads)
        try:
            self.inputs = {
                value.name: OnnxInput(_dtype(value, path), tuple(value.shape))
                for value in self._session.get_inputs()
            }
            self.outputs = [value.name for value in self._session.get_outputs()]
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} has names that are no text: {error}", fix=_FIX) from error
        self.ranges = _ranges(self.metadata, path)

    def __call__(self, **arrays: Any) -> dict[str, NDArray[Any]]:
        """Compute the outputs, by name.

        Arguments:
            arrays: a numpy array per input, of just its dtype and shape.

        Raises:
            InputError: an array is missing, unknown, or of another dtype or shape; or onnxruntime fails on them.
        """
        self._check(arrays)
        try:
            found = self._session.run(
                None, {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            )
        except Exception as error:  # onnxruntime's errors share no base class
            shapes = {name: array.shape for name, array in arrays.items()}
            raise InputError(
                f"onnxruntime cannot compute this: {error}", where=self.path, received=shapes
            ) from error
        return dict(zip(self.outputs, found, strict=True))

    def _check(self, arrays: Mapping[str, Any]) -> None:
        takes = f"the file takes {', '.join(self.inputs)}"
        for name in arrays:
            if name not in self.inputs:
                close = nearest(name, self.inputs)
                fix = f"did you mean {close}? {takes}" if close else takes
                raise InputError("the file has no such input", received=name, where=self.path, fix=fix)
        if missing := [name for name in self.inputs if name not in arrays]:
            raise InputError(
                f"input {missing[0]} is missing", received=list(arrays), where=self.path, fix=takes
            )
        sizes: dict[str, int] = {}
        for name, array in arrays.items():
            self._check_one(name, array, sizes)

    def _check_one(self, name: str, array: Any, sizes: dict[str, int]) -> None:
        """Check dtype, rank and sizes; `sizes` holds those of the named axes seen so far."""
        expected = self.inputs[name]
        where = f"input {name} of {self.path}"
        if not isinstance(array, np.ndarray):
            received = type(array).__name__
            raise InputError("an input must be a numpy array", received=received, where=where)
        if array.dtype.name != expected.dtype:
            fix = f"convert it with .astype(numpy.{expected.dtype})"
            raise InputError(
                f"the dtype must be {expected.dtype}", received=array.dtype.name, where=where, fix=fix
            )
        if array.ndim != len(expected.shape):
            axes = ", ".join(str(axis) for axis in expected.shape)
            message = f"the array must have {len(expected.shape)} axes: ({axes})"
            raise InputError(message, received=array.shape, where=where)
        for axis, (size, wanted) in enumerate(zip(array.shape, expected.shape, strict=True)):
            if isinstance(wanted, int) and size != wanted:
                raise InputError(f"axis {axis} must be {wanted}", received=array.shape, where=where)
            if not isinstance(wanted, str):
                continue
            if sizes.setdefault(wanted, size) != size:
                message = f"axis {wanted} is {sizes[wanted]} in another input"
                raise InputError(message, received=array.shape, where=where)
            least, most = self.ranges.get(wanted, (1, None))
            if size < least or (most is not None and size > most):
                allowed = f"at least {least}" if most is None else f"from {least} to {most}"
                raise InputError(f"axis {wanted} must be {allowed}", received=array.shape, where=where)


def _read(path: Path) -> bytes:
    """Return the file's bytes once nothing in it leads elsewhere.

    They are handed to onnxruntime as they were checked: a file that is replaced meanwhile changes nothing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise InputError(f"{path} is no ONNX file, or a torn one", fix=_FIX) from error
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{path} is no ONNX file: it has no graph", fix=_FIX)
    for message in _messages(model):
        _check_message(message, path)
    return content


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all that it holds, at any depth."""
    from google.protobuf.message import Message

    waiting = [message]
    while waiting:
        found = waiting.pop()
        yield found
        for field, value in found.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _check_message(message: Any, path: Path) -> None:
    import onnx

    if isinstance(message, onnx.OperatorSetIdProto | onnx.NodeProto | onnx.FunctionProto):
        if message.domain not in DOMAINS:
            raise InputError(
                "the file uses operators that are not ONNX's own",
                received=message.domain,
                where=path,
                fix="export the model with standard operators only",
            )
    elif isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL:
        location = next((entry.value for entry in message.external_data if entry.key == "location"), "")
        try:
            found = member(path.parent, location).is_file()
        except CheckpointError as error:
            raise InputError(f"{path} points at weights out of its folder", received=location) from error
        except OSError:  # a name that no file can have
            found = False
        if not found:
            fix = "keep the file and its .data file together"
            raise InputError(f"the weights of {path} are missing", received=location, fix=fix)


def _session(content: bytes, path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong comes as an exception
    folder = str(path.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise InputError(f"onnxruntime cannot load {path}: {error}", fix=_FIX) from error


def _dtype(value: Any, path: Path) -> str:
    if value.type not in _DTYPES:
        raise InputError(
            f"input {value.name} of {path} has a type that luban does not feed", received=value.type
        )
    return _DTYPES[value.type]


def _ranges(metadata: Mapping[str, str], path: Path) -> dict[str, tuple[int, int | None]]:
    try:
        found = json.loads(metadata.get(AXES, "{}"))
        return {
            name: (int(least), None if most is None else int(most)) for name, (least, most) in found.items()
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} says nothing sensible about its axes", received=metadata[AXES]) from error
