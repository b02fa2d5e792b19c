"""Sequence labelling from files to answers: a tag for every token, alone or in a batch, bad sentences by name."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score

from luban.data.row_sets import BadValue, Fitted, PreparedRows
from luban.data.tokenizer import train_tokenizer
from luban.errors import DataError
from luban.models.tagger import Tagger
from luban.tasks.sequence_labelling import UNKNOWN, SequenceLabelling
from luban.tasks.starting import Start, take_over
from luban.verbs.evaluate import evaluate
from luban.verbs.export import export
from luban.verbs.load import load
from luban.verbs.predict import predict
from luban.verbs.train import train

Prepare = Callable[..., PreparedRows]


def sentences(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return made-up sentences, no two alike."""
    rows = SequenceLabelling.sample(count, random.Random(seed))
    return [{"tokens": [*row["tokens"], str(n)], "tags": [*row["tags"], "O"]} for n, row in enumerate(rows)]


def conll(rows: list[dict[str, Any]]) -> bytes:
    told = ("".join(f"{a}\t{b}\n" for a, b in zip(row["tokens"], row["tags"], strict=True)) for row in rows)
    return "\n".join(told).encode()


def recipe(rows: str, **changes: Any) -> dict[str, Any]:
    made = SequenceLabelling.example(rows)
    settings = {
        "train": {"steps": 40, "batch": 16, "compile": "off", "learning_rate": 0.02},
        "evaluate": {"bootstrap": 20},
        **changes,
    }
    for name, section in settings.items():
        made[name] = {**made.get(name, {}), **section}
    return made


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    made: Iterator[int] = iter(range(100))

    def prepared(content: bytes | list[dict[str, Any]], **data: Any) -> PreparedRows:
        table = isinstance(content, list)
        path = tmp_path / f"{next(made)}.{'jsonl' if table else 'conll'}"
        path.write_bytes("".join(json.dumps(row) + "\n" for row in content).encode() if table else content)  # type: ignore[arg-type]
        settings = SequenceLabelling.recipe.model_validate(recipe(str(path), data=data))
        return SequenceLabelling.prepare(
            settings, path.with_suffix(""), stop=lambda: None, progress=lambda stage, share: None
        )

    return prepared


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "rows.conll").write_bytes(conll(sentences(120)))
    return train(recipe(str(folder / "rows.conll")), out=folder / "run").folder


def test_lines_and_lists_are_the_same_rows(prepare: Prepare) -> None:
    lines, lists = prepare(conll(sentences(40))), prepare(sentences(40))
    assert lines.fitted.state == lists.fitted.state
    assert [row["values"] for row in lines.train.rows()] == [row["values"] for row in lists.train.rows()]
    assert lines.fitted.state["tags"][0] == "O"
    assert lines.fitted.state["scheme"] == "IOB2"


def test_bad_sentences_are_counted_by_kind_and_line(prepare: Prepare) -> None:
    bad = [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "unequal_lengths", "2 tokens, but 1 tags"),
        ({"tokens": [], "tags": []}, "empty_row", "the sentence has no tokens"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "bad_value", "column 'tokens' holds str, not a list"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "not_text", "column 'tokens' has a token that is no text"),
        ({"tokens": ["a"]}, "missing_column", "no column 'tags'; there are: tokens"),
        (
            {"tokens": ["a", "b"], "tags": ["O", None]},
            "not_text",
            "column 'tags' has a tag that is neither text nor a whole number",
        ),
        ({"tokens": ["a"] * 9, "tags": ["O"] * 9}, "too_long", "the sentence has 9 tokens, data.length is 8"),
    ]
    for row, kind, detail in bad:
        data = prepare([*sentences(40), row], length=8)
        assert data.report["bad_rows"]["total"] == 1, kind
        (example,) = data.report["bad_rows"]["kinds"][kind]["examples"]
        assert (example["line"], example["detail"]) == (41, detail)
        assert data.report["rows"] == 40


def test_rows_that_come_without_a_reader_are_checked_too() -> None:
    task = SequenceLabelling(SequenceLabelling.recipe.model_validate(recipe("x")))
    for row, detail in (
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a"], "tags": "O"}, "1 tokens and 0 tags"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "a token has no tag; received ['O', None]"),
        ({"tokens": "a b"}, "a list of tokens is wanted; received 'a b'"),
    ):
        with pytest.raises(BadValue) as bad:
            task.clean(row, {})
        assert bad.value.detail == detail
    assert task.clean({"tokens": ["a", "b"], "tags": ["O", 1]}, {})["tags"] == ["O", "1"]


def test_a_tag_that_training_never_had_is_named_with_the_nearest(prepare: Prepare, tmp_path: Path) -> None:
    test = [*sentences(3, 9), {"tokens": ["Rome"], "tags": ["B-LOK"]}]
    (tmp_path / "test.conll").write_bytes(conll(test))
    data = prepare(conll(sentences(40)), test=str(tmp_path / "test.conll"))
    (example,) = data.report["bad_rows"]["kinds"]["unknown_label"]["examples"]
    assert example["detail"] == "no training sentence has the tag 'B-LOK'; did you mean 'B-LOC'?"
    assert data.test is not None
    assert len(data.test) == 3


def test_one_tag_alone_is_refused(prepare: Prepare) -> None:
    with pytest.raises(DataError, match="there are 1 different tags") as one:
        prepare([{"tokens": [str(n)], "tags": ["O"]} for n in range(30)])
    assert one.value.received == ["O"]


def test_words_are_numbered_from_training_alone_and_spelled_by_their_characters(
    prepare: Prepare, tmp_path: Path
) -> None:
    (tmp_path / "test.conll").write_bytes(conll([{"tokens": ["ANN", "Zoë"], "tags": ["B-PER", "O"]}]))
    data = prepare(conll(sentences(60)), test=str(tmp_path / "test.conll"), characters=4)
    assert data.test is not None
    settings = SequenceLabelling.recipe.model_validate(recipe("x", data={"characters": 4}))
    task = SequenceLabelling(settings, data.fitted)
    columns, lengths = data.test.gather(np.array([0]))
    tensors = task.collate(columns, lengths)
    words, letters = data.fitted.state["words"], data.fitted.state["letters"]
    assert tensors["words"][0, :2].tolist() == [2 + words.index("ann"), UNKNOWN]
    assert tensors["letters"].shape == (1, 8, 4)
    known = {letter: number for number, letter in enumerate(letters, 2)}
    for place, word in enumerate(["ANN", "Zoë"]):
        spelled = [known.get(letter, UNKNOWN) for letter in word] + [0] * (4 - len(word))
        assert tensors["letters"][0, place].tolist() == spelled
    assert tensors["letters"][0, 2:].sum() == 0
    assert not set("Zë") & set(letters)


def test_words_that_came_once_are_numbered_last(prepare: Prepare) -> None:
    data = prepare(
        [{"tokens": ["b", "a", f"n{number:02}"], "tags": ["O", "B-X", "O"]} for number in range(40)]
    )
    words, once = data.fitted.state["words"], data.fitted.state["once"]
    assert words[:-once] == ["a", "b"]
    assert words[-once:] == sorted(words[-once:])
    assert once == len(data.train)


def test_tokens_that_are_characters_are_seen_with_their_neighbours_and_words_by_their_characters(
    prepare: Prepare,
) -> None:
    """Unless the recipe says otherwise."""
    words = prepare(sentences(40))
    letters = prepare(
        [{"tokens": [*"小明在北京", chr(0x4E00 + n)], "tags": [*"OOOO", "B-X", "O"]} for n in range(40)]
    )
    for data, filters, pairs in ((words, 64, 0), (letters, 0, 50_000)):
        for network, expected in (({}, (filters, pairs)), ({"characters": 5, "pairs": 7}, (5, 7))):
            settings = SequenceLabelling.recipe.model_validate(
                {"data": {"train": "x"}, "train": {"steps": 1}, "model": network}
            )
            model = SequenceLabelling(settings, data.fitted).build()
            assert isinstance(model, Tagger)
            assert (model.config.letter_filters, model.config.pairs) == expected


def test_it_learns_and_its_f1_is_that_of_seqeval(run: Path) -> None:
    result = json.loads((run / "result.json").read_text("utf-8"))
    data = PreparedRows(run / "data")
    right = [row["values"] for row in data.held_out.rows()]
    said = [answer["tags"] for answer in load(run).predict([{"tokens": row["tokens"]} for row in right])]
    f1 = f1_score([row["tags"] for row in right], said)
    assert result["primary"]["name"] == "entity_f1"
    assert result["primary"]["value"] == pytest.approx(f1)
    assert f1 > 0.8


def test_an_answer_tells_tags_probabilities_and_spans(run: Path) -> None:
    (answer,) = load(run).predict(["Bo Li left New York"])
    assert answer["tags"] == ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]
    assert answer["entities"] == [
        {"label": "PER", "first": 0, "end": 2},
        {"label": "LOC", "first": 3, "end": 5},
    ]
    assert all(0.0 < p <= 1.0 for p in answer["probabilities"])


def test_a_text_a_list_and_an_object_are_read_alike(run: Path) -> None:
    asked = [
        "Ann left Paris",
        ["Ann", "left", "Paris"],
        {"tokens": ["Ann", "left", "Paris"]},
        {"tokens": ["Ann", "left", "Paris"], "tags": ["O"]},
    ]
    first, *others = load(run).predict(asked)
    assert all(other == first for other in others)


def test_a_text_is_cut_as_training_tokens_were_and_for_a_bert_by_a_guess(prepare: Prepare) -> None:
    words = prepare(sentences(40)).fitted
    letters = prepare(
        [{"tokens": [*"我在北京", chr(0x4E00 + n)], "tags": [*"OOOO", "B-X"]} for n in range(40)]
    ).fitted
    tokenizer = train_tokenizer("char", iter(["a"]), vocab_size=300, byte_fallback=True)
    pieces = Fitted({**words.state, "words": [], "letters": [], "single": True}, {"": tokenizer})
    settings = SequenceLabelling.recipe.model_validate(recipe("x"))

    def cut(fitted: Fitted, text: str) -> list[str]:
        return list(SequenceLabelling(settings, fitted).parse(text)["tokens"])

    mixed = " 我在2024年 去了北京\n"
    assert cut(letters, mixed) == [*"我在2024年去了北京"]
    assert cut(letters, "Ann") == [*"Ann"]
    assert cut(words, mixed) == ["我在2024年", "去了北京"]
    assert cut(words, "Zürich") == ["Zürich"]
    assert cut(pieces, "我在北京") == [*"我在北京"]
    assert cut(pieces, "Ann in Zürich") == ["Ann", "in", "Zürich"]
    assert all(cut(fitted, " ") == [] for fitted in (words, letters, pieces))


def test_bad_rows_are_answered_in_their_place(run: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text(
        '"Ann left"\n{"tokens": []}\n{"tokens": [1]}\n["Paris"]\n""\n7\n{\n'
    )
    answers = list(predict(run, source=tmp_path / "asked.jsonl"))
    assert [len(answer.get("tags", [])) for answer in answers] == [2, 0, 0, 1, 0, 0, 0]
    assert [answer.get("error") for answer in answers] == [
        None,
        "the sentence has no tokens",
        "a list of tokens is wanted; received '[1]'",
        None,
        "the sentence has no tokens",
        "a row is an object with columns; received '7'",
        "asked.jsonl:7: not JSON",
    ]


def test_a_sentence_that_is_too_long_is_cut_where_it_is_to_be_answered(prepare: Prepare, run: Path) -> None:
    most = load(run).kind.settings.data.length
    (answer,) = load(run).predict([["Ann"] * (most + 5)])
    assert len(answer["tags"]) == most


def test_the_graph_with_its_field_answers_as_the_model(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "graph")
    asked = [row["tokens"] for row in sentences(6, 8)] + [["Ann"], ["never", "seen"]]
    for one, other in zip(load(run).predict(asked), load(tmp_path / "graph").predict(asked), strict=True):
        assert one["tags"] == other["tags"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


def test_evaluation_on_a_file_leaves_bad_sentences_out_and_says_so(run: Path, tmp_path: Path) -> None:
    good = sentences(8, 5)
    (tmp_path / "good.conll").write_bytes(conll(good))
    (tmp_path / "bad.conll").write_bytes(conll([*good, {"tokens": ["x"], "tags": ["B-ORG"]}]) + b"\nalone\n")
    clean, found = (evaluate(run, str(tmp_path / f"{n}.conll"), bootstrap=0) for n in ("good", "bad"))
    assert found.figures == pytest.approx(clean.figures)
    assert found.counts == {"rows": 8, "left_out": 2}


def test_another_run_takes_the_weights_and_freezes_what_is_told(run: Path, tmp_path: Path) -> None:
    smallest = SequenceLabelling.smallest()
    made = recipe(
        str(run.parent / "rows.conll"),
        model={**smallest["model"], "start": str(run)},
        train={"steps": 3, "batch": 16, "compile": "off", "freeze": ["words.*", "letters.*"]},
    )
    outcome = train(made, out=tmp_path / "run")
    before, after = (load(folder).module.state_dict() for folder in (run, outcome.folder))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in still if not name.startswith("crf.forbidden")} == {
        "words.weight",
        "letters.weight",
    }
    chosen = json.loads((outcome.folder / "plan.json").read_text("utf-8"))["chosen"]["train.learning_rate"]
    assert chosen["why"].startswith("a fifth of what is usual")


def test_another_run_takes_the_words_that_both_know_row_by_row(run: Path, tmp_path: Path) -> None:
    """And begins the pairs anew, whose rows are those of the words' numbers."""
    rows = [*sentences(30, 5), {"tokens": ["Unheard", "of"], "tags": ["O", "O"]}]
    (tmp_path / "rows.conll").write_bytes(conll(rows))
    made = recipe(
        str(tmp_path / "rows.conll"),
        model={**SequenceLabelling.smallest()["model"], "start": str(run)},
        train={"steps": 1, "batch": 4, "compile": "off", "freeze": ["words.*", "letters.*"]},
    )
    outcome = train(made, out=tmp_path / "run")
    one, other = load(run), load(outcome.folder)
    before, after = (model.kind.fitted.state for model in (one, other))
    assert before["words"] != after["words"] and "unheard" in after["words"]
    for name in ("words", "letters"):
        theirs, ours = (model.module.state_dict()[f"{name}.weight"] for model in (one, other))
        assert torch.equal(ours[:2], theirs[:2])
        common = set(before[name]) & set(after[name])
        assert common
        for word in common:
            assert torch.equal(ours[2 + after[name].index(word)], theirs[2 + before[name].index(word)])
    told = json.loads((outcome.folder / "plan.json").read_text("utf-8"))["started"]["told"]
    assert (
        f"words.weight: {len(set(before['words']) & set(after['words']))} of {len(after['words'])} words"
        in told
    )


@pytest.mark.parametrize("same", [True, False])
def test_pairs_are_taken_only_with_the_words_whose_numbers_they_are(same: bool) -> None:
    def tagger(words: list[str]) -> tuple[SequenceLabelling, Tagger]:
        settings = {**recipe("x"), "model": {"width": 8, "characters": 0, "pairs": 30}}
        state = {
            "words": words, "letters": [], "once": 0, "single": True, "scheme": "none",
            "tags": ["O", "X"], "tag_counts": [1, 1], "forbidden": [[[0, 0], [0, 0]], [0, 0], [0, 0]],
        }  # fmt: skip
        task = SequenceLabelling(SequenceLabelling.recipe.model_validate(settings), Fitted(state, {}, []))
        return task, task.build()

    (task, own), (before, other) = tagger(["a", "b"]), tagger(["a", "b"] if same else ["b", "c"])
    start = Start(other.state_dict(), before.fitted.state)
    taken = take_over(own, task, start)
    assert torch.equal(own.pairs.weight, other.pairs.weight) == same
    assert ("pairs.weight" in taken.names) == same
    if not same:
        assert (
            taken.told().startswith(
                f"took {len(taken.names) + 1} of {len(own.state_dict())} tensors; words.weight: 1 of 2 words;"
            )
            and taken.new["pairs.weight"] == "the words are others"
        )
        assert torch.equal(own.words.weight[3], other.words.weight[2])


def test_tags_without_spans_are_measured_token_by_token(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", f"n{n}"], "tags": ["DT", "NN"]} for n in range(40)]
    (tmp_path / "rows.conll").write_bytes(conll(rows))
    made = recipe(str(tmp_path / "rows.conll"), train={"steps": 2, "batch": 8, "compile": "off"})
    result = train(made, out=tmp_path / "run").result
    assert result["primary"]["name"] == "token_accuracy"
    macro = {"macro_precision", "macro_recall", "macro_f1"}
    assert set(result["metrics"]) == {"token_accuracy", "sentence_accuracy", *macro}
    assert "entities" not in load(tmp_path / "run").predict(["the cat"])[0]


def test_tags_with_an_underscore_are_measured_as_spans_and_a_stray_tag_makes_them_classes(
    prepare: Prepare,
) -> None:
    joined = ["B_PER", "M_PER", "E_PER", "S_PER", "O"]
    stray = ["B-PER", "I-PER", "O", "B-PER", "X"]
    for tags, scheme, figure in ((joined, "BMES", "entity_f1"), (stray, "none", "token_accuracy")):
        data = prepare([{"tokens": [*"abcd", str(n)], "tags": tags} for n in range(40)])
        task = SequenceLabelling(SequenceLabelling.recipe.model_validate(recipe("x")), data.fitted)
        right = [[(data.fitted.state["tags"].index(tag), 1.0) for tag in tags]]
        scores = task.scores(right, data.train, np.arange(1))
        assert data.fitted.state["scheme"] == scheme
        assert task.primary == figure and scores.figures()[figure] == 1.0
        told = [note["detail"] for note in data.report["notes"]]
        detail = "IOB2 has no such tags, so all are measured token by token and not as spans: X"
        assert told == ([detail] if scheme == "none" else [])


@pytest.mark.parametrize(
    "objective",
    [
        {"label_smoothing": 0.1},
        {"focal": 2.0},
        {"class_weights": "balanced"},
        {"class_weights": {"B-PER": 3.0}},
    ],
)
def test_the_loss_of_tags_by_themselves_is_that_of_classes(
    prepare: Prepare, objective: dict[str, Any]
) -> None:
    data = prepare(sentences(40))
    settings = SequenceLabelling.recipe.model_validate(recipe("x", objective=objective, model={"crf": False}))
    task = SequenceLabelling(settings, data.fitted)
    torch.manual_seed(0)
    model = task.build().eval()
    columns, lengths = data.train.gather(np.arange(8))
    tensors = task.collate(columns, lengths)
    logs = task.outputs(model, tensors).detach().log_softmax(-1)  # (rows, length, tags)
    tags, counts = data.fitted.state["tags"], np.array(data.fitted.state["tag_counts"], np.float64)
    weights = np.ones(len(tags))
    match objective.get("class_weights"):
        case "balanced":
            weights = 1 / counts
        case {"B-PER": share}:
            weights[tags.index("B-PER")] = share
    weights *= counts.sum() / (weights * counts).sum()
    smooth, gamma, expected = objective.get("label_smoothing", 0.0), objective.get("focal", 0.0), 0.0
    for row, place in tensors["words_mask"].nonzero().tolist():
        tag = int(tensors["tags"][row, place])
        own = float(logs[row, place, tag])
        loss = -own * (1 - np.exp(own)) ** gamma
        loss = (1 - smooth) * loss - smooth * float(logs[row, place].mean())
        expected += weights[tag] * loss
    assert task.batch_loss(model, tensors).item() == pytest.approx(expected, rel=1e-5)


def test_balanced_sampling_draws_sentences_by_their_rarest_tag(prepare: Prepare) -> None:
    data = prepare(sentences(40))
    settings = SequenceLabelling.recipe.model_validate(recipe("x", objective={"sampling": "balanced"}))
    drawn = SequenceLabelling(settings, data.fitted).weights(data.train)
    often = dict(zip(data.fitted.state["tags"], data.fitted.state["tag_counts"], strict=True))
    expected = [max(1 / often[tag] for tag in row["values"]["tags"]) for row in data.train.rows()]
    np.testing.assert_allclose(drawn, expected)
    assert (
        SequenceLabelling(SequenceLabelling.recipe.model_validate(recipe("x")), data.fitted).weights(
            data.train
        )
        is None
    )


def test_a_field_and_a_loss_of_single_tags_exclude_each_other() -> None:
    for objective in ({"focal": 1.0}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}):
        with pytest.raises(ValueError, match=r"add model\.crf=false"):
            SequenceLabelling.recipe.model_validate(recipe("x", objective=objective))


@pytest.mark.parametrize("network", ["lstm", "gru"])
def test_a_sentence_is_read_from_one_end_where_the_recipe_says_so(prepare: Prepare, network: str) -> None:
    data = prepare(sentences(40))
    model = {"network": network, "bidirectional": False, "unknown": 0.0}
    task = SequenceLabelling(SequenceLabelling.recipe.model_validate(recipe("x", model=model)), data.fitted)
    tagger = task.build().eval()
    tensors = task.collate(*data.train.gather(np.arange(4)))
    before = task.outputs(tagger, tensors)
    tensors["words"][:, 2:] = 1  # what comes later
    tensors["letters"][:, 2:] = 1
    after = task.outputs(tagger, tensors)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:])


def test_figures_of_sentences_by_a_column(prepare: Prepare, tmp_path: Path) -> None:
    rows = [{**row, "source": "ab"[n % 2]} for n, row in enumerate(sentences(80))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = recipe(
        str(tmp_path / "rows.jsonl"), evaluate={"slices": ["source"], "bootstrap": 0}, train={"steps": 2}
    )
    evaluation = json.loads((train(made, out=tmp_path / "run").folder / "evaluation.json").read_text("utf-8"))
    assert {entry["value"] for entry in evaluation["slices"]} == {"a", "b"}
    assert {entry["column"] for entry in evaluation["slices"]} == {"source"}


def test_a_transformer_shows_what_reached_each_tag(prepare: Prepare) -> None:
    data = prepare(sentences(40))
    settings = SequenceLabelling.recipe.model_validate(
        recipe("x", model={"network": "transformer", "layers": 2})
    )
    task = SequenceLabelling(settings, data.fitted)
    model = task.build().eval()
    tensors = task.collate(*data.train.gather(np.arange(3)))
    with torch.no_grad():
        answers = task.answers(model, tensors)
        parts = task.attended(model, tensors, answers)
    for number, part in enumerate(parts):
        tokens = data.train.row(number)["values"]["tokens"]
        assert part is not None
        assert part["rows"] == part["columns"] == [token[:8] for token in tokens]
        weights = np.array(part["weights"])
        assert weights.shape == (len(tokens), len(tokens))
        np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-3)
    plain = SequenceLabelling(SequenceLabelling.recipe.model_validate(recipe("x")), data.fitted)
    assert plain.attended(plain.build(), tensors, answers) == [None] * 3
