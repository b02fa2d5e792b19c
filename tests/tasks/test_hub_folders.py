"""Runs that start from folders of BERT, ViT and ResNet, as transformers writes them, and write such folders again."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luban.console import Show
from luban.data.tokenizer import Tokenizer
from luban.errors import InputError, LubanError, RecipeError, Stopped
from luban.signals import StopRequest
from luban.tasks.bert import pieces_of
from luban.tasks.image_classification import ImageClassification
from luban.tasks.sequence_labelling import SequenceLabelling
from luban.tasks.text_classification import TextClassification
from luban.training.faults import Faults
from luban.verbs.export import export
from luban.verbs.load import load
from luban.verbs.train import Tools, train

transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "film",
    "book",
    "meal",
    "song",
    "love",
    "##ly",
    "great",
    "warm",
    "dull",
    "cold",
    "这",
    "家",
    "店",
    "部",
]
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")
VOCABULARY = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
QUICK = {"steps": 2, "batch": 8, "compile": "off", "dtype": "float32"}


def bert(folder: Path, kind: str = "BertModel", **changes: Any) -> Path:
    """Write a small random BERT with its vocabulary."""
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=40, **{**shape, **changes}
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}'
    )
    return folder


def texts(folder: Path, labels: str = "") -> str:
    rows = TextClassification.sample(40, random.Random(1))
    for number, row in enumerate(rows):
        row["label"] = labels[number % len(labels)] if labels else row["label"]
    path = folder / f"texts{labels}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def recipe(task: Any, rows: str, start: Path, **changes: Any) -> dict[str, Any]:
    made = {
        "task": task.name,
        "data": {"train": rows},
        "model": {"start": str(start)},
        "train": QUICK,
        "evaluate": {"bootstrap": 0},
    }
    return {
        name: {**made.get(name, {}), **changes.get(name, {})} if name != "task" else task.name
        for name in made
    }


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def text_run(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    return train(recipe(TextClassification, texts(folder), bert_folder), out=folder / "run").folder


# BERT for texts.


def test_the_shipped_recipe_trains_on(bert_folder: Path, tmp_path: Path) -> None:
    rows, start = f"data.train={texts(tmp_path)}", f"model.start={bert_folder}"
    short = ("train.epochs=null", "train.steps=2", "train.compile=off", "evaluate.bootstrap=0")
    folder = train("bert-classification", rows, start, *short, out=tmp_path / "run").folder
    assert load(folder).kind.settings.model.network == "bert"


def test_a_vocabulary_cuts_as_transformers_does(bert_folder: Path) -> None:
    ours, theirs = Tokenizer.load(bert_folder), transformers.BertTokenizer(str(bert_folder / "vocab.txt"))
    for text in ["Lovely film, 这家店!", "x" * 120, "Ünïcode [SEP] 99", "  "]:
        told = theirs.convert_tokens_to_ids(theirs.tokenize(text.replace("[SEP]", "[ sep ]")))
        assert ours.encode(text.replace("[SEP]", "[ sep ]")) == told
    assert ours.frame == (theirs.cls_token_id, theirs.sep_token_id)
    assert theirs.sep_token_id not in ours.encode("[SEP]")  # data forges no end


def test_a_fine_tuned_bert_answers_in_transformers_as_here(text_run: Path) -> None:
    model = load(text_run)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(text_run / "model").eval()
    reader = transformers.AutoTokenizer.from_pretrained(text_run / "model")
    assert theirs.config.id2label == dict(enumerate(model.kind.labels))
    assert theirs.config.problem_type == "single_label_classification"
    for text in ["Lovely film 3", "这家店 dull", "book"]:
        ids = torch.from_numpy(model.kind.encode({"text": text})["ids"]).long()[None]
        assert reader(text)["input_ids"] == ids[0].tolist()
        with torch.no_grad():
            own = model.module(ids, torch.ones_like(ids, dtype=torch.bool))
            torch.testing.assert_close(own, theirs(ids).logits, rtol=1e-5, atol=1e-6)


def test_what_a_bert_gives_and_what_begins_anew_is_told(text_run: Path) -> None:
    plan = json.loads((text_run / "plan.json").read_text("utf-8"))
    told = plan["started"]["told"]
    assert told.startswith("took 39 of 41 tensors; new: classifier.weight, classifier.bias (not in it)")
    assert plan["chosen"]["train.learning_rate"]["value"] == 5e-5
    settings = json.loads((text_run / "recipe.json").read_text("utf-8"))
    assert settings["train"]["optimizer"] == "adamw"
    assert settings["data"]["length"] == 40
    errors = json.loads((text_run / "evaluation.json").read_text("utf-8")).get("errors", [])
    assert all(error["parts"][1]["method"] == "rollout" for error in errors)


def test_the_run_needs_its_folder_no_more_and_is_one_to_start_from(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert_folder, folder)
    first = train(recipe(TextClassification, texts(tmp_path), folder), out=tmp_path / "first").folder
    shutil.rmtree(folder)
    assert load(first).predict(["film"])[0]["label"] in ("good", "bad")
    same = train(recipe(TextClassification, texts(tmp_path), first), out=tmp_path / "same").folder
    told = json.loads((same / "plan.json").read_text("utf-8"))["started"]["told"]
    assert told == "took 41 of 41 tensors"
    other = train(recipe(TextClassification, texts(tmp_path, "XY"), first), out=tmp_path / "other").folder
    told = json.loads((other / "plan.json").read_text("utf-8"))["started"]["told"]
    assert "new: classifier.weight, classifier.bias (the labels are others)" in told
    assert "embeddings" not in told  # two types of token are not two labels


def test_a_stopped_run_goes_on_to_the_same_bytes_without_its_folder(
    bert_folder: Path, text_run: Path, tmp_path: Path
) -> None:
    folder, stop = tmp_path / "bert", StopRequest()
    shutil.copytree(bert_folder, folder)
    at_one = Faults({("step", 1, 0): lambda: stop.ask("the test")})
    with pytest.raises(Stopped):
        made = recipe(TextClassification, texts(tmp_path), folder)
        train(made, out=tmp_path / "run", tools=Tools(Show(quiet=True), stop, at_one))
    shutil.rmtree(folder)
    train(resume=tmp_path / "run")
    weights = (run / "model" / "model.safetensors" for run in (tmp_path / "run", text_run))
    assert len({path.read_bytes() for path in weights}) == 1
    told = [
        json.loads((run / "plan.json").read_text("utf-8"))["started"]["told"]
        for run in (tmp_path / "run", text_run)
    ]
    assert told[0] == told[1]


def test_its_graph_answers_the_same(text_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(text_run, out=tmp_path / "graph")
    rows = ["Lovely film 3", "这家店 dull"]
    for own, other in zip(load(text_run).predict(rows), load(tmp_path / "graph").predict(rows), strict=True):
        assert own["label"] == other["label"]
        for label, chance in own["probabilities"].items():
            assert other["probabilities"][label] == pytest.approx(chance, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 8}}, "the model to start from decides these"),
        ({"model": {"evidence": True}}, "the model to start from decides these"),
        ({"model": {"network": "lstm"}}, "the model to start from is a BERT"),
        ({"data": {"length": 400}}, "reads at most 40 tokens"),
    ],
)
def test_a_recipe_that_says_otherwise_than_the_folder_is_refused(
    bert_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        train(recipe(TextClassification, texts(tmp_path), bert_folder, **changes), out=tmp_path / "run")
    assert error.value.received and error.value.fix


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _other_family(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "roberta"}))


def _other_activation(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "hidden_act": "relu"}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_pickled, "pickle"),
        (_other_family, "cannot start from this folder"),
        (_other_activation, "hidden_act must be gelu"),
        (lambda folder: (folder / "vocab.txt").unlink(), "no tokenizer here"),
        (lambda folder: (folder / "vocab.txt").write_text("a\nb\n"), "lacks tokens of BERT's own"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_with_what_mends_it(
    bert_folder: Path, tmp_path: Path, harm: Any, message: str
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert_folder, folder)
    harm(folder)
    with pytest.raises(InputError, match=message) as error:
        train(recipe(TextClassification, texts(tmp_path), folder), out=tmp_path / "run")
    assert error.value.fix


@pytest.mark.parametrize("task", ["tabular", "translation"])
def test_other_tasks_refuse_a_bert(bert_folder: Path, tmp_path: Path, task: str) -> None:
    (tmp_path / "rows.csv").write_text("source,target\n" + "".join(f"a{n},b{n}\n" for n in range(20)))
    with pytest.raises(InputError, match="cannot start from this folder") as error:
        train(
            task,
            f"data.train={tmp_path / 'rows.csv'}",
            f"model.start={bert_folder}",
            "train.steps=1",
            out=tmp_path / "run",
        )
    assert "bert" in str(error.value.received)


def test_a_bert_is_started_from_a_folder_only() -> None:
    with pytest.raises(ValueError, match=r"model\.start=FOLDER"):
        TextClassification.recipe.model_validate({"data": {"train": "x"}, "model": {"network": "bert"}})


# BERT for tokens.


def test_a_tagger_of_pieces_answers_in_transformers_as_here(bert_folder: Path, tmp_path: Path) -> None:
    rows = SequenceLabelling.sample(40, random.Random(1))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    run = train(recipe(SequenceLabelling, str(path), bert_folder), out=tmp_path / "run").folder
    told = json.loads((run / "plan.json").read_text("utf-8"))["started"]["told"]
    assert told.startswith("took 37 of 39 tensors; new: classifier.weight, classifier.bias (not in it)")
    model = load(run)
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(run / "model").eval()
    assert list(theirs.config.id2label.values()) == model.kind.fitted.state["tags"]
    tokens = ["Bo", "Li", "lives", "in", "北京", "\u0000"]
    row = {
        name: torch.from_numpy(array).long()[None]
        for name, array in model.kind.encode({"tokens": tokens}).items()
    }
    with torch.no_grad():
        own = model.module(row["pieces"], torch.ones_like(row["pieces"], dtype=torch.bool), row["firsts"])
        wanted = theirs(row["pieces"]).logits[:, row["firsts"][0]]
    torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)
    (answer,) = model.predict([{"tokens": tokens}])
    assert answer["tags"] == [theirs.config.id2label[int(n)] for n in wanted[0].argmax(-1)]


def test_the_first_piece_of_each_token_answers_and_long_sentences_are_refused_or_cut(
    bert_folder: Path,
) -> None:
    tokenizer = Tokenizer.load(bert_folder)
    found = pieces_of(tokenizer, ["Lovely", "film"], 40, whole=True)
    names = [tokenizer.token(number) for number in found["pieces"].tolist()]
    assert names == ["[CLS]", "love", "##ly", "film", "[SEP]"]
    assert found["firsts"].tolist() == [1, 3]
    assert pieces_of(tokenizer, ["Lovely", "film"], 4, whole=False)["firsts"].tolist() == [1]
    with pytest.raises(Exception, match="more than 4 pieces"):
        pieces_of(tokenizer, ["Lovely", "film"], 4, whole=True)


# Pictures.


def pictures(folder: Path, labels: tuple[str, str] = ("lying", "standing")) -> str:
    image = pytest.importorskip("PIL.Image")
    for number, row in enumerate(ImageClassification.sample(24, random.Random(1))):
        place = folder / "pictures" / labels[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat(row["image"], 3, axis=2)
        pixels[:, :, 1] //= 2
        image.fromarray(pixels).resize((20, 16)).save(place / f"{number}.png")
    return str(folder / "pictures")


def vit(folder: Path) -> Path:
    config = transformers.ViTConfig(
        image_size=12, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=5,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    written = {
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "size": {"height": 12, "width": 12},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return folder


def resnet(folder: Path) -> Path:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 12}}))
    return folder


@pytest.mark.parametrize("made", [vit, resnet])
def test_a_fine_tuned_picture_network_answers_in_transformers_as_here(made: Any, tmp_path: Path) -> None:
    torch.manual_seed(4)
    folder = made(tmp_path / "hub")
    run = train(recipe(ImageClassification, pictures(tmp_path), folder), out=tmp_path / "run").folder
    model, state = load(run), load(run).kind.fitted.state
    assert state["size"] == [12, 12]
    assert state["mean"] == ([0.4, 0.5, 0.6] if made is vit else [0.5] * 3)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(run / "model").eval()
    assert theirs.config.id2label == {0: "lying", 1: "standing"}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    written = json.loads((run / "model" / "preprocessor_config.json").read_text("utf-8"))
    mean, spread = (np.array(written[name], np.float32) for name in ("image_mean", "image_std"))
    scaled = (torch.from_numpy(pixels / np.float32(255)) - torch.from_numpy(mean)) / torch.from_numpy(spread)
    with torch.no_grad():
        own = model.module(torch.from_numpy(pixels))
        wanted = theirs(scaled.permute(0, 3, 1, 2)).logits
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)
    told = json.loads((run / "plan.json").read_text("utf-8"))["started"]["told"]
    assert "(the labels are others)" in told and "embeddings" not in told
    again = train(recipe(ImageClassification, str(tmp_path / "pictures"), run), out=tmp_path / "again").folder
    assert "labels" not in json.loads((again / "plan.json").read_text("utf-8"))["started"]["told"]


def test_transformers_prepares_pictures_for_it_as_luban_does(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    run = train(
        recipe(ImageClassification, pictures(tmp_path), vit(tmp_path / "hub")), out=tmp_path / "run"
    ).folder
    model, theirs = load(run), transformers.AutoImageProcessor.from_pretrained(run / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    given = theirs(image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        given, model.module.prepared(torch.from_numpy(pixels[None])), rtol=1e-4, atol=1e-5
    )


def test_a_vit_from_nothing_is_written_as_one_too(tmp_path: Path) -> None:
    made = recipe(ImageClassification, pictures(tmp_path), tmp_path)
    made["model"] = {"network": "vit", "width": 8, "layers": 1, "heads": 2, "patch": 4}
    made["data"]["size"] = 12
    run = train(made, out=tmp_path / "run").folder
    theirs = transformers.AutoModelForImageClassification.from_pretrained(run / "model").eval()
    model = load(run)
    pixels = torch.randint(256, (2, 12, 12, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(
            model.module(pixels), theirs(model.module.prepared(pixels)).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"size": 16}}, "data.size"),
        ({"data": {"channels": 1}}, "data.channels"),
        ({"model": {"patch": 2}}, "model.patch"),
        ({"model": {"network": "resnet"}}, "model.network resnet"),
    ],
)
def test_pictures_otherwise_than_the_folder_takes_them_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = vit(tmp_path / "hub")
    with pytest.raises(RecipeError, match="decides these") as error:
        train(recipe(ImageClassification, pictures(tmp_path), folder, **changes), out=tmp_path / "run")
    assert message in error.value.received and error.value.fix


def test_a_preprocessor_that_luban_cannot_follow_is_named(tmp_path: Path) -> None:
    folder = vit(tmp_path / "hub")
    for written in ({"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"image_mean": [0.5]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(written))
        with pytest.raises(LubanError) as error:
            train(recipe(ImageClassification, pictures(tmp_path), folder), out=tmp_path / "run")
        assert "preprocessor_config.json" in str(error.value.where)
