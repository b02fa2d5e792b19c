"""What a recipe of sequence labelling may say besides what every recipe on rows may."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from luban.recipe import Positive, Section
from luban.row_recipe import Objective, RowData, RowEvaluation, RowRecipe


class TaggedRows(RowData):
    """Sentences with a tag for each token."""

    columns: list[str] | None = None
    """Which columns hold token and tag, by number from 0 (`["0", "3"]`) or name; null takes the first and the last."""
    lowercase: bool = True
    """Look words up in small letters; their spelling is still seen by its characters."""
    min_count: Positive = 1
    """A word that comes less often in training is unknown by itself, and seen by its characters."""
    length: Positive = 512
    """Tokens read of a sentence; a longer one is a bad row in training and cut when it is to be answered."""
    characters: Positive = 20
    """Characters read of a token."""
    tokenizer: str | None = None
    """Read the pieces of a BERT's tokenizer instead of words and characters: the folder that `model.start` names."""


class TaggerNetwork(Section):
    """The network."""

    network: Literal["lstm", "gru", "transformer", "bert"] = "lstm"
    """`lstm`, `gru`, `transformer` (encoder) or `bert` (the folder that `start` names)."""
    start: str | None = None
    """A run or a model folder to take weights from, wherever names and shapes are the same, and of words and characters
    the rows of those that both know; or a folder of BERT."""
    config: dict[str, Any] | None = None
    """With `bert`: its shape, as config.json has it; taken from the folder that `start` names."""
    crf: bool = True
    """A conditional random field on top: tags are chosen together, and only those that the scheme allows."""
    width: Positive = 128
    """Dimensions of a word's embedding, and of each direction of the hidden state."""
    characters: Annotated[int, Field(ge=0)] | None = None
    """Filters that look at a word's characters, 0 for none; null means 64, or none where tokens are characters."""
    pairs: Annotated[int, Field(ge=0)] | None = None
    """Rows of a hashed embedding of each token with its neighbours, 0 for none; null means 50,000 where tokens are
    characters, else none."""
    unknown: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the words that came once that are read as unknown while training: so what stands for unknown words is
    learned too, and what their characters tell (Lample et al. 2016)."""
    layers: Positive = 1
    """Layers."""
    bidirectional: bool = True
    """With `lstm`, `gru`: read the sentence from both ends."""
    heads: Positive = 4
    """Attention heads of `transformer`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of embeddings and of the hidden state that is zeroed while training."""

    @model_validator(mode="after")
    def _has_a_start(self) -> Self:
        if self.network == "bert" and self.start is None:
            raise ValueError("a bert starts from a folder: give model.start=FOLDER")
        return self


class SequenceLabellingRecipe(RowRecipe):
    """The recipe of sequence labelling."""

    task: Literal["sequence-labelling"] = "sequence-labelling"
    """What is learned."""
    data: TaggedRows
    """Where the sentences come from."""
    model: TaggerNetwork = TaggerNetwork()
    """The network."""
    objective: Objective = Objective()
    """What the loss is, its classes being tags; a sentence is as rare as its rarest tag."""
    evaluate: RowEvaluation = RowEvaluation()
    """What is measured."""

    @model_validator(mode="after")
    def _weighs_tags_by_themselves(self) -> Self:
        plain = Objective(sampling=self.objective.sampling)
        if self.model.crf and self.model.network != "bert" and self.objective != plain:
            raise ValueError(
                "label smoothing, focal loss and class weights are of tags chosen by themselves; a conditional random "
                "field chooses them together: add model.crf=false"
            )
        return self
