"""Masks personal data: e-mail addresses, telephone numbers, cards, Chinese identity numbers, IP addresses.

Each kind is found by its form and then proved where a proof exists: cards by prefix and Luhn digit (ISO/IEC
7812), identity numbers by birthday and check character (GB 11643), addresses by `ipaddress`. Every pattern
takes a bounded number of steps from any place, so time grows with the length of a text and with nothing else.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from typing import Literal, get_args

PersonalKind = Literal["email", "identity", "card", "mobile", "phone", "ip"]
Replace = Callable[[PersonalKind, str], str]
KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)

_MARKS: dict[PersonalKind, str] = {
    "email": "<EMAIL>",
    "identity": "<ID>",
    "card": "<CARD>",
    "mobile": "<PHONE>",
    "phone": "<PHONE>",
    "ip": "<IP>",
}
_NOT_AFTER = r"(?<![0-9A-Za-z_])(?<![0-9][.,:/])"
_NOT_BEFORE = r"(?![0-9A-Za-z_])(?![.,:/][0-9])"

PATTERNS: dict[str, re.Pattern[str]] = {
    "email_end": re.compile(r"@([0-9A-Za-z.-]{3,255}+)"),
    "identity": re.compile(_NOT_AFTER + r"[1-9][0-9]{16}[0-9Xx]" + _NOT_BEFORE),
    "card": re.compile(
        _NOT_AFTER
        + r"(?:[2-6][0-9]{12,18}+|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}+"
        + r"|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{5})"
        + _NOT_BEFORE
    ),
    "mobile": re.compile(
        r"(?<![0-9A-Za-z_+-])(?<![0-9][.,:/ ])(?:(?:\+|00)?86[ -]?)?1[3-9][0-9]([ -]?)[0-9]{4}\1[0-9]{4}"
        + _NOT_BEFORE
    ),
    "international": re.compile(
        r"(?<![0-9A-Za-z_+])(?:\+[1-9](?:[ .()-]{0,2}+[0-9]){6,14}+|00[1-9](?:[ .()-]{0,2}+[0-9]){9,14}+)"
        + _NOT_BEFORE
    ),
    "american": re.compile(
        r"(?<![0-9A-Za-z_+])(?<![0-9][ .,:/-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}([.-]))"
        r"[2-9][0-9]{2}(?(1)\1|[ .-])[0-9]{4}(?![0-9A-Za-z_-])(?!\.[0-9])"
    ),
    "landline": re.compile(
        r"(?<![0-9A-Za-z_+-])(?:\(0[1-9][0-9]{1,2}\)|（0[1-9][0-9]{1,2}）|0[1-9][0-9]{1,2}-)[2-9][0-9]{6,7}"
        r"(?![0-9A-Za-z_-])"
    ),
    "ip4": re.compile(r"(?<![0-9A-Za-z_.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_-])(?!\.[0-9])"),
    "ip6": re.compile(
        r"(?<![0-9A-Za-z_:.])(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:]{1,38}+(?:(?:\.[0-9]{1,3}){3})?(?![0-9A-Za-z_])"
    ),
}
_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-")
_MOST_LOCAL = 64
_VERSION_BEFORE = re.compile(
    r"(?:v|ver\.?|version|release|build|section|§|版本|版)[ :：]{0,2}\Z", re.IGNORECASE
)
# Every number that is masked has seven digits close together; most texts have none and are done at once.
_SEVEN_DIGITS = re.compile(r"[0-9](?:[ .()（）-]{0,2}[0-9]){6}")
_TWO_DOTS = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def mark(kind: PersonalKind, found: str) -> str:  # noqa: ARG001
    """Return what stands in the place of personal data of a kind."""
    return _MARKS[kind]


def shape(kind: PersonalKind, found: str) -> str:  # noqa: ARG001
    """Return the form of personal data without the data: letters as x, digits as 0.

    Example:
        >>> shape("email", "an.na@example.org")
        'xx.xx@xxxxxxx.xxx'
    """
    return re.sub(r"[0-9]", "0", re.sub(r"[A-Za-z]", "x", found))


def mask_personal(text: str, replace: Replace = mark) -> tuple[str, dict[PersonalKind, int]]:
    """Replace personal data by `<EMAIL>`, `<ID>`, `<CARD>`, `<PHONE>` and `<IP>`; count what was replaced.

    Arguments:
        text: any text.
        replace: gives what stands in its place, `mark` or `shape`.

    Example:
        >>> mask_personal("Write to an.na@example.org or call +44 20 7946 0958.")
        ('Write to <EMAIL> or call <PHONE>.', {'email': 1, 'phone': 1})
        >>> mask_personal("Released 2024-05-17, version 10.0.0.1, ISBN 978-3-16-148410-0, $1,234,567.89")[1]
        {}
    """
    masker = _Masker(replace)
    if "@" in text:
        text = masker.emails(text)
    if _SEVEN_DIGITS.search(text):
        text = masker.mask(text, "identity", "identity", _is_identity)
        text = masker.mask(text, "card", "card", _is_card)
        text = masker.mask(text, "mobile", "mobile")
        for name in ("international", "american", "landline"):
            text = masker.mask(text, name, "phone")
    if text.count(":") >= 2:
        text = masker.mask(text, "ip6", "ip", _is_ip6)
    if _TWO_DOTS.search(text):
        text = masker.mask(text, "ip4", "ip", _is_ip4)
    return text, masker.counts


class _Masker:
    def __init__(self, replace: Replace) -> None:
        self._replace = replace
        self.counts: dict[PersonalKind, int] = {}

    def _masked(self, kind: PersonalKind, found: str) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return self._replace(kind, found)

    def mask(
        self,
        text: str,
        pattern: str,
        kind: PersonalKind,
        proof: Callable[[re.Match[str]], bool] | None = None,
    ) -> str:
        """Replace what matches the pattern and passes the proof."""
        return PATTERNS[pattern].sub(
            lambda match: self._masked(kind, match[0]) if proof is None or proof(match) else match[0], text
        )

    def emails(self, text: str) -> str:
        """Look from each @ to the left, at most 64 characters, and to the right over a domain."""
        out: list[str] = []
        done = 0
        for match in PATTERNS["email_end"].finditer(text):
            start = match.start()
            least = max(done, start - _MOST_LOCAL)
            while start > least and text[start - 1] in _LOCAL:
                start -= 1
            start += len(text[start : match.start()]) - len(text[start : match.start()].lstrip(".-"))
            domain = match[1].rstrip(".-")
            labels = domain.split(".")
            top = labels[-1]
            if (
                start == match.start()
                or len(labels) < 2
                or not all(labels)
                or len(top) < 2
                or not top.isalpha()
            ):
                continue
            end = match.start(1) + len(domain)
            out += [text[done:start], self._masked("email", text[start:end])]
            done = end
        out.append(text[done:])
        return "".join(out)


def _is_identity(match: re.Match[str]) -> bool:
    """Eighteen characters with a birthday that was one and the check character of GB 11643 (ISO 7064, mod
    11-2)."""
    number = match[0].upper()
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, _WEIGHTS, strict=False))
    return 1850 <= born.year <= 2100 and "10X98765432"[total % 11] == number[17]


def _is_card(match: re.Match[str]) -> bool:
    """13 to 19 digits with the prefix of an issuer and a right Luhn digit."""
    digits = re.sub(r"[ -]", "", match[0])
    if not 13 <= len(digits) <= 19 or not _has_issuer(digits) or len(set(digits)) < 2:
        return False
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _has_issuer(digits: str) -> bool:
    two, four, length = int(digits[:2]), int(digits[:4]), len(digits)
    return (
        (digits[0] == "4" and length in (13, 16, 19))
        or (
            length == 16
            and (51 <= two <= 55 or 2221 <= four <= 2720 or four == 6011 or two == 65 or 3528 <= four <= 3589)
        )
        or (length == 15 and two in (34, 37))
        or (length == 14 and two in (30, 36, 38, 39))
        or (length >= 16 and two in (62, 81))
    )


def _is_ip4(match: re.Match[str]) -> bool:
    """An address, not a version or a numbered section: some part is at least 10 and no such word stands
    before."""
    parts = match[0].split(".")
    if any(int(p) > 255 or (len(p) > 1 and p[0] == "0") for p in parts) or max(map(int, parts)) < 10:
        return False
    before = match.string[max(0, match.start() - 12) : match.start()]
    return _VERSION_BEFORE.search(before) is None


def _is_ip6(match: re.Match[str]) -> bool:
    """An address, neither a time of day nor names joined by colons."""
    found = match[0].rstrip(":")
    if found != match[0] or not any(c.isdigit() for c in found):
        return False
    if len([group for group in found.split(":") if group]) < 2:
        return False
    try:
        ipaddress.IPv6Address(found)
    except ValueError:
        return False
    return True
