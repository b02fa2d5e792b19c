"""What the pages say is true: commands parse, recipes are read, links lead on, the reference is new."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

import luban as package
from luban import errors, tasks
from luban.cli import luban
from luban.recipe_reader import read_recipe

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PAGES = sorted([*READMES, *(ROOT / "docs").rglob("*.md")])
PLACEHOLDERS = {"RECIPE": "text", "R": "text"}
OWN_SOURCE, OWN_ROWS = "data.source=notes.txt", "data.train=rows.csv"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(luban [^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text("utf-8")) if kind == language]


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Every command line of the `sh` blocks, comments and line continuations aside."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def luban_calls(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of luban on a page, in blocks and within sentences."""
    for words in shell_commands(page):
        if words[0] == "luban":
            yield words[1:]
        elif "luban" in words and words[words.index("luban") - 1] == "-m":
            yield words[words.index("luban") + 1 :]
    outside_blocks = FENCE.sub("", page.read_text("utf-8"))
    for command in INLINE.findall(outside_blocks):
        # What stands for "and so on" or for a choice is no argument.
        if not any(mark in command for mark in ("...", "|", "VERB", "[")):
            yield shlex.split(command)[1:]


def is_on_rows(name: str) -> bool:
    """Whether a shipped recipe is of a task on rows; a name that is none is of a text."""
    path = ROOT / "src/luban/recipes" / f"{name}.yaml"
    found = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {"task": "language-model"}
    return bool(found["task"] != "language-model")


def complaint(arguments: list[str]) -> str | None:
    """What is wrong with a call, parsed as the command line does but not run; recipe keys and values too."""
    verb = luban.commands.get(arguments[0])
    if arguments in (["--help"], ["--version"]) or (verb and arguments[1:] in ([], ["--help"])):
        return None
    if verb is None:
        return f"there is no verb {arguments[0]}"
    try:
        given = verb.make_context(arguments[0], arguments[1:]).params
        if given.get("recipe") is not None:
            name = PLACEHOLDERS.get(given["recipe"], given["recipe"])
            base = "text" if Path(name).suffix == ".yaml" else name
            own = OWN_ROWS if is_on_rows(base) else OWN_SOURCE
            read_recipe(base, [own, *given["overrides"]], tasks.schema_of)
    except click.ClickException as error:
        return error.format_message()
    except errors.LubanError as error:
        return str(error)
    return None


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have on the web."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert written == make_docs().page(), "docs/recipes.md is out of date: run `make docs`"


def test_the_keys_of_each_task_are_what_the_code_says() -> None:
    pages = make_docs().task_pages()
    assert {page.stem for page in pages} == {*tasks.names()}
    for page, text in pages.items():
        assert page.read_text("utf-8") == text, f"{page.name} is out of date: run `make docs`"


def test_the_counts_are_those_of_the_last_sweeps() -> None:
    written = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    assert "| times |" in written
    assert written == make_docs().reliability_page(), "docs/reliability.md is out of date: run `make docs`"
    assert "BROKEN" not in (ROOT / "benchmarks" / "results" / "reliability.json").read_text("utf-8")


def test_the_figures_of_performance_are_those_of_the_last_measurement() -> None:
    written = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert written == make_docs().performance_page(), "docs/performance.md is out of date: run `make docs`"
    assert "besides forward" in written


def test_every_key_is_described() -> None:
    module = make_docs()

    def bare(schema: type[object]) -> Iterator[str]:
        meanings = module._meanings(schema)
        return (f"{schema.__name__}.{name}" for name in schema.model_fields if not meanings.get(name))  # type: ignore[attr-defined]

    sections = [module._follow(schema, path) for _, schema, path in module.SECTIONS]
    for name in tasks.names():
        recipe = tasks.find(name).recipe
        sections += [module._follow(recipe, p) for p in module.TASK_SECTIONS if module._has(recipe, p)]
    assert [name for section in sections for name in bare(section)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    wrong = {shlex.join(arguments): complaint(arguments) for arguments in luban_calls(page)}
    assert {command: why for command, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    "wrong", ["trian text", "train text --ouput x", "train text model.widht=3", "train nothing-of-the-kind"]
)
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    assert complaint(wrong.split()) is not None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_are_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        written = yaml.safe_load(block)
        assert read_recipe(written, (), tasks.schema_of).task == written["task"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_uses_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "luban"
            ):
                assert node.attr in package.__all__, f"{name_of(page)}: luban.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


def test_both_readmes_give_the_same_commands_and_links() -> None:
    english, chinese = READMES
    assert list(shell_commands(english)) == list(shell_commands(chinese))
    for language in ("python", "yaml"):
        assert blocks(english, language) == blocks(chinese, language)

    def links(page: Path) -> list[str]:
        return [link for link in LINK.findall(page.read_text("utf-8")) if not link.startswith("README")]

    assert links(english) == links(chinese)
