"""The peer of translation: a Transformer of `torch.nn` layers trained as public tutorials train one.

Words as tokens, `nn.Transformer` with learned embeddings and sine positions, Adam without warm-up, batches of random
pairs, greedy search. Nothing of luban but its BLEU and chrF is in it.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.metrics.translations import Translations

PAD, UNKNOWN, BEGIN, END = range(4)
WIDTH, HEADS, LAYERS, MLP_WIDTH, DROPOUT = 512, 8, 3, 512, 0.1
BATCH, RATE, LONGEST = 128, 1e-4, 60
_WORD = re.compile(r"[\u4e00-\u9fff]|\w+|[^\w\s]")

Pairs = Sequence[tuple[str, str]]


class Words:
    """A vocabulary of the words that come at least twice."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
        kept = [word for word, count in counts.most_common() if count >= 2]
        # What stands for an unknown word is one word to `word_figures` too.
        self.words = ["<pad>", "unk", "<bos>", "<eos>", *kept]
        self.ids = {word: number for number, word in enumerate(self.words)}

    def encode(self, text: str) -> Tensor:
        """Return ids between begin and end, (length,)."""
        words = _WORD.findall(text.lower())[: LONGEST - 2]
        return torch.tensor([BEGIN, *(self.ids.get(word, UNKNOWN) for word in words), END])

    def decode(self, ids: Sequence[int]) -> str:
        """Return words with spaces between them."""
        return " ".join(self.words[number] for number in ids)


class Translator(nn.Module):
    """Embeddings and positions around `nn.Transformer`."""

    def __init__(self, sources: int, targets: int) -> None:
        super().__init__()
        self.source = nn.Embedding(sources, WIDTH)
        self.target = nn.Embedding(targets, WIDTH)
        self.transformer = nn.Transformer(
            WIDTH, HEADS, LAYERS, LAYERS, MLP_WIDTH, dropout=DROPOUT, batch_first=True
        )
        self.output = nn.Linear(WIDTH, targets)
        self.dropout = nn.Dropout(DROPOUT)
        rates = torch.exp(-torch.arange(0, WIDTH, 2) * math.log(10_000.0) / WIDTH)
        angles = torch.arange(LONGEST)[:, None] * rates
        positions = torch.zeros(LONGEST, WIDTH)
        positions[:, 0::2], positions[:, 1::2] = angles.sin(), angles.cos()
        self.register_buffer("positions", positions)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    positions: Tensor

    def _embedded(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        x = table(ids) * math.sqrt(WIDTH) + self.positions[: ids.shape[1]]
        found: Tensor = self.dropout(x)  # (batch, length, width)
        return found

    def encode(self, source: Tensor) -> Tensor:
        """Return the memory: (batch, length) -> (batch, length, width)."""
        found: Tensor = self.transformer.encoder(
            self._embedded(self.source, source), src_key_padding_mask=source == PAD
        )
        return found

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Return logits of the word behind each target word: (batch, length, words)."""
        size = target.shape[1]
        future = torch.ones(size, size, dtype=torch.bool).triu(1)
        x = self.transformer.decoder(
            self._embedded(self.target, target),
            memory,
            tgt_mask=future,
            tgt_key_padding_mask=target == PAD,
            memory_key_padding_mask=source == PAD,
        )
        found: Tensor = self.output(x)
        return found


def train_and_translate(
    train: Pairs, test: Pairs, seconds: float, seed: int, *, bfloat16: bool
) -> tuple[dict[str, float], float, int, str]:
    """Train for so many seconds; return figures on `test`, seconds taken, pairs seen, and a note.

    The figures are those of `word_figures`. `bfloat16`: whether products are computed in it, by autocast.
    """
    torch.manual_seed(seed)
    sources, targets = (Words([pair[side] for pair in train]) for side in (0, 1))
    encoded = [(sources.encode(a), targets.encode(b)) for a, b in train]
    model = Translator(len(sources.words), len(targets.words))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.98), eps=1e-9)
    draws = torch.Generator().manual_seed(seed)
    started, seen = time.perf_counter(), 0
    while True:
        order = torch.randperm(len(encoded), generator=draws).tolist()
        for at in range(0, len(order), BATCH):
            batch = [encoded[number] for number in order[at : at + BATCH]]
            source, target = (_padded([pair[side] for pair in batch]) for side in (0, 1))
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model.decode(target[:, :-1], model.encode(source), source)
            loss = F.cross_entropy(logits.float().flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(batch)
            if time.perf_counter() - started > seconds:
                taken = time.perf_counter() - started
                note = f"{seen / len(train):.2f} epochs, {sum(p.numel() for p in model.parameters()):,} parameters"
                return _measured(model, sources, targets, test), taken, seen, note


def _padded(texts: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=PAD)


def _measured(model: Translator, sources: Words, targets: Words, test: Pairs) -> dict[str, float]:
    model.eval()
    texts: list[str] = []
    for at in range(0, len(test), BATCH):
        source = _padded([sources.encode(source) for source, _ in test[at : at + BATCH]])
        texts += [targets.decode(ids) for ids in _greedy(model, source)]
    return word_figures(texts, [target for _, target in test])


def word_figures(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return BLEU and chrF over lower-cased words, punctuation apart: what tutorials call tokenised BLEU.

    It is the same for all: of a text that has been cut into such words before, nothing changes.
    """
    scores = Translations("none")
    cut = ([" ".join(_WORD.findall(text.lower())) for text in texts] for texts in (answers, references))
    scores.add(*cut)
    return {f"word_{name}": value for name, value in scores.figures().items()}


@torch.no_grad()
def _greedy(model: Translator, source: Tensor) -> list[list[int]]:
    memory = model.encode(source)
    written = torch.full((len(source), 1), BEGIN)  # (batch, words so far)
    while written.shape[1] < LONGEST and not (written == END).any(1).all():
        best = model.decode(written, memory, source)[:, -1].argmax(-1)
        written = torch.cat((written, best[:, None]), dim=1)
    rows = [row[1:] for row in written.tolist()]
    return [row[: row.index(END)] if END in row else row for row in rows]
