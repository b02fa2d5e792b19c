"""Pictures: every layout gives the same rows, what is no picture is named, and training sees what it should."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
import random
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from luban.console import Show
from luban.data.pictures import decode, encode_png
from luban.data.row_sets import PreparedRows, identity_of
from luban.durable import DISK, sha256
from luban.errors import DataError, InputError, RecipeError, Stopped
from luban.metrics.row_scores import digests_of
from luban.models.airbench import Airbench
from luban.models.augment import symmetric_beta, uniforms
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.tasks import image_classification
from luban.tasks.image_classification import ImageClassification
from luban.tasks.row_learner import RowLearner
from luban.training.faults import Faults
from luban.verbs.export import export
from luban.verbs.load import load
from luban.verbs.train import Tools, train

pytest.importorskip("PIL")
from PIL import Image

Picture = np.ndarray
TINY = {"network": "small", "widths": [4, 4, 4, 4]}
STEPS = {"steps": 2, "batch": 8, "learning_rate": 0.01, "compile": "off", "dtype": "float32"}


def bars(count: int, size: int = 12, seed: int = 0) -> list[tuple[Picture, str]]:
    """Grey pictures with a bright bar, lying or standing."""
    draws = np.random.default_rng(seed)
    found = []
    for number in range(count):
        picture = draws.integers(0, 80, (size, size), dtype=np.uint8)
        at = int(draws.integers(1, size - 2))
        if number % 2:
            picture[at : at + 2] = 230
        else:
            picture[:, at : at + 2] = 230
        found.append((picture, "lying" if number % 2 else "standing"))
    return found


def as_folder(place: Path, pictures: Sequence[tuple[Picture, str]]) -> str:
    """Write a folder of each class."""
    for number, (picture, label) in enumerate(pictures):
        (place / label).mkdir(parents=True, exist_ok=True)
        (place / label / f"{number:04d}.png").write_bytes(encode_png(picture))
    return str(place)


def recipe_of(data: Mapping[str, Any], **sections: Any) -> Any:
    written = {"task": "image-classification", "data": {"workers": 1, **data}, "model": TINY, "train": STEPS}
    return ImageClassification.recipe.model_validate({**written, **sections})


def prepared(folder: Path, recipe: Any) -> PreparedRows:
    return ImageClassification.prepare(
        recipe, folder / "data", stop=lambda: None, progress=lambda stage, share: None
    )


def whole(folder: Path, place: str, **data: Any) -> PreparedRows:
    """Prepare pictures, all of them on each side."""
    return prepared(folder, recipe_of({"train": place, "validation": place, "test": place, **data}))


def learner_of(folder: Path, pictures: Sequence[tuple[Picture, str]], **sections: Any) -> RowLearner:
    place = as_folder(folder / "pictures", pictures)
    data = {"train": place, "validation": place, "test": place, **sections.pop("data", {})}
    recipe = recipe_of(data, **sections)
    return ImageClassification.learner(recipe, prepared(folder, recipe))


def saved(image: Any, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# Layouts.


def _folder(place: Path, pictures: Sequence[tuple[Picture, str]]) -> str:
    return as_folder(place, pictures)


def _csv(place: Path, pictures: Sequence[tuple[Picture, str]]) -> str:
    as_folder(place, pictures)
    rows = [f"{label}/{number:04d}.png,{label}" for number, (_, label) in enumerate(pictures)]
    (place / "rows.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return str(place / "rows.csv")


def _jsonl(place: Path, pictures: Sequence[tuple[Picture, str]]) -> str:
    as_folder(place, pictures)
    rows = [{"photo": f"{k}/{number:04d}.png", "kind": k} for number, (_, k) in enumerate(pictures)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place / "rows.jsonl")


def _idx(place: Path, pictures: Sequence[tuple[Picture, str]], suffix: str = "") -> str:
    place.mkdir()
    numbers = bytes(["lying", "standing"].index(label) for _, label in pictures)
    stacked = np.stack([picture for picture, _ in pictures])
    images = struct.pack(">IIII", 0x803, *stacked.shape) + stacked.tobytes()
    labels = struct.pack(">II", 0x801, len(numbers)) + numbers
    for name, content in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        (place / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return str(place)


def _idx_gz(place: Path, pictures: Sequence[tuple[Picture, str]]) -> str:
    return _idx(place, pictures, ".gz")


def _parquet(place: Path, pictures: Sequence[tuple[Picture, str]]) -> str:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    place.mkdir()
    columns = {"image": [encode_png(p) for p, _ in pictures], "label": [label for _, label in pictures]}
    parquet.write_table(arrow.table(columns), place / "rows.parquet")
    return str(place / "rows.parquet")


def test_pictures_without_a_path_are_told_apart_by_what_they_show(tmp_path: Path) -> None:
    kept = []
    for seed in (0, 0, 1):
        (place := tmp_path / f"{len(kept)}").mkdir()
        data = whole(place, _idx(place / "idx", bars(40, seed=seed)))
        kept.append(digests_of(map(identity_of, data.train.rows())).tolist())
    assert kept[0] == kept[1] and len(set(kept[0])) == len(kept[0])
    assert not set(kept[0]) & set(kept[2])


@pytest.mark.parametrize("written", [_folder, _csv, _jsonl, _idx, _idx_gz, _parquet])
def test_every_layout_gives_the_same_pictures_and_labels(tmp_path: Path, written: Any) -> None:
    pictures = bars(20)
    asked = {"image": "photo", "label": "kind"} if written is _jsonl else {}
    data = whole(tmp_path, written(tmp_path / "source", pictures), **asked)
    labels = data.fitted.state["labels"]
    assert labels == (["0", "1"] if written in (_idx, _idx_gz) else ["lying", "standing"])
    found = {
        picture.tobytes(): ("lying", "standing")[label]
        for picture, label in zip(data.train.column("image"), data.train.column("label"), strict=True)
    }
    assert found == {picture.tobytes(): label for picture, label in pictures}
    assert data.report["bad_rows"]["total"] == 0
    assert data.fitted.state["size"] == [12, 12] and len(data.fitted.state["mean"]) == 1


def test_paths_that_lead_out_of_the_folder_or_nowhere_are_bad_rows(tmp_path: Path) -> None:
    table = Path(_csv(tmp_path / "source", bars(20)))
    (tmp_path / "secret.png").write_bytes(encode_png(bars(1)[0][0]))
    (table.parent / "link.png").symlink_to(tmp_path / "secret.png")
    with table.open("a") as file:
        file.write(
            f"../secret.png,lying\n{tmp_path}/secret.png,lying\nlink.png,lying\nlying/none.png,lying\n"
        )
    data = prepared(tmp_path, recipe_of({"train": str(table)}))
    kinds = data.report["bad_rows"]["kinds"]
    assert [found["line"] for found in kinds["outside"]["examples"]] == [22, 23, 24]
    (missing,) = kinds["no_file"]["examples"]
    assert missing == {
        "file": "rows.csv",
        "line": 25,
        "detail": "there is no such file (No such file or directory)",
    }
    assert "lying/none.png" in (tmp_path / "data" / "quarantine.jsonl").read_text()


@pytest.mark.parametrize(
    ("header", "data", "told"),
    [
        ("path,label", {"label": "lable"}, "did you mean data.label=label"),
        ("path,left,right", {}, "it cannot be told which column data.label is"),
        ("photo,label", {}, "name it: data.image=COLUMN"),
        ("photo,label", {"image": "foto"}, "did you mean photo?"),
    ],
)
def test_a_column_that_is_not_there_is_refused_by_name(
    tmp_path: Path, header: str, data: dict[str, Any], told: str
) -> None:
    as_folder(tmp_path, bars(2))
    row = ",".join(["standing/0000.png", "a", "b"][: header.count(",") + 1])
    (tmp_path / "rows.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, recipe_of({"train": str(tmp_path / "rows.csv"), **data}))
    assert told in str(caught.value)


# What is no picture, and what is an odd one.


@functools.cache
def bomb() -> bytes:
    """A whole PNG of 24,000 x 24,000 black pixels, 1.7 GB in three colours, in a third of a megabyte."""
    press = zlib.compressobj(1)
    row = bytes(1 + 24_000 // 8)
    packed = b"".join(press.compress(row) for _ in range(24_000)) + press.flush()
    header = struct.pack(">IIBBBBB", 24_000, 24_000, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    made = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


COLOURS = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)


@functools.cache
def bad_pictures() -> dict[str, bytes]:
    jpeg, png = saved(Image.fromarray(COLOURS), "JPEG"), encode_png(COLOURS)
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "empty.png": b"",
        "text.png": b"this is a text",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "bomb.png": bomb(),
    }


@functools.cache
def odd_pictures() -> dict[str, bytes]:
    """Pictures that are good, each in its own way."""
    turned = Image.Exif()
    turned[0x0112] = 6
    colours = Image.fromarray(COLOURS)
    frames = [Image.fromarray(np.full((30, 20, 3), shade, np.uint8)) for shade in (40, 250)]
    deep = Image.fromarray(COLOURS[:, :, 0].astype(np.uint16) * 257)
    return {
        "turned.jpg": saved(colours, "JPEG", exif=turned),
        "cmyk.jpg": saved(colours.convert("CMYK"), "JPEG"),
        "deep.png": saved(deep, "PNG"),
        "moving.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "really-a-png.jpg": encode_png(COLOURS),
    }


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over good, odd and bad pictures; and beside it what was written."""
    folder = tmp_path_factory.mktemp("odd")
    place = as_folder(folder / "pictures", bars(40))
    for name, content in {**odd_pictures(), **bad_pictures()}.items():
        (folder / "pictures" / "lying" / name).write_bytes(content)
    recipe = recipe_of({"train": place, "size": [9, 6]}, evaluate={"bootstrap": 0})
    return train(recipe.model_dump(mode="json"), out=folder / "run").folder


def test_bad_pictures_are_counted_with_their_files_and_the_run_goes_on(odd_run: Path) -> None:
    bad = PreparedRows(odd_run / "data").report["bad_rows"]
    assert bad["total"] == len(bad_pictures())
    (kind,) = bad["kinds"]
    assert kind == "bad_picture"
    details = {Path(found["file"]).name: found["detail"] for found in bad["kinds"][kind]["examples"]}
    assert details.keys() == bad_pictures().keys()
    assert details["empty.png"] == "the file is empty"
    assert details["bomb.png"].startswith("lying/bomb.png: Image size (576000000 pixels) exceeds limit")
    assert "SVG, a drawing without pixels" in details["drawing.png"]
    assert "a JPEG file, cut or damaged" in details["cut.jpg"]
    assert json.loads((odd_run / "result.json").read_text())["status"] == "done"


def test_odd_pictures_are_learned_as_they_look(odd_run: Path) -> None:
    data = PreparedRows(odd_run / "data")
    expected = {name: decode(content, size=(9, 6), channels=3) for name, content in odd_pictures().items()}
    found = {}
    for rows in (data.train, data.validation, data.held_out):
        for number, row in enumerate(rows.rows()):
            found[Path(row["values"]["path"]).name] = rows.column("image")[number]
    for name, picture in expected.items():
        np.testing.assert_array_equal(found[name], picture, err_msg=name)
    np.testing.assert_array_equal(found["moving.gif"], np.full((9, 6, 3), 40))  # the first frame


def test_each_is_answered_or_named_one_by_one(odd_run: Path) -> None:
    folder = odd_run.parent / "pictures" / "lying"
    names = [*odd_pictures(), *bad_pictures()]
    model = load(odd_run)
    by_path = model.predict([str(folder / name) for name in names])
    by_bytes = model.predict([(folder / name).read_bytes() for name in names])
    for number, (name, answer, same) in enumerate(zip(names, by_path, by_bytes, strict=True)):
        if name in odd_pictures():
            assert answer == same and answer["label"] in ("lying", "standing")
        else:
            assert answer["row"] == same["row"] == number and name in answer["error"]
            assert answer["error"] == f"{folder / name}: {same['error']}"


def test_what_is_no_picture_at_all_is_answered_by_name(odd_run: Path, tmp_path: Path) -> None:
    picture = bars(1)[0][0]
    asked = [
        "none.png",
        str(tmp_path),
        {"image": None},
        {"text": "a"},
        7,
        "\0",
        picture.astype(np.float32),
        picture,
    ]
    errors = [answer.get("error") for answer in load(odd_run).predict(asked)]
    assert errors[0] == "cannot read the picture none.png: there is no such file"
    assert errors[1] is not None and errors[1].startswith("cannot read the picture")
    assert all(errors[:-1]) and errors[-1] is None


def test_a_row_names_its_picture_by_the_recipes_column_or_a_usual_one(odd_run: Path, tmp_path: Path) -> None:
    fitted = PreparedRows(odd_run / "data").fitted
    file = tmp_path / "a.png"
    file.write_bytes(encode_png(COLOURS))
    for image, row in (
        (None, {"file_name": str(file)}),
        ("photo", {"photo": str(file), "path": "elsewhere"}),
    ):
        task = ImageClassification(recipe_of({"train": "-", "image": image}), fitted)
        assert task.parse(row) == {"image": file.read_bytes(), "path": str(file)}


def test_a_picture_of_many_pixels_takes_little_memory(tmp_path: Path) -> None:
    """In a process of its own: what preparing adds to its peak."""
    place = as_folder(tmp_path / "pictures", bars(12))
    (tmp_path / "pictures" / "lying" / "bomb.png").write_bytes(bomb())
    program = f"""
        import resource
        from pathlib import Path
        import PIL.Image
        from luban.tasks.image_classification import ImageClassification
        recipe = ImageClassification.recipe.model_validate(
            {{"task": "image-classification", "train": {{"steps": 1}}, "data": {{"train": {place!r}, "workers": 1}}}}
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = ImageClassification.prepare(
            recipe, Path({str(tmp_path / "data")!r}), stop=lambda: None, progress=lambda stage, share: None
        )
        assert data.report["bad_rows"]["total"] == 1
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200, "mebibytes"


# What is learned from training pictures.


def flat(
    shades: Sequence[int], size: tuple[int, int] = (10, 14), channels: int | None = None
) -> list[tuple[Picture, str]]:
    """Pictures of one shade each, of two classes in turn, told apart by a pixel."""
    found = []
    for number, shade in enumerate(shades):
        picture = np.full(size if channels is None else (*size, channels), shade, np.uint8)
        picture[number % size[0], number // size[0]] ^= 1  # no two are the same
        found.append((picture, "ab"[number % 2]))
    return found


@pytest.mark.parametrize(
    ("sizes", "asked", "found"),
    [
        ([(10, 14)], None, [10, 14]),
        ([(10, 14), (14, 10)], None, [64, 64]),
        ([(97, 97)], None, [64, 64]),
        ([(96, 80)], None, [96, 80]),
        ([(10, 14)], 8, [8, 8]),
        ([(10, 14), (30, 30)], [7, 9], [7, 9]),
    ],
)
def test_pictures_of_one_size_are_kept_and_others_brought_to_one(
    tmp_path: Path, sizes: list[tuple[int, int]], asked: Any, found: list[int]
) -> None:
    pictures = [one for size in sizes for one in flat(range(0, 200, 20), size)]
    data = whole(tmp_path, as_folder(tmp_path / "pictures", pictures), size=asked)
    assert data.fitted.state["size"] == found
    assert list(data.train.column("image").shape[1:]) == [*found, 1]


@pytest.mark.parametrize("size", [[8], [8, 8, 3], 0, [8, 0]])
def test_a_size_is_one_number_or_height_and_width(size: Any) -> None:
    written = {"task": "image-classification", "data": {"train": "-", "size": size}, "train": STEPS}
    with pytest.raises(RecipeError, match=r"data\.size"):
        read_recipe(written, (), lambda _: ImageClassification.recipe)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_grey_pictures_stay_grey_and_one_in_colour_makes_all_so(tmp_path: Path, form: str) -> None:
    place = tmp_path / "pictures"
    for number, (picture, label) in enumerate(flat(range(0, 200, 10))):
        (place / label).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture)
        stored = image.convert("RGB") if form == "PNG" and number % 3 == 0 else image
        (place / label / f"{number}.{form.lower()}").write_bytes(saved(stored, form))
    assert whole(tmp_path / "grey", str(place)).train.column("image").shape[3] == 1
    assert whole(tmp_path / "asked", str(place), channels=3).train.column("image").shape[3] == 3
    (place / "a" / "red.png").write_bytes(encode_png(np.full((10, 14, 3), (200, 0, 0), np.uint8)))
    data = whole(tmp_path / "colour", str(place))
    assert data.train.column("image").shape[3] == len(data.fitted.state["mean"]) == 3
    assert whole(tmp_path / "to-grey", str(place), channels=1).train.column("image").shape[3] == 1


@pytest.mark.parametrize("channels", [None, 3])
def test_mean_and_spread_are_those_of_all_training_pictures(tmp_path: Path, channels: int | None) -> None:
    draws = np.random.default_rng(0)
    shape = (6, 5) if channels is None else (6, 5, 3)
    pictures = [(draws.integers(0, 256, shape, dtype=np.uint8), "ab"[n % 2]) for n in range(24)]
    white = [(np.full_like(picture, 255), label) for picture, label in pictures[:4]]
    for number, (picture, _) in enumerate(white):
        picture[0, number] = 0
    place, held = as_folder(tmp_path / "train", pictures), as_folder(tmp_path / "test", white)
    data = prepared(tmp_path, recipe_of({"train": place, "validation": held, "test": held}))
    pixels = np.stack([picture for picture, _ in pictures]).reshape(-1, channels or 1) / 255.0
    np.testing.assert_allclose(data.fitted.state["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.fitted.state["spread"], pixels.std(0), rtol=1e-9)


def test_of_many_pictures_those_looked_at_are_spread_over_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder comes class by class: the first pictures are all of one."""
    monkeypatch.setattr(image_classification, "_LOOKED_AT", 10)
    pictures = [(np.full((4, 10), 200 * (n >= 20), np.uint8), "ab"[n >= 20]) for n in range(40)]
    for number, (picture, _) in enumerate(pictures):
        picture[number // 10, number % 10] ^= 1
    data = whole(tmp_path, as_folder(tmp_path / "pictures", pictures))
    assert data.fitted.state["mean"] == pytest.approx([100 / 255], abs=0.01)


def test_a_picture_is_decoded_once_for_training_and_never_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    plain = image_classification.decode_many

    def counting(pictures: Any, **settings: Any) -> Any:
        def seen() -> Any:
            for picture in pictures:
                decoded.append(len(picture))
                yield picture

        return plain(seen(), **settings)

    monkeypatch.setattr(image_classification, "decode_many", counting)
    place = as_folder(tmp_path / "pictures", bars(40))
    recipe = recipe_of({"train": place}, evaluate={"bootstrap": 0}, train={**STEPS, "steps": 12})
    prepared(tmp_path, recipe)
    assert len(decoded) == 40
    shutil.rmtree(place)  # from here on there is nothing to decode

    def none(*_: Any, **__: Any) -> Any:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(image_classification, "decode", none)
    monkeypatch.setattr(image_classification, "decode_many", none)
    written = recipe.model_dump(mode="json")
    written["data"]["train"] = str(tmp_path / "data")
    assert train(written, out=tmp_path / "run").result["steps"] == 12


# Training.

CHANGES = {
    "flip": True, "shift": 2, "crop": 0.6, "cutout": 3, "brightness": 0.3, "contrast": 0.3, "colour": 0.3, "mixup": 0.4,
}  # fmt: skip


def test_changes_are_the_same_however_a_step_is_cut(tmp_path: Path) -> None:
    found = learner_of(tmp_path, bars(20), data={"augment": CHANGES})

    def pictures(step: int, rank: int, ranks: int, size: int | None = None) -> torch.Tensor:
        return torch.cat([batch.tensors["image"] for batch in found.batches(step, rank, ranks, size)])

    def sum_of_losses(step: int, size: int | None = None) -> float:
        with torch.no_grad():
            return float(sum(found.loss(batch) for batch in found.batches(step, 0, 1, size)))

    found.model.eval()
    for step in (0, 1, 5):
        together = pictures(step, 0, 1)
        assert sum_of_losses(step, 3) == pytest.approx(sum_of_losses(step), rel=1e-5)
        for size in (1, 3):
            assert torch.equal(pictures(step, 0, 1, size), together)
        assert torch.equal(torch.cat([pictures(step, rank, 3, 2) for rank in range(3)]), together)
    epochs = [
        {p.numpy().tobytes() for s in (0, 1, 2) for p in pictures(s + 3 * epoch, 0, 1)} for epoch in (0, 1)
    ]
    assert len(epochs[0] | epochs[1]) > 30  # of 20 pictures: they change from epoch to epoch
    still = {picture.tobytes() for picture in found.data.train.column("image")}
    assert not still & epochs[0]


def test_a_stopped_run_goes_on_with_the_changes_it_would_have_made(tmp_path: Path) -> None:
    place = as_folder(tmp_path / "pictures", bars(40))
    settings = {**STEPS, "steps": 8, "evaluate_every": 4, "micro_batch": 3}
    recipe = recipe_of(
        {"train": place, "augment": CHANGES}, train=settings, evaluate={"bootstrap": 0}
    ).model_dump(mode="json")
    straight = train(recipe, out=tmp_path / "straight").folder
    stop = StopRequest()
    faults = Faults({("step", 4, 0): lambda: stop.ask("the test")})
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "stopped", tools=Tools(Show(quiet=True), stop, faults))
    train(resume=tmp_path / "stopped")
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [Run(run).checkpoints / "step-00000008" / name for run in (straight, tmp_path / "stopped")]
        assert sha256(paths[0]) == sha256(paths[1])
    assert (straight / "metrics.jsonl").read_bytes() == (tmp_path / "stopped" / "metrics.jsonl").read_bytes()


def test_mixup_mixes_pictures_and_losses_by_the_same_share(tmp_path: Path) -> None:
    found = learner_of(tmp_path, bars(20), data={"augment": {"mixup": 0.4}})
    plain = learner_of(tmp_path / "plain", bars(20))
    (batch,), (own,) = found.batches(0, 0, 1), plain.batches(0, 0, 1)
    positions = torch.arange(8)
    share = symmetric_beta(uniforms(1, positions, 1)[:, 0], 0.4)
    x = own.tensors["image"].double()
    mixed = share.view(-1, 1, 1, 1) * x + (1 - share.view(-1, 1, 1, 1)) * x.flip(0)
    assert (batch.tensors["image"].double() - mixed).abs().max() <= 0.5 + 1e-6  # bytes, rounded
    labels = own.tensors["label"]
    found.model.eval()
    with torch.no_grad():
        logits = found.model(batch.tensors["image"]).double()
        losses = [F.cross_entropy(logits, wanted, reduction="none") for wanted in (labels, labels.flip(0))]
        expected = (share * losses[0] + (1 - share) * losses[1]).sum()
        torch.testing.assert_close(found.loss(batch).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_mirrored_evaluation_is_the_mean_over_a_picture_and_its_mirror_image(tmp_path: Path) -> None:
    found = learner_of(tmp_path, bars(20), evaluate={"mirror": True})
    found.model.eval()
    numbers = np.arange(6, dtype=np.int64)
    pictures = torch.from_numpy(found.data.train.column("image")[numbers])
    with torch.no_grad():
        logits = [
            found.model(x).double() for x in (pictures, torch.from_numpy(pictures.numpy()[:, :, ::-1].copy()))
        ]
    assert not torch.allclose(*logits)
    expected = (logits[0] + logits[1]) / 2
    np.testing.assert_allclose(
        np.stack(found.answers(found.data.train, numbers)), expected.numpy(), atol=1e-6
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_a_shifted_evaluation_is_half_the_picture_and_half_its_neighbours(
    tmp_path: Path, mirror: bool
) -> None:
    found = learner_of(tmp_path, bars(20), evaluate={"mirror": mirror, "shift": 2})
    found.model.eval()
    numbers = np.arange(6, dtype=np.int64)
    pictures = torch.from_numpy(found.data.train.column("image")[numbers]).permute(0, 3, 1, 2)
    padded = F.pad(pictures.float(), (2,) * 4, mode="reflect").to(torch.uint8)

    def logits(x: torch.Tensor) -> torch.Tensor:
        sides = [x, x.flip(3)] if mirror else [x]
        return torch.stack([found.model(side.permute(0, 2, 3, 1)).double() for side in sides]).mean(0)

    with torch.no_grad():
        moved = [logits(padded[:, :, at : at + 12, at : at + 12]) for at in (0, 4)]
        expected = 0.5 * logits(pictures) + 0.25 * (moved[0] + moved[1])
    np.testing.assert_allclose(
        np.stack(found.answers(found.data.train, numbers)), expected.numpy(), atol=1e-6
    )


def test_every_picture_is_mirrored_in_one_of_two_epochs(tmp_path: Path) -> None:
    found = learner_of(tmp_path, bars(20), data={"augment": {"flip": True}}, train={**STEPS, "batch": 6})
    stored = found.data.train.column("image")
    sides: dict[int, list[bool]] = {number: [] for number in range(20)}
    for step in range(8):  # four to an epoch, the last of them short
        (batch,) = found.batches(step, 0, 1)
        for number, picture in zip(found._order.rows(step).tolist(), batch.tensors["image"], strict=True):
            plain, mirrored = stored[number], stored[number][:, ::-1]
            assert not np.array_equal(plain, mirrored)
            sides[number].append(np.array_equal(picture, mirrored))
            assert sides[number][-1] or np.array_equal(picture, plain)
    assert all(sorted(seen) == [False, True] for seen in sides.values())


NETWORKS: dict[str, dict[str, Any]] = {
    "lenet": {},
    "small": {"widths": [4, 4, 4, 4]},
    "airbench": {"widths": [4, 8, 8]},
    "resnet": {"widths": [4, 8, 8, 8]},
    "vit": {"layers": 1, "width": 16, "heads": 2},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_learns_a_step_and_is_saved_and_exported(
    tmp_path: Path, network: str, channels: int
) -> None:
    pytest.importorskip("onnxruntime")
    model = {"network": network, **NETWORKS[network]}
    found = learner_of(tmp_path, bars(16, size=16), model=model, data={"channels": channels})
    (batch,) = found.batches(0, 0, 1)
    found.model.train()
    before = found.loss(batch)
    before.backward()
    with torch.no_grad():
        for parameter in found.model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert found.loss(batch).item() < before.item()
    found.model.eval()
    found.save(tmp_path / "model", "", DISK)
    numbers = np.arange(5, dtype=np.int64)
    rows = [{"image": found.data.train.column("image")[n]} for n in numbers]
    said = [found.task.decode(answer) for answer in found.answers(found.data.train, numbers)]
    assert load(tmp_path / "model").predict(rows) == said
    if channels == 1:
        made = export(tmp_path / "model", tmp_path / "graph")
        assert made["parity"]["max_abs"] < 1e-4
        for answer, same in zip(load(tmp_path / "graph").predict(rows), said, strict=True):
            assert answer["probabilities"] == pytest.approx(same["probabilities"], abs=1e-4)


def test_a_transformer_takes_square_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vit takes square pictures"):
        learner_of(tmp_path, flat(range(0, 200, 20), (8, 12)), model={"network": "vit"})


def test_whitening_is_learned_at_the_start_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on, and a model that is loaded, have the whitening that was learned when the run began."""
    whiten, calls = Airbench.whiten, []

    def counted(model: Airbench, images: torch.Tensor) -> None:
        calls.append(len(images))
        whiten(model, images)

    monkeypatch.setattr(Airbench, "whiten", counted)
    place = as_folder(tmp_path / "pictures", bars(40))
    recipe = recipe_of(
        {"train": place},
        model={"network": "airbench", "widths": [4, 4, 4]},
        train={**STEPS, "steps": 4, "checkpoint_every": 2},
        evaluate={"bootstrap": 0},
    ).model_dump(mode="json")
    stop = StopRequest()
    faults = Faults({("step", 2, 0): lambda: stop.ask("the test")})
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "run", tools=Tools(Show(quiet=True), stop, faults))
    assert calls == [len(PreparedRows(tmp_path / "run" / "data").train)]
    data = PreparedRows(tmp_path / "run" / "data")
    fresh = ImageClassification.learner(ImageClassification.recipe.model_validate(recipe), data)
    wanted = fresh.model.network.whitening.clone()
    assert not torch.equal(wanted, Airbench(fresh.model.network.config).whitening)

    def spoilt(model: Airbench, images: torch.Tensor) -> None:
        model.whitening.fill_(7.0)

    monkeypatch.setattr(Airbench, "whiten", spoilt)
    train(resume=tmp_path / "run")
    assert torch.equal(load(tmp_path / "run").module.network.whitening, wanted)


def test_the_gallery_shows_the_picture_itself(odd_run: Path) -> None:
    data = PreparedRows(odd_run / "data")
    task = ImageClassification(recipe_of({"train": "-"}), data.fitted)
    shown = task.show(data.held_out, 0, np.array([0.0, 1.0]))
    picture = data.held_out.column("image")[0]
    assert shown["parts"][0]["kind"] == "picture"
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["parts"][0]["png"])))), picture
    )
    label = task.labels[int(data.held_out.column("label")[0])]
    assert shown["expected"] == label
    row = data.held_out.row(0)["values"]
    assert task.view(data.held_out, 0) == f"9 x 6 x 3 {row['path']} -> {label}"


def test_made_up_pictures_are_those_it_learns_from() -> None:
    rows = ImageClassification.sample(6, random.Random(0))
    assert {row["label"] for row in rows} == {"lying", "standing"}
    assert all(row["image"].shape == (12, 12, 1) for row in rows)


def test_a_vit_shows_the_picture_as_bright_as_it_was_attended_to(tmp_path: Path) -> None:
    found = learner_of(
        tmp_path,
        bars(24),
        model={"network": "vit", "layers": 2, "width": 16, "heads": 2, "patch": 4},
    )
    (batch,) = found.batches(0, 0, 1)
    tensors = {**batch.tensors, "image": torch.full_like(batch.tensors["image"], 200)}
    with torch.no_grad():
        parts = found.task.attended(found.model.eval(), tensors, [None] * batch.rows)
    assert len(parts) == batch.rows
    for part in parts:
        assert part is not None
        assert (part["kind"], part["attended"]) == ("picture", True)
        seen = decode(base64.b64decode(part["png"]), size=tensors["image"].shape[1:3], channels=1)[..., 0]
        patches = seen.reshape(3, 4, 3, 4)
        assert (patches == patches[:, :1, :, :1]).all()  # one brightness in each patch
        lifted = 48 + 200 * (1 - 48 / 255)
        assert seen.max() == int(lifted)  # what was attended to most keeps its own brightness
        assert seen.min() >= int(lifted * 0.15)
    plain = learner_of(tmp_path / "plain", bars(24))
    assert plain.task.attended(plain.model, tensors, [None]) == [None]
