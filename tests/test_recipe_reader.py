"""Recipes: what is right is read exactly; what is wrong is answered with place, value and what is allowed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban import tasks
from luban.errors import RecipeError
from luban.recipe import Interval, Recipe
from luban.recipe_reader import read_recipe, shipped
from luban.text_recipe import LanguageModelRecipe

BASE: dict[str, Any] = {"data": {"source": "x.txt"}, "train": {"steps": 5}}
FILE = """\
data:
  source: x.txt
  clean:
    near_duplicates: 0.85
model:
  width: 64
train:
  steps: 5
"""


def schema_of(task: str) -> type[Recipe]:
    if task != "language-model":
        raise RecipeError("no task of that name", received=task, where="task", fix="tasks: language-model")
    return LanguageModelRecipe


def read(recipe: str | Path | dict[str, Any], *overrides: str) -> LanguageModelRecipe:
    found = read_recipe(recipe, overrides, schema_of)
    assert isinstance(found, LanguageModelRecipe)
    return found


def error_of(recipe: str | Path | dict[str, Any], *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read(recipe, *overrides)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a recipe file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", list(shipped()))
def test_every_shipped_recipe_is_right_and_says_what_it_makes(name: str) -> None:
    about = shipped()[name]
    assert about.makes
    assert about.data
    assert about.time
    try:
        recipe = read_recipe(name, (), tasks.schema_of)
    except RecipeError as error:
        key = error.message.partition(" is missing")[0]
        assert key in ("data.source", "data.train")
        start = ("model.start=x",) if name.startswith("bert-") else ()
        recipe = read_recipe(name, (f"{key}=x", *start), tasks.schema_of)
        assert recipe.data.place == "x"
    assert read_recipe(recipe.model_dump(mode="json"), (), tasks.schema_of) == recipe


INTERVALS = st.integers(1, 10**9) | st.tuples(
    st.floats(1e-4, 1e9).map(lambda number: f"{number:.4f}"), st.sampled_from("smh")
).map("".join).filter(lambda text: float(text[:-1]) > 0)
RECIPES = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"source": st.text(min_size=1) | st.lists(st.text(), min_size=1, max_size=3)},
            optional={
                "clean": st.none() | st.fixed_dictionaries({"near_duplicates": st.none() | st.floats(0, 1)}),
                "length": st.integers(2, 10**6),
            },
        ),
        "train": st.fixed_dictionaries(
            {"checkpoint_every": INTERVALS},
            optional={
                "learning_rate": st.floats(0, 1, exclude_min=True),
                "betas": st.tuples(st.floats(0, 1), st.floats(0, 1)),
                "evaluate_every": st.none() | INTERVALS,
                "loggers": st.lists(st.sampled_from(["tensorboard", "mlflow"]), max_size=2),
            },
        ).flatmap(
            lambda train: st.sampled_from([{"minutes": 1e-3}, {"steps": 7}, {"tokens": 10**12}]).map(
                lambda budget: train | budget
            )
        ),
    },
    optional={"evaluate": st.fixed_dictionaries({"prompts": st.lists(st.text(), max_size=2)})},
)


@given(mapping=RECIPES)
@settings(max_examples=100, deadline=None)
def test_a_resolved_recipe_goes_through_json_unchanged(mapping: dict[str, Any]) -> None:
    recipe = read(mapping)
    assert read(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_a_file_a_mapping_and_overrides_say_the_same(written: Callable[[str], Path]) -> None:
    from_file = read(written(FILE))
    from_mapping = read(
        {
            "data": {"source": "x.txt", "clean": {"near_duplicates": 0.85}},
            "model": {"width": 64},
            "train": {"steps": 5},
        }
    )
    overrides = ["data.source=x.txt", "data.clean.near_duplicates=0.85", "model.width=64", "train.steps=5"]
    assert from_file == from_mapping == read({}, *overrides)
    assert read(written("\ufeff" + FILE.replace("\n", "\r\n"))) == from_file


def test_reading_leaves_the_given_mapping_as_it_was() -> None:
    mapping = {"data": {"source": "x"}, "train": {"minutes": 3}}
    read(mapping, "train.steps=5", "data.length=9", "model.layers=2")
    assert mapping == {"data": {"source": "x"}, "train": {"minutes": 3}}


@pytest.mark.parametrize("written_as", ["1e-3", "1E-3", "0.001", ".1e-2", "1.0e-3", "10e-4"])
def test_a_number_is_read_as_python_reads_it(written: Callable[[str], Path], written_as: str) -> None:
    assert read(BASE, f"train.learning_rate={written_as}").train.learning_rate == 0.001
    text = f"{FILE}  learning_rate: {written_as}\n"
    assert read(written(text)).train.learning_rate == 0.001
    assert read(written(FILE.replace("steps: 5", "tokens: 1e6"))).train.tokens == 1_000_000


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("*.txt", "*.txt"),
        ("[ab]*.txt", "[ab]*.txt"),
        ("2024-01-01", "2024-01-01"),
        ('"2024"', "2024"),
        ('"with blank"', "with blank"),
        ("dir #1/a.txt", "dir #1/a.txt"),
        ("a=b.txt", "a=b.txt"),
        ("春.txt", "春.txt"),
        ("!!python/object/apply:os.getpid []", "!!python/object/apply:os.getpid []"),
        ("&a [*a]", "&a [*a]"),
        ("[a.txt, 'b c.txt']", ["a.txt", "b c.txt"]),
        ("", ""),
    ],
)
def test_the_value_of_an_override_is_what_a_person_means(value: str, source: object) -> None:
    assert read(BASE, f"data.source={value}").data.source == source


def test_null_switches_off_and_sections_open_where_there_were_none() -> None:
    assert read(BASE, "data.clean=null").data.clean is None
    clean = read({**BASE, "data": {"source": "x", "clean": None}}, "data.clean.unicode=NFKC").data.clean
    assert clean is not None
    assert clean.unicode == "NFKC"


@pytest.mark.parametrize(
    ("override", "budget"), [("minutes=2", (2, None, None)), ("tokens=9", (None, 9, None))]
)
def test_a_budget_given_by_hand_replaces_the_recipes_own(
    override: str, budget: tuple[float | None, ...]
) -> None:
    train = read(BASE, f"train.{override}").train
    assert (train.minutes, train.tokens, train.steps) == budget


def test_two_budgets_are_one_too_many(written: Callable[[str], Path]) -> None:
    error = error_of(BASE, "train.minutes=2", "train.tokens=9")
    assert "['minutes', 'tokens']" in str(error)
    error = error_of(written(f"{FILE}  minutes: 3\n"))
    assert error.fix is not None
    assert error.fix.startswith("give exactly one budget")
    assert "none" in str(error_of(BASE, "train.steps=null"))


def test_a_mistyped_key_comes_before_what_it_leaves_missing() -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe("text", ("data.sorce=x",), tasks.schema_of)
    assert caught.value.message == "unknown key data.sorce (and 1 more: data.source)"
    assert str(caught.value.fix).startswith("did you mean source?")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.lerning_rate=1", "learning_rate"),
        ("data.clean.near_duplicate=1", "near_duplicates"),
        ("trian.steps=1", "train"),
        ("train.optimizer=muonn", "muon"),
        ("model.rope_scaling.faktor=2", "factor"),
        ("train.loggers=[tensorbord]", "tensorboard"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(override: str, meant: str) -> None:
    error = error_of(BASE, override)
    assert error.fix is not None
    assert f"did you mean {meant}?" in error.fix
    assert override in str(error.where)


@pytest.mark.parametrize(
    ("override", "key", "received", "allowed"),
    [
        ("train.batch=many", "train.batch", "many", "valid integer"),
        ("train.batch=1.5", "train.batch", 1.5, "integer"),
        ("train.batch=0", "train.batch", 0, "greater than 0"),
        ("train.batch=true", "train.batch", True, "true and false mean nothing"),
        ("train.learning_rate=.inf", "train.learning_rate", float("inf"), "finite"),
        ("train.compile=maybe", "train.compile", "maybe", "'auto', 'on' or 'off'"),
        ("train.betas=[0.9]", "train.betas", [0.9], "more values"),
        ("train.betas=[0.9, 2]", "train.betas", 2, "less than or equal to 1"),
        ("train.checkpoint_every=5 minutes", "train.checkpoint_every", "5 minutes", "30s, 5m, 1h"),
        ("train.evaluate_every=0", "train.evaluate_every", 0, "30s, 5m, 1h"),
        ("data.source=2024", "data.source", 2024, "data.source='\"2024\"'"),
        ("data.clean.near_duplicates=false", "data.clean.near_duplicates", False, "null switches it off"),
        ("data=x.txt", "data", "x.txt", "a section is wanted"),
        ("model={width: 256, heads: 3}", "model", None, "width (256) is not a multiple of heads (3)"),
        ("task=vision", "no task", "vision", "language-model"),
        ("task=5", "task", 5, None),
        ("train.steps.x=5", "steps", "train.steps.x=5", None),
        ("train.steps", "override", "train.steps", "train.minutes=10"),
        ("=5", "override", "=5", "train.minutes=10"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_and_what_is_allowed(
    override: str, key: str, received: object, allowed: str | None
) -> None:
    error = error_of(BASE, override)
    assert key in error.message
    assert error.received == received
    assert override in str(error)
    if allowed is not None:
        assert error.fix is not None
        assert allowed in error.fix


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("width: 64", "widht: 64", 6, "unknown key model.widht"),
        ("width: 64", "width: wide", 6, "model.width cannot be that"),
        ("  source: x.txt\n", "", 1, "data.source is missing"),
        ("near_duplicates: 0.85", "near_duplicates: 85", 4, "data.clean.near_duplicates cannot be that"),
        ("width: 64", "width: 64\n  width: 65", 7, "a key stands twice"),
        ("model:", "data:", 5, "a key stands twice"),
        ("width: 64", "width: &w 64\n  heads: *w", 7, "no YAML aliases"),
        ("width: 64", "<<: {width: 64}", 6, "a key is a name"),
        ("width: 64", "true: 64", 6, "a key is a name"),
        ("width: 64", "width: " + "9" * 20, 6, "model.width is too large a number"),
        ("width: 64", "? [1, 2]\n  : 64", 6, "a key is a name"),
        ("width: 64", "width: !!python/name:os.system", 6, "not YAML that a recipe may hold"),
        ("width: 64", "width: [64", 7, "not YAML that a recipe may hold"),
        ("width: 64", "\twidth: 64", 6, "not YAML that a recipe may hold"),
        ("model:", "---\nmodel:", 5, "not YAML that a recipe may hold"),
        ("width: 64", f"width: {'[' * 3000}", 6, "at most 20 levels"),
    ],
)
def test_an_error_in_a_file_names_the_line(
    written: Callable[[str], Path], old: str, new: str, line: int, message: str
) -> None:
    assert FILE.count(old) == 1
    path = written(FILE.replace(old, new))
    error = error_of(path)
    assert message in error.message
    assert str(error.where) == f"{path}:{line}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"5",
        b"- a\n- b\n",
        b"\xff\xfe\x00",
        b"a: \x00",
        b"a: 2024-99-99",
        b"a: " + b"9" * 5000,
        b"{" * 40_000,
        b"x" * 50_001,
    ],
    ids=["empty", "number", "list", "not utf-8", "nul", "no date", "long number", "deep", "huge"],
)
def test_what_is_no_recipe_at_all_is_an_error_with_its_file(
    written: Callable[[bytes], Path], content: bytes
) -> None:
    path = written(content)
    assert str(path) in str(error_of(path))


def test_a_few_bytes_of_aliases_do_not_unfold(written: Callable[[str], Path]) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    assert "aliases" in error_of(written(bomb)).message


def test_reading_imports_nothing_that_a_recipe_names(written: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "luban_trap.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        for tag in (
            "object:luban_trap.X",
            "object/apply:luban_trap.x",
            "module:luban_trap",
            "name:luban_trap.x",
        ):
            error_of(written(f"data: !!python/{tag} {{}}\n"))
            error_of({}, f"data=!!python/{tag} []")
    finally:
        sys.path.remove(str(tmp_path))
    assert "luban_trap" not in sys.modules


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_override_gives_a_recipe_or_one_kind_of_error(text: str) -> None:
    for override in (text, f"data.text={text}", f"train.{text}"):
        try:
            read(BASE, override)
        except RecipeError as error:
            assert str(error)


def test_a_name_that_is_none_is_answered_with_the_shipped_ones() -> None:
    error = error_of("shakespere-char")
    assert "did you mean shakespeare-char?" in str(error)
    for name in ("nowhere.yaml", ".", "x" * 5000, "a\0b"):
        assert "shipped recipes: " in str(error_of(name))


@given(steps=st.integers(1, 10**12))
def test_an_interval_of_steps(steps: int) -> None:
    assert (
        Interval.parse(steps)
        == Interval.parse(str(steps))
        == Interval.parse(float(steps))
        == Interval(steps=steps)
    )
    assert Interval.parse(str(Interval(steps=steps))) == Interval(steps=steps)


@given(number=st.floats(0, 1e12, exclude_min=True))
def test_an_interval_of_time_reads_back_to_the_last_bit(number: float) -> None:
    interval = Interval(seconds=number)
    assert Interval.parse(str(interval)) == interval


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("0.5h", 1800)])
def test_units_of_time(text: str, seconds: float) -> None:
    assert Interval.parse(text) == Interval(seconds=seconds)


@given(
    text=st.text(max_size=6)
    | st.sampled_from(["0", "-1", "0s", "1e3s", "5 m", "5ms", "²", "٣", "9" * 400 + "s"])
)
def test_an_interval_is_one_of_the_forms_or_refused(text: str) -> None:
    try:
        interval = Interval.parse(text)
    except ValueError as error:
        assert "write a number of steps (200) or a time" in str(error)
        return
    assert (interval.steps or interval.seconds or 0) > 0
    assert text.strip().isascii()
    assert text.strip()[-1] in "0123456789smh"


@pytest.mark.parametrize("value", [None, True, 1.5, -3, [5], {"steps": 5}, float("nan"), float("inf")])
def test_an_interval_is_no_other_value(value: object) -> None:
    with pytest.raises(ValueError, match="write a number of steps"):
        Interval.parse(value)
