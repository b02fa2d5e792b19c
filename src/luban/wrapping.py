"""Lines of a message broken between words for a narrow terminal; what follows stands under what it belongs to."""

from __future__ import annotations

import re
import textwrap

_NAME = re.compile(r" *(?:\w+: +)?")
_LEAST = 40


def wrapped(text: str, width: int) -> str:
    """Break each line of a message between words, the rest under its beginning, or under what a name tells.

    Nothing is broken within a word, so that paths and keys can still be copied.

    Example:
        >>> print(wrapped("  fix:      one of bag, cnn, rnn, lstm, gru, transformer", 40))
          fix:      one of bag, cnn, rnn, lstm,
                    gru, transformer
    """
    lines = []
    for line in text.splitlines():
        name = _NAME.match(line)
        indent = name.end() if name and line.startswith("  ") else 2
        fits = len(line) <= width or width < _LEAST
        lines += [line] if fits else _broken(line, width, " " * indent)
    return "\n".join(lines)


def _broken(line: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
