"""`luban compare`: only what differs is listed; a difference of figures comes in pairs, or with the reason why not."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luban import cli
from luban.errors import InputError
from luban.evaluation.comparing import _labels
from luban.evaluation.pairing import Measured, pair
from luban.metrics.document_losses import DocumentLosses
from luban.metrics.intervals import paired_interval
from luban.metrics.paired import paired_difference
from luban.metrics.row_scores import RowScores
from luban.metrics.text_loss import LN2
from luban.verbs.compare import compare, told
from luban.verbs.train import train


@pytest.fixture(scope="module")
def other(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another rate on the same data."""
    changed = {**small, "train": {**small["train"], "learning_rate": 1e-4}}
    return train(changed, out=tmp_path_factory.mktemp("other") / "other").folder


@pytest.fixture(scope="module")
def wider(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another tokenizer: the same texts in other tokens."""
    changed = {**small, "data": {**small["data"], "vocab_size": 270}, "train": {**small["train"], "steps": 4}}
    return train(changed, out=tmp_path_factory.mktemp("wider") / "wider").folder


def losses(
    texts: list[int], nats: list[float], tokens: list[int], windows: list[tuple[float, int]], ids: str
) -> Measured:
    sizes = np.array(tokens, np.int64)
    return Measured(
        ids,
        "finished",
        DocumentLosses(
            digest=np.array(texts, np.int64),
            nats=np.array(nats),
            tokens=sizes,
            bytes=4 * sizes,
            characters=3 * sizes,
            window_nats=np.array([n for n, _ in windows]),
            window_tokens=np.array([t for _, t in windows], np.int64),
            token_digest=ids,
        ),
    )


def test_only_what_differs_is_listed_and_the_difference_is_paired(finished: Path, other: Path) -> None:
    found = compare([finished, other])
    rate = json.loads((finished / "recipe.json").read_text("utf-8"))["train"]["learning_rate"]
    assert [(row.name, dict(row.values)) for row in found.settings] == [
        ("train.learning_rate", {"run": rate, "other": 0.0001})
    ]
    assert found.data == {"other": []}
    assert not found.equal
    pairing = found.pairings["other"]
    # Sixteen documents or so are fewer than thirty: windows are drawn, and both runs have the same.
    assert not pairing.why and pairing.unit in ("documents", "windows") and pairing.count >= 2
    for name in ("bits_per_byte", "loss", "nats_per_character"):
        difference, low, high = pairing.differences[name]
        values = [found.figures[name][label]["value"] for label in ("run", "other")]
        assert difference == pytest.approx(values[1] - values[0], rel=1e-9)
        assert low <= difference <= high
    text = "\n".join(told(found))
    assert f"train.learning_rate   {rate} " in text
    assert "other less run, paired over" in text


def test_equal_runs_are_told_to_be_equal_and_one_bit_makes_them_differ(
    finished: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    found = compare([finished, again])
    assert "same weights" in found.equal and not found.settings
    assert all(difference == (0.0, 0.0, 0.0) for difference in found.pairings["again"].differences.values())
    assert told(found)[0].startswith("The runs are equal")
    weights = bytearray((again / "model" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (again / "model" / "model.safetensors").write_bytes(weights)
    assert not compare([finished, again]).equal


def test_other_tokens_of_the_same_text_are_not_paired_where_only_tokens_could_be(
    finished: Path, wider: Path
) -> None:
    found = compare([finished, wider])
    assert {row.name for row in found.settings} == {"data.vocab_size", "train.steps"}
    assert any("data.vocab_size" in line for line in found.data["wider"])
    pairing = found.pairings["wider"]
    if pairing.why:
        assert "tokenizers cut them differently" in pairing.why
    else:
        assert set(pairing.differences) == {"bits_per_byte", "nats_per_character"}


def test_documents_are_paired_by_their_text_in_whatever_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    count = 40
    nats, more, tokens = random.gamma(9, 1, count), random.gamma(9, 1, count), random.integers(5, 50, count)
    order = random.permutation(count)
    texts = list(range(count))
    a = losses(texts, nats.tolist(), tokens.tolist(), [], "x")
    b = losses(order.tolist(), more[order].tolist(), tokens[order].tolist(), [], "y")
    found = pair(a, b, resamples=500)
    assert (found.unit, found.count) == ("documents", count)
    assert set(found.differences) == {
        "bits_per_byte",
        "nats_per_character",
    }  # other tokens: no loss per token
    expected = paired_interval((nats, 4 * tokens * LN2), (more, 4 * tokens * LN2), resamples=500)
    assert found.differences["bits_per_byte"] == pytest.approx(expected)


def test_windows_of_other_lengths_are_matched_where_both_end() -> None:
    a = losses([1], [21.0], [60], [(1.0, 10), (2.0, 10), (3.0, 10), (4.0, 10), (5.0, 10), (6.0, 10)], "x")
    b = losses([1], [27.0], [60], [(4.0, 20), (9.0, 20), (14.0, 20)], "x")
    found = pair(a, b, resamples=500)
    assert (found.unit, found.count) == ("windows", 3)
    size = np.full(3, 20.0)
    expected = paired_interval(
        (np.array([3.0, 7.0, 11.0]), size), (np.array([4.0, 9.0, 14.0]), size), resamples=500
    )
    assert found.differences["loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (Measured("b", "died", None), "b has no record .* it did not finish"),
        (Measured("b", "finished", None), "an earlier luban made it"),
        (
            losses([1, 2, 9], [1.0] * 3, [5] * 3, [], "x"),
            "the held-out texts differ: 2 documents are in both",
        ),
        (
            losses([1, 1, 2], [1.0] * 3, [5] * 3, [], "x"),
            "the held-out texts differ: 2 documents are in both",
        ),
        (losses([1, 2, 3], [1.0] * 3, [5] * 3, [(3.0, 15)], "y"), "the tokenizers cut them differently"),
        (losses([1, 2, 3], [1.0] * 3, [5] * 3, [(3.0, 15)], "x"), "one piece"),
    ],
)
def test_what_cannot_be_paired_says_why(second: Measured, why: str) -> None:
    first = losses([1, 2, 3], [1.0] * 3, [5] * 3, [(3.0, 15)], "x")
    assert re.search(why, pair(first, second, resamples=10).why)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.shown, self.loads = "", set[str]()
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.shown += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads |= {
            str(value)[:30]
            for name, value in attrs
            if name in ("src", "href") and not str(value).startswith("#")
        }


def test_the_page_is_whole_in_one_file_in_both_languages(
    finished: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(other, evil)
    page = tmp_path / "c.html"
    monkeypatch.setattr(
        sys, "argv", ["luban", "compare", str(finished), str(evil), "--html", str(page), "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    answer = json.loads(capsys.readouterr().out)
    assert answer["settings"]["train.learning_rate"]["script>"] == 0.0001
    assert answer["settings"].keys() == {"train.learning_rate"}
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    parsed = _Page(text)
    assert all(load.startswith("data:") for load in parsed.loads)
    for part in (
        "Settings that differ",
        "不同的设置",
        "train.learning_rate",
        "Paired bootstrap",
        "配对自助重抽样",
    ):
        assert part in parsed.shown
    tables = json.loads(re.search(r'id="read-out">(.*?)</script>', text)[1])["tables"]  # type: ignore[index]
    assert set(tables) == {f"{n}-{a}" for n in ("loss", "validation") for a in ("step", "tokens", "seconds")}
    assert text.count('<svg class="plot"') == 6
    first = page.read_bytes()
    compare([finished, evil], html=page)
    assert page.read_bytes() == first


def test_fewer_than_two_runs_or_no_run_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two runs or more"):
        compare([finished])
    with pytest.raises(InputError, match="there is no run"):
        compare([finished, tmp_path])
    with pytest.raises(InputError, match="folder for the page"):
        compare([finished, finished], html=tmp_path / "none" / "c.html")


def test_labels_are_as_short_as_tells_apart() -> None:
    assert _labels(["/a/x/run", "/b/y/run"]) == ["x/run", "y/run"]
    assert _labels(["runs/a", "runs/b"]) == ["a", "b"]
    assert len(set(_labels(["runs/a", "runs/a"]))) == 2


def test_an_interrupted_run_is_compared_by_what_it_logged(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "part"
    shutil.copytree(finished, run)
    for name in ("result.json", "evaluation.json"):
        (run / name).unlink()
    lines = (run / "events.jsonl").read_text("utf-8").splitlines()
    (run / "events.jsonl").write_text(lines[0] + "\n", "utf-8")
    found = compare([finished, run])
    assert found.figures["bits_per_byte"]["part"]["step"] == 12.0
    assert "part did not finish: it ended without a word" in told(found)
    assert "part has no record" in found.pairings["part"].why


def test_figures_that_are_no_means_are_paired_by_their_resamples() -> None:
    digest, draws = np.arange(3, dtype=np.int64), np.random.default_rng(0).normal(size=400)
    changes = np.linspace(-1.0, 3.0, 401)
    first = RowScores(digest, {}, {"bleu": draws, "roc_auc": draws})
    second = RowScores(digest, {}, {"bleu": np.append(draws, 0.0)[:401] + changes, "chrf": draws})
    sides = (("a", first, {"bleu": 30.0, "roc_auc": 0.5}), ("b", second, {"bleu": 31.0, "roc_auc": 0.5}))
    measured = [Measured(name, "finished", None, scores, figures) for name, scores, figures in sides]
    found = pair(*measured, resamples=200).differences
    assert found.keys() == {"bleu"}  # what only one of them had resampled has no difference
    assert found["bleu"] == pytest.approx((1.0, *np.quantile(changes[:400], [0.025, 0.975])))


def test_rows_are_paired_with_a_p_value_and_figures_that_are_ratios_by_their_parts() -> None:
    draws = np.random.default_rng(0)
    digest = np.arange(60, dtype=np.int64)
    hits, there = draws.integers(0, 3, (2, 60)).astype(float), np.full(60, 4.0)
    right = (draws.random((2, 60)) < [[0.5], [0.9]]).astype(float)
    sides = [
        RowScores(digest, {"accuracy": right[n], "entity_f1": 2 * hits[n], "entity_f1/of": there})
        for n in (0, 1)
    ]
    measured = [Measured(name, "finished", None, scores) for name, scores in zip("ab", sides, strict=True)]
    found = pair(*measured, resamples=200)
    assert found.differences.keys() == {"accuracy", "entity_f1"}
    assert found.differences["entity_f1"][0] == pytest.approx(
        (2 * hits[1].sum() - 2 * hits[0].sum()) / there.sum()
    )
    assert found.chances.keys() == {"accuracy"}
    assert found.chances["accuracy"] == paired_difference(right[0], right[1]).p < 0.001
    assert found.as_json()["differences"]["accuracy"]["p"] == found.chances["accuracy"]
