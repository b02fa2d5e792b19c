"""What a recipe of image classification may say besides what every recipe on rows may."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luban.recipe import Fraction, Positive, Section
from luban.row_recipe import Objective, RowData, RowEvaluation, RowRecipe


class PictureChanges(Section):
    """How training pictures are changed at random; every draw is a function of the seed and the picture's place."""

    flip: bool = False
    """Mirror half of them, left and right: each one every second epoch."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Shift by up to so many pixels each way; what comes in is mirrored from the edge."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Cut out a part and enlarge it: the smallest share of the area; 1 cuts nothing."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Black out a square of so many pixels."""
    brightness: Fraction = 0.0
    """Change brightness by up to this share."""
    contrast: Fraction = 0.0
    """Change contrast by up to this share."""
    colour: Fraction = 0.0
    """Change saturation by up to this share."""
    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    """Alpha of mixup (Zhang et al. 2018): pictures and labels mixed in pairs; 0 mixes none."""


class PictureRows(RowData):
    """Pictures with their labels: a folder of each class, a table of paths, idx files, or parquet with bytes."""

    image: str | None = None
    """With a table: the column of the path, or of the bytes."""
    label: str | None = None
    """With a table: the column of the label."""
    size: Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    """Pixels of each side, or [height, width]; null takes pictures of one size as they are, others at 64."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; null takes what the pictures have."""
    mean: list[float] | None = None
    """Of each channel, on the scale 0 to 1, taken off the pictures; null takes that of the training pictures."""
    spread: list[Annotated[float, Field(gt=0.0)]] | None = None
    """Of each channel, by which the pictures are divided then; null takes that of the training pictures."""
    augment: PictureChanges = PictureChanges()
    """How training pictures are changed at random."""


class PictureNetwork(Section):
    """The network: which kind, and its shape."""

    network: Literal["lenet", "small", "airbench", "resnet", "vit"] = "small"
    """`lenet` (LeCun et al. 1998), `small` (convolutions with batch norm, under 100,000 parameters), `airbench` (Jordan
    2024, for 32 pixels), `resnet` (He et al. 2016, for small pictures), `vit` (Dosovitskiy et al. 2021)."""
    start: str | None = None
    """A run or a model folder to take weights from, wherever names and shapes are the same; or a folder of ViT or
    ResNet."""
    config: dict[str, Any] | None = None
    """The shape of `vit` or `resnet`, as config.json has it; taken from the folder that `start` names."""
    widths: list[Positive] | None = None
    """Channels of each stage; null means the network's own."""
    layers: Positive = 6
    """Blocks of `vit`."""
    width: Positive = 128
    """Width of `vit`."""
    heads: Positive = 4
    """Attention heads of `vit`."""
    patch: Positive = 4
    """Pixels of a side of `vit`'s patches."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share that is zeroed while training: of what the last layer reads; with `vit`, of the tokens and of what each
    block adds."""


class PictureEvaluation(RowEvaluation):
    """What is measured on held-out pictures."""

    mirror: bool = False
    """Answer with the mean of a picture and its mirror image; twice the work."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Answer with the mean of a picture and of it moved by so many pixels up and left, and down and right: half the
    weight is the picture's own; three times the work, six with `mirror`."""


class ImageClassificationRecipe(RowRecipe):
    """The recipe of image classification."""

    task: Literal["image-classification"] = "image-classification"
    """What is learned."""
    data: PictureRows
    """Where the pictures come from."""
    model: PictureNetwork = PictureNetwork()
    """The network."""
    objective: Objective = Objective()
    """What the loss is."""
    evaluate: PictureEvaluation = PictureEvaluation()
    """What is measured."""
