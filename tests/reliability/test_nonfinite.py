"""Numbers that are none: found, told, and kept out of weights, checkpoints and the choice of the best."""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from interruptions import by_two, in_child, recipe
from nonfinite import STEPS, Case, Sitting, sweep

from luban.durable import FileSystem
from luban.errors import NonFiniteError
from luban.tasks.language_model import LanguageModel, TextBatch
from luban.training.nonfinite import PATIENCE
from luban.verbs import decisions
from luban.verbs.train import train

TRIED = 36


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk() -> Any:
    """What is tested here is no matter of power cuts."""
    with (
        mock.patch.object(FileSystem, "sync", lambda self, file: file.flush()),
        mock.patch.object(FileSystem, "sync_folder", lambda self, folder: None),
    ):
        yield


def test_wherever_a_number_is_none_nothing_of_it_stays(tmp_path: Path) -> None:
    outcomes = sweep(tmp_path, count=TRIED, seed=0)
    assert not [outcome for outcome in outcomes if outcome.startswith("BROKEN")], outcomes
    assert outcomes.total() == TRIED
    assert len(outcomes) >= 6


@pytest.mark.parametrize("bad", [PATIENCE - 1, PATIENCE])
def test_skipping_has_an_end(tmp_path: Path, bad: int) -> None:
    sitting = Sitting(tmp_path / "run", Case("loss", math.nan, 2, "skip", "adamw"))
    sitting.learner.factors = {(step, 0): math.nan for step in range(2, 2 + bad)}
    if bad < PATIENCE:
        progress = sitting.do()
        assert (progress.step, progress.skipped, progress.skipped_in_a_row) == (STEPS, bad, 0)
        return
    with pytest.raises(
        NonFiniteError, match=f"step {2 + bad} is not finite.*nor were the {bad - 1} before it"
    ):
        sitting.do()
    assert sitting.loop.progress.step == 2 + bad - 1
    # The steps left out are counted across sittings, or a run that is restarted would never end.
    again = Sitting(tmp_path / "run", sitting.case)
    again.learner.factors = sitting.learner.factors
    with pytest.raises(NonFiniteError, match=f"step {2 + bad} is not finite"):
        again.do()


def test_a_weight_that_is_none_ends_the_run_whatever_the_policy(tmp_path: Path) -> None:
    sitting = Sitting(tmp_path / "run", Case("weight", math.inf, 4, "skip", "muon"))
    with pytest.raises(NonFiniteError, match=r"the weight hidden\.weight of step 5 is not finite"):
        sitting.do()


def spoiled(document: int) -> Any:
    """Make the loss of every window that begins in a document NaN."""
    plain = LanguageModel.loss

    def loss(self: LanguageModel, batch: TextBatch) -> Any:
        value = plain(self, batch)
        return (
            value * math.nan
            if any(row["document"] == document for row in batch.describe()["rows"])
            else value
        )

    return mock.patch.object(LanguageModel, "loss", loss)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_verb_says_which_text_it_was(tmp_path: Path, ranks: int) -> None:
    settings = recipe(tmp_path)
    settings["train"] |= {"steps": 40, "on_nonfinite": "skip"}

    def work(*rank: int) -> None:
        with spoiled(document=7), mock.patch.object(decisions, "rehearse", rehearsed):
            train(settings, out=tmp_path / "run")

    plain = decisions.rehearse

    def rehearsed(*arguments: Any, **named: Any) -> Any:
        with mock.patch.object(LanguageModel, "loss", clean):
            return plain(*arguments, **named)

    clean = LanguageModel.loss
    code, said = in_child(work) if ranks == 1 else by_two(work)
    assert code == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "non-finite"]
    assert found
    for line in found:
        for batch in line["batches"]:
            rows = {row["document"]: row["text"] for row in batch["rows"]}
            assert 7 in rows and rows[7].strip()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    warned = [event["message"] for event in events if event["event"] == "warning"]
    assert len([message for message in warned if "is not finite" in message]) == len(found)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "done" and math.isfinite(result["primary"]["value"])
