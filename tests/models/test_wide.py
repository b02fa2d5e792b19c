"""Evidence of words and runs of words: the ratios are those counted by hand, and no text is judged by its own words."""

import math

import pytest
import torch
from torch import Tensor, nn

from luban.models.wide import SMOOTHING, START, Wide

WORDS, CLASSES, BUCKETS = 12, 3, 10_007


class Nothing(nn.Module):
    """A network that says nothing of any text."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        del mask
        return torch.zeros(len(ids), CLASSES)


def texts(count: int, longest: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and one-hot targets of texts of different lengths."""
    draws = torch.Generator().manual_seed(3)
    ids = torch.randint(WORDS, (count, longest), generator=draws)
    mask = torch.arange(longest) < torch.randint(1, longest + 1, (count, 1), generator=draws)
    targets = torch.randint(CLASSES, (count,), generator=draws)
    return ids * mask, mask, nn.functional.one_hot(targets, CLASSES).float()


def wide(longest: int, buckets: int = BUCKETS) -> Wide:
    return Wide(
        Nothing(), vocab_size=WORDS, outputs=CLASSES, buckets=buckets, longest=longest, share=0.0
    ).eval()


def runs(words: list[int], longest: int) -> set[tuple[object, ...]]:
    """Return the words of a text, its runs, and its first word with what stands before it."""
    read = ["begin", *words]
    sizes = range(1, longest + 1)
    found = {tuple(read[at : at + n]) for n in sizes for at in range(len(read) - n + 1)}
    return found - {("begin",)}


def counted_out(
    known: list[set[tuple[object, ...]]],
    labels: list[int],
    told: set[tuple[object, ...]],
    sums: list[list[float]],
) -> list[float]:
    """Return the logits of a text from counts in known texts.

    Arguments:
        sums: for each class the smoothed counts of all features in its texts, and in all others.
    """
    logits = []
    for label in range(CLASSES):
        logit = 0.0
        for feature in told:
            own = sum(feature in row for row, of in zip(known, labels, strict=True) if of == label)
            others = sum(feature in row for row, of in zip(known, labels, strict=True) if of != label)
            if own + others:
                logit += math.log((own + SMOOTHING) / sums[label][0])
                logit -= math.log((others + SMOOTHING) / sums[label][1])
        logits.append(START * logit)
    return logits


def sums_of(known: list[set[tuple[object, ...]]], labels: list[int]) -> list[list[float]]:
    sizes = [
        [
            sum(len(row) for row, of in zip(known, labels, strict=True) if (of == label) == own)
            for own in (True, False)
        ]
        for label in range(CLASSES)
    ]
    return [[size + SMOOTHING * (WORDS + BUCKETS) for size in pair] for pair in sizes]


@pytest.mark.parametrize("longest", [2, 3])
def test_a_new_text_is_told_by_the_ratios_of_its_words_and_runs(longest: int) -> None:
    ids, mask, targets = texts(9)
    model = wide(longest)
    model.learn([(ids[:8], mask[:8], targets[:8])])
    said = model(ids[8:], mask[8:])[0].tolist()
    rows = [runs(row[seen].tolist(), longest) for row, seen in zip(ids, mask, strict=True)]
    labels = targets[:8].argmax(1).tolist()
    expected = counted_out(rows[:8], labels, rows[8], sums_of(rows[:8], labels))
    assert said == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("longest", [2, 3])
def test_a_text_of_training_is_told_by_the_counts_of_the_others(longest: int) -> None:
    ids, mask, targets = texts(7)
    model = wide(longest)
    model.learn([(ids[:4], mask[:4], targets[:4]), (ids[4:], mask[4:], targets[4:])])
    said = model(ids, mask, targets)
    rows = [runs(row[seen].tolist(), longest) for row, seen in zip(ids, mask, strict=True)]
    labels = targets.argmax(1).tolist()
    for number, row in enumerate(rows):
        others = [*rows[:number], *rows[number + 1 :]], [*labels[:number], *labels[number + 1 :]]
        expected = counted_out(*others, row, sums_of(rows, labels))
        assert said[number].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_words_that_one_text_alone_has_teach_nothing_of_it() -> None:
    ids, mask = torch.arange(WORDS).view(4, 3), torch.ones(4, 3, dtype=torch.bool)
    targets = nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), CLASSES).float()
    model = wide(2)
    model.learn([(ids, mask, targets)])
    assert not model(ids, mask, targets).any()
    assert (model(ids, mask).argmax(1) == targets.argmax(1)).all()


def test_what_stands_at_padding_counts_for_nothing() -> None:
    ids, mask, targets = texts(6)
    for longest, buckets in ((2, BUCKETS), (3, BUCKETS), (2, 0)):
        model = wide(longest, buckets)
        model.learn([(ids, mask, targets)])
        other = wide(longest, buckets)
        filled = torch.where(mask, ids, 5)
        other.learn([(filled, mask, targets)])
        assert torch.equal(model.ratios, other.ratios)
        assert torch.equal(model(ids, mask), model(filled, mask))
