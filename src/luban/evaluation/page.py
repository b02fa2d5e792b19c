"""What every page shares: one self-contained HTML file in both languages, with its styles and scripts inside.

Nothing is loaded from anywhere: the content security policy names the digests of the style and the script and
refuses all else. Both languages stand in the page; `page.css` hides one, `page.js` switches. Text of users is
escaped, and what could disturb the page (control characters, halves of surrogate pairs) is made visible.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from luban import catalogue
from luban.catalogue import Both
from luban.evaluation import charts

_FILES = resources.files("luban") / "evaluation"
_LANG = {"en": "en", "zh": "zh-CN"}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_CONTROLS[0x0D] = ""
_UNWRITABLE = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Return `text` as a page can hold it: control characters as escapes, broken characters as U+FFFD.

    Example:
        >>> print(visible("a\x00b\r\n\x1b[0m\ud800"))
        a\x00b
        \x1b[0m�
    """
    return _UNWRITABLE.sub("\ufffd", text.translate(_CONTROLS))


def user(text: str) -> Markup:
    """Return text of a user in an element of its own, so that its writing direction stays within.

    Example:
        >>> user("<b>")
        Markup('<bdi>&lt;b&gt;</bdi>')
    """
    return Markup("<bdi>{}</bdi>").format(visible(text))


def plain(text: str) -> str:
    """Return text of a user for places that hold no element, such as the title, without direction marks."""
    return _DIRECTION.sub("", visible(text)).replace("\n", " ")


def show(text: Both) -> Markup:
    """Return a text in every language; the page shows one.

    Example:
        >>> show({"en": "loss", "zh": "损失"})
        Markup('<span class="en" lang="en">loss</span><span class="zh" lang="zh-CN">损失</span>')
        >>> show({"en": "12", "zh": "12"})
        Markup('12')
    """
    if len(set(text.values())) == 1:
        return escape(text["en"])
    return Markup("").join(
        Markup('<span class="{}" lang="{}">{}</span>').format(language, _LANG[language], half)
        for language, half in text.items()
    )


def translate(key: str, **values: object) -> Markup:
    """Return a catalogue text in every language; values are escaped unless they are markup.

    Example:
        >>> print(translate("duration.seconds", seconds="<7>"))
        <span class="en" lang="en">&lt;7&gt; s</span><span class="zh" lang="zh-CN">&lt;7&gt; 秒</span>
    """
    filled = {}
    for language in catalogue.LANGUAGES:
        own = {name: _finalize(catalogue.in_language(value, language)) for name, value in values.items()}
        missing = catalogue.placeholders(catalogue.template_of(key, language)) - own.keys()
        if missing:
            raise catalogue.CatalogueError(
                "a text needs more values", received=sorted(own), where=f"{key}: {missing}"
            )
        filled[language] = escape(catalogue.template_of(key, language)).format(**own)
    return show(filled)


def said(text: str) -> Markup:
    """Return a sentence that a file of the run says in English, in every language if the catalogue knows it.

    Example:
        >>> print(said("asked for"))
        <span class="en" lang="en">asked for</span><span class="zh" lang="zh-CN">按要求</span>
    """
    found = catalogue.recognise("reason.", text)
    if found is None:
        return user(text)
    key, values = found
    return translate(key, **{name: user(value) for name, value in values.items()})


def attribute(key: str, **values: object) -> Markup:
    """Return the attributes that name an element in every language, for screen readers."""
    return charts.label(catalogue.both(key, **values))


def render(template: str, styles: tuple[str, ...], scripts: tuple[str, ...], **context: Any) -> str:
    """Fill a template of this folder; it gets `styles`, `scripts` (markup) and `policy` beside the context.

    Arguments:
        template: a file of this folder, such as `report.html`.
        styles, scripts: files of this folder, put into the page whole.
        context: what else the template names.
    """
    css, js = "\n".join(map(_read, styles)), "\n".join(map(_read, scripts))
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(js)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Both are files of this package: nothing of a user is in them.
    inside = {"style": Markup(css), "script": Markup(js), "policy": policy}  # noqa: S704
    return _environment().get_template(template).render(**inside, **context) + "\n"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    environment.globals |= {
        "t": translate,
        "both": show,
        "label": attribute,
        "user": user,
        "said": said,
        "has": catalogue.has,
    }
    return environment


def _read(name: str) -> str:
    return (_FILES / name).read_text("utf-8").strip()


def _finalize(value: object) -> object:
    """Every value of a template comes through here; markup was cleaned where it was made."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, Mapping):
        return show({language: visible(str(half)) for language, half in value.items()})
    return visible(str(value))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
