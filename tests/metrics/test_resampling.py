"""What metrics over rows have in common: resamples are resamples, and no order of the rows shows in a figure."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.metrics import resampling
from luban.metrics.bleu import Bleu
from luban.metrics.chrf import ChrF
from luban.metrics.classification import Classification
from luban.metrics.entities import Entities
from luban.metrics.regression import Regression
from luban.metrics.resampling import Groups, RowMetric, drawn_counts

WORDS = ["the", "cat", "sat", "on", "a", "mat", "."]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def make(kind: str) -> tuple[Callable[[], RowMetric], list[tuple[object, object]]]:
    """A metric and forty rows for it, some of them alike."""
    random = np.random.default_rng(3)
    chances = random.dirichlet(np.ones(3), 40)
    chances[5:9] = chances[4]
    if kind == "single":
        return lambda: Classification(["a", "b", "c"]), list(
            zip(chances, random.integers(0, 3, 40), strict=True)
        )
    if kind == "multilabel":
        targets = random.integers(0, 2, (40, 3))
        return lambda: Classification(["a", "b", "c"], multilabel=True), list(
            zip(chances, targets, strict=True)
        )
    if kind == "regression":
        return Regression, list(zip(random.normal(size=40), random.normal(size=40), strict=True))
    if kind == "entities":
        draw = [[list(random.choice(TAGS, 6)) for _ in range(2)] for _ in range(40)]
        return Entities, [(a, b) for a, b in draw]
    texts = [[" ".join(random.choice(WORDS, 9)) for _ in range(2)] for _ in range(40)]
    return (Bleu if kind == "bleu" else ChrF), [(a, b) for a, b in texts]


def added(metric: RowMetric, rows: list[tuple[object, object]], kind: str) -> RowMetric:
    if rows:
        parts = [[row[side] for row in rows] for side in (0, 1)]
        if kind in ("single", "multilabel", "regression"):
            parts = [np.array(part) for part in parts]  # type: ignore[misc]
        metric.add(*parts)  # type: ignore[attr-defined]
    return metric


KINDS = ["single", "multilabel", "regression", "entities", "bleu", "chrf"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(data=st.data())
def test_shards_in_any_order_are_the_whole_to_the_last_bit(kind: str, data: st.DataObject) -> None:
    new, rows = make(kind)
    whole = added(new(), rows, kind)
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    parts = new()
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        shard = added(new(), shuffled[start:stop], kind)
        if data.draw(st.booleans()):
            shard.figures()  # what was looked at in between must not matter
        parts.merge(shard)  # type: ignore[attr-defined]
    assert len(parts) == len(rows)
    assert parts.figures() == whole.figures()
    assert parts.intervals(30, seed=1) == whole.intervals(30, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_drawn_twice_is_a_row_that_is_there_twice(kind: str) -> None:
    """So that the figures of a resample are those of the rows drawn, whatever the figure."""
    new, rows = make(kind)
    metric = added(new(), rows, kind)
    # The metric orders rows in its own way, so what any one row twice gives is compared as a whole.
    twice = np.ones((40, 40)) + np.eye(40)
    found = {**metric.weighted(twice), **metric.weighted_costly(twice)}
    expected = [added(new(), [*rows, row], kind).figures() for row in rows]
    assert found.keys() == expected[0].keys()
    for name, values in found.items():
        assert np.sort(values) == pytest.approx(
            np.sort([figures[name] for figures in expected]), abs=1e-12
        ), name


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_figure_and_the_seed_decides(kind: str) -> None:
    new, rows = make(kind)
    metric = added(new(), rows, kind)
    found = metric.intervals(200, seed=4)
    assert found.keys() == metric.figures().keys()
    assert found == metric.intervals(200, seed=4) != metric.intervals(200, seed=5)
    for name, value in metric.figures().items():
        low, high = found[name]
        assert low <= value <= high or name in ("ece", "entity_macro_f1"), name
    assert metric.intervals(0) == {name: (value, value) for name, value in metric.figures().items()}
    assert new().figures() == new().intervals() == {}
    alone = added(new(), rows[:1], kind)
    assert alone.intervals() == {name: (value, value) for name, value in alone.figures().items()}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_rows_of_one_rank_are_drawn_alike_in_whatever_order_they_came(kind: str, data: st.DataObject) -> None:
    new, rows = make(kind)
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    cut = data.draw(st.integers(0, len(rows)))
    shuffled = added(new(), [rows[number] for number in order[:cut]], kind)
    if data.draw(st.booleans()):
        shuffled.figures()  # what was looked at in between must not matter
    shard = added(new(), [rows[number] for number in order[cut:]], kind)
    shuffled.merge(shard)  # type: ignore[attr-defined]
    ranks = np.array(data.draw(st.permutations(range(len(rows)))))
    found, expected = (
        shuffled.resampled(5, ranks=ranks[order]),
        added(new(), rows, kind).resampled(5, ranks=ranks),
    )
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)  # equal rows may change places in a sum


def test_two_models_are_paired_draw_by_draw() -> None:
    random = np.random.default_rng(0)
    targets, hard = random.normal(size=300), 3 * random.normal(size=300)  # what is hard is so for both models
    first, second = hard + 0.1 * random.normal(size=(2, 300))
    order = random.permutation(300)  # the second was measured in another order of rows
    a, b = Regression(), Regression()
    a.add(targets + first, targets), b.add((targets + second)[order], targets[order])
    ranks = np.arange(300)
    changes = b.resampled(2000, ranks=ranks[order])["rmse"] - a.resampled(2000, ranks=ranks)["rmse"]
    draws = np.random.default_rng(1).integers(0, 300, (2000, 300))
    expected = np.sqrt((second[draws] ** 2).mean(1)) - np.sqrt((first[draws] ** 2).mean(1))
    assert changes.std() == pytest.approx(expected.std(), rel=0.1)
    unpaired = b.resampled(2000, seed=1)["rmse"] - a.resampled(2000)["rmse"]
    assert changes.std() < unpaired.std() / 5


def test_the_interval_of_a_mean_is_that_of_a_plain_loop_and_shrinks_with_the_root_of_the_rows() -> None:
    random = np.random.default_rng(0)
    predicted, targets = random.normal(size=400), random.normal(size=400)
    metric = Regression()
    metric.add(predicted, targets)
    errors = np.abs(predicted - targets)
    plain = [errors[random.integers(0, 400, 400)].mean() for _ in range(4000)]
    low, high = metric.intervals(4000)["mae"]
    width = np.ptp(np.quantile(plain, [0.025, 0.975]))
    assert [low, high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.05 * width)


def test_the_interval_of_accuracy_covers_the_truth_as_often_as_it_says() -> None:
    random, hits = np.random.default_rng(5), 0
    for seed in range(200):
        targets = random.integers(0, 2, 150)
        right = random.random(150) < 0.8
        chances = np.where((targets == 1) == right, 0.7, 0.3)
        metric = Classification(["no", "yes"])
        metric.add(np.stack([1 - chances, chances], 1), targets)
        low, high = metric.intervals(200, seed)["accuracy"]
        hits += low <= 0.8 <= high
    assert 0.89 <= hits / 200 <= 0.99  # four standard errors about 0.95, and what percentiles fall short


def test_draws_are_draws_with_replacement_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.hstack(list(drawn_counts(50, 2000, seed=1)))
    assert (whole.sum(0) == 50).all()
    # Each row comes as often as the others, give or take five standard errors.
    assert whole.mean(1) == pytest.approx(1, abs=0.11)
    # A count is binomial (50, 1/50): variance 0.98; of two rows, covariance -0.02.
    assert whole.var() == pytest.approx(0.98, abs=0.03)
    assert np.cov(whole)[np.triu_indices(50, 1)].mean() == pytest.approx(-0.02, abs=0.002)
    monkeypatch.setattr(resampling, "_BLOCK", 9 * 50)
    blocks = list(drawn_counts(50, 2000, seed=1))
    assert len(blocks) > 100
    assert (np.hstack(blocks) == whole).all()


def test_costly_figures_take_fewer_resamples_and_none_where_even_those_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, rows = make("single")
    metric = added(new(), rows, "single")
    full = metric.intervals(500)
    monkeypatch.setattr(resampling, "MOST_COSTLY", 200 * 40 * 3)
    fewer = metric.intervals(500)
    assert fewer["accuracy"] == full["accuracy"]
    assert fewer["roc_auc"] == metric.intervals(200)["roc_auc"] != full["roc_auc"]
    monkeypatch.setattr(resampling, "MOST_COSTLY", 90 * 40 * 3)
    assert full.keys() - metric.intervals(500).keys() == {"roc_auc", "pr_auc"}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9))), st.integers(5, 7))
def test_group_sums_are_those_of_a_loop(rows: list[tuple[int, int]], count: int) -> None:
    values = np.array([[value, 2 * value] for _, value in rows], np.float64).reshape(-1, 2)
    sums = np.zeros((count, 2))
    for (group, _), value in zip(rows, values, strict=True):
        sums[group] += value
    assert (Groups(np.array([group for group, _ in rows], np.int64), count).sums(values) == sums).all()
