"""Every text of every page, in English and Chinese: `catalogue.yaml`, read once with the safe loader.

A page asks for a text by its key. A value that is itself in both languages (a `Both`) lends each language its
own half.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from luban.errors import LubanError, nearest

LANGUAGES = ("en", "zh")
Both = Mapping[str, str]
"""One text in every language of `LANGUAGES`."""


class CatalogueError(LubanError, LookupError):
    """A page asked for a text that the catalogue does not have, or left out one of its values."""


def text(key: str, language: str, **values: object) -> str:
    """Return the text of `key` in one language, its `{placeholders}` filled.

    Raises:
        CatalogueError: unknown key or language, or a placeholder without a value.

    Example:
        >>> text("duration.minutes", "en", minutes=4, seconds=12)
        '4 min 12 s'
        >>> text("duration.minutes", "zh", minutes=4, seconds=12)
        '4 分 12 秒'
    """
    template = template_of(key, language)
    try:
        return template.format(**{name: in_language(value, language) for name, value in values.items()})
    except KeyError as error:
        raise CatalogueError(
            f"a text needs the value {error}", received=sorted(values), where=f"catalogue.yaml: {key}"
        ) from None


def both(key: str, **values: object) -> Both:
    """Return the text of `key` in every language.

    Example:
        >>> both("duration.seconds", seconds=7)
        {'en': '7 s', 'zh': '7 秒'}
    """
    return {language: text(key, language, **values) for language in LANGUAGES}


def has(key: str) -> bool:
    """Whether the catalogue has a text of that key."""
    return key in entries()


def template_of(key: str, language: str) -> str:
    """Return a text as the catalogue has it, placeholders unfilled."""
    if language not in LANGUAGES:
        raise CatalogueError("no such language", received=language, fix=f"one of {', '.join(LANGUAGES)}")
    if key not in entries():
        close = nearest(key, entries())
        raise CatalogueError(
            "the catalogue has no such text", received=key, fix=f"did you mean {close}?" if close else None
        )
    return entries()[key][language]


def in_language(value: object, language: str) -> object:
    """Return a `Both`'s half for `language`; any other value as it is."""
    return value[language] if isinstance(value, Mapping) else value


def recognise(prefix: str, said: str) -> tuple[str, dict[str, str]] | None:
    """Find the text whose English form a sentence has; returns its key and the values in it, or None.

    Files of a run are written in English once; a page shows what it recognises in every language.

    Example:
        >>> recognise("reason.", "goes on from step 40")
        ('reason.goes_on', {'step': '40'})
    """
    for key, form in _forms(prefix):
        if match := form.fullmatch(said):
            return key, match.groupdict()
    return None


def _forms(prefix: str) -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for key, texts in entries().items():
        if key.startswith(prefix):
            parts = string.Formatter().parse(texts["en"])
            form = "".join(
                re.escape(text) + (f"(?P<{name}>.+?)" if name else "") for text, name, _, _ in parts
            )
            found.append((key, re.compile(form)))
    return found


def placeholders(template: str) -> set[str]:
    """Return the names in braces.

    Example:
        >>> sorted(placeholders("{count} of {total}"))
        ['count', 'total']
    """
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


@functools.cache
def entries() -> Mapping[str, Both]:
    """Return the whole catalogue: key -> language -> text."""
    return check(yaml.safe_load((resources.files("luban") / "catalogue.yaml").read_text("utf-8")))


def check(raw: Any) -> Mapping[str, Both]:
    """Return `raw` if every key has a text in each of `LANGUAGES` and no other, with the same placeholders.

    Raises:
        CatalogueError: naming the first key that does not.
    """
    if not isinstance(raw, dict):
        raise CatalogueError("a catalogue maps keys to texts", received=raw)
    for key, texts in raw.items():
        where = f"catalogue.yaml: {key}"
        if not isinstance(texts, dict) or set(texts) != set(LANGUAGES):
            raise CatalogueError(f"a text is given in {', '.join(LANGUAGES)}", received=texts, where=where)
        if not all(isinstance(one, str) and one.strip() for one in texts.values()):
            raise CatalogueError("a text is empty, or not a text", received=texts, where=where)
        if len({frozenset(placeholders(one)) for one in texts.values()}) != 1:
            raise CatalogueError("the languages differ in their placeholders", received=texts, where=where)
    return raw
