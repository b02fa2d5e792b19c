"""Cross-validation: folds are runs, each row is tested once, and what was stopped goes on to the same figures."""

import json
import random
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luban.console import Show
from luban.data.prepare import Prepared
from luban.data.row_sets import PreparedRows
from luban.durable import sha256
from luban.errors import DataError, InputError, RecipeError, Stopped
from luban.evaluation.standing import standing_of
from luban.signals import StopRequest
from luban.tasks.tabular import Tabular
from luban.tasks.text_classification import TextClassification
from luban.training.faults import Faults
from luban.verbs.compare import compare
from luban.verbs.folds import folds_of
from luban.verbs.load import load
from luban.verbs.plan import plan
from luban.verbs.prepare import prepare
from luban.verbs.resume import resume
from luban.verbs.train import Tools, train

FOLDS, STEPS = 3, 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = TextClassification.sample(60, random.Random(1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = TextClassification.example(str(path))
    return {
        **made,
        "data": {**made["data"], "folds": FOLDS},
        "train": {"steps": STEPS, "batch": 8, "compile": "off", "checkpoint_every": 2},
        "evaluate": {"bootstrap": 10},
    }


@pytest.fixture(scope="module")
def run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe, out=tmp_path_factory.mktemp("straight") / "run").folder


def stopping(calls: int, step: int) -> Tools:
    """Return tools that ask for a stop when a step of that number is done for the `calls`-th time."""
    stop, coming = StopRequest(), iter(range(1, 100))

    def ask() -> None:
        if next(coming) == calls:
            stop.ask("SIGTERM")

    return Tools(Show(quiet=True), stop, Faults({("step", step, 0): ask}))


def quiet() -> Tools:
    return Tools(Show(quiet=True), StopRequest())


def told(folder: Path, name: str = "result.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
    return found


def test_every_row_is_tested_in_one_fold_and_trained_on_in_the_others(run: Path) -> None:
    tested: Counter[int] = Counter()
    for fold in range(1, FOLDS + 1):
        data = PreparedRows(run / "folds" / f"fold-{fold}" / "data")
        assert data.test is not None
        lines = {
            split: {row["line"] for row in getattr(data, split).rows()}
            for split in ("train", "validation", "test")
        }
        assert sum(map(len, lines.values())) == len(set.union(*lines.values())) == 60
        tested.update(lines["test"])
    assert tested == Counter(range(1, 61))


def test_the_result_is_mean_and_standard_deviation_over_folds(run: Path) -> None:
    result, parts = told(run), [told(run / "folds" / f"fold-{n}") for n in range(1, FOLDS + 1)]
    assert result["status"] == "done"
    for name, mean in result["metrics"].items():
        values = [part["metrics"][name] for part in parts]
        assert mean == pytest.approx(statistics.mean(values))
        assert result["spread"][name] == pytest.approx(statistics.stdev(values))
        assert [fold["metrics"][name] for fold in result["folds"]] == values
    assert result["primary"] == {
        "name": "accuracy",
        "value": result["metrics"]["accuracy"],
        "direction": "max",
    }
    assert result["steps"] == FOLDS * STEPS
    assert told(run, "evaluation.json")["counts"] == {"folds": FOLDS}


def test_the_model_is_that_of_the_fold_nearest_the_mean(run: Path) -> None:
    result = told(run)
    mean = result["metrics"]["accuracy"]
    far = [abs(fold["metrics"]["accuracy"] - mean) for fold in result["folds"]]
    nearest = result["folds"][far.index(min(far))]["fold"]
    assert result["model_of"] == f"fold-{nearest}"
    name = "model/model.safetensors"
    assert sha256(run / name) == sha256(run / "folds" / f"fold-{nearest}" / name)
    assert load(run).predict(["lovely film"])[0]["label"] in ("good", "bad")


def test_each_fold_is_a_run_with_a_report_and_so_is_the_whole(run: Path) -> None:
    folders = [run, *(run / "folds" / f"fold-{n}" for n in range(1, FOLDS + 1))]
    for folder in folders:
        assert standing_of(folder, verify=True).state == "finished"
        assert "accuracy" in (folder / "report.html").read_text("utf-8")
    assert [told(folder, "recipe.json")["data"]["fold"] for folder in folders] == [None, 0, 1, 2]


def test_what_is_wrong_with_the_rows_stands_at_the_head_of_the_whole_report(tmp_path: Path) -> None:
    """A column that gives the target away is worth as much warning over folds as in one run; and a share is no more
    than all, however far the intervals of two folds reach."""
    path, draws = tmp_path / "rows.csv", random.Random(2)
    lines = [f"{draws.random():.4f},{n % 2},7,{'yes' if n % 2 else 'no'}\n" for n in range(80)]
    path.write_text("size,known_later,same,sold\n" + "".join(lines), "utf-8")
    small = {**Tabular.smallest()["model"], "members": 2}
    recipe = {
        "task": "tabular",
        "data": {"train": str(path), "folds": 2},
        "model": small,
        "train": {"steps": 2, "batch": 8, "compile": "off"},
        "evaluate": {"bootstrap": 0},
    }
    folder = train(recipe, out=tmp_path / "run").folder
    evaluation, page = told(folder, "evaluation.json"), (folder / "report.html").read_text("utf-8")
    assert [note["kind"] for note in evaluation["notes"]] == ["constant", "leak"]
    assert "known_later gives the target away" in page
    for figure in ("roc_auc", "accuracy", "ece"):
        found = evaluation["metrics"][figure]
        assert 0.0 <= found["low"] <= found["value"] <= found["high"] <= 1.0
    assert "No step was logged" not in page and "folds/fold-1/report.html" in page


@pytest.mark.parametrize(
    ("calls", "step", "begun"),
    [(1, 1, 1), (FOLDS, STEPS - 1, FOLDS)],
    ids=["within the first", "in the last"],
)
def test_a_stopped_run_goes_on_to_the_same_figures_and_touches_no_finished_fold(
    recipe: dict[str, Any], run: Path, tmp_path: Path, calls: int, step: int, begun: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(recipe, out=folder, tools=stopping(calls, step))
    assert len(list((folder / "folds").iterdir())) == begun
    assert standing_of(folder, verify=True).state == "stopped"
    assert not (folder / "result.json").exists()
    finished = {path: path.stat().st_mtime_ns for n in range(1, begun) for path in _files(folder, n)}
    assert resume(folder, tools=quiet()).folder == folder
    again, straight = told(folder), told(run)
    for name in ("metrics", "spread", "folds", "primary", "steps", "tokens", "flops", "model_of"):
        assert again[name] == straight[name], name
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert sha256(folder / "model" / "model.safetensors") == sha256(run / "model" / "model.safetensors")
    assert standing_of(folder).state == "finished"


def _files(folder: Path, fold: int) -> list[Path]:
    inside = folder / "folds" / f"fold-{fold}"
    return [path for path in inside.rglob("*") if path.is_file() and path.name != ".lock"]


def test_killed_between_folds_or_before_the_mean_it_goes_on(run: Path, tmp_path: Path) -> None:
    """As it lies when the process ends after a fold is done, and before the next one or the whole result is there."""
    removals: list[Callable[[Path], None]] = [
        lambda folder: shutil.rmtree(folder / "folds" / "fold-3"),
        lambda folder: shutil.rmtree(folder / "model"),
    ]
    for number, remove in enumerate(removals):
        folder = tmp_path / str(number)
        shutil.copytree(run, folder)
        for name in ("result.json", "evaluation.json", "report.html"):
            (folder / name).unlink()
        events = (folder / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / "events.jsonl").write_text(events[0], "utf-8")
        remove(folder)
        assert standing_of(folder).state == "died"
        resume(folder, tools=quiet())
        assert told(folder)["metrics"] == told(run)["metrics"]
        assert (folder / "model" / "model.safetensors").is_file()
        assert (folder / "report.html").is_file()


def test_a_fold_that_fails_is_told_of_the_whole(recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny = tmp_path / "rows.jsonl"
    rows = [{"text": f"text {n}", "label": "a" if n else "b"} for n in range(8)]
    tiny.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as failed:
        train({**recipe, "data": {"train": str(tiny), "folds": 2}}, out=tmp_path / "run")
    standing = standing_of(tmp_path / "run")
    assert standing.state == "failed"
    assert standing.why == failed.value.message


def test_a_finished_run_is_left_as_it_is(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    resume(run, tools=quiet())
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_cannot_be_in_folds_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"leave data\.test out"):
        train({**recipe, "data": {**recipe["data"], "test": "x"}}, out=tmp_path / "a")
    with pytest.raises(RecipeError):
        train({**recipe, "data": {**recipe["data"], "fold": FOLDS}}, out=tmp_path / "b")
    with pytest.raises(InputError, match="folds have no row to test on"):
        train({**recipe, "data": {**recipe["data"], "folds": 100}}, out=tmp_path / "c")
    one = TextClassification.recipe.model_validate({**recipe, "data": {**recipe["data"], "fold": 1}})
    assert folds_of(one) is None


def test_simpler_models_stand_beside_the_mean_of_the_folds(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = Tabular.sample(90, random.Random(1))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = Tabular.example(str(tmp_path / "rows.jsonl"))
    recipe = {
        **made,
        "data": {**made["data"], "folds": 2},
        "train": {"steps": 2, "batch": 8, "compile": "off"},
        "evaluate": {"bootstrap": 0},
    }
    run = train(recipe, out=tmp_path / "run").folder
    folds = [told(run / "folds" / f"fold-{n}", "evaluation.json")["baselines"] for n in (1, 2)]
    whole = told(run, "evaluation.json")["baselines"]
    assert [one["name"] for one in whole] == [one["name"] for one in folds[0]]
    assert len(whole) == 2
    for number, one in enumerate(whole):
        expected = [fold[number]["metrics"]["roc_auc"] for fold in folds]
        assert one["metrics"]["roc_auc"] == pytest.approx(statistics.fmean(expected))


@pytest.fixture(scope="module")
def text_recipe(small: dict[str, Any]) -> dict[str, Any]:
    return {
        **small,
        "data": {**small["data"], "folds": FOLDS},
        "train": {**small["train"], "steps": STEPS, "checkpoint_every": 2},
    }


@pytest.fixture(scope="module")
def text_run(text_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(text_recipe, out=tmp_path_factory.mktemp("text") / "run").folder


def test_every_text_is_held_out_of_one_fold_and_trained_on_in_the_others(
    text_run: Path, text_file: Path
) -> None:
    held_out: Counter[str] = Counter()
    for fold in range(1, FOLDS + 1):
        data = Prepared(text_run / "folds" / f"fold-{fold}" / "data")
        texts = {
            shards.split: {
                data.tokenizer.decode(shards.read(first, first + tokens - 1).tolist())
                for first, tokens, *_ in shards.documents.tolist()
            }
            for shards in (data.train, data.validation)
        }
        assert not texts["train"] & texts["validation"]
        assert len(texts["train"] | texts["validation"]) == 80
        held_out.update(texts["validation"])
    written = [json.loads(line)["text"] for line in text_file.read_text("utf-8").splitlines()]
    assert held_out == Counter(written)


def test_a_language_model_over_folds_is_reported_planned_and_compared_as_rows_are(
    text_run: Path, text_recipe: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    result, parts = told(text_run), [told(text_run / "folds" / f"fold-{n}") for n in range(1, FOLDS + 1)]
    assert result["metrics"].keys() == result["spread"].keys() == parts[0]["metrics"].keys()
    values = [part["metrics"]["bits_per_byte"] for part in parts]
    assert len(set(values)) == FOLDS
    assert result["primary"]["value"] == pytest.approx(statistics.mean(values))
    assert result["spread"]["bits_per_byte"] == pytest.approx(statistics.stdev(values))
    assert (result["steps"], result["unit"], result["continues_text"]) == (FOLDS * STEPS, "tokens", True)
    page = (text_run / "report.html").read_text("utf-8")
    assert f"Means over {FOLDS} folds" in page and "Standard deviation" in page
    assert load(text_run).predict(["the king"], max_tokens=2)[0]["prompt"] == "the king"
    assert plan(text_recipe, out=tmp_path)["folds"] == FOLDS
    found = compare([text_run, finished])
    of_folds, of_one = (side.label for side in found.sides)
    told_folds = next(row for row in found.settings if row.name == "data.folds")
    assert told_folds.values == {of_folds: FOLDS, of_one: None}
    assert found.figures["bits_per_byte"][of_folds]["value"] == result["primary"]["value"]
    assert "it is over folds" in found.pairings[of_one].why


def test_a_language_model_stopped_in_its_second_fold_goes_on_to_the_same_figures(
    text_recipe: dict[str, Any], text_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(text_recipe, out=folder, tools=stopping(2, 2))
    assert sorted(path.name for path in (folder / "folds").iterdir()) == ["fold-1", "fold-2"]
    finished = {path: path.stat().st_mtime_ns for path in _files(folder, 1)}
    resume(folder, tools=quiet())
    again, straight = told(folder), told(text_run)
    for name in ("metrics", "spread", "folds", "primary", "steps", "tokens", "flops", "model_of"):
        assert again[name] == straight[name], name
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert sha256(folder / "model" / "model.safetensors") == sha256(text_run / "model" / "model.safetensors")


def test_pieces_of_one_text_are_folds(text_recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(" ".join(f"word {n}" for n in range(600)), "utf-8")
    data = {**text_recipe["data"], "source": str(tmp_path / "one.txt"), "split": "tail", "folds": 2}
    run = train({**text_recipe, "data": data}, out=tmp_path / "run").folder
    assert len(told(run)["folds"]) == 2


def test_what_of_a_text_cannot_be_in_folds_is_refused(
    small: dict[str, Any], text_recipe: dict[str, Any], tmp_path: Path
) -> None:
    def tried(**data: Any) -> None:
        train({**small, "data": {**small["data"], **data}}, out=tmp_path / "run")

    with pytest.raises(RecipeError, match=r"folds are parts of source.*leave data\.validation out"):
        tried(folds=FOLDS, validation=small["data"]["source"])
    with pytest.raises(RecipeError, match="fold counts from 0 to folds - 1"):
        tried(folds=FOLDS, fold=FOLDS)
    with pytest.raises(RecipeError, match="fold counts from 0 to folds - 1"):
        tried(fold=0)
    prepare(small, out=tmp_path / "whole")
    with pytest.raises(RecipeError, match="folds split the data anew"):
        tried(source=str(tmp_path / "whole"), folds=FOLDS)
    with pytest.raises(RecipeError, match=r"prepared with another data\.folds"):
        tried(source=str(tmp_path / "whole"), folds=FOLDS, fold=1)
    prepare(text_recipe, "data.fold=1", out=tmp_path / "one")
    with pytest.raises(RecipeError, match=r"prepared with another data\.fold"):
        tried(source=str(tmp_path / "one"), folds=FOLDS, fold=2)
    assert not (tmp_path / "run").exists()
    tried(source=str(tmp_path / "one"))  # one of them may be prepared, and is trained on as what it is
    assert told(tmp_path / "run", "recipe.json")["data"]["fold"] == 1
    assert not (tmp_path / "run" / "folds").exists()
