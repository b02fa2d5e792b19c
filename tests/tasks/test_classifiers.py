"""What all classifiers share: labels as files write them, weights, probabilities, figures of rows."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from luban.data.row_sets import BadValue, Fitted
from luban.errors import DataError, RecipeError
from luban.tasks.text_classification import TextClassification, TextClassificationRecipe

COUNTS = {"rare": 5, "some": 15, "usual": 80}


class Rows:
    """Rows as far as a classifier asks for them."""

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def column(self, name: str) -> np.ndarray:
        assert name == "label"
        return self._labels


def classifier(
    fitted: dict[str, Any] | None = None, multilabel: bool = False, **objective: Any
) -> TextClassification:
    recipe = {"data": {"train": "x", "multilabel": multilabel}, "train": {"steps": 1}, "objective": objective}
    state = fitted or {"labels": list(COUNTS), "label_counts": list(COUNTS.values())}
    return TextClassification(TextClassificationRecipe.model_validate(recipe), Fitted(state))


def rows_of(counts: Sequence[int]) -> Rows:
    return Rows(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("good", "good"),
        ("  good\n", "good"),
        (0, "0"),
        (1.0, "1"),
        (1.5, "1.5"),
        ("1.0", "1.0"),
        (True, "True"),
        (None, None),
        ("", None),
        ("  ", None),
        (float("nan"), None),
    ],
)
def test_a_label_is_the_same_however_a_file_writes_it(value: Any, label: str | None) -> None:
    assert classifier().label_of(value) == label


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("a, b,a", ["a", "b"]),
        (["b", "a"], ["a", "b"]),
        ([2.0, 1, None], ["1", "2"]),
        (0, ["0"]),
        (None, []),
        ("", []),
        ([], []),
    ],
)
def test_several_labels_are_a_list_or_stand_between_separators(value: Any, labels: list[str]) -> None:
    assert classifier(multilabel=True).label_of(value) == labels


@pytest.mark.parametrize("multilabel", [False, True])
def test_what_is_no_label_is_a_bad_value(multilabel: bool) -> None:
    with pytest.raises(BadValue, match="a label is one word or number; received") as bad:
        classifier(multilabel=multilabel).label_of([{"name": "a"}] if multilabel else {"name": "a"})
    assert bad.value.kind == "bad_value"


def test_a_list_of_labels_where_one_is_meant_names_the_key_that_takes_it() -> None:
    with pytest.raises(BadValue) as bad:
        classifier().label_of(["a", "b"])
    assert (
        bad.value.detail
        == "a row has one label, and this has the list ['a', 'b']; data.multilabel=true takes several"
    )


def test_labels_are_in_the_order_of_numbers_then_of_words_with_their_counts() -> None:
    state, notes = classifier().learn_labels(iter(["10", "9", "b", "10", "nan", "a"]))
    assert state == {"labels": ["9", "10", "a", "b", "nan"], "label_counts": [1, 2, 1, 1, 1]}
    assert notes == []


def test_one_class_is_refused_and_named() -> None:
    refused = _refusal(classifier(), ["good"] * 1200)
    assert refused.message == "there is one class only: nothing to tell apart"
    assert refused.received == "all 1,200 training rows have the label 'good'"
    assert _refusal(classifier(), []).received == "no labels"
    assert _refusal(classifier(multilabel=True), [[], []]).received == "no labels"
    assert classifier(multilabel=True).learn_labels(iter([["a"], []]))[0]["labels"] == ["a"]


def _refusal(task: TextClassification, labels: list[Any]) -> DataError:
    with pytest.raises(DataError) as refused:
        task.learn_labels(iter(labels))
    return refused.value


def test_rare_classes_are_noted_with_their_counts() -> None:
    _, notes = classifier().learn_labels(iter(["usual"] * 990 + ["rare"] * 10))
    assert notes[0]["kind"] == "imbalance"
    assert notes[0]["detail"].startswith("rare among 1,000 training rows: 'rare' (10); ")


def test_a_label_that_training_never_had_is_named_with_the_nearest() -> None:
    task = classifier()
    with pytest.raises(
        BadValue, match=r"^no training row has the label 'usuall'; did you mean 'usual'\?$"
    ) as near:
        task.encode_label("usuall")
    assert near.value.kind == "unknown_label"
    with pytest.raises(BadValue, match=r"^no training row has the label 'zzz'$"):
        task.encode_label("zzz")
    assert task.encode_label("some").item() == 1
    several = classifier(multilabel=True)
    assert several.encode_label(["rare", "usual"]).tolist() == [1.0, 0.0, 1.0]
    assert several.encode_label([]).tolist() == [0.0, 0.0, 0.0]


# Weights and sampling.


@given(st.lists(st.integers(1, 500), min_size=2, max_size=6))
def test_balanced_weights_are_those_of_scikit_learn_and_their_mean_over_rows_is_one(
    counts: list[int],
) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = [f"c{n}" for n in range(len(counts))]
    task = classifier({"labels": labels, "label_counts": counts}, class_weights="balanced")
    weights = task.class_weights()
    assert weights is not None
    rows = np.repeat(np.arange(len(counts)), counts)
    theirs = compute_class_weight("balanced", classes=np.arange(len(counts)), y=rows)
    np.testing.assert_allclose(weights.numpy(), theirs, rtol=1e-6)
    assert weights.numpy()[rows].mean() == pytest.approx(1.0, rel=1e-5)


def test_weights_by_label_keep_their_ratios_and_a_mean_of_one() -> None:
    weights = classifier(class_weights={"rare": 10.0, "some": 2.0}).class_weights()
    assert weights is not None
    rare, some, usual = weights.tolist()
    assert (rare / usual, some / usual) == pytest.approx((10.0, 2.0))
    assert 5 * rare + 15 * some + 80 * usual == pytest.approx(100.0)
    assert classifier(class_weights="equal").class_weights() is None


def test_a_weight_for_no_label_is_refused() -> None:
    with pytest.raises(RecipeError, match="no such label in the training rows") as refused:
        classifier(class_weights={"rar": 2.0}).class_weights()
    assert refused.value.where == "objective.class_weights"
    assert refused.value.received == ["rar"]
    assert refused.value.fix == "labels: rare, some, usual"


def test_the_loss_is_what_the_recipe_says() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 3, generator=draws), torch.randint(3, (9,), generator=draws)
    task = classifier(class_weights="balanced")
    theirs = F.cross_entropy(logits, labels, weight=task.class_weights(), reduction="sum")
    torch.testing.assert_close(task.loss(logits, {"label": labels}), theirs)
    smooth = classifier(label_smoothing=0.2)
    theirs = F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="sum")
    torch.testing.assert_close(smooth.loss(logits, {"label": labels}), theirs)
    several = torch.randint(2, (9, 3), generator=draws).float()
    theirs = F.binary_cross_entropy_with_logits(logits, several, reduction="none").mean(1).sum()
    torch.testing.assert_close(classifier(multilabel=True).loss(logits, {"label": several}), theirs)


def test_balanced_sampling_draws_each_class_as_often() -> None:
    rows = rows_of(list(COUNTS.values()))
    weights = classifier(sampling="balanced").weights(rows)  # type: ignore[arg-type]
    assert weights is not None
    shares = np.bincount(rows.column("label"), weights / weights.sum())
    np.testing.assert_allclose(shares, 1 / 3)
    assert classifier().weights(rows) is None  # type: ignore[arg-type]


def test_balanced_sampling_of_several_labels_goes_by_the_rarest_of_a_row() -> None:
    rows = Rows(np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float32))
    weights = classifier(multilabel=True, sampling="balanced").weights(rows)  # type: ignore[arg-type]
    assert weights is not None
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1.0, 1 / 4])


# What logits mean.


def scored(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 3, 60)
    logits = 4 * draws.normal(size=(60, 3)) + 3 * np.eye(3)[labels]
    return list(logits.astype(np.float32)), labels


def test_the_temperature_learned_on_validation_rows_is_kept_and_lowers_the_loss() -> None:
    logits, labels = scored()
    task = classifier()
    calibrated = task.calibrate(logits, Rows(labels))  # type: ignore[arg-type]
    found = calibrated.fitted.state["temperature"]
    before, after = (log_loss(labels, one.probabilities(logits)) for one in (task, calibrated))
    assert found > 1.0
    assert after < before
    for other in (found * 0.98, found * 1.02):
        away = classifier({**task.fitted.state, "temperature": other})
        assert log_loss(labels, away.probabilities(logits)) > after
    torch.testing.assert_close(
        torch.from_numpy(calibrated.probabilities(logits)),
        (torch.from_numpy(np.stack(logits)).double() / found).softmax(1),
    )
    assert "temperature" not in task.fitted.state


def test_of_several_labels_the_temperature_lowers_the_loss_of_all_of_them() -> None:
    draws = np.random.default_rng(5)
    labels = draws.integers(0, 2, (80, 3)).astype(np.float32)
    logits = list((6 * labels - 3 + 4 * draws.normal(size=(80, 3))).astype(np.float32))  # too sure of itself
    task = classifier(multilabel=True)
    calibrated = task.calibrate(logits, Rows(labels))  # type: ignore[arg-type]
    found = calibrated.fitted.state["temperature"]
    expected = (torch.from_numpy(np.stack(logits)).double() / found).sigmoid()
    torch.testing.assert_close(torch.from_numpy(calibrated.probabilities(logits)), expected)

    def loss(temperature: float) -> float:
        chances = classifier(
            {**task.fitted.state, "temperature": temperature}, multilabel=True
        ).probabilities(logits)
        return log_loss(labels.ravel(), chances.ravel())

    assert found > 1.0
    assert loss(found) < min(loss(1.0), loss(found * 0.98), loss(found * 1.02))


def test_figures_are_those_of_scikit_learn_and_the_mean_over_rows_is_the_whole() -> None:
    logits, labels = scored(1)
    task, rows, numbers = classifier(), Rows(labels), np.arange(60)
    chances = task.probabilities(logits)
    figures = task.scores(logits, rows, numbers).figures()  # type: ignore[arg-type]
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, chances.argmax(1)))
    assert figures["log_loss"] == pytest.approx(log_loss(labels, chances))
    for name, values in task.row_scores(logits, rows, numbers).items():  # type: ignore[arg-type]
        assert values.mean() == pytest.approx(figures[name]), name


def test_of_several_labels_the_mean_over_rows_is_the_whole() -> None:
    draws = np.random.default_rng(2)
    labels = draws.integers(0, 2, (50, 3)).astype(np.float32)
    logits = list(2 * labels - 1 + draws.normal(size=(50, 3)))
    task, rows, numbers = classifier(multilabel=True), Rows(labels), np.arange(50)
    figures = task.scores(logits, rows, numbers).figures()  # type: ignore[arg-type]
    chances = task.probabilities(logits)
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels > 0, chances >= 0.5))
    found = task.row_scores(logits, rows, numbers)  # type: ignore[arg-type]
    assert found["accuracy"].mean() == pytest.approx(figures["accuracy"])


def test_the_worst_row_is_the_surest_that_is_wrong() -> None:
    task, rows = classifier(), Rows(np.array([0, 1, 2]))
    answers = [np.array([9.0, 0, 0]), np.array([5.0, 0, 0]), np.array([0, 1.0, 0])]
    badness = task.badness(answers, rows, np.arange(3))  # type: ignore[arg-type]
    assert badness[0] < 0
    assert badness[1] > badness[2] > 0


def test_an_answer_tells_the_label_and_the_likeliest_first() -> None:
    told = classifier().decode(np.array([0.0, 2.0, 1.0]))
    assert told["label"] == "some"
    assert list(told["probabilities"]) == ["some", "usual", "rare"]
    assert sum(told["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    several = classifier(multilabel=True).decode(np.array([3.0, -1.0, 0.5]))
    assert several["labels"] == ["rare", "usual"]
    assert several["probabilities"]["some"] == pytest.approx(1 / (1 + np.e), abs=1e-6)
    many = Counter({f"c{n:03d}": 1 for n in range(300)})
    told = classifier({"labels": list(many), "label_counts": list(many.values())}).decode(np.arange(300.0))
    assert next(iter(told["probabilities"])) == "c299"
    assert len(told["probabilities"]) == 10
