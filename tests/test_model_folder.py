"""Model folders: what is written is read back whole; what does not fit is named."""

import errno
import json
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors.torch import load_file, save_file

from luban.data.tokenizer import Tokenizer, train_tokenizer
from luban.durable import FileSystem, verify_folder
from luban.errors import CheckpointError, InputError, StorageError
from luban.model_folder import load_model, save_model
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.gpt2 import GPT2, GPT2Config

STATE = {"task": "language-model", "length": 16, "primary": "bits_per_byte"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("char", iter(["to be or not to be"]), vocab_size=300, byte_fallback=True)


def build(tokenizer: Tokenizer, **changes: object) -> Decoder:
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, "layers": 2, "width": 16, "heads": 2, "max_length": 32}
    return Decoder(DecoderConfig(**{**shape, "layout": "llama", **changes}))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "model", build(tokenizer), tokenizer, task_state=STATE, card="# Card\n")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(folder: Path, tokenizer: Tokenizer) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "luban.json",
        "README.md",
    }
    verify_folder(folder)
    loaded, module = load_model(folder), build(tokenizer)
    assert loaded.layout == "llama"
    assert loaded.task_state == STATE
    assert loaded.module.config == module.config
    assert not loaded.module.training
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("not") == tokenizer.encode("not")
    assert (folder / "README.md").read_text() == "# Card\n"
    ids = torch.tensor([tokenizer.encode("to be")])
    assert torch.equal(loaded.module(ids), module(ids))
    loaded.module(ids).sum().backward()  # what was loaded can be trained further
    assert all(parameter.grad is not None for parameter in loaded.module.parameters())
    read = load_file(folder / "model.safetensors")
    assert read.keys() == module.state_dict().keys()


def test_loading_draws_nothing(folder: Path) -> None:
    torch.manual_seed(7)
    load_model(folder)
    drawn = torch.rand(())
    torch.manual_seed(7)
    assert drawn == torch.rand(())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_narrow_dtypes(folder: Path, dtype: torch.dtype) -> None:
    ids = torch.tensor([[1, 2, 3]])
    expected = load_model(folder).module
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, inside in shards.items():
        save_file({name: tensors[name].to(dtype) for name in inside}, folder / shard)
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    module = load_model(folder).module
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    expected.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert torch.equal(module(ids), expected(ids))

    for wrong in ("../model-1.safetensors", "/etc/model.safetensors"):
        edit(folder / "model.safetensors.index.json", weight_map={**weight_map, names[0]: wrong})
        with pytest.raises(CheckpointError, match="leads out"):
            load_model(folder)
    edit(folder / "model.safetensors.index.json", weight_map=3)
    with pytest.raises(CheckpointError, match="weight_map"):
        load_model(folder)
    save_file({names[0]: tensors[names[0]]}, folder / "model-3.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={**weight_map, "x": "model-3.safetensors"})
    with pytest.raises(CheckpointError, match="two files"):
        load_model(folder)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_snapshot_of_a_cache_is_read_though_its_files_are_links_out(
    folder: Path, tmp_path: Path, sharded: bool
) -> None:
    if sharded:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        weight_map = dict.fromkeys(load_file(folder / "model-1.safetensors"), "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert load_model(snapshot).tokenizer is not None
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="leads out"):
        load_model(snapshot)


def test_pickles_are_refused_with_a_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle") as caught:
        load_model(folder)
    assert "safe_serialization" in str(caught.value)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="missing"):
        load_model(folder)
    with pytest.raises(InputError, match="no model folder"):
        load_model(folder / "nothing")


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}, path)
    with pytest.raises(CheckpointError, match=r"missing model\.norm\.weight"):
        load_model(folder)
    save_file({**tensors, "model.layers.0.more": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected model\.layers\.0\.more"):
        load_model(folder)
    save_file({**tensors, "model.norm.weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"shape \[3\].*says \[16\]"):
        load_model(folder)
    save_file({**tensors, "model.norm.weight": torch.ones(16, dtype=torch.uint8)}, path)
    with pytest.raises(CheckpointError, match="uint8"):
        load_model(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(folder)


def test_configs_that_do_not_fit_are_refused(folder: Path, tokenizer: Tokenizer) -> None:
    config = folder / "config.json"
    good = config.read_text()
    edit(config, num_hidden_layers=1 << 39)  # refused before so many layers are built
    with pytest.raises(CheckpointError, match="layers"):
        load_model(folder)
    edit(config, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2"):
        load_model(folder)
    for broken in ("", "[]", good[:-5]):
        config.write_text(broken)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_model(folder)
    config.write_text(good)
    edit(folder / "luban.json", task_state=None)
    with pytest.raises(CheckpointError, match="task_state"):
        load_model(folder)
    (folder / "luban.json").unlink()
    assert load_model(folder).task_state == {}


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    small = build(tokenizer, vocab_size=tokenizer.vocab_size - 1)
    with pytest.raises(InputError, match="ids up to"):
        save_model(tmp_path / "model", small, tokenizer, task_state={}, card="")
    assert not list(tmp_path.iterdir())
    save_model(tmp_path / "model", small, None, task_state={}, card="")
    tokenizer.save(tmp_path / "model")
    with pytest.raises(InputError, match="ids up to"):
        load_model(tmp_path / "model")


def test_gpt2_round_trip(tmp_path: Path) -> None:
    module = GPT2(GPT2Config(vocab_size=20, layers=1, width=8, heads=2, max_length=6))
    save_model(tmp_path / "model", module, None, task_state={}, card="")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(load_model(tmp_path / "model").module(ids), module(ids))


class Failing(FileSystem):
    """A disk that fails at its n-th operation."""

    def __init__(self, operation: int) -> None:
        self.left = operation

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, "Input/output error")

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        self._count()
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        self._count()
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._count()
        super().replace(source, target)


def test_a_fault_at_any_point_leaves_the_old_folder_or_the_new(folder: Path, tokenizer: Tokenizer) -> None:
    old = load_model(folder).module.state_dict()
    changed = build(tokenizer)
    with torch.no_grad():
        changed.model.norm.weight.add_(1.0)
    for operation in range(1, 200, 7):
        fs = Failing(operation)
        try:
            save_model(folder, changed, tokenizer, task_state={}, card="", fs=fs)
        except StorageError:
            assert torch.equal(
                load_model(folder).module.state_dict()["model.norm.weight"], old["model.norm.weight"]
            )
        else:
            assert fs.left > 0
            assert torch.equal(
                load_model(folder).module.state_dict()["model.norm.weight"], torch.full((16,), 2.0)
            )
            break
    else:
        pytest.fail("never got through")
    assert operation > 20
