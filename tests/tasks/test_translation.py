"""Translation from files to answers: both sides' tokens, batches by cost, search, figures as sacrebleu counts them."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from luban.data.row_sets import PreparedRows
from luban.errors import DataError, InputError
from luban.tasks.row_learner import RowLearner
from luban.tasks.starting import with_its_tokenizer
from luban.tasks.translation import Translated, Translation
from luban.verbs.evaluate import evaluate
from luban.verbs.load import load
from luban.verbs.predict import predict
from luban.verbs.train import train

Prepare = Callable[..., PreparedRows]


def pairs(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return made-up pairs, no two alike."""
    found = Translation.sample(count, random.Random(seed))
    return [
        {"source": f"{row['source']} {n}", "target": f"{n} {row['target']}"} for n, row in enumerate(found)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def recipe(rows: str, **changes: Any) -> dict[str, Any]:
    made = Translation.example(rows)
    settings = {"train": {"steps": 12, "compile": "off"}, "evaluate": {"beam": 2, "bootstrap": 10}, **changes}
    for name, section in settings.items():
        made[name] = {**made.get(name, {}), **section}
    return made


def validated(rows: str, **changes: Any) -> Any:
    return Translation.recipe.model_validate(recipe(rows, **changes))


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    made: Iterator[int] = iter(range(100))

    def prepared(rows: list[dict[str, Any]], **data: Any) -> PreparedRows:
        path = tmp_path / f"{next(made)}.jsonl"
        settings = validated(write(path, rows), data=data)
        return Translation.prepare(
            settings, path.with_suffix(""), stop=lambda: None, progress=lambda stage, share: None
        )

    return prepared


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train(recipe(write(folder / "rows.jsonl", pairs(80))), out=folder / "run").folder


@pytest.mark.parametrize(
    ("columns", "asked", "found"),
    [
        (["target", "source"], {}, ("source", "target")),
        (["Answer", "prompt"], {}, ("prompt", "Answer")),
        (["de", "output", "note"], {"source": "de"}, ("de", "output")),
        (["src", "en"], {}, ("src", "en")),
        (["de", "en"], {"target": "de"}, ("en", "de")),
        (["de", "en"], {"source": "en"}, ("en", "de")),
        (["source", "de"], {"target": "source"}, ("de", "source")),
        (["id", "question", "answer"], {}, ("question", "answer")),
        (["id", "source", "question"], {"target": "source"}, ("question", "source")),
    ],
)
def test_a_side_is_found_by_its_name_or_is_what_the_other_leaves_of_two_columns(
    columns: list[str], asked: dict[str, str], found: tuple[str, str]
) -> None:
    roles = Translation(validated("x", data=asked)).roles(columns)
    assert (roles["source"], roles["target"]) == found


def test_a_folder_of_two_texts_is_told_how_pairs_are_given(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for language in ("de", "en"):
        (tmp_path / "texts" / f"train.{language}").write_text("ein\nzwei\n", "utf-8")
    with pytest.raises(InputError, match="the folder holds no table") as error:
        Translation.fingerprint(validated(str(tmp_path / "texts")))
    assert str(error.value.fix).endswith("give two texts that go together line by line, [SOURCE, TARGET]")


def test_which_column_is_a_side_is_not_guessed() -> None:
    with pytest.raises(DataError, match=r"it cannot be told which column data\.source is"):
        Translation(validated("x", data={"target": "en"})).roles(["id", "de", "en"])
    # The second has no header, and the third holds an object of both sides.
    for columns in (["id", "de", "en"], ["ein Hund", "a dog"], ["translation"]):
        with pytest.raises(DataError, match="it cannot be told which columns are source and target") as error:
            Translation(validated("x")).roles(columns)
        assert "data.source=COLUMN data.target=COLUMN" in str(error.value)


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        ("de\ten\ttopic\n", {"source": "de", "target": "en"}),
        ("de\ten\ttopic\n", {"columns": ["de", "en"]}),
        ("", {"columns": ["0", "1"]}),
    ],
)
def test_the_sides_of_a_table_are_those_that_the_recipe_names(
    tmp_path: Path, head: str, asked: dict[str, Any]
) -> None:
    rows = "".join(f"{row['source']} {n}\t{row['target']} {n}\tx\n" for n, row in enumerate(pairs(30)))
    (tmp_path / "rows.tsv").write_text(head + rows, "utf-8")
    settings = validated(str(tmp_path / "rows.tsv"), data=asked)
    data = Translation.prepare(settings, tmp_path / "out", stop=lambda: None, progress=lambda *_: None)
    shown = next(iter(data.train.rows()))["values"]
    assert shown.keys() == {"source", "target"}
    roles = data.fitted.state["roles"]
    known = Translation(settings, data.fitted)
    named = known.clean({roles["source"]: "ein Hund", roles["target"]: "a dog"}, roles)
    assert named == known.clean({"source": "ein Hund", "target": "a dog"}, roles)


def test_figures_of_pairs_by_a_column_of_their_table(tmp_path: Path) -> None:
    rows = [{**row, "topic": "ab"[n % 2]} for n, row in enumerate(pairs(40))]
    path = write(tmp_path / "rows.jsonl", rows)
    settings = validated(path, evaluate={"slices": ["topic"]})
    data = Translation.prepare(settings, tmp_path / "out", stop=lambda: None, progress=lambda *_: None)
    assert {row["beside"]["topic"] for row in data.train.rows()} == {"a", "b"}
    wrong = validated(path, evaluate={"slices": ["topics"]})
    with pytest.raises(DataError, match="the rows have no such column") as error:
        Translation.prepare(wrong, tmp_path / "other", stop=lambda: None, progress=lambda *_: None)
    assert (error.value.where, error.value.fix) == (
        "evaluate.slices",
        "did you mean evaluate.slices=topic? there are: source, target, topic",
    )


def test_bad_pairs_are_counted_by_kind(prepare: Prepare) -> None:
    bad = [
        ({"source": "", "target": "x"}, "empty_row", "the source is empty"),
        ({"source": "x", "target": " "}, "empty_row", "the target is empty"),
        ({"source": "x"}, "missing_value", "the row has no target"),
        ({"source": "x", "target": None}, "missing_value", "the row has no target"),
        ({"source": 3, "target": "x"}, "not_text", "the source is no text; received '3'"),
        ({"source": "x" * 50, "target": "y"}, "too_long", "51 and 2 tokens, data.length is 40"),
    ]
    for row, kind, detail in bad:
        data = prepare([*pairs(40), row])
        (example,) = data.report["bad_rows"]["kinds"][kind]["examples"]
        assert (example["line"], example["detail"]) == (41, detail)
        assert (data.report["bad_rows"]["total"], data.report["rows"]) == (1, 40)


def test_a_side_ends_with_one_end_token_and_a_target_begins_with_one(prepare: Prepare) -> None:
    data = prepare(pairs(40))
    tokenizer = data.fitted.tokenizers[""]
    row = data.train.row(0)["values"]
    columns, lengths = data.train.gather(np.array([0]))
    source, target = (columns[side][0, : lengths[side][0]].tolist() for side in ("source", "target"))
    end = tokenizer.end_id
    assert source == [*tokenizer.encode(row["source"]), end]
    assert target == [end, *tokenizer.encode(row["target"]), end]


def test_a_source_to_be_answered_is_encoded_as_in_training_and_cut_where_it_is_too_long(
    prepare: Prepare,
) -> None:
    data = prepare(pairs(40))
    task = Translation(validated("x"), data.fitted)
    end = data.fitted.tokenizers[""].end_id
    for count in (1, 38, 39, 40, 60):
        text = "o" * count
        asked = task.encode({"source": text})["source"].tolist()
        assert asked == [*data.fitted.tokenizers[""].encode(text)[:39], end]
        if count < 40:
            assert asked == task.encode({"source": text, "target": "u"})["source"].tolist()


def test_vocabularies_are_learned_from_training_rows_together_or_for_each_side(
    prepare: Prepare, tmp_path: Path
) -> None:
    test = write(tmp_path / "test.jsonl", [{"source": "one Ω", "target": "una Ψ"}])
    together = prepare(pairs(40), test=test)
    assert list(together.fitted.tokenizers) == [""]
    apart = prepare(pairs(40), test=test, shared=False, tokenizer="word")
    source, target = apart.fitted.tokenizers[""], apart.fitted.tokenizers["target"]
    assert [source.token(source.encode(word)[0]) for word in ("three", "tria")] == ["three", "<|unknown|>"]
    assert [target.token(target.encode(word)[0]) for word in ("three", "tria")] == ["<|unknown|>", "tria"]
    assert source.token(source.encode("Ω")[0]) == "<|unknown|>"


@pytest.mark.parametrize("network", ["transformer", "lstm", "gru"])
def test_the_loss_is_torchs_smoothed_cross_entropy_over_what_is_written(
    prepare: Prepare, network: str
) -> None:
    data = prepare(pairs(40))
    settings = validated(
        "x", model={"network": network, "width": 32, "heads": 2}, objective={"label_smoothing": 0.1}
    )
    task = Translation(settings, data.fitted)
    torch.manual_seed(0)
    model = task.build().eval()
    tensors = task.collate(*data.train.gather(np.arange(8)))
    logits = task.outputs(model, tensors)
    wanted = tensors["target"].long()[:, 1:]
    there = tensors["target_mask"][:, 1:]
    theirs = F.cross_entropy(logits[there], wanted[there], reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(task.batch_loss(model, tensors), theirs, rtol=1e-4, atol=1e-4)
    assert task.count(tensors) == int(there.sum())
    assert task.count(tensors) == sum(
        len(row["values"]["target"]) + 1 for row in map(data.train.row, range(8))
    )


def test_a_batch_is_as_long_as_its_longest_text_on_each_side(prepare: Prepare) -> None:
    data = prepare(pairs(60))
    task = Translation(validated("x"), data.fitted)
    columns, lengths = data.train.gather(np.arange(9))
    tensors = task.collate(columns, lengths)
    for side in ("source", "target"):
        longest = int(lengths[side].max())
        assert tensors[side].shape == tensors[f"{side}_mask"].shape == (9, longest)
        assert (tensors[side].numpy() == columns[side][:, :longest]).all()
        assert tensors[f"{side}_mask"].sum(1).tolist() == lengths[side].tolist()


def test_batches_hold_pairs_of_like_length_within_the_cost(prepare: Prepare) -> None:
    data = prepare(pairs(150))
    settings = validated(
        "x", data={"batch_tokens": 200}, train={"steps": 1, "batch": 4, "learning_rate": 1e-3}
    )
    learner = RowLearner(Translation(settings, data.fitted), data)
    lengths = np.maximum(data.train.lengths("source"), data.train.lengths("target"))
    seen: list[int] = []
    for step in range(learner.steps(1.0)):
        rows = learner._order.rows(step)
        seen += rows.tolist()
        assert len(rows) == 1 or lengths[rows].max() * len(rows) <= 200
    assert sorted(seen) == list(range(len(data.train)))
    assert learner.epoch(learner.steps(1.0)) == 1.0


def test_figures_of_the_run_are_those_of_sacrebleu_on_its_answers(run: Path) -> None:
    result = json.loads((run / "result.json").read_text("utf-8"))
    rows = [row["values"] for row in PreparedRows(run / "data").held_out.rows()]
    said = [answer["text"] for answer in load(run).predict([row["source"] for row in rows])]
    right = [row["target"] for row in rows]
    assert result["metrics"]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score)
    assert result["metrics"]["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [right]).score)
    again = evaluate(run, bootstrap=0).figures
    assert again["chrf"] == pytest.approx(result["metrics"]["chrf"])
    written = json.loads((run / "evaluation.json").read_text("utf-8"))
    assert "tok:13a" in written["translation"]["signature"]


def test_the_worst_translations_show_where_the_network_looked(run: Path) -> None:
    errors = json.loads((run / "evaluation.json").read_text("utf-8"))["errors"]
    assert errors
    source = load(run).kind.fitted.tokenizers[""]
    for error in errors:
        pair, *rest = error["parts"]
        if not pair["answer"]:
            continue
        (seen,) = rest
        assert seen["kind"] == "attention" and seen["method"] == "last_layer"
        assert len(seen["columns"]) == len(source.encode(pair["source"])) + 1  # its end token too
        assert len(seen["weights"]) == len(seen["rows"])
        for line in seen["weights"]:
            assert sum(line) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("data", [{"tokenizer": "bpe"}, {"tokenizer": "word", "shared": False}])
def test_a_translation_that_starts_from_another_reads_and_writes_with_its_tokenizers(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    first = recipe(write(tmp_path / "a.jsonl", pairs(60)), data=data, train={"steps": 1, "compile": "off"})
    first["model"]["tied"] = data["tokenizer"] == "bpe"
    begun = train(first, out=tmp_path / "first").folder
    second = recipe(write(tmp_path / "b.jsonl", pairs(50, seed=2)), train={"steps": 1, "compile": "off"})
    second["model"] = {**first["model"], "start": str(begun)}
    second["data"].pop("tokenizer", None)
    folder = train(second, out=tmp_path / "second").folder
    names = {"", "target"} if "shared" in data else {""}
    for name in names:
        own, theirs = (load(run).kind.fitted.tokenizers[name].text for run in (folder, begun))
        assert own == theirs
    told = json.loads((folder / "plan.json").read_text("utf-8"))["started"]["told"]
    assert "new:" not in told
    named = with_its_tokenizer(
        validated(str(tmp_path / "b.jsonl"), data={"tokenizer": "word"}), begun / "model"
    )
    assert named.data.tokenizer == "word"  # what a recipe names itself stays


def test_chinese_targets_are_measured_in_characters(prepare: Prepare) -> None:
    rows = [{"source": f"one {n}", "target": f"一个句子{n}"} for n in range(30)]
    data = prepare(rows)
    assert data.fitted.state["chinese"]
    task = Translation(validated("x"), data.fitted)
    numbers = np.arange(len(data.train))
    said = [Translated(data.train.row(int(n))["values"]["target"], 0.0, []) for n in numbers]
    scores: Any = task.scores(said, data.train, numbers)
    assert "tok:zh" in scores.signatures()["bleu"]
    assert scores.figures()["bleu"] == pytest.approx(100.0)


def test_written_words_are_compared_as_the_tokenizer_cuts_them(prepare: Prepare) -> None:
    rows = [{"source": f"a {n}", "target": f"The word, {n}!"} for n in range(30)]
    data = prepare(rows, tokenizer="word")
    task = Translation(validated("x", data={"tokenizer": "word"}), data.fitted)
    number = data.train.row(4)["values"]["source"].split()[1]
    scores: Any = task.scores([Translated(f"the word , {number} !", 0.0, [])], data.train, np.array([4]))
    assert scores.figures()["bleu"] == pytest.approx(100.0)
    assert "tok:none" in scores.signatures()["bleu"]


def test_rows_are_answered_in_order_and_bad_ones_in_their_place(run: Path, tmp_path: Path) -> None:
    lines = [
        '"one two"',
        '{"source": "one two", "target": ""}',
        '{"source": ""}',
        '{"target": "x"}',
        "3",
        '"one two"',
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    answers = list(predict(run, source=tmp_path / "asked.jsonl"))
    assert [answer["row"] for answer in answers] == list(range(6))
    assert answers[0]["text"] == answers[1]["text"] == answers[5]["text"]
    assert [answer.get("error") for answer in answers[2:5]] == [
        "the source is empty",
        "the row has no source",
        "a row is an object with columns; received '3'",
    ]


def test_a_table_of_sources_needs_no_targets(run: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text("id,source\n1,one two\n2,\n3,one two\n")
    answers = list(predict(run, source=tmp_path / "asked.csv"))
    assert answers[0]["text"] == answers[2]["text"]
    assert answers[1]["error"] == "the source is empty"


def test_the_beam_is_the_recipes_unless_asked_for_another(run: Path) -> None:
    model, asked = load(run), [row["source"] for row in pairs(6, 4)]
    narrow, wide = (model.predict(asked, beam=beam) for beam in (1, 4))
    assert all("text" in answer for answer in narrow + wide)
    assert load(run).predict(asked) == model.predict(asked, beam=2)  # the recipe's
    with pytest.raises(InputError, match="a beam is a number of hypotheses"):
        model.predict(asked, beam=-1)
    with pytest.raises(InputError, match="has no such setting"):
        model.predict(asked, temperature=1.0)


def test_evaluation_on_a_file_leaves_bad_pairs_out_and_says_so(run: Path, tmp_path: Path) -> None:
    good = pairs(6, 3)
    found = evaluate(
        run, write(tmp_path / "rows.jsonl", [{"source": "x" * 99, "target": "y"}, *good]), bootstrap=0
    )
    assert found.counts == {"rows": 6, "left_out": 1}
    clean = evaluate(run, write(tmp_path / "good.jsonl", good), bootstrap=0)
    assert found.figures == pytest.approx(clean.figures)


def test_two_vocabularies_are_kept_with_the_model(tmp_path: Path) -> None:
    made = recipe(
        write(tmp_path / "rows.jsonl", pairs(40)),
        data={"shared": False},
        train={"steps": 2, "compile": "off"},
    )
    folder = train(made, out=tmp_path / "run").folder
    kind = load(folder).kind
    made_of = PreparedRows(folder / "data").fitted.tokenizers
    assert list(kind.fitted.tokenizers) == list(made_of) == ["", "target"]
    for name, tokenizer in kind.fitted.tokenizers.items():
        assert tokenizer.encode("four kvara") == made_of[name].encode("four kvara")
    assert made_of[""].encode("four kvara") != made_of["target"].encode("four kvara")
    assert "text" in load(folder).predict(["one two"])[0]
