"""Text classification: a text in, one label or several out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luban.data.row_sets import BadValue, Fitted, Row
from luban.data.row_store import RowSet
from luban.data.tokenizer import Tokenizer, train_tokenizer
from luban.data.word_tokenizer import train_word_tokenizer
from luban.models.bag import Bag, BagConfig
from luban.models.encoder import Encoder, EncoderConfig, write_config
from luban.models.modern_encoder import ModernEncoder, ModernEncoderConfig
from luban.models.recurrent import Recurrent, RecurrentConfig
from luban.models.text_cnn import TextCnn, TextCnnConfig
from luban.models.wide import Wide
from luban.recipe import Positive, Section
from luban.row_recipe import Objective, RowData, RowRecipe
from luban.tasks import bert
from luban.tasks.attended import attention_part
from luban.tasks.classification import Classifier
from luban.tasks.columns import column_of, labelled
from luban.tasks.rows import Array, Signature, Tensors

_TEXT = ("text", "sentence", "review", "content", "title", "comment", "question", "body")
_LABEL = ("label", "labels", "class", "category", "sentiment", "target", "y")


class TextRows(RowData):
    """Texts with their labels."""

    text: str | None = None
    """The column of the text; null finds it by its name, or in a table of two columns beside the label."""
    label: str | None = None
    """The column of the label; null finds it by its name, or in a table of two columns beside the text."""
    multilabel: bool = False
    """Whether a text may have any number of labels."""
    separator: str = ","
    """With `multilabel`: what stands between the labels in a cell."""
    tokenizer: str = "word"
    """`word` (lower-cased words, punctuation and Chinese characters alone), `char` or `bpe`, trained on the training
    rows; or the path of a tokenizer.json or of the folder that holds one."""
    vocab_size: Annotated[int, Field(ge=3)] = 30_000
    """Most tokens a trained tokenizer may have."""
    min_count: Positive = 1
    """With `word`: a word that comes less often in training is unknown."""
    length: Annotated[int, Field(ge=3)] = 256
    """Tokens read of a text; what comes after is left out."""


class TextNetwork(Section):
    """The network: which kind, and its shape."""

    network: Literal["bag", "cnn", "rnn", "lstm", "gru", "transformer", "bert"] = "cnn"
    """`bag` (mean of embeddings of words and of pairs of words), `cnn` (Kim 2014), `rnn`, `lstm`, `gru`,
    `transformer` (encoder), `bert` (the folder that `start` names)."""
    start: str | None = None
    """A run or a model folder to take weights from, wherever names and shapes are the same; or a folder of BERT."""
    config: dict[str, Any] | None = None
    """With `bert`: its shape, as config.json has it; taken from the folder that `start` names."""
    width: Positive = 128
    """Dimensions of an embedding, and of the hidden state."""
    layers: Positive = 1
    """Layers of `rnn`, `lstm`, `gru` and `transformer`."""
    heads: Positive = 4
    """Attention heads of `transformer`."""
    bidirectional: bool = True
    """With `rnn`, `lstm`, `gru`: read the text from both ends."""
    pooling: Literal["max", "mean", "last", "attention"] = "max"
    """With `rnn`, `lstm`, `gru`: how the states of a text become one; the report shows what `attention` looked at."""
    channels: Positive = 128
    """With `cnn`: filters of each width."""
    filters: list[Positive] = Field(default=[3, 4, 5])
    """With `cnn`: how many tokens a filter sees."""
    evidence: bool = True
    """Add to the network's answer what single words and pairs tell by themselves: naive Bayes' ratios of counts, their
    weights learned along (Wang and Manning 2012), each training text judged by the counts of all others. Helps most
    where there is little text."""
    pairs: Annotated[int, Field(ge=0)] = 100_000
    """With `evidence` and `bag`: places for pairs of neighbouring words; 0 looks at none."""
    longest: Literal[2, 3] = 2
    """With `evidence`: words of a run that is looked at, at most; three share the places of `pairs`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the embedding and of the result that is zeroed while training."""

    @model_validator(mode="after")
    def _has_a_start(self) -> Self:
        if self.network == "bert" and self.start is None:
            raise ValueError("a bert starts from a folder: give model.start=FOLDER")
        return self


class TextClassificationRecipe(RowRecipe):
    """The recipe of text classification."""

    task: Literal["text-classification"] = "text-classification"
    """What is learned."""
    data: TextRows
    """Where the texts come from."""
    model: TextNetwork = TextNetwork()
    """The network."""
    objective: Objective = Objective()
    """What the loss is."""


class TextClassification(bert.StartsFromBert, Classifier):
    """Tell which label a text has."""

    name: ClassVar[str] = "text-classification"
    recipe: ClassVar[type[TextClassificationRecipe]] = TextClassificationRecipe
    layout = "texts"
    ragged: ClassVar[frozenset[str]] = frozenset({"ids"})
    # Measured on SST-2: benchmarks/LOG.md.
    rate: ClassVar[float] = 1 / 3
    pipeline = "text-classification"
    bert_decides: ClassVar[tuple[str, ...]] = (
        "width", "layers", "heads", "channels", "filters", "bidirectional", "pooling", "evidence", "pairs",
        "longest", "config",
    )  # fmt: skip
    # The evidence of words beside the network would be lost on whatever else reads the folder.
    bert_lacks: ClassVar[Mapping[str, Any]] = {"evidence": False}

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Find the columns of text and label."""
        self.sliced(columns)
        data = self.settings.data
        label = column_of(columns, data.label, _LABEL, "data.label", required=data.label is not None)
        text = column_of([c for c in columns if c != label], data.text, _TEXT, "data.text")
        if label is None:
            label = column_of([c for c in columns if c != text], None, (), "data.label")
        return {"text": text, "label": label}

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return text and label."""
        text = values.get(roles.get("text", "text"), values.get("text"))
        if text is None:
            raise BadValue("missing_value", "the row has no text")
        if not isinstance(text, str):
            raise BadValue("not_text", f"a text is wanted; received {str(text)[:80]!r}")
        if not text.strip():
            raise BadValue("empty_row", "the text is empty")
        return labelled(
            {**self.beside(values), "text": text}, self.label_of(values.get(roles.get("label", "label")))
        )

    def parse(self, raw: Any) -> Mapping[str, Any]:
        """Take a bare text as a row."""
        return {"text": raw} if isinstance(raw, str) else super().parse(raw)

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn the labels and the vocabulary."""
        state, notes = self.learn_labels(row["label"] for row in rows())
        data = self.settings.data
        texts = (row["text"] for row in rows())
        if data.tokenizer == "word":
            tokenizer = train_word_tokenizer(texts, vocab_size=data.vocab_size, min_count=data.min_count)
        elif data.tokenizer in ("char", "bpe"):
            tokenizer = train_tokenizer(
                data.tokenizer, texts, vocab_size=data.vocab_size, byte_fallback=False
            )
        else:
            tokenizer = Tokenizer.load(Path(data.tokenizer).expanduser())
        return Fitted({**state, "roles": dict(roles)}, {"": tokenizer}, notes)

    def encode(self, row: Row) -> dict[str, Array]:
        """Return token ids, and the label where there is one."""
        tokenizer = self.fitted.tokenizers[""]
        frame, length = tokenizer.frame, self.settings.data.length
        ids = tokenizer.encode(row["text"])[: length - 2 if frame else length]
        if frame:
            ids = [frame[0], *ids, frame[1]]
        ids = ids or [tokenizer.end_id]
        label = {"label": self.encode_label(row["label"])} if "label" in row else {}
        return {"ids": np.array(ids, np.int32), **label}

    def build(self) -> nn.Module:
        """Return the network that the recipe names, with the evidence of single words beside it where asked for."""
        settings, vocab_size = self.settings.model, self.fitted.tokenizers[""].vocab_size
        if settings.network == "bert":
            return Encoder(self._bert())
        built = network(settings, vocab_size, len(self.labels), self.settings.data.length)
        if not settings.evidence:
            return built
        return Wide(
            built,
            vocab_size=vocab_size,
            outputs=len(self.labels),
            buckets=settings.pairs,
            longest=settings.longest,
            share=settings.dropout,
        )

    def _bert(self) -> EncoderConfig:
        tokenizer = self.fitted.tokenizers[""]
        return bert.encoder_config(self.settings.model, tokenizer, len(self.labels), per_token=False)

    def config(self) -> dict[str, Any]:
        """Return config.json of the model folder; of a BERT what other tools build it from."""
        if self.settings.model.network != "bert":
            return super().config()
        kind = "multi_label_classification" if self.multilabel else "single_label_classification"
        return {**write_config(self._bert(), self.labels), "problem_type": kind}

    def ready(self, model: nn.Module, rows: RowSet) -> None:
        """Give the evidence of words the training rows to be counted in."""
        if not isinstance(model, Wide):
            return

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for at in range(0, len(rows), self.evaluation_rows):
                numbers = np.arange(at, min(at + self.evaluation_rows, len(rows)), dtype=np.int64)
                tensors = self.collate(*rows.gather(numbers))
                yield tensors["ids"].long(), tensors["ids_mask"], self._targets(tensors)

        model.learn(batches())

    def _targets(self, tensors: Tensors) -> Tensor:
        """Return 1 for each class of a row, (rows, classes)."""
        found = tensors["label"]
        if not self.multilabel:
            found = nn.functional.one_hot(found, len(self.labels))
        return found.float()

    def batch_loss(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return the loss summed over rows; the evidence of words judges each by the counts of the others."""
        if not isinstance(model, Wide):
            return super().batch_loss(model, tensors)
        outputs = model(tensors["ids"].long(), tensors["ids_mask"], self._targets(tensors))
        return self.loss(outputs, tensors)

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return logits (rows, classes)."""
        found: Tensor = model(tensors["ids"].long(), tensors["ids_mask"])
        return found

    def signature(self, tensors: Tensors) -> Signature:
        """Return the network as a graph: token ids and mask in, logits out."""
        return Signature(
            {"ids": tensors["ids"].long(), "mask": tensors["ids_mask"]},
            ["logits"],
            {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
        )

    def probe(self, rows: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Return token ids at random, rows of different lengths."""
        longest = 8 * int(torch.randint(1, 4, (), generator=draws))
        ids = torch.randint(self.fitted.tokenizers[""].vocab_size, (rows, longest), generator=draws)
        lengths = torch.randint(1, longest + 1, (rows,), generator=draws)
        mask = torch.arange(longest) < lengths[:, None]
        return {"ids": (ids * mask).int(), "ids_mask": mask}

    def show(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return the text beside its label."""
        text = rows.row(number)["values"]["text"]
        return {"parts": [{"kind": "text", "text": text[:2000]}], **self.shown_answer(rows, number, answer)}

    def attended(
        self, model: nn.Module, tensors: Tensors, answers: Sequence[Any]
    ) -> Sequence[dict[str, Any] | None]:
        """Return how much each token counted, of a network that attends; the evidence beside it is no part of that."""
        inner = model.network if isinstance(model, Wide) else model
        found = None
        if isinstance(inner, Recurrent | ModernEncoder | Encoder):
            found = inner.attended(tensors["ids"].long(), tensors["ids_mask"])
        if found is None:
            return super().attended(model, tensors, answers)
        method = "pooling" if isinstance(inner, Recurrent) else "rollout"
        tokenizer, parts = self.fitted.tokenizers[""], []
        lengths = tensors["ids_mask"].sum(1).tolist()
        for ids, weights, length, answer in zip(tensors["ids"], found.cpu(), lengths, answers, strict=True):
            tokens = [tokenizer.token(number) or "" for number in ids[:length].tolist()]
            said = next(iter(self.decode(answer)["probabilities"]))
            parts.append(attention_part(method, [said], tokens, weights[None, :length]))
        return parts

    def view(self, rows: RowSet, number: int) -> str:
        """Return the tokens with a bar between them, and the label."""
        columns, lengths = rows.gather(np.array([number]))
        tokenizer = self.fitted.tokenizers[""]
        ids = columns["ids"][0, : lengths["ids"][0]].tolist()
        label = rows.row(number)["values"]["label"]
        return "|".join(tokenizer.token(i) or "" for i in ids) + f" -> {label}"

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[Row]:
        """Return reviews, good or bad, in two languages."""
        things = ["film", "book", "meal", "song", "这家店", "这部电影"]
        good, bad = ["lovely", "great", "warm", "很好", "精彩"], ["dull", "awful", "cold", "很差", "无聊"]
        rows = []
        for number in range(count):
            label = "good" if number % 2 else "bad"
            words = [draws.choice(things), draws.choice(good if number % 2 else bad), str(number)]
            draws.shuffle(words)
            rows.append({"text": " ".join(words), "label": label})
        return rows

    @classmethod
    def smallest(cls) -> dict[str, Any]:
        """Return a small network of the kind most people meet first."""
        return {"model": {"network": "cnn", "width": 16, "channels": 8, "dropout": 0.0}}


def network(settings: TextNetwork, vocab_size: int, outputs: int, length: int) -> nn.Module:
    """Return the network that the section names.

    Arguments:
        vocab_size: rows of the embedding. outputs: classes. length: most tokens of a text.
    """
    width, dropout = settings.width, settings.dropout
    match settings.network:
        case "bag":
            return Bag(BagConfig(vocab_size, outputs, width, bigram_buckets=settings.pairs, dropout=dropout))
        case "cnn":
            windows = tuple(settings.filters)
            return TextCnn(
                TextCnnConfig(
                    vocab_size, outputs, width, windows=windows, filters=settings.channels, dropout=dropout
                )
            )
        case "transformer":
            return ModernEncoder(
                ModernEncoderConfig(
                    vocab_size,
                    outputs,
                    layers=settings.layers,
                    width=width,
                    heads=settings.heads,
                    max_length=-(-length // 8) * 8,
                    dropout=dropout,
                )
            )
        case cell:
            return Recurrent(
                RecurrentConfig(
                    vocab_size,
                    outputs,
                    embedding_width=width,
                    width=width,
                    layers=settings.layers,
                    cell=cell,
                    bidirectional=settings.bidirectional,
                    pooling=settings.pooling,
                    dropout=dropout,
                )
            )
