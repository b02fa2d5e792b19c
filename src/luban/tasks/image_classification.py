"""Image classification: a picture in, a label out."""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.picture_workers import decode_many
from luban.data.pictures import PictureError, decode, encode_png, picture_size
from luban.data.row_pictures import IMAGE_COLUMNS, PICTURES
from luban.data.row_sets import BadValue, Fitted, Row
from luban.data.row_sources import is_inside
from luban.data.row_store import RowSet
from luban.data.workers import cores
from luban.errors import DataError, InputError
from luban.models.airbench import Airbench, AirbenchConfig
from luban.models.attention_weights import AttentionWeights, rollout
from luban.models.augment import Augmentation, mixup, shifted, symmetric_beta, uniforms
from luban.models.image_layouts import ImageConfig, new_image_module
from luban.models.lenet import LeNet, LeNetConfig, SmallConvNet, SmallConvNetConfig
from luban.models.normalised import Normalised
from luban.models.resnet import ResNet, ResNetConfig
from luban.models.vit import ViT, ViTConfig
from luban.tasks import picture_folder
from luban.tasks.base import Broken
from luban.tasks.columns import column_of, labelled
from luban.tasks.image_recipe import ImageClassificationRecipe, PictureChanges, PictureNetwork
from luban.tasks.rows import Array, Places, Signature, Tensors

_LOOKED_AT = 2_000
"""Training pictures from which size, mean and spread are taken."""
_LARGE, _USUAL = 96, 64
LABEL_COLUMNS = ("label", "class", "category", "target")
_WHITENED = 5_000
_DARKEST, _LIFT = 0.15, 48.0
"""Share of its brightness that a patch keeps to which nothing was attended; what black is lifted to before."""


class ImageClassification(picture_folder.StartsFromPictures):
    """Tell which label a picture has."""

    name: ClassVar[str] = "image-classification"
    recipe: ClassVar[type[ImageClassificationRecipe]] = ImageClassificationRecipe
    while_training: ClassVar[frozenset[str]] = frozenset({"augment"})
    layout = "pictures"
    pipeline = "image-classification"

    def asked_columns(self) -> Sequence[str] | None:
        """Return the column of the picture in a table."""
        image = self.settings.data.image
        return None if image is None else [image]

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Say which column is the label; the reader calls the picture's `image`."""
        self.sliced(columns)
        others = [name for name in columns if name not in ("image", "path")]
        label = (
            column_of(others, self.settings.data.label, LABEL_COLUMNS, "data.label") if others else "label"
        )
        return {"label": label}

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return picture, label and path."""
        image = values.get("image")
        if image is None:
            raise BadValue("missing_value", "the row has no picture")
        if not isinstance(image, bytes | np.ndarray):
            raise BadValue("bad_picture", f"a picture is wanted; received {str(image)[:80]!r}")
        row = {**self.beside(values), "image": image, "path": str(values.get("path", ""))}
        return labelled(row, self.label_of(values.get(roles.get("label", "label"))))

    def read(self, path: Path) -> Iterator[Any]:
        """Yield the pictures of a folder or table; paths on the lines of a file count from its folder."""
        for row in super().read(path):
            cells = {"image": row} if isinstance(row, str) else row
            if not isinstance(cells, Mapping) or isinstance(cells.get("image"), bytes | np.ndarray):
                yield row
                continue
            paths = {name: cell for name, cell in cells.items() if _is_path(name, cell)}
            outside = [cell for cell in paths.values() if not is_inside(path.parent, path.parent / cell)]
            if outside:
                yield Broken(f"{outside[0][:200]} leads out of the folder of {path.name}")
            else:
                yield {**cells, **{name: str(path.parent / cell) for name, cell in paths.items()}}

    def parse(self, raw: Any) -> Mapping[str, Any]:
        """Take the path of a picture, its bytes, or an array (height, width[, channels]) as a row."""
        if isinstance(raw, bytes | np.ndarray):
            return {"image": raw}
        path = raw
        if isinstance(raw, Mapping):
            names = (self.settings.data.image, *IMAGE_COLUMNS)
            path = next((raw[name] for name in names if name in raw), None)
            if isinstance(path, bytes | np.ndarray):
                return {**raw, "image": path}
        if not isinstance(path, str):
            return super().parse(raw)
        try:
            if Path(path).is_file():  # what is no file, such as a pipe, may never end
                return {"image": Path(path).read_bytes(), "path": path}
            why = "there is no such file"
        except (OSError, ValueError) as error:
            why = str(error)
        raise BadValue("no_file", f"cannot read the picture {path[:200]}: {why}")

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn the labels, the size, and mean and spread of the channels."""
        state, notes = self.learn_labels(row["label"] for row in rows())
        step = max(1, sum(state["label_counts"]) // _LOOKED_AT)

        def images() -> Iterator[Any]:
            # Spread evenly, since folders come class by class; one at a time, since photos are large.
            return (row["image"] for row in islice(rows(), 0, None, step))

        size = self._size(images())
        asked = self.settings.data.channels
        mean, spread, grey = _statistics(images(), size, asked or 3)
        channels = asked or (1 if grey else 3)
        given = self.settings.data
        for name, numbers in (("mean", given.mean), ("spread", given.spread)):
            if numbers is not None and len(numbers) != channels:
                raise InputError(
                    f"{name} needs a number for each of {channels} channels",
                    received=numbers,
                    where=f"data.{name}",
                    fix=f"write {channels} numbers, or leave it out",
                )
        state |= {
            "roles": dict(roles),
            "size": list(size),
            "mean": given.mean or mean[:channels],
            "spread": given.spread or spread[:channels],
        }
        return Fitted(state, notes=notes)

    def _size(self, images: Iterable[Any]) -> tuple[int, int]:
        """Return height and width that all pictures are brought to."""
        asked = self.settings.data.size
        if isinstance(asked, int):
            return asked, asked
        if asked is not None:
            height, width = asked
            return height, width
        sizes = set()
        for image in images:
            try:
                sizes.add(image.shape[:2] if isinstance(image, np.ndarray) else picture_size(image))
            except PictureError:
                continue
        height, width = next(iter(sizes)) if len(sizes) == 1 else (_USUAL, _USUAL)
        return (height, width) if max(height, width) <= _LARGE else (_USUAL, _USUAL)

    def encode_all(self, rows: Iterator[Row], fitted: Fitted) -> Iterator[dict[str, Array] | BadValue]:
        """Decode pictures in worker processes, in order."""
        task = self.knowing(fitted)
        workers = self.settings.data.workers or cores()
        size, channels = tuple(fitted.state["size"]), len(fitted.state["mean"])
        waiting: list[Row] = []

        def images() -> Iterator[Any]:
            for row in rows:
                waiting.append({name: value for name, value in row.items() if name != "image"})
                yield row["image"]

        first = next(rows, None)
        if first is None:
            return
        rows = itertools.chain([first], rows)
        # Pixels need no decoding: a process more would only copy them.
        workers = 1 if isinstance(first["image"], np.ndarray) else workers
        for decoded in decode_many(images(), size=size, channels=channels, workers=workers):
            row = waiting.pop(0)
            try:
                if isinstance(decoded, PictureError):
                    raise BadValue("bad_picture", f"{row['path']}: {decoded.detail}".removeprefix(": "))
                yield task.with_label(decoded, row)
            except BadValue as error:
                yield error

    def with_label(self, picture: Array, row: Row) -> dict[str, Array]:
        """Return a decoded picture with the row's label, where it has one."""
        label = {"label": self.encode_label(row["label"])} if "label" in row else {}
        return {"image": picture, **label}

    def encode(self, row: Row) -> dict[str, Array]:
        """Return the picture (height, width, channels) uint8, and the label where there is one."""
        state = self.fitted.state
        try:
            picture = decode(row["image"], size=tuple(state["size"]), channels=len(state["mean"]))
        except PictureError as error:
            raise BadValue("bad_picture", f"{row['path']}: {error.detail}".removeprefix(": ")) from None
        return self.with_label(picture, row)

    def build(self) -> nn.Module:
        """Return the network that the recipe names, behind the scaling of its pictures."""
        state = self.fitted.state
        shape = self.hub_shape()
        if shape is not None:
            return Normalised(new_image_module(shape), state["mean"], state["spread"])
        network = _network(self.settings.model, len(self.labels), len(state["mean"]), state["size"])
        return Normalised(network, state["mean"], state["spread"])

    def hub_shape(self) -> ImageConfig | None:
        """Return the network's shape where Hugging Face's layout has it: a ViT, or what a folder was started from."""
        settings, state = self.settings.model, self.fitted.state
        if settings.config is not None:
            return picture_folder.config_with(settings.config, self.labels, settings.dropout)
        return (
            _vit(settings, len(self.labels), len(state["mean"]), state["size"])
            if settings.network == "vit"
            else None
        )

    def ready(self, model: nn.Module, rows: RowSet) -> None:
        """Give a network that whitens its input the pictures to learn that from."""
        assert isinstance(model, Normalised)
        if isinstance(model.network, Airbench):
            step = max(1, len(rows) // _WHITENED)
            numbers = np.arange(0, len(rows), step, dtype=np.int64)
            pictures = torch.from_numpy(np.ascontiguousarray(rows.column("image")[numbers]))
            model.network.whiten(model.prepared(pictures))

    def augmented(self, tensors: dict[str, Tensor], places: Places) -> dict[str, Tensor]:
        """Change a batch as `data.augment` says."""
        positions = places.positions
        settings, seed = self.settings.data.augment, self.settings.train.seed
        if settings == PictureChanges():
            return tensors
        change = Augmentation(**settings.model_dump(exclude={"mixup"}))
        x = tensors["image"].permute(0, 3, 1, 2)  # (rows, channels, height, width)
        x = change(x, seed=seed, positions=positions, rows=places.numbers, epochs=places.epochs)
        return {**tensors, "image": x.permute(0, 2, 3, 1)}

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed: `data.augment.mixup`."""
        return bool(self.settings.data.augment.mixup > 0)

    def mixed(self, tensors: dict[str, Tensor], partners: Tensors, places: Places) -> dict[str, Tensor]:
        """Mix each picture with its partner, and say by how much."""
        drawn = uniforms(self.settings.train.seed + 1, places.positions, 1)[:, 0]
        shares = symmetric_beta(drawn, self.settings.data.augment.mixup)
        image = mixup(tensors["image"], partners["image"], shares)
        return {**tensors, "image": image, "partner_label": partners["label"], "share": shares}

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return logits (rows, classes)."""
        found: Tensor = model(tensors["image"])
        return found

    def loss(self, outputs: Tensor, tensors: Tensors) -> Tensor:
        """Return the loss summed over the rows; of mixed pictures the mixed loss."""
        if "share" not in tensors:
            return super().loss(outputs, tensors)
        share = tensors["share"]
        own, partner = (
            self.row_losses(outputs, tensors["label"]),
            self.row_losses(outputs, tensors["partner_label"]),
        )
        return (share * own + (1.0 - share) * partner).sum()

    def answers(self, model: nn.Module, tensors: Tensors) -> Sequence[Any]:
        """Return the logits of each row: the mean over what `evaluate` looks at of it."""
        pictures, pixels = tensors["image"], self.settings.evaluate.shift
        logits = self._both_sides(model, pictures)
        if pixels:
            moved = (shifted(pictures.permute(0, 3, 1, 2), by, by) for by in (pixels, -pixels))
            others = [self._both_sides(model, x.permute(0, 2, 3, 1)) for x in moved]
            logits = 0.5 * logits + 0.25 * (others[0] + others[1])
        return list(logits.cpu().numpy())

    def _both_sides(self, model: nn.Module, pictures: Tensor) -> Tensor:
        """Return the logits of pictures (rows, height, width, channels), with `mirror` the mean of both sides."""
        logits = self.outputs(model, {"image": pictures}).float()
        if not self.settings.evaluate.mirror:
            return logits
        return 0.5 * (logits + self.outputs(model, {"image": pictures.flip(2)}).float())

    def show(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return the picture beside its label."""
        png = _as_text(np.asarray(rows.column("image")[number]))
        return {"parts": [{"kind": "picture", "png": png}], **self.shown_answer(rows, number, answer)}

    def attended(
        self, model: nn.Module, tensors: Tensors, answers: Sequence[Any]
    ) -> Sequence[dict[str, Any] | None]:
        """Return each picture as bright as a ViT attended to its patches, by rollout to the class token."""
        if not isinstance(model, Normalised) or not isinstance(model.network, ViT):
            return super().attended(model, tensors, answers)
        pictures = tensors["image"]
        with AttentionWeights() as seen:
            model(pictures)
        reached = rollout(seen.found)[:, 0, 1:]  # (rows, patches)
        height, width = (side // model.network.config.patch for side in pictures.shape[1:3])
        shares = (reached / reached.amax(1, keepdim=True)).view(-1, 1, height, width)
        light = F.interpolate(shares, pictures.shape[1:3]).permute(0, 2, 3, 1)  # (rows, height, width, 1)
        lifted = _LIFT + pictures * (1.0 - _LIFT / 255.0)  # so that black, too, is brighter or darker
        shaded = (lifted * (_DARKEST + (1.0 - _DARKEST) * light)).to(torch.uint8).cpu().numpy()
        return [{"kind": "picture", "png": _as_text(one), "attended": True} for one in shaded]

    def view(self, rows: RowSet, number: int) -> str:
        """Return size and label."""
        height, width, channels = rows.column("image")[number].shape
        row = rows.row(number)["values"]
        return f"{height} x {width} x {channels} {row['path']} -> {row['label']}"

    def signature(self, tensors: Tensors) -> Signature:
        """Return the network as a graph: pictures as bytes in, logits out."""
        return Signature({"pictures": tensors["image"]}, ["logits"], {"pictures": {0: "batch"}})

    def probe(self, rows: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Return noise."""
        height, width = self.fitted.state["size"]
        shape = (rows, height, width, len(self.fitted.state["mean"]))
        return {"image": torch.randint(256, shape, generator=draws, dtype=torch.uint8)}

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[Row]:
        """Return grey pictures of 12 pixels with a bright bar, lying or standing."""
        rows: list[Row] = []
        for number in range(count):
            picture = np.array([[draws.randrange(80) for _ in range(12)] for _ in range(12)], np.uint8)
            at = draws.randrange(1, 10)
            if number % 2:
                picture[at : at + 2] = 230
            else:
                picture[:, at : at + 2] = 230
            rows.append({"image": picture[:, :, None], "label": "lying" if number % 2 else "standing"})
        return rows

    @classmethod
    def smallest(cls) -> dict[str, Any]:
        """Return the smallest network."""
        return {"model": {"network": "small", "widths": [8, 8, 8, 8]}}


def _is_path(column: str, cell: object) -> bool:
    """Whether a cell of a table names a picture, as where tables are read for training."""
    return isinstance(cell, str) and (column in IMAGE_COLUMNS or cell.lower().endswith(PICTURES))


def _as_text(picture: NDArray[Any]) -> str:
    return base64.b64encode(encode_png(picture)).decode("ascii")


def _statistics(
    images: Iterable[Any], size: tuple[int, int], channels: int
) -> tuple[list[float], list[float], bool]:
    """Return mean and spread of each channel on the scale 0 to 1, and whether all pictures are grey."""
    total, squares = np.zeros(channels), np.zeros(channels)
    count, grey = 0, True
    for image in images:
        try:
            pixels = decode(image, size=size, channels=channels).reshape(-1, channels)
        except PictureError:
            continue  # counted where it is encoded
        scaled = pixels / 255.0
        total += scaled.sum(0)
        squares += (scaled**2).sum(0)
        count += len(pixels)
        grey = grey and bool((pixels == pixels[:, :1]).all())
    if not count:
        raise DataError("none of the training pictures can be read", where="data.train")
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean.tolist(), np.maximum(spread, 1e-3).tolist(), grey


def _network(settings: PictureNetwork, classes: int, channels: int, size: Sequence[int]) -> nn.Module:
    widths = None if settings.widths is None else tuple(settings.widths)
    shape: dict[str, Any] = {"dropout": settings.dropout} | ({} if widths is None else {"widths": widths})
    match settings.network:
        case "lenet":
            return LeNet(LeNetConfig(classes, channels, height=size[0], width=size[1], **shape))
        case "small":
            return SmallConvNet(SmallConvNetConfig(classes, channels, **shape))
        case "airbench":
            return Airbench(AirbenchConfig(classes, channels, **shape))
        case "resnet":
            return ResNet(ResNetConfig(classes, channels, **shape))
        case other:
            raise AssertionError(other)  # a ViT has a shape of the hub


def _vit(settings: PictureNetwork, classes: int, channels: int, size: Sequence[int]) -> ViTConfig:
    if size[0] != size[1]:
        raise InputError("vit takes square pictures", received=list(size), fix="set data.size to one number")
    return ViTConfig(
        classes,
        size[0],
        settings.patch,
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
        channels=channels,
        dropout=settings.dropout,
    )
