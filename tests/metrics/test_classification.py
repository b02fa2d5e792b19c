"""Figures of classifiers, against scikit-learn."""

import itertools
import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from luban.errors import InputError, NonFiniteError
from luban.metrics import classification
from luban.metrics.classification import Classification

Array = NDArray[Any]


def softmaxed(rows: int, classes: int, seed: int, spread: float = 1.5) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    logits = spread * random.normal(size=(rows, classes))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.where(random.random(rows) < 0.5, chances.argmax(1), random.integers(0, classes, rows))
    return chances, targets


def measured(chances: Array, targets: Array, multilabel: bool = False) -> Classification:
    found = Classification([f"class {n}" for n in range(chances.shape[1])], multilabel)
    found.add(chances, targets)
    return found


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10_000))
def test_figures_are_those_of_scikit_learn(rows: int, classes: int, seed: int) -> None:
    chances, targets = softmaxed(rows, classes, seed)
    chances = np.round(chances, 1) + 1e-3  # ties
    chances /= chances.sum(1, keepdims=True)
    answers, labels = chances.argmax(1), np.arange(classes)
    plain = {"zero_division": 0}
    expected = {
        "accuracy": sk.accuracy_score(targets, answers),
        "macro_precision": sk.precision_score(targets, answers, average="macro", **plain),
        "macro_recall": sk.recall_score(targets, answers, average="macro", **plain),
        "macro_f1": sk.f1_score(targets, answers, average="macro", **plain),
        "micro_f1": sk.f1_score(targets, answers, average="micro", **plain),
        "weighted_f1": sk.f1_score(targets, answers, average="weighted", **plain),
        "log_loss": sk.log_loss(targets, chances, labels=labels),
        "brier": sk.brier_score_loss(targets, chances, labels=labels),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are answered and never right
        expected["balanced_accuracy"] = sk.balanced_accuracy_score(targets, answers)
    there = [n for n in ([1] if classes == 2 else labels) if 0 < (targets == n).sum() < rows]
    if there:
        against = [(targets == n, chances[:, n]) for n in there]
        expected["roc_auc"] = np.mean([sk.roc_auc_score(*pair) for pair in against])
        expected["pr_auc"] = np.mean([sk.average_precision_score(*pair) for pair in against])
    found = measured(chances, targets).figures()
    assert found.keys() == expected.keys() | {"ece"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_areas_are_the_macro_averages_of_scikit_learn_where_every_class_occurs(classes: int) -> None:
    chances, targets = softmaxed(300, classes, 0)
    figures = measured(chances, targets).figures()
    scores = chances[:, 1] if classes == 2 else chances
    assert figures["roc_auc"] == pytest.approx(
        sk.roc_auc_score(targets, scores, multi_class="ovr"), abs=1e-12
    )
    assert figures["pr_auc"] == pytest.approx(sk.average_precision_score(targets, scores), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 10_000))
def test_multilabel_figures_are_those_of_scikit_learn(rows: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    chances = random.random((rows, classes)).round(1)
    targets = (random.random((rows, classes)) < chances).astype(np.float32)
    answers = (chances >= 0.5).astype(int)
    expected = {
        "accuracy": (targets == answers).all(1).mean(),
        "hamming_loss": (targets != answers).mean(),
        "log_loss": -np.log(np.clip(np.where(targets > 0, chances, 1 - chances), 2.0**-52, 1)).mean(),
    }
    of = np.digitize(chances.ravel(), np.arange(1, 15) / 15, right=True)
    told, there = chances.ravel(), targets.ravel().astype(np.float64)
    inside = [of == number for number in range(15) if (of == number).any()]
    expected["ece"] = sum(n.sum() * abs(there[n].mean() - told[n].mean()) for n in inside) / told.size
    parts = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    for part, score in parts.items():
        expected[f"micro_{part}"] = score(targets.ravel(), answers.ravel(), zero_division=0)
        of_each = [score(a, b, zero_division=0) for a, b in zip(targets.T, answers.T, strict=True)]
        expected[f"macro_{part}"] = np.mean(of_each)
    if rows > 1 and classes > 1:  # what scikit-learn takes for multilabel
        expected["accuracy"] = sk.accuracy_score(targets, answers)
        expected["hamming_loss"] = sk.hamming_loss(targets, answers)
        for average, (part, score) in itertools.product(("micro", "macro"), parts.items()):
            expected[f"{average}_{part}"] = score(targets, answers, average=average, zero_division=0)
    there = [n for n in range(classes) if 0 < targets[:, n].sum() < rows]
    if there:
        expected["roc_auc"] = sk.roc_auc_score(targets[:, there], chances[:, there], average="macro")
        expected["pr_auc"] = sk.average_precision_score(targets[:, there], chances[:, there], average="macro")
    assert measured(chances, targets, multilabel=True).figures() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("multilabel", [False, True])
def test_classes_one_by_one_and_the_confusion_are_those_of_scikit_learn(multilabel: bool) -> None:
    chances, targets = softmaxed(80, 4, 1)
    targets = np.minimum(targets, 2)  # a class without rows
    answers = chances.argmax(1)
    if multilabel:
        targets, answers = np.eye(4, dtype=int)[targets], (chances >= 0.5).astype(int)
    found = measured(chances, targets, multilabel)
    expected = sk.precision_recall_fscore_support(targets, answers, labels=range(4), zero_division=0)
    for number, one in enumerate(found.per_class()):
        assert one.pop("label") == f"class {number}"
        assert list(one.values()) == pytest.approx([column[number] for column in expected], abs=1e-12)
    if not multilabel:
        assert (found.confusion() == sk.confusion_matrix(targets, answers, labels=range(4))).all()


def test_a_section_is_json_and_its_parts_agree() -> None:
    chances, targets = softmaxed(200, 3, 2)
    found = measured(chances, targets)
    section, figures = found.section(), found.figures()
    assert json.loads(json.dumps(section, allow_nan=False)) == section
    assert set(section) == {"labels", "confusion", "per_class", "roc", "precision_recall", "reliability"}
    confusion = np.array(section["confusion"])
    assert np.trace(confusion) / confusion.sum() == figures["accuracy"]
    assert confusion.sum(1).tolist() == [one["support"] for one in section["per_class"]]
    assert [one["label"] for one in section["roc"]] == section["labels"]
    assert np.mean([one["auc"] for one in section["roc"]]) == pytest.approx(figures["roc_auc"])
    average = np.mean([one["average_precision"] for one in section["precision_recall"]])
    assert average == pytest.approx(figures["pr_auc"])
    assert section["reliability"]["ece"] == figures["ece"]
    bins = section["reliability"]["bins"]
    assert sum(one["count"] for one in bins) == 200
    gaps = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / 200
    assert gaps == pytest.approx(figures["ece"])


def test_of_two_classes_a_section_shows_the_curves_of_the_second() -> None:
    found = measured(*softmaxed(50, 2, 3))
    section = found.section()
    assert [one["label"] for one in section["roc"]] == ["class 1"]
    assert section["roc"][0]["auc"] == found.figures()["roc_auc"]
    assert section["roc"][0] == found.roc(1)


def test_multilabel_sections_count_how_often_a_label_is_there() -> None:
    random = np.random.default_rng(0)
    chances = random.random((2000, 3))
    section = measured(chances, random.random((2000, 3)) < chances, multilabel=True).section()
    assert "confusion" not in section
    assert len(section["roc"]) == 3
    assert section["reliability"]["ece"] < 0.05
    assert sum(one["count"] for one in section["reliability"]["bins"]) == 6000


def test_of_many_labels_a_section_shows_those_with_most_errors() -> None:
    chances, targets = softmaxed(900, 60, 4, spread=4.0)
    found = measured(chances, targets)
    section = found.section()
    assert "confusion" not in section
    assert len(section["per_class"]) == 60
    assert len(section["roc"]) == len(section["precision_recall"]) == 10
    confusion = found.confusion()
    errors = confusion.sum(0) + confusion.sum(1) - 2 * np.diag(confusion)
    shown = [section["labels"].index(one["label"]) for one in section["roc"]]
    assert min(errors[shown]) >= np.sort(errors)[-10]


def test_beyond_a_thousand_classes_there_are_no_areas_and_all_else_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chances, targets = softmaxed(50, 6, 5)
    expected = measured(chances, targets).figures()
    monkeypatch.setattr(classification, "MOST_RANKED", 5)
    found = measured(chances, targets)
    assert found.figures() == {n: v for n, v in expected.items() if n not in ("roc_auc", "pr_auc")}
    assert found.section()["roc"] == []
    with pytest.raises(InputError, match="curves"):
        found.roc(0)


def test_one_class_alone_has_no_area() -> None:
    chances, _ = softmaxed(20, 3, 6)
    found = measured(chances, np.full(20, 2))
    assert found.figures().keys().isdisjoint({"roc_auc", "pr_auc"})
    assert found.section()["roc"] == []
    assert "accuracy" in found.intervals(20)
    with pytest.raises(InputError, match="with and rows without"):
        found.precision_recall(2)


def test_batches_that_are_none_change_nothing() -> None:
    found = measured(*softmaxed(20, 3, 7))
    before = found.figures()
    found.add(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert found.figures() == before
    assert measured(np.zeros((0, 3)), np.zeros(0, np.int64)).section() == {}


def test_a_sure_and_wrong_answer_costs_a_finite_loss() -> None:
    found = measured(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])).figures()
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2, rel=1e-9)
    assert found["brier"] == 0.5


@pytest.mark.parametrize(
    ("chances", "targets", "multilabel", "error", "said"),
    [
        ([[2.0, -1.0]], [0], False, InputError, "softmax"),
        ([[0.5, 0.4]], [0], False, InputError, "softmax"),
        ([[0.5, 1.4]], [[0, 1]], True, InputError, "sigmoid"),
        ([[0.5, np.nan]], [0], False, NonFiniteError, "not a number"),
        ([[0.5, 0.5]], [2], False, InputError, "0 to 1"),
        ([[0.5, 0.5]], [-1], False, InputError, "0 to 1"),
        ([[0.5, 0.5]], [[0, 2]], True, InputError, "0 to 1"),
        ([[0.5, 0.5]], [[0, 0.5]], True, InputError, "0 to 1"),
        ([[0.5, 0.5]], [0, 1], False, InputError, "(rows, 2)"),
        ([[0.5, 0.3, 0.2]], [0], False, InputError, "(rows, 2)"),
    ],
)
def test_what_is_no_probability_or_no_class_is_refused(
    chances: Any, targets: Any, multilabel: bool, error: type[Exception], said: str
) -> None:
    found = Classification(["a", "b"], multilabel)
    with pytest.raises(error) as caught:
        found.add(np.array(chances), np.array(targets))
    assert said in str(caught.value)
    assert len(found) == 0


def test_labels_must_be_told_apart_and_be_the_same_to_merge() -> None:
    for labels in (["a", "a"], ["a"], []):
        with pytest.raises(InputError):
            Classification(labels)
    with pytest.raises(InputError, match="same labels"):
        Classification(["a", "b"]).merge(Classification(["b", "a"]))
    with pytest.raises(InputError, match="confusion"):
        Classification(["a"], multilabel=True).confusion()
