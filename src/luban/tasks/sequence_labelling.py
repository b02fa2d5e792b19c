"""Sequence labelling: a tag for every token of a sentence: names, parts of speech, parts of a CV."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.row_sets import BadValue, Fitted, Row
from luban.data.row_store import RowSet
from luban.data.tokenizer import Tokenizer
from luban.errors import nearest
from luban.metrics.entities import Entities, spans
from luban.metrics.row_scores import OF
from luban.metrics.tags import Tags
from luban.models.attention_weights import AttentionWeights, rollout
from luban.models.classification_loss import classification_losses
from luban.models.encoder import EncoderConfig, write_config
from luban.models.piece_tagger import PieceTagger
from luban.models.tagger import Tagger, TaggerConfig
from luban.tasks import bert
from luban.tasks.attended import attention_part
from luban.tasks.classification import class_weights
from luban.tasks.rows import Array, Scores, Signature, Tensors
from luban.tasks.tag_vocabulary import learn_tags, learn_words
from luban.tasks.tagging_recipe import SequenceLabellingRecipe

UNKNOWN = 1
_FILTERS, _PAIRS = 64, 50_000
_AT_ONCE = 1024
_ATTEND = ("transformer", "bert")


class SequenceLabelling(bert.StartsFromBert):
    """Tell the tag of each token."""

    name: ClassVar[str] = "sequence-labelling"
    recipe: ClassVar[type[SequenceLabellingRecipe]] = SequenceLabellingRecipe
    layout = "tagged"
    targets: ClassVar[frozenset[str]] = frozenset({"tags"})
    ragged: ClassVar[frozenset[str]] = frozenset({"words", "letters", "tags", "pieces", "firsts"})
    pipeline = "token-classification"
    bert_labels: ClassVar[str] = "tags"
    bert_decides: ClassVar[tuple[str, ...]] = (
        "crf", "width", "characters", "pairs", "unknown", "layers", "bidirectional", "heads", "config",
    )  # fmt: skip
    # Other tools that read the folder have no field.
    bert_lacks: ClassVar[Mapping[str, Any]] = {"crf": False}
    evaluation_rows: ClassVar[int] = 128
    takes_lists = True
    # Measured on WNUT-17: benchmarks/LOG.md.
    rate: ClassVar[float] = 3.0
    batch: ClassVar[int] = 16

    def __init__(self, settings: Any, fitted: Fitted | None = None) -> None:
        super().__init__(settings, fitted)
        self.primary = "token_accuracy"
        self._beside_a_graph: Tagger | PieceTagger | None = None
        if fitted is None:
            return
        state = fitted.state
        self.primary = "token_accuracy" if state["scheme"] == "none" else "entity_f1"
        self._words = {word: number for number, word in enumerate(state["words"], 2)}
        self._letters = {letter: number for number, letter in enumerate(state["letters"], 2)}
        self._tags = {tag: number for number, tag in enumerate(state["tags"])}

    def asked_columns(self) -> Sequence[str] | None:
        """Return which columns hold token and tag."""
        return self.settings.data.columns  # type: ignore[no-any-return]

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Return nothing: the reader gives tokens and tags."""
        self.sliced(columns)
        return {}

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return tokens, and tags where there are some."""
        del roles
        tokens, tags = values.get("tokens"), values.get("tags")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise BadValue("not_text", f"a list of tokens is wanted; received {str(tokens)[:80]!r}")
        if not tokens:
            raise BadValue("empty_row", "the sentence has no tokens")
        if tags is None:
            return {**self.beside(values), "tokens": tokens[: self.settings.data.length]}
        if not isinstance(tags, list) or len(tags) != len(tokens):
            found = len(tags) if isinstance(tags, list) else 0
            raise BadValue("unequal_lengths", f"{len(tokens)} tokens and {found} tags")
        if len(tokens) > self.settings.data.length:
            most = self.settings.data.length
            raise BadValue("too_long", f"the sentence has {len(tokens)} tokens, data.length is {most}")
        if not all(isinstance(tag, str | int) and str(tag).strip() for tag in tags):
            raise BadValue("missing_value", f"a token has no tag; received {str(tags)[:80]}")
        return {**self.beside(values), "tokens": tokens, "tags": [str(tag) for tag in tags]}

    def parse(self, raw: Any) -> Mapping[str, Any]:
        """Take a text as a row: cut at white space, and where training tokens were characters, into these."""
        if isinstance(raw, str):
            words = raw.split()
            return {"tokens": list("".join(words)) if self._in_characters(words) else words}
        if isinstance(raw, list):
            return {"tokens": raw}
        return super().parse(raw)

    def _in_characters(self, words: Sequence[str]) -> bool:
        """Tell whether a text is to be cut into characters."""
        if self._fitted is not None and not self.fitted.tokenizers:
            return bool(self.fitted.state["single"])
        # A BERT has learned no words, so this is a guess: Chinese has no white space.
        return len(words) == 1 and not words[0].isascii()

    def _word(self, token: str) -> str:
        return token.lower() if self.settings.data.lowercase else token

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn words, characters, tags and their scheme; of a BERT, whose pieces are known, the tags alone."""
        pieces = self.settings.data.tokenizer
        tokenizers = {} if pieces is None else {"": Tokenizer.load(Path(pieces).expanduser())}
        # A network that reads pieces knows no words.
        sentences = () if tokenizers else (row["tokens"] for row in rows())
        data = self.settings.data
        words = learn_words(sentences, self._word, min_count=data.min_count, characters=data.characters)
        tags, notes = learn_tags(rows)
        return Fitted({"roles": dict(roles), **words, **tags}, tokenizers, notes)

    def encode(self, row: Row) -> dict[str, Array]:
        """Return each token's word, its characters, and its tag where there is one."""
        if self.fitted.tokenizers:
            room = self._bert().max_length
            found = bert.pieces_of(self.fitted.tokenizers[""], row["tokens"], room, whole="tags" in row)
        else:
            found = self._spelled(row["tokens"])
        if "tags" in row:
            unknown = next((tag for tag in row["tags"] if tag not in self._tags), None)
            if unknown is not None:
                close = nearest(unknown, self._tags)
                hint = f"; did you mean {close!r}?" if close else ""
                raise BadValue("unknown_label", f"no training sentence has the tag {unknown!r}{hint}")
            found["tags"] = np.array([self._tags[tag] for tag in row["tags"]], np.int64)
        return found

    def _spelled(self, tokens: Sequence[str]) -> dict[str, Array]:
        """Return the number of each token as a word, and of each of its characters."""
        width = self.settings.data.characters
        letters = np.zeros((len(tokens), width), np.int32)
        for number, token in enumerate(tokens):
            for place, letter in enumerate(token[:width]):
                letters[number, place] = self._letters.get(letter, UNKNOWN)
        return {
            "words": np.array([self._words.get(self._word(token), UNKNOWN) for token in tokens], np.int32),
            "letters": letters.reshape(-1),
        }

    def collate(
        self, columns: Mapping[str, Array], lengths: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Tensor]:
        """Return words and tags padded to one length, and characters (rows, length, characters)."""
        tensors = super().collate(columns, lengths)
        if "pieces" in tensors:
            return {**tensors, "words_mask": tensors["firsts_mask"]}
        rows, length = tensors["words"].shape
        width = self.settings.data.characters
        letters = F.pad(tensors["letters"], (0, max(0, length * width - tensors["letters"].shape[1])))
        return {**tensors, "letters": letters[:, : length * width].reshape(rows, length, width)}

    def costs(self, rows: RowSet) -> NDArray[np.int64] | None:
        """Return the tokens of each sentence, or the pieces."""
        return rows.lengths("pieces" if "pieces" in rows.names else "words")

    def build(self) -> nn.Module:
        """Return the network that the recipe names."""
        settings, state = self.settings.model, self.fitted.state
        if settings.network == "bert":
            return PieceTagger(self._bert())
        filters, pairs = settings.characters, settings.pairs
        config = TaggerConfig(
            words=len(self._words) + 2,
            letters=len(self._letters) + 2,
            tags=len(self._tags),
            network=settings.network,
            crf=settings.crf,
            width=settings.width,
            letter_filters=(0 if state["single"] else _FILTERS) if filters is None else filters,
            pairs=(_PAIRS if state["single"] else 0) if pairs is None else pairs,
            once=state["once"],
            unknown=settings.unknown,
            layers=settings.layers,
            bidirectional=settings.bidirectional,
            heads=settings.heads,
            max_length=-(-self.settings.data.length // 8) * 8,
            dropout=settings.dropout,
        )
        return Tagger(config, *(torch.tensor(rule, dtype=torch.bool) for rule in state["forbidden"]))

    def _bert(self) -> EncoderConfig:
        tokenizer = self.fitted.tokenizers[""]
        return bert.encoder_config(self.settings.model, tokenizer, len(self._tags), per_token=True)

    def config(self) -> dict[str, Any]:
        """Return config.json of the model folder; of a BERT what other tools build it from."""
        if self.settings.model.network != "bert":
            return super().config()
        return write_config(self._bert(), self.fitted.state["tags"])

    def count(self, tensors: Tensors) -> int:
        """Return the number of tokens."""
        return int(tensors["words_mask"].sum())

    def outputs(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return what the network says of each tag by itself, (rows, length, tags)."""
        found: Tensor = model(*self.signature(tensors).inputs.values())
        return found

    def batch_loss(self, model: nn.Module, tensors: Tensors) -> Tensor:
        """Return the negative log-likelihood of the tags, summed over sentences."""
        assert isinstance(model, Tagger | PieceTagger)
        emissions, tags, mask = self.outputs(model, tensors), tensors["tags"], tensors["words_mask"]
        settings = self.settings.objective
        weights = self._weights_of_tags(emissions.device)
        if weights is None and not settings.focal and not settings.label_smoothing:
            found: Tensor = model.loss(emissions, tags, mask)
            return found
        losses = classification_losses(
            emissions.flatten(0, 1),
            tags.flatten(),
            label_smoothing=settings.label_smoothing,
            focal=settings.focal,
            weights=weights,
        )
        return (losses * mask.flatten()).sum()

    def _weights_of_tags(self, device: torch.device) -> Tensor | None:
        wanted = self.settings.objective.class_weights
        if wanted == "equal":  # rows prepared by an earlier luban have no counts
            return None
        if not hasattr(self, "_of_tags"):  # asked for at every step
            state = self.fitted.state
            self._of_tags = class_weights(wanted, state["tags"], state["tag_counts"])
        return None if self._of_tags is None else self._of_tags.to(device)

    def weights(self, rows: RowSet) -> NDArray[np.float64] | None:
        """Return how often each sentence is drawn: with balanced sampling the more often, the rarer its rarest tag."""
        if self.settings.objective.sampling == "natural":
            return None
        rarity = 1.0 / np.array(self.fitted.state["tag_counts"], np.float64)
        found = []
        for first in range(0, len(rows), _AT_ONCE):
            numbers = np.arange(first, min(first + _AT_ONCE, len(rows)))
            columns, lengths = rows.gather(numbers)
            there = np.arange(columns["tags"].shape[1]) < lengths["tags"][:, None]  # (rows, longest)
            found.append(np.where(there, rarity[columns["tags"]], 0.0).max(1))
        return np.concatenate(found)

    def answers(self, model: nn.Module, tensors: Tensors) -> Sequence[Any]:
        """Return the tags of each sentence and how sure they are, [(tag number, probability)]."""
        emissions, mask = self.outputs(model, tensors), tensors["words_mask"]
        tags, sure = self._reader(model).answer(emissions, mask)
        sizes = mask.sum(1).tolist()
        return [
            list(zip(t[:n], s[:n], strict=True))
            for t, s, n in zip(tags.tolist(), sure.tolist(), sizes, strict=True)
        ]

    def _reader(self, model: nn.Module) -> Tagger | PieceTagger:
        """Return what reads emissions: the network itself, or beside a graph one with its field's scores."""
        if isinstance(model, Tagger | PieceTagger):
            return model
        if self._beside_a_graph is not None:
            return self._beside_a_graph
        reader = self.build()
        assert isinstance(reader, Tagger | PieceTagger)
        crf = self.fitted.state.get("crf")
        if crf is not None and reader.crf is not None:
            reader.crf.load_state_dict({name: torch.tensor(values) for name, values in crf.items()})
        self._beside_a_graph = reader.eval()
        return self._beside_a_graph

    def decode(self, answer: Any) -> dict[str, Any]:
        """Return tags, their probabilities, and where they are spans, the spans."""
        tags = [self.fitted.state["tags"][number] for number, _ in answer]
        found: dict[str, Any] = {"tags": tags, "probabilities": [round(float(p), 6) for _, p in answer]}
        if self.fitted.state["scheme"] != "none":
            entities = spans(tags, self.fitted.state["scheme"])
            found["entities"] = [{"label": kind, "first": first, "end": end} for kind, first, end in entities]
        return found

    def _named(self, answers: Sequence[Any]) -> list[list[str]]:
        tags = self.fitted.state["tags"]
        return [[tags[number] for number, _ in answer] for answer in answers]

    def _right(self, rows: RowSet, numbers: NDArray[np.int64]) -> list[list[str]]:
        return [rows.row(int(number))["values"]["tags"] for number in numbers]

    def scores(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Scores:
        """Measure tags, and the spans they make."""
        scheme = self.fitted.state["scheme"]
        found = Tags(self.fitted.state["tags"]) if scheme == "none" else Entities(scheme)
        found.add(self._named(answers), self._right(rows, numbers))
        return found

    def row_scores(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return whether all tags of a sentence are right, how many of them, and of entities what F1 is made of."""
        pairs = list(zip(self._named(answers), self._right(rows, numbers), strict=True))
        right = [[a == b for a, b in zip(said, true, strict=True)] for said, true in pairs]
        found = {
            "sentence_accuracy": np.array([float(all(r)) for r in right]),
            "token_accuracy": np.array([float(sum(r)) for r in right]),
            f"token_accuracy{OF}": np.array([float(len(r)) for r in right]),
        }
        scores = self.scores(answers, rows, numbers)
        return {**found, **scores.by_sentence()} if isinstance(scores, Entities) else found

    def badness(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return how sure the surest wrong tag is."""
        found = []
        for answer, said, right in zip(
            answers, self._named(answers), self._right(rows, numbers), strict=True
        ):
            wrong = [p for (_, p), a, b in zip(answer, said, right, strict=True) if a != b]
            found.append(max(wrong, default=-1.0))
        return np.array(found, np.float64)

    def sections(self, scores: Scores) -> dict[str, Any]:
        """Return the figures of each type of span, or of each tag, and which was taken for which."""
        assert isinstance(scores, Entities | Tags)
        return {"entities" if isinstance(scores, Entities) else "classification": scores.section()}

    def show(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return the tokens with both tags."""
        values = rows.row(number)["values"]
        said = self._named([answer])[0]
        wrong = sum(a != b for a, b in zip(said, values["tags"], strict=True))
        part = {"kind": "tokens", "tokens": values["tokens"], "expected": values["tags"], "answer": said}
        return {
            "parts": [part],
            "expected": "",
            "answers": [[f"{wrong} of {len(said)} tags are wrong", wrong / len(said)]],
        }

    def attended(
        self, model: nn.Module, tensors: Tensors, answers: Sequence[Any]
    ) -> Sequence[dict[str, Any] | None]:
        """Return how much of each token (of a BERT, of each piece) reached each tag of a transformer, by rollout."""
        if not isinstance(model, Tagger | PieceTagger) or self.settings.model.network not in _ATTEND:
            return super().attended(model, tensors, answers)
        with AttentionWeights() as seen:
            self.outputs(model, tensors)
        reached = rollout(seen.found)  # (rows, tokens or pieces, tokens or pieces)
        parts = []
        for row, answer in enumerate(answers):
            if "pieces" in tensors:
                tokenizer, length = self.fitted.tokenizers[""], int(tensors["pieces_mask"][row].sum())
                read = [tokenizer.token(number) or "" for number in tensors["pieces"][row, :length].tolist()]
                tagged = tensors["firsts"][row, : len(answer)].tolist()
                written = [read[place] for place in tagged]
                weights = reached[row, tagged, :length]
            else:
                length = len(answer)
                read = written = self._spelling(tensors["letters"][row, :length])
                weights = reached[row, :length, :length]
            parts.append(attention_part("rollout", written, read, weights))
        return parts

    def _spelling(self, letters: Tensor) -> list[str]:
        """Return tokens by their characters, (tokens, characters); what training never had is a question mark."""
        known = ["", "?", *self._letters]
        return ["".join(known[number] for number in token) or "?" for token in letters.tolist()]

    def view(self, rows: RowSet, number: int) -> str:
        """Return tokens with their tags."""
        values = rows.row(number)["values"]
        return " ".join(f"{token}/{tag}" for token, tag in zip(values["tokens"], values["tags"], strict=True))

    def signature(self, tensors: Tensors) -> Signature:
        """Return the network as a graph: words, characters and mask in, a score for each tag out."""
        axes = {0: "batch", 1: "length"}
        if "pieces" in tensors:
            pieces = {"pieces": tensors["pieces"].long(), "mask": tensors["pieces_mask"]}
            inner = {0: "batch", 1: "pieces"}
            return Signature(
                {**pieces, "firsts": tensors["firsts"].long()},
                ["emissions"],
                {"pieces": inner, "mask": inner, "firsts": axes},
            )
        inputs = {
            "words": tensors["words"].long(),
            "letters": tensors["letters"].long(),
            "mask": tensors["words_mask"],
        }
        return Signature(inputs, ["emissions"], {"words": axes, "letters": axes, "mask": axes})

    def beside_graph(self, model: nn.Module) -> dict[str, Any]:
        """Return the field's scores: they are no part of the graph."""
        assert isinstance(model, Tagger | PieceTagger)
        if model.crf is None:
            return {}
        return {"crf": {name: tensor.tolist() for name, tensor in model.crf.state_dict().items()}}

    def probe(self, rows: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Return words and characters at random, sentences of different lengths."""
        longest = 8 * int(torch.randint(1, 4, (), generator=draws))
        lengths = torch.randint(1, longest + 1, (rows,), generator=draws)
        mask = torch.arange(longest) < lengths[:, None]
        if self.fitted.tokenizers:
            vocabulary = self.fitted.tokenizers[""].vocab_size
            length = min(2 * longest, self._bert().max_length)  # a token has pieces
            pieces = torch.randint(vocabulary, (rows, length), generator=draws)
            there = torch.ones(rows, length, dtype=torch.bool)
            firsts = torch.arange(longest).expand(rows, -1).clamp(max=length - 1) * mask
            return {"pieces": pieces, "pieces_mask": there, "firsts": firsts, "words_mask": mask}
        words = torch.randint(1, len(self._words) + 2, (rows, longest), generator=draws) * mask
        shape = (rows, longest, self.settings.data.characters)
        letters = torch.randint(len(self._letters) + 2, shape, generator=draws) * mask[..., None]
        return {"words": words.int(), "letters": letters.int(), "words_mask": mask}

    @classmethod
    def sample(cls, count: int, draws: random.Random) -> list[Row]:
        """Return sentences about who lives where."""
        people, places = ["Ann", "Bo Li", "小明"], ["Paris", "New York", "北京"]
        rows = []
        for _ in range(count):
            tokens: list[str] = []
            tags: list[str] = []
            for words, kind in (
                (draws.choice(people), "PER"),
                (draws.choice(["lives in", "left"]), ""),
                (draws.choice(places), "LOC"),
            ):
                for place, word in enumerate(words.split()):
                    tokens.append(word)
                    tags.append(f"{'I' if place else 'B'}-{kind}" if kind else "O")
            rows.append({"tokens": tokens, "tags": tags})
        return rows

    @classmethod
    def smallest(cls) -> dict[str, Any]:
        """Return a small network with a field on top."""
        return {
            "data": {"characters": 8},
            "model": {"width": 16, "characters": 8, "dropout": 0.0, "unknown": 0.0},
        }
