"""What is given to a file is checked; what a file says of itself is not believed."""

import contextlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from luban.errors import InputError
from luban.exporting.onnx_module import OnnxModule

RNG = np.random.default_rng(0)


def build(**changes: object) -> onnx.ModelProto:
    """sum = a + b w, of a (batch, 2) float, b (batch, k) float and w (k, 2) with k = 3; `changes` to the model."""
    inputs = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 2]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 3]),
    ]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 2])]
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    nodes = [helper.make_node("MatMul", ["b", "w"], ["bw"]), helper.make_node("Add", ["a", "bw"], ["sum"])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"luban.axes": json.dumps(changes.get("axes", {"batch": [1, 4]}))})
    return model


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def module(tmp_path: Path) -> OnnxModule:
    return OnnxModule(saved(tmp_path, build()))


def arrays(batch: int) -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=(batch, width)).astype(np.float32) for name, width in (("a", 2), ("b", 3))}


def test_it_computes_what_the_graph_says(module: OnnxModule) -> None:
    given = arrays(4)
    expected = given["a"].astype(float) + given["b"].astype(float) @ np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(module(**given)["sum"], expected, rtol=1e-5)
    # Neither order of names nor layout in memory changes anything.
    turned = {name: np.asfortranarray(given[name]) for name in ("b", "a")}
    np.testing.assert_array_equal(module(**turned)["sum"], module(**given)["sum"])
    assert {name: (value.dtype, value.shape) for name, value in module.inputs.items()} == {
        "a": ("float32", ("batch", 2)),
        "b": ("float32", ("batch", 3)),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"b": None}, "input b is missing"),
        ({"c": np.zeros(1)}, "no such input"),
        ({"a": np.zeros((2, 2))}, "dtype must be float32"),
        ({"a": [[1.0, 2.0]]}, "must be a numpy array"),
        ({"a": np.zeros(2, np.float32)}, r"must have 2 axes: \(batch, 2\)"),
        ({"a": np.zeros((2, 5), np.float32)}, "axis 1 must be 2"),
        ({"a": np.zeros((3, 2), np.float32)}, "axis batch is 3 in another input"),
        (arrays(0), "axis batch must be from 1 to 4"),
        (arrays(5), "axis batch must be from 1 to 4"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    module: OnnxModule, changed: dict[str, object], message: str
) -> None:
    given = {name: value for name, value in {**arrays(2), **changed}.items() if value is not None}
    with pytest.raises(InputError, match=message) as raised:
        module(**given)
    assert "model.onnx" in str(raised.value)


def external(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "inner/../../secret", "", "\0", "x" * 5000]
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "sparse"])
def test_weights_out_of_the_files_folder_are_refused_wherever_they_hide(
    location: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(bytes(24))
    folder = tmp_path / "folder"
    folder.mkdir()
    model = build()
    tensor = numpy_helper.from_array(np.zeros((3, 2), np.float32), "hidden")
    if place == "initializer":
        external(model.graph.initializer[0], location)
    elif place == "sparse":
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(tensor)
        external(sparse.values, location)
    else:
        external(tensor, location)
        node = helper.make_node("Constant", [], ["hidden"], value=tensor)
        if place == "subgraph":
            inner = helper.make_graph([node], "inner", [], [])
            node = helper.make_node("If", ["a"], ["x"], then_branch=inner, else_branch=inner)
        model.graph.node.append(node)
    with pytest.raises(InputError, match=r"out of its folder|are missing"):
        OnnxModule(saved(folder, model))


@pytest.mark.parametrize("place", ["import", "node", "function"])
def test_operators_that_are_not_the_standards_are_refused(place: str, tmp_path: Path) -> None:
    model = build()
    if place == "import":
        model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    elif place == "node":
        model.graph.node[0].domain = "com.microsoft"
    else:
        model.functions.append(helper.make_function("evil.ops", "F", [], [], [], []))
    with pytest.raises(InputError, match="not ONNX's own"):
        OnnxModule(saved(tmp_path, model))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model", b"\x00" * 100, b"{}"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"no ONNX file"):
        OnnxModule(path)
    with pytest.raises(InputError, match="cannot read"):
        OnnxModule(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    "axes", [[1], {"batch": 3}, {"batch": ["a", 2]}, {"batch": [1, 2, 3]}, {"batch": [1e999, 2]}]
)
def test_axes_that_say_nothing_sensible_are_refused(axes: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing sensible about its axes"):
        OnnxModule(saved(tmp_path, build(axes=axes)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=3)
)
def test_a_damaged_file_is_refused_or_runs_and_nothing_else(
    cut: int, flips: list[tuple[int, int]], tmp_path: Path
) -> None:
    content = bytearray(build().SerializeToString())
    for place, change in flips:
        content[place % len(content)] ^= change
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(content[: len(content) - cut] if cut < len(content) and not flips else content))
    with contextlib.suppress(InputError):
        OnnxModule(path)(**arrays(2))


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, build())
    given = arrays(3)
    np.testing.assert_array_equal(
        OnnxModule(path, threads=2)(**given)["sum"], OnnxModule(path)(**given)["sum"]
    )
