"""Translation, and every other sequence to sequence: a text in, a text out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.row_sets import BadValue, Fitted, Row
from luban.data.row_store import RowSet
from luban.data.tokenizer import Tokenizer, train_tokenizer
from luban.data.word_tokenizer import train_word_tokenizer
from luban.errors import DataError, InputError
from luban.metrics.chrf import sentence_chrf
from luban.metrics.translations import Translations
from luban.models.beam import beam_search, greedy_search
from luban.models.loss import cross_entropy_sum
from luban.models.seq2seq import Seq2Seq, Seq2SeqConfig
from luban.models.seq2seq_rereading import RereadingSeq2Seq
from luban.models.seq2seq_rnn import RecurrentSeq2Seq, RecurrentSeq2SeqConfig
from luban.tasks.attended import attention_part
from luban.tasks.columns import column_of
from luban.tasks.rows import Array, RowTask, Scores, Signature, Tensors
from luban.tasks.translation_recipe import TranslationRecipe

_SOURCE = ("source", "src", "input", "question", "from")
_TARGET = ("target", "tgt", "trg", "output", "answer", "to", "translation")
_CHINESE = re.compile(r"[\u4e00-\u9fff\u3040-\u30ff]")
_SHOWN = 3
_QUICK = 500


class Translated(NamedTuple):
    """What was written for a row: the text, its log-probability under the length penalty, and its tokens."""

    text: str
    score: float
    ids: Sequence[int]


class Translation(RowTask):
    """Write a text that answers a text."""

    name: ClassVar[str] = "translation"
    recipe: ClassVar[type[TranslationRecipe]] = TranslationRecipe
    layout = "pairs"
    targets: ClassVar[frozenset[str]] = frozenset({"target"})
    ragged: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    primary = "bleu"
    pipeline = "translation"
    evaluation_rows: ClassVar[int] = 64
    quick_rows: ClassVar[int] = _QUICK
    rate: ClassVar[float] = 1.5
    while_training: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    def __init__(self, settings: Any, fitted: Fitted | None = None, *, beam: int = 1) -> None:
        super().__init__(settings, fitted)
        self._beam = beam

    def asked_columns(self) -> Sequence[str] | None:
        """Return the names of columns where the file has no header."""
        return self.settings.data.columns  # type: ignore[no-any-return]

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Find both sides: as the recipe names them, else by their usual names, else what one leaves of two columns."""
        data = self.settings.data
        self.sliced(columns)
        if data.columns is not None:
            source, target = (column_of(columns, name, (), "data.columns") for name in data.columns)
            return {"source": source, "target": target}
        left = [name for name in columns if name != data.target]
        found = column_of(left, data.source, _SOURCE, "data.source", required=False)
        rest = [name for name in columns if name != found]
        other = column_of(rest, data.target, _TARGET, "data.target", required=False)
        if (found is None and other is None) or len(columns) < 2:
            # Of two unknown names the first row may be no header, but a pair.
            raise DataError(
                "it cannot be told which columns are source and target",
                received=list(columns)[:50],
                fix="name them: data.source=COLUMN data.target=COLUMN; or if the file has no header, "
                "data.columns='[source, target]'",
            )
        found = found or column_of([name for name in columns if name != other], None, (), "data.source")
        return {"source": found, "target": other or column_of(rest, None, (), "data.target")}

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return both texts, or the source alone of a row to be answered."""
        row: Row = self.beside(values)
        for side in ("source", "target"):
            text = values.get(roles.get(side, side), values.get(side))
            if text is None and side == "target":
                continue
            if text is None:
                raise BadValue("missing_value", "the row has no source")
            if not isinstance(text, str):
                raise BadValue("not_text", f"the {side} is no text; received {str(text)[:80]!r}")
            if not text.strip():
                raise BadValue("empty_row", f"the {side} is empty")
            row[side] = text.strip().lower() if self.settings.data.lowercase else text.strip()
        return row

    def parse(self, raw: Any) -> Mapping[str, Any]:
        """Take a bare text as a source."""
        return {"source": raw} if isinstance(raw, str) else super().parse(raw)

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn the vocabulary, or one for each side."""
        data = self.settings.data

        def trained(sides: Sequence[str]) -> Tokenizer:
            if data.tokenizer not in ("bpe", "word", "char"):
                folder = Path(data.tokenizer).expanduser()
                return Tokenizer.load(folder / "target" if sides == ("target",) else folder)
            texts = (row[side] for row in rows() for side in sides)
            if data.tokenizer == "word":
                return train_word_tokenizer(texts, vocab_size=data.vocab_size, min_count=2)
            return train_tokenizer(data.tokenizer, texts, vocab_size=data.vocab_size, byte_fallback=True)

        if data.shared:
            tokenizers = {"": trained(("source", "target"))}
        else:
            tokenizers = {"": trained(("source",)), "target": trained(("target",))}
        chinese = letters = 0
        for number, row in enumerate(rows()):
            chinese += len(_CHINESE.findall(row["target"]))
            letters += len(row["target"])
            if number == 1000:
                break
        state = {"roles": dict(roles), "chinese": chinese > 0.3 * max(1, letters)}
        return Fitted(state, tokenizers)

    @property
    def _source(self) -> Tokenizer:
        return self.fitted.tokenizers[""]

    @property
    def _target(self) -> Tokenizer:
        return self.fitted.tokenizers.get("target", self._source)

    @property
    def _in_words(self) -> bool:
        """Whether what is written is words with spaces between them."""
        return self._target.kind == "wordlevel"

    @classmethod
    def adopted(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with the tokenizers of the model to start from: of both sides, or of each."""
        found = super().adopted(recipe, folder)
        if found is recipe:
            return recipe
        shared = not (folder / "target").is_dir()
        data = found.data.model_copy(update={"tokenizer": str(folder), "shared": shared})
        return found.model_copy(update={"data": data})

    def encode(self, row: Row) -> dict[str, Array]:
        """Return token ids of both sides; the target stands between two end tokens: one to begin with, one to end."""
        most = self.settings.data.length
        source = [*self._source.encode(row["source"]), self._source.end_id]
        if "target" not in row:  # to be answered: cut where training would refuse it
            return {"source": np.array([*source[:-1][: most - 1], self._source.end_id], np.int32)}
        end = self._target.end_id
        target = [end, *self._target.encode(row["target"]), end]
        if len(source) > most or len(target) > most + 1:
            raise BadValue("too_long", f"{len(source)} and {len(target) - 1} tokens, data.length is {most}")
        return {"source": np.array(source, np.int32), "target": np.array(target, np.int32)}

    def collate(
        self, columns: Mapping[str, Array], lengths: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Tensor]:
        """Return both sides, each no longer than its longest text.

        Batches of so many tokens have few shapes as it is; filled up to round lengths a fifth of the work would be
        padding (benchmarks/LOG.md).
        """
        cut = {name: array[:, : int(lengths[name].max())] for name, array in columns.items()}
        return super().collate(cut, lengths)

    def costs(self, rows: RowSet) -> NDArray[np.int64] | None:
        """Return the tokens of the longer side."""
        sides = [rows.lengths(side) for side in ("source", "target") if side in rows.names]
        found: NDArray[np.int64] = np.max(sides, axis=0)
        return found

    def batch_cost(self) -> int | None:
        """Return the tokens of a step."""
        return self.settings.data.batch_tokens  # type: ignore[no-any-return]

    def build(self) -> nn.Module:
        """Return the network that the recipe names."""
        settings, shared = self.settings.model, self.settings.data.shared
        sizes = self._source.vocab_size, self._target.vocab_size
        if settings.network == "transformer":
            return Seq2Seq(
                Seq2SeqConfig(
                    *sizes,
                    layers=settings.layers,
                    width=settings.width,
                    heads=settings.heads,
                    mlp_width=settings.mlp_width or 0,
                    max_length=-(-(self.settings.data.length + 1) // 8) * 8,
                    norm=settings.norm,
                    shared=shared and settings.tied,
                    tied=settings.tied,
                    dropout=settings.dropout,
                )
            )
        return RecurrentSeq2Seq(
            RecurrentSeq2SeqConfig(
                *sizes,
                embedding_width=settings.width,
                width=settings.width,
                layers=settings.layers,
                cell=settings.network,
                tied=settings.tied,
                dropout=settings.dropout,
            )
        )

    def count(self, tensors: Tensors) -> int:
        """Return the number of target tokens, the end of each text included."""
        return int(tensors["target_mask"].sum()) - len(tensors["target"])

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return logits of the token behind each target token."""
        found: Tensor = model(
            tensors["source"].long(), tensors["source_mask"], tensors["target"].long()[:, :-1]
        )
        return found

    def batch_loss(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return the smoothed negative log-likelihood, summed over target tokens; the logits are never held whole."""
        assert isinstance(model, Seq2Seq | RecurrentSeq2Seq)
        mask = tensors["source_mask"]
        memory = model.encode(tensors["source"].long(), mask)
        written = model.decode(tensors["target"].long()[:, :-1], memory, mask)
        hidden = written if isinstance(written, Tensor) else written[0]
        wanted = tensors["target"].long()[:, 1:].masked_fill(~tensors["target_mask"][:, 1:], -100)
        smoothing = self.settings.objective.label_smoothing
        return cross_entropy_sum(hidden, model.output_weight, wanted, label_smoothing=smoothing)[0]

    def answers(self, model: nn.Module, tensors: Tensors) -> Sequence[Any]:
        """Return the text written for each row, and its score."""
        most, end = self.settings.data.length, self._target.end_id
        given = tensors["source"].long(), tensors["source_mask"]
        writer: Any = model if hasattr(model, "step") else RereadingSeq2Seq(model)
        # A translation is rarely twice as long as its source; an untrained model must not write on for ever.
        longest = [min(most, 2 * read + 10) for read in given[1].sum(1).tolist()]
        if self._beam == 1:
            found = greedy_search(writer, *given, start_id=end, end_id=end, max_length=longest)
        else:
            penalty = self.settings.evaluate.length_penalty
            best = beam_search(
                writer, *given, start_id=end, end_id=end, max_length=longest, beam=self._beam, alpha=penalty
            )
            found = [texts[0] for texts in best]
        return [Translated(self._text(written.ids), written.score, written.ids) for written in found]

    def _text(self, ids: Sequence[int]) -> str:
        if self._in_words:
            return " ".join(self._target.token(number) or "" for number in ids)
        return self._target.decode(ids)

    def finished(self) -> Self:
        """Return the task as it answers once training is over: with the beam of the recipe."""
        return type(self)(self.settings, self._fitted, beam=self.settings.evaluate.beam)

    def asked(self, settings: Mapping[str, Any]) -> Self:
        """Return the task with another beam."""
        rest = {name: value for name, value in settings.items() if name != "beam"}
        super().asked(rest)
        beam = settings.get("beam") or self.settings.evaluate.beam
        if not isinstance(beam, int) or beam < 1:
            raise InputError("a beam is a number of hypotheses", received=beam)
        return type(self)(self.settings, self._fitted, beam=beam)

    def decode(self, answer: Any) -> dict[str, Any]:
        """Return the text, and its log-probability under the length penalty."""
        return {"text": answer.text, "score": round(float(answer.score), 6)}

    def _references(self, rows: RowSet, numbers: NDArray[np.int64]) -> list[str]:
        found = [rows.row(int(number))["values"]["target"] for number in numbers]
        if not self._in_words:
            return found
        return [" ".join(self._surface(text)) for text in found]

    def _surface(self, text: str) -> list[str]:
        """Return the words of a text as the tokenizer cuts them, also those that the vocabulary lacks."""
        return self._target.pieces(text)

    def scores(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Scores:
        """Measure translations against their references."""
        tokenize = self.settings.evaluate.tokenize
        if tokenize == "auto":
            tokenize = "none" if self._in_words else "zh" if self.fitted.state["chinese"] else "13a"
        found = Translations(tokenize)
        found.add([answer.text for answer in answers], self._references(rows, numbers))
        return found

    def row_scores(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return chrF of each sentence."""
        said = [answer.text for answer in answers]
        return {"sentence_chrf": sentence_chrf(said, self._references(rows, numbers))}

    def badness(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return how far a translation is from its reference."""
        return 100.0 - self.row_scores(answers, rows, numbers)["sentence_chrf"]

    def sections(self, scores: Scores) -> dict[str, Any]:
        """Return how the figures were computed."""
        assert isinstance(scores, Translations)
        return {"translation": {"signature": "; ".join(f"{n}|{s}" for n, s in scores.signatures().items())}}

    def show(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return source, reference and translation."""
        values = rows.row(number)["values"]
        part = {
            "kind": "pair",
            "source": values["source"],
            "reference": values["target"],
            "answer": answer.text,
        }
        return {"parts": [part], "expected": "", "answers": []}

    def attended(
        self, model: nn.Module, tensors: Tensors, answers: Sequence[Any]
    ) -> Sequence[dict[str, Any] | None]:
        """Return how much each source token was looked at for each token written."""
        if not isinstance(model, Seq2Seq | RecurrentSeq2Seq):
            return super().attended(model, tensors, answers)
        end, longest = self._target.end_id, max(len(answer.ids) for answer in answers)
        read = [[end, *answer.ids, *[end] * (longest - len(answer.ids))][:-1] for answer in answers]
        if not longest:
            return super().attended(model, tensors, answers)
        source, mask = tensors["source"].long(), tensors["source_mask"]
        found = model.attended(source, mask, torch.tensor(read, device=source.device)).cpu()
        method = "last_layer" if isinstance(model, Seq2Seq) else "memory"
        lengths, parts = mask.sum(1).tolist(), []
        for ids, weights, length, answer in zip(source, found, lengths, answers, strict=True):
            columns = self._tokens(self._source, ids[:length].tolist())
            rows = self._tokens(self._target, answer.ids)
            parts.append(attention_part(method, rows, columns, weights[: len(rows), :length]))
        return [part if part["rows"] else None for part in parts]

    @staticmethod
    def _tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
        """Return each token as a person reads it; the end by its name."""
        return [tokenizer.decode([number]).strip() or tokenizer.token(number) or "" for number in ids]

    def samples(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> list[dict[str, str]]:
        """Return the first translations."""
        shown = zip(numbers[:_SHOWN].tolist(), answers[:_SHOWN], strict=True)
        return [{"prompt": rows.row(n)["values"]["source"], "text": f" -> {a.text}"} for n, a in shown]

    def view(self, rows: RowSet, number: int) -> str:
        """Return both sides as tokens."""
        columns, lengths = rows.gather(np.array([number]))
        sides = []
        for side, tokenizer in (("source", self._source), ("target", self._target)):
            ids = columns[side][0, : lengths[side][0]].tolist()
            sides.append("|".join(tokenizer.decode([i]) or tokenizer.token(i) or "" for i in ids))
        return " -> ".join(sides)

    def signature(self, tensors: Tensors) -> Signature:
        """Return the network as a graph: source, its mask and what is written in, logits out."""
        source, target = {0: "batch", 1: "source_length"}, {0: "batch", 1: "target_length"}
        return Signature(
            {
                "source_ids": tensors["source"].long(),
                "source_mask": tensors["source_mask"],
                "target_ids": tensors["target"].long()[:, :-1],
            },
            ["logits"],
            {"source_ids": source, "source_mask": source, "target_ids": target},
        )

    def probe(self, rows: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Return token ids at random."""
        found: dict[str, Tensor] = {}
        for side, tokenizer in (("source", self._source), ("target", self._target)):
            length = 8 * int(torch.randint(1, 3, (), generator=draws)) + 8
            found[side] = torch.randint(tokenizer.vocab_size, (rows, length), generator=draws).int()
        sizes = torch.randint(1, found["source"].shape[1] + 1, (rows,), generator=draws)
        found["source_mask"] = torch.arange(found["source"].shape[1]) < sizes[:, None]
        return found

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[Row]:
        """Return numbers in words of two made-up languages, the second in the other order."""
        words = {"one": "una", "two": "dua", "three": "tria", "four": "kvara"}
        rows = []
        for _ in range(count):
            said = [draws.choice(sorted(words)) for _ in range(draws.randint(1, 3))]
            rows.append({"source": " ".join(said), "target": " ".join(words[word] for word in said[::-1])})
        return rows

    @classmethod
    def smallest(cls) -> dict[str, Any]:
        """Return a small network on small texts."""
        return {
            "data": {"tokenizer": "char", "vocab_size": 300, "length": 40, "batch_tokens": 256},
            "model": {"layers": 1, "width": 32, "heads": 2, "dropout": 0.0},
            "objective": {"label_smoothing": 0.0},
            "evaluate": {"beam": 2},
        }
