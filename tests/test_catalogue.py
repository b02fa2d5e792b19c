"""Every text is there in both languages, in the right one, and every text a page asks for exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import luban
from luban import catalogue
from luban.catalogue import LANGUAGES, CatalogueError

SOURCES = Path(luban.__file__).parent
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# The button that switches the language is written in the language it switches to.
SWITCHES = {"page.language", "page.language_short"}
KEY = re.compile(r"""["']((?:%s)\.[\w.{}\-]*)["']""")


def test_every_text_is_in_the_language_it_claims() -> None:
    for key, texts in catalogue.entries().items():
        chinese, english = (texts["en"], texts["zh"]) if key in SWITCHES else (texts["zh"], texts["en"])
        assert not CHINESE.search(english), key
        same_words = re.findall(r"\w+", chinese) == re.findall(r"\w+", english)
        assert CHINESE.search(chinese) or same_words, f"{key} is not translated"


def test_chinese_punctuation_is_full_width() -> None:
    for key, texts in catalogue.entries().items():
        assert not re.search(r"[\u4e00-\u9fff][,.;:!?]", texts["zh"]), key


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {"a": "text"},
        {"a": {"en": "one"}},
        {"a": {"en": "one", "zh": "一", "fr": "un"}},
        {"a": {"en": "one", "zh": " "}},
        {"a": {"en": "one", "zh": 1}},
        {"a": {"en": "{count} rows", "zh": "{total} 行"}},
    ],
)
def test_a_lame_catalogue_is_refused(raw: object) -> None:
    with pytest.raises(CatalogueError):
        catalogue.check(raw)


def test_a_missing_value_and_an_unknown_key_are_named() -> None:
    with pytest.raises(CatalogueError, match="'seconds'"):
        catalogue.text("duration.minutes", "en", minutes=1)
    with pytest.raises(CatalogueError, match=r"did you mean duration\.minutes"):
        catalogue.text("duration.minuts", "en")
    with pytest.raises(CatalogueError, match="no such language"):
        catalogue.text("duration.minutes", "fr")


def test_a_value_in_both_languages_lends_each_its_half() -> None:
    inner = catalogue.both("duration.seconds", seconds=5)
    assert catalogue.both("report.read.loss") == {"en": "training loss", "zh": "训练损失"}
    assert catalogue.both("axis.minutes", n=inner) == {"en": "5 s min", "zh": "5 秒 分"}


def _asked_for() -> set[str]:
    """Keys that sources name; `{}` stands for a part that is filled in while running."""
    prefixes = sorted({key.split(".")[0] for key in catalogue.entries()})
    pattern = re.compile(KEY.pattern % "|".join(prefixes))
    found: set[str] = set()
    for path in [*SOURCES.rglob("*.py"), *SOURCES.rglob("evaluation/*.html")]:
        text = re.sub(r'"(\w+\.[\w.]*)" ~ \w+', r'"\1{}"', path.read_text("utf-8"))
        found |= {re.sub(r"\{\w*\}", "{}", key) for key in pattern.findall(text)}
    return {key for key in found if not key.endswith((".html", ".json", ".css", ".js", ".py", "."))}


def test_every_text_a_page_asks_for_exists_and_no_report_text_is_unused() -> None:
    asked = _asked_for()
    known = set(catalogue.entries())
    matched: set[str] = set()
    for key in asked:
        form = re.compile(re.escape(key).replace(r"\{\}", r"[\w\-]+") + "$")
        hits = {name for name in known if form.match(name)}
        assert hits, f"{key} is asked for and not in the catalogue"
        matched |= hits
    assert {name for name in known if name.startswith(("report.", "page."))} <= matched


def test_every_kind_of_note_has_a_name() -> None:
    """A note is said as {"kind": ..., "detail": ...}; a kind without a name would stand in the report as it is."""
    pattern = re.compile(r'"kind": "(\w+)",\s+"detail"')
    kinds = {kind for path in SOURCES.rglob("*.py") for kind in pattern.findall(path.read_text("utf-8"))}
    assert len(kinds) >= 8
    assert {f"note.{kind}" for kind in kinds} <= set(catalogue.entries())


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys, luban.catalogue as c; c.entries(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_languages_are_what_the_pages_switch_between() -> None:
    style = (SOURCES / "evaluation" / "page.css").read_text("utf-8")
    assert all(f".{language} " in style or f".{language}," in style for language in LANGUAGES)


def test_each_reason_is_one_that_the_code_gives() -> None:
    sources = [path.read_text("utf-8") for path in SOURCES.rglob("*.py")]
    for key, texts in catalogue.entries().items():
        if key.startswith("reason."):
            said = re.findall(r"[\w:]+", re.sub(r"\{\w+\}", " ", texts["en"]))
            assert any(all(word in source for word in said) for source in sources), key


def test_a_sentence_is_recognised_by_its_form_and_a_foreign_one_is_not() -> None:
    assert catalogue.recognise("reason.", "pays in a run of about 3 min 0 s") == (
        "reason.pays",
        {"time": "3 min 0 s"},
    )
    assert catalogue.recognise("reason.", "same as <b>.txt:3\n") is None
    assert catalogue.recognise("reason.", "because") is None
