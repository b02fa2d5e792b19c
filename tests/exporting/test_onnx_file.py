"""Files say what networks say, at every size; they are whole or absent, and what cannot be written is named."""

import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from networks import CASES, Branching, numbers, pictures, randomised
from torch import Tensor, nn

from faulty_disk import FaultyDisk
from luban.errors import InputError, MissingExtra, StorageError
from luban.exporting.onnx_file import write_onnx
from luban.exporting.onnx_module import OnnxModule
from luban.exporting.parity import parity

ROWS = {"x": {0: "batch"}}


class Linear(nn.Module):
    """The smallest network that has weights of a size worth a file of their own."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def write_linear(path: Path, module: nn.Module | None = None, **options: object) -> nn.Module:
    module = module or Linear()
    write_onnx(module, numbers(2, 0), ["y"], ROWS, path, **options)  # type: ignore[arg-type]
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `Linear` as a file and, beside it, its weights."""
    folder = tmp_path_factory.mktemp("written")
    write_linear(folder / "model.onnx", inline_bytes=100, opset=20)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_file_answers_as_its_network_at_sizes_other_than_the_examples(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    case = CASES[name]
    module = randomised(case.build()).eval()
    write_onnx(module, case.inputs(2, 7), case.outputs, case.dynamic, tmp_path / "model.onnx")
    graph = OnnxModule(tmp_path / "model.onnx")
    assert list(graph.inputs) == list(case.inputs(1, 1))
    assert graph.outputs == list(case.outputs)
    found = parity(module, graph, [case.inputs(*size) for size in ((1, 1), (3, 11), (8, 4))])
    assert found.max_rel < 1e-4
    assert found.agree is None or found.agree > 0.99


def test_a_file_computes_in_evaluation_mode_and_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    module = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten()))
    module[1].eval()
    example = {"input": pictures(2, 0)["images"]}
    write_onnx(module, example, ["y"], {"input": {0: "batch"}}, tmp_path / "model.onnx")
    assert [part.training for part in module] == [True, False, True]
    assert module[0].num_batches_tracked == 0
    found = OnnxModule(tmp_path / "model.onnx")(input=example["input"].numpy())["y"]
    torch.testing.assert_close(torch.from_numpy(found), module.eval()(example["input"]))


def test_inputs_are_known_by_name_whatever_their_order(tmp_path: Path) -> None:
    class Difference(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first - second

    axes = {name: {0: "batch"} for name in ("second", "first")}
    example = {"second": torch.zeros(2), "first": torch.ones(2)}
    write_onnx(Difference(), example, ["y"], axes, tmp_path / "model.onnx")
    found = OnnxModule(tmp_path / "model.onnx")(second=torch.zeros(3).numpy(), first=torch.ones(3).numpy())
    assert found["y"].tolist() == [1.0, 1.0, 1.0]


def test_equal_networks_give_equal_bytes_that_tell_nothing_of_the_machine_and_the_exporter_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    for name, size in (("a", 2), ("b", 5)):
        example = {"x": torch.full((size, 4), float(size))}
        write_onnx(Linear(), example, ["y"], ROWS, tmp_path / name, metadata={"b": "2", "a": "春"})
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    for trace in (str(Path.cwd()), sys.prefix, "test_onnx_file", "Linear"):
        assert trace.encode() not in content
    metadata = OnnxModule(tmp_path / "a").metadata
    assert metadata == {"a": "春", "b": "2", "luban.axes": '{"batch": [1, null]}'}
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_branch_on_a_size_is_refused_beyond_the_side_that_was_traced(tmp_path: Path) -> None:
    write_onnx(Branching(), numbers(2, 0), ["y"], ROWS, tmp_path / "few.onnx")
    write_onnx(Branching(), numbers(5, 0), ["y"], ROWS, tmp_path / "many.onnx")
    few, many = OnnxModule(tmp_path / "few.onnx"), OnnxModule(tmp_path / "many.onnx")
    assert (few.ranges, many.ranges) == ({"batch": (1, 3)}, {"batch": (4, None)})
    assert parity(Branching(), few, [numbers(1, 0), numbers(3, 0)]).max_abs == 0.0
    with pytest.raises(InputError, match="batch must be from 1 to 3"):
        few(x=numbers(4, 0)["x"].numpy())
    with pytest.raises(InputError, match="batch must be at least 4"):
        many(x=numbers(3, 0)["x"].numpy())


def test_a_single_row_is_allowed_where_only_torch_doubts_it(tmp_path: Path) -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 1 else x

    last = nn.Sequential(nn.Conv2d(3, 2, 3)).to(memory_format=torch.channels_last)
    example = {"input": pictures(2, 0)["images"]}
    write_onnx(last, example, ["y"], {"input": {0: "batch"}}, tmp_path / "last.onnx")
    write_onnx(Alone(), numbers(2, 0), ["y"], ROWS, tmp_path / "alone.onnx")
    assert OnnxModule(tmp_path / "last.onnx").ranges == {"batch": (1, None)}
    assert OnnxModule(tmp_path / "alone.onnx").ranges == {"batch": (2, None)}


def test_large_weights_stand_beside_the_file_and_move_with_it(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(written, moved)
    (data,) = moved.glob("*.data")
    assert (moved / "model.onnx").stat().st_size < data.stat().st_size == 4 * 64 * 4
    monkeypatch.chdir("/")
    assert parity(Linear(), OnnxModule(moved / "model.onnx"), [numbers(3, 0)]).max_abs < 1e-5
    # Written again with other weights, and then small enough to stand in the file.
    other = randomised(Linear())
    write_linear(moved / "model.onnx", other, inline_bytes=100)
    assert len(list(moved.iterdir())) == 2
    assert parity(other, OnnxModule(moved / "model.onnx"), [numbers(3, 0)]).max_abs < 1e-5
    write_linear(moved / "model.onnx", other)
    assert [path.name for path in moved.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("damage", ["absent", "cut", "link"])
def test_weights_that_are_not_what_the_file_says_are_refused(
    damage: str, written: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(written, folder)
    (data,) = folder.glob("*.data")
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:500])
    else:
        data.rename(tmp_path / "outside")
    if damage == "link":
        data.symlink_to(tmp_path / "outside")
    with pytest.raises(
        InputError, match={"cut": "cannot load", "absent": "missing", "link": "out of its folder"}[damage]
    ):
        OnnxModule(folder / "model.onnx")


def test_a_disk_that_fails_leaves_the_old_file_or_the_new_one(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "model.onnx"
    shutil.copytree(written, path.parent)
    new, disk = randomised(Linear()), FaultyDisk()
    write_linear(tmp_path / "model.onnx", new, inline_bytes=100, fs=disk)
    steps = [number for number, (done, _) in enumerate(disk.done, 1) if done == "replace"]
    assert len(steps) == 2
    for at in steps:
        with pytest.raises(StorageError):
            write_linear(path, new, inline_bytes=100, fs=FaultyDisk(at, "ENOSPC", forever=True))
        assert parity(Linear(), OnnxModule(path), [numbers(3, 0)]).max_abs < 1e-5


class Peeking(nn.Module):
    """Branches on what stands in its input, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    """Counts on as many rows as its example has."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(5, 4)


def test_what_cannot_be_traced_is_said_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"(?s)cannot be written as ONNX: .*data-dependent") as raised:
        write_linear(tmp_path / "model.onnx", Peeking())
    assert "return x if x.sum() > 0 else -x" in str(raised.value)
    assert "TORCH_LOGS" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match="static shape of 5"):
        write_onnx(Fixed(), numbers(5, 0), ["y"], ROWS, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"example": {"z": torch.ones(2, 4)}}, "does not fit forward"),
        ({"example": {"x": torch.ones(1, 4)}}, "must be at least 2"),
        ({"dynamic": {"y": {0: "batch"}}}, "dynamic names inputs that the example lacks"),
        ({"dynamic": {"x": {2: "batch"}}}, "has no axis 2"),
        ({"dynamic": {"x": {0: "batch", 1: "batch"}}}, "axis batch is 2 elsewhere"),
        ({"outputs": []}, "outputs must name"),
        ({"opset": 17}, "opset must be at least 18"),
        ({"module": Linear().bfloat16()}, "bfloat16"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    given = {
        "module": Linear(),
        "example": numbers(2, 0),
        "outputs": ["y"],
        "dynamic": ROWS,
        "opset": 18,
        **changed,
    }
    with pytest.raises(InputError, match=message):
        write_onnx(path=tmp_path / "model.onnx", **given)  # type: ignore[arg-type]


def test_the_file_is_valid_onnx_of_the_opset_asked_for(written: Path) -> None:
    onnx.checker.check_model(written / "model.onnx", full_check=True)
    model = onnx.load(written / "model.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 4]


@pytest.mark.parametrize(("package", "purpose"), [("onnxscript", "write"), ("onnxruntime", "run")])
def test_a_missing_package_is_named_with_the_extra(
    package: str, purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"{package} is needed to {purpose} ONNX files") as raised:
        if package == "onnxscript":
            write_linear(tmp_path / "model.onnx")
        else:
            OnnxModule(tmp_path / "model.onnx")
    assert "luban[onnx]" in str(raised.value)


def test_importing_the_package_imports_nothing_of_onnx() -> None:
    names = ("onnx", "onnxscript", "onnxruntime", "onnx_ir")
    code = f"import sys, luban.exporting.parity; sys.exit(any(name in sys.modules for name in {names!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
