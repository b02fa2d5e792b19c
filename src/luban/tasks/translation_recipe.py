"""What a recipe of translation may say besides what every recipe on rows may."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luban.recipe import Positive, Section
from luban.row_recipe import RowData, RowEvaluation, RowRecipe


class PairRows(RowData):
    """Pairs of texts."""

    source: str | None = None
    """The column of what is read; null finds it by its name, as `source`, or takes what the target leaves of two."""
    target: str | None = None
    """The column of what is written; null finds it by its name, as `target`, or takes what the source leaves of two."""
    columns: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    """Source and target of a file that has no header: two names, or two numbers counted from 0."""
    tokenizer: str = "bpe"
    """`bpe`, `word` or `char`, trained on both sides of the training rows; or a folder with a tokenizer.json. Words are
    lower-cased, one that comes once is unknown, and what is written is words with spaces."""
    shared: bool = True
    """One vocabulary for both sides; false makes one for each."""
    vocab_size: Annotated[int, Field(ge=3)] = 8_000
    """Most tokens of a vocabulary."""
    lowercase: bool = False
    """Make both sides small letters first, as many published figures do."""
    length: Annotated[int, Field(ge=4)] = 128
    """Most tokens of a side; a longer pair is a bad row in training."""
    batch_tokens: Positive = 4_096
    """Most tokens of a step on each side, padding included; pairs of like length share a batch. `train.batch` is the
    most pairs of one besides, where it is given."""


class Seq2SeqNetwork(Section):
    """The network."""

    network: Literal["transformer", "lstm", "gru"] = "transformer"
    """`transformer` (Vaswani et al. 2017), or `lstm` or `gru` with attention (Luong et al. 2015)."""
    start: str | None = None
    """A run or a model folder to take weights from, wherever names and shapes are the same."""
    layers: Positive = 3
    """Layers of encoder and decoder each."""
    width: Positive = 256
    """Dimensions of the hidden state."""
    heads: Positive = 4
    """Attention heads of `transformer`."""
    mlp_width: Positive | None = None
    """Width inside the MLP of `transformer`; null means four times `width`."""
    norm: Literal["pre", "post"] = "pre"
    """Where `transformer` normalises."""
    tied: bool = True
    """The output embedding is the input embedding of the target; with a shared vocabulary the source's too."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of embeddings and of what each layer adds that is zeroed while training."""


class Seq2SeqObjective(Section):
    """What the loss is."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the target spread evenly over the vocabulary (Szegedy et al. 2016)."""


class TranslationEvaluation(RowEvaluation):
    """How answers are searched for and measured."""

    beam: Positive = 4
    """Hypotheses kept while an answer is written; 1 is greedy. During training it is always greedy."""
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.6
    """Alpha of the length penalty (Wu et al. 2016)."""
    tokenize: Literal["auto", "13a", "zh", "char", "none"] = "auto"
    """How BLEU tokenises; `auto` takes `zh` where the targets are Chinese, `none` where they are tokenised already
    (words), else `13a`."""


class TranslationRecipe(RowRecipe):
    """The recipe of translation."""

    task: Literal["translation"] = "translation"
    """What is learned."""
    data: PairRows
    """Where the pairs come from."""
    model: Seq2SeqNetwork = Seq2SeqNetwork()
    """The network."""
    objective: Seq2SeqObjective = Seq2SeqObjective()
    """What the loss is."""
    evaluate: TranslationEvaluation = TranslationEvaluation()
    """What is measured."""
