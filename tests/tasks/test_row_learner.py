"""What trains on rows: every row once an epoch, however it is cut; figures by name; weights taken over by name."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from luban.data.row_sets import PreparedRows
from luban.durable import DISK
from luban.errors import CheckpointError, RecipeError
from luban.metrics.regression import Regression
from luban.models.counted import count_flops
from luban.tasks.base import Machine
from luban.tasks.row_learner import RATES, RowLearner, choices
from luban.tasks.row_measuring import with_primary
from luban.tasks.row_model import RowModel
from luban.tasks.starting import Start, taken_over
from luban.tasks.text_classification import TextClassification

ROWS = 90
MACHINE = Machine(1e9, 1 << 30)


def recipe(rows: str, **changes: Any) -> Any:
    made = TextClassification.example(rows)
    settings = {"train": {"steps": 9, "batch": 8, "learning_rate": 1e-3}, **changes}
    for name, section in settings.items():
        made[name] = {**made.get(name, {}), **section}
    return TextClassification.recipe.model_validate(made)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedRows:
    folder = tmp_path_factory.mktemp("rows")
    rows = TextClassification.sample(ROWS, random.Random(1))
    # Every seventh of the good ones is left: the classes are of unequal size.
    kept = [row for number, row in enumerate(rows) if row["label"] == "bad" or number % 7 == 0]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    settings = recipe(str(folder / "rows.jsonl"), data={"validation_fraction": 0.3})
    return TextClassification.prepare(
        settings, folder / "data", stop=lambda: None, progress=lambda stage, share: None
    )


def learner(data: PreparedRows, start: Any = None, **changes: Any) -> RowLearner:
    return RowLearner(TextClassification(recipe("x", **changes), data.fitted), data, start=start)


def lines(batches: Any) -> list[int]:
    return [row["line"] for batch in batches for row in batch.describe()["rows"]]


def test_an_epoch_is_every_row_once_whatever_the_ranks_and_micro_batches(data: PreparedRows) -> None:
    one = learner(data)
    steps = one.steps(1.0)
    assert one.epoch(steps) == 1.0
    for ranks, size in ((1, None), (1, 3), (3, 2), (8, 1)):
        seen = Counter(
            line
            for step in range(steps)
            for rank in range(ranks)
            for line in lines(one.batches(step, rank, ranks, size))
        )
        assert seen == Counter(row["line"] for row in data.train.rows())


def test_a_batch_counts_its_rows(data: PreparedRows) -> None:
    for size in (None, 1, 3):
        batches = learner(data).batches(0, 0, 1, size)
        assert sum(batch.rows for batch in batches) == sum(batch.count for batch in batches) == 8
        assert all(batch.tokens == batch.rows == len(batch.tensors["label"]) for batch in batches)
        assert max(batch.rows for batch in batches) == (size or 8)


def test_balanced_sampling_shows_each_class_as_often(data: PreparedRows) -> None:
    natural = np.bincount(data.train.column("label"))
    assert natural.max() > 3 * natural.min()
    balanced = learner(data, objective={"sampling": "balanced"})
    seen = torch.cat([balanced.batches(step, 0, 1)[0].tensors["label"] for step in range(balanced.steps(60))])
    shares = np.bincount(seen.numpy()) / len(seen)
    assert shares == pytest.approx([0.5, 0.5], abs=0.04)


def test_flops_are_three_times_those_of_the_forward_pass(data: PreparedRows) -> None:
    one = learner(data)
    batch = one.batches(0, 0, 1)[0]
    forward = count_flops(one.model, ids=batch.tensors["ids"].long(), mask=batch.tensors["ids_mask"])
    assert one.flops(batch) == one.flops(batch) == 3 * forward > 0


def test_a_share_of_quick_is_rehearsed(data: PreparedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    one, measured = learner(data), []
    monkeypatch.setattr(one, "_measured", measured.append)
    for quick, rehearsed in ((1, 1), (16, 16), (50, 17), (2_000, 500)):
        monkeypatch.setattr(one, "_quick_rows", lambda count=quick: np.arange(count))
        assert one.rehearse_quick() == rehearsed / quick
        assert len(measured[-1]) == rehearsed


def test_the_network_is_drawn_from_the_recipes_seed(data: PreparedRows) -> None:
    def weights(seed: int) -> torch.Tensor:
        train = {"steps": 9, "batch": 8, "learning_rate": 1e-3, "seed": seed}
        return torch.cat([p.flatten() for p in learner(data, train=train).model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_primary_figure_comes_first_and_quick_is_evaluate_on_the_same_rows(data: PreparedRows) -> None:
    one = learner(data, evaluate={"primary": "macro_f1", "bootstrap": 0})
    one.model.eval()
    quick = one.quick()
    assert next(iter(quick)) == "macro_f1"
    numbers = np.arange(len(data.validation))
    again = one.task.scores(one.answers(data.validation, numbers), data.validation, numbers).figures()
    assert quick == pytest.approx(again)


@pytest.mark.parametrize(
    ("primary", "direction"),
    [(None, "max"), ("accuracy", "max"), ("log_loss", "min"), ("ece", "min"), ("roc_auc", "max")],
)
def test_the_direction_is_that_of_the_figure_which_counts(
    data: PreparedRows, primary: str | None, direction: str
) -> None:
    one = learner(data, evaluate={"primary": primary, "bootstrap": 0})
    one.model.eval()
    assert one.minimise == (direction == "min")
    assert one.evaluate(stop=lambda: None).direction == direction


def test_prepared_rows_without_the_column_of_a_slice_are_refused_before_training(data: PreparedRows) -> None:
    with pytest.raises(RecipeError, match="kept without these columns") as refused:
        learner(data, evaluate={"slices": ["source"]})
    assert (refused.value.received, refused.value.where) == (["source"], "evaluate.slices")


def test_a_figure_that_there_is_not_is_refused_with_the_nearest() -> None:
    numbers = Regression()
    numbers.add(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    with pytest.raises(RecipeError, match="the task has no such figure") as refused:
        with_primary(numbers, "rmsee")
    assert refused.value.where == "evaluate.primary"
    assert refused.value.fix == "did you mean rmse? there are: mse, rmse, mae, median_absolute_error, r2"
    assert list(with_primary(numbers, "mae")) == ["mae", "mse", "rmse", "median_absolute_error"]
    assert np.isnan(with_primary(numbers, "r2")["r2"])  # these rows do not define it
    with pytest.raises(RecipeError, match="the task has no such figure"):
        with_primary(numbers, "bleu")  # a figure of another task


def test_the_largest_evaluation_batch_is_of_the_longest_rows(
    data: PreparedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = learner(data)
    one.model.eval()
    seen: list[torch.Tensor] = []
    one.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    monkeypatch.setattr(TextClassification, "evaluation_rows", 2)
    with torch.no_grad():
        assert one.largest_evaluation() == 2
    longest = np.sort(data.held_out.lengths("ids"))[-2:]
    assert sorted((seen[0] != 0).sum(1).tolist()) == longest.tolist()
    assert len(seen) == 1


def test_views_show_the_first_rows_as_the_network_sees_them(data: PreparedRows) -> None:
    shown = learner(data).views(3)
    assert len(shown) == 3
    by_line = {row["line"]: row["values"] for row in data.train.rows()}
    first = by_line[lines(learner(data).batches(0, 0, 1))[0]]
    assert shown[0].endswith(f"-> {first['label']}")
    assert set(shown[0].rpartition(" -> ")[0].split("|")) <= {
        *first["text"].lower(),
        *first["text"].lower().split(),
    }


# Weights from another model.


def test_tensors_of_the_same_name_and_shape_are_taken_and_no_other() -> None:
    torch.manual_seed(0)
    own = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 4), "c": nn.Linear(2, 2)})
    other = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 5), "d": nn.Linear(2, 2)})
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    taken = taken_over(own, other.state_dict())
    assert taken.names == ["a.weight", "a.bias"]
    assert taken.new == {
        "b.weight": "5 x 3 there, 4 x 3 here",
        "b.bias": "5 there, 4 here",
        "c.weight": "not in it",
        "c.bias": "not in it",
    }
    assert taken.unused == ["d.weight", "d.bias"]
    assert taken.told().startswith("took 2 of 6 tensors; new: b.weight (5 x 3 there, 4 x 3 here);")
    for name, tensor in own.state_dict().items():
        expected = other.state_dict()[name] if name.startswith("a.") else before[name]
        assert torch.equal(tensor, expected)


def test_a_learner_begins_with_the_weights_of_the_other(data: PreparedRows) -> None:
    trained = learner(data)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(0.5)
    start = Start.of(RowModel(trained.task, trained.model, {}))
    begun = learner(data, start)
    assert all(
        torch.equal(a, b) for a, b in zip(begun.model.parameters(), trained.model.parameters(), strict=True)
    )
    wider = learner(data, start, model={"network": "cnn", "width": 16, "channels": 9, "dropout": 0.0})
    theirs = trained.model.state_dict()
    same = {
        n for n, tensor in wider.model.state_dict().items() if n in theirs and tensor.shape == theirs[n].shape
    }
    assert same
    assert all(torch.equal(wider.model.state_dict()[name], theirs[name]) for name in same)
    assert (
        begun.started() == f"took {len(begun.model.state_dict())} of {len(begun.model.state_dict())} tensors"
    )
    assert trained.started() is None
    strange = Start.of(RowModel(trained.task, nn.Linear(2, 2), {}))
    with pytest.raises(CheckpointError, match="no weights of the names and shapes of this one"):
        learner(data, strange)


# What is chosen.


@pytest.mark.parametrize("optimizer", sorted(RATES))
def test_an_open_rate_is_that_of_the_optimizer_and_a_fifth_of_it_where_the_model_is_trained(
    data: PreparedRows, optimizer: str
) -> None:
    open_rate = recipe("x", train={"steps": 9, "learning_rate": None, "optimizer": optimizer})
    fresh, trained = (choices(open_rate, data, MACHINE, start, 2.0) for start in (None, object()))
    assert fresh["train.learning_rate"].value == pytest.approx(2.0 * RATES[optimizer])
    assert trained["train.learning_rate"].value == pytest.approx(2.0 * RATES[optimizer] / 5)


def test_what_the_recipe_says_is_not_chosen(data: PreparedRows) -> None:
    assert choices(recipe("x"), data, MACHINE, None, 1.0) == {}


def test_an_open_batch_gives_an_epoch_of_some_steps_and_is_a_power_of_two(data: PreparedRows) -> None:
    class Sized:
        def __init__(self, rows: int) -> None:
            self.train = range(rows)

    open_batch = recipe("x", train={"steps": 9, "batch": None, "learning_rate": 1e-3})
    for rows, batch in ((5, 4), (127, 4), (256, 8), (1023, 16), (2048, 64), (10**6, 64)):
        prepared: Any = Sized(rows)
        assert choices(open_batch, prepared, MACHINE, None, 1.0)["train.batch"].value == batch
    assert (
        f"{len(data.train)} training rows" in choices(open_batch, data, MACHINE, None, 1.0)["train.batch"].why
    )


def test_the_saved_folder_says_what_answering_needs(data: PreparedRows, tmp_path: Path) -> None:
    one = learner(data, evaluate={"bootstrap": 0})
    one.model.eval()
    one.evaluate(stop=lambda: None)
    one.save(tmp_path / "model", "a card", DISK)
    model = TextClassification.load(tmp_path / "model")
    assert model.state["primary"] == "accuracy"
    assert model.kind.fitted.state["labels"] == data.fitted.state["labels"]
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor), name
    assert (tmp_path / "model" / "README.md").read_text() == "a card"
