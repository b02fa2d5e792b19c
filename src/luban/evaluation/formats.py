"""Numbers as people read them, in both languages.

Every function takes a number or None and returns a `Both`; None, NaN and the infinities become a dash.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable

from luban.catalogue import LANGUAGES, Both, both

DASH = "—"
_COUNTS = {
    "en": ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")),
    "zh": ((1e12, " 万亿"), (1e8, " 亿"), (1e4, " 万")),
}
_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def same(text: str) -> Both:
    """Return a text that reads the same in every language."""
    return dict.fromkeys(LANGUAGES, text)


def _digits(value: float, digits: int) -> str:
    """Write `value` with so many significant digits, never in scientific form."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = f"{value:,.{min(places, 12)}f}"
    return rounded.replace("-", "−")


def number(value: float | None, digits: int = 4) -> Both:
    """Write a figure with `digits` significant digits.

    Example:
        >>> number(3.14159)["en"], number(0.00030001)["en"], number(float("nan"))["en"]
        ('3.142', '0.0003000', '—')
        >>> number(3e-9)["en"]
        '3.000e-9'
    """
    if value is None or not math.isfinite(value):
        return same(DASH)
    if value != 0 and not 1e-6 <= abs(value) < 1e12:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return same(f"{mantissa}e{int(exponent)}")
    return same(_digits(value, digits))


def tick(value: float) -> Both:
    """Write the number at an axis tick, as short as it can be.

    Example:
        >>> tick(0.30000000000000004)["en"], tick(20_000)["en"], tick(20_000)["zh"], tick(1500)["en"]
        ('0.3', '20 k', '2 万', '1,500')
    """
    if abs(value) >= 10_000:
        return {language: _scaled(value, language, f"{value:.12g}") for language in LANGUAGES}
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return same(f"{float(mantissa):g}e{int(exponent)}")
    return same(f"{value:,.6g}")


def _scaled(value: float, language: str, small: str) -> str:
    for scale, suffix in _COUNTS[language]:
        if abs(value) >= scale * 0.99995:
            return f"{value / scale:.6g}{suffix}"
    return small


def count(value: float | None) -> Both:
    """Write how many, whole up to 9,999 and with three digits above.

    Example:
        >>> count(1234)["en"], count(1_234_567)["en"], count(1_234_567)["zh"]
        ('1,234', '1.23 M', '123 万')
    """
    if value is None or not math.isfinite(value):
        return same(DASH)
    if abs(value) < 10_000:
        return same(f"{value:,.0f}")
    return {language: _three(value, language) for language in LANGUAGES}


def _three(value: float, language: str) -> str:
    scales = _COUNTS[language]
    for scale, suffix in scales:
        if abs(value) >= scale * 0.9995:
            return _digits(value / scale, 3) + suffix
    return f"{value:,.0f}"


def whole(value: float | None) -> Both:
    """Write how many, to the last one.

    Example:
        >>> whole(1234567)["en"]
        '1,234,567'
    """
    return same(DASH if value is None or not math.isfinite(value) else f"{value:,.0f}")


def percent(share: float | None) -> Both:
    """Write a share (0 to 1) in percent.

    Example:
        >>> percent(0.3721)["en"], percent(0.0004)["en"], percent(1.0)["en"]
        ('37.2%', '0.04%', '100%')
    """
    if share is None or not math.isfinite(share):
        return same(DASH)
    value = share * 100
    if value != 0 and abs(value) < 0.095:
        return same(f"{value:.2g}%")
    return same(f"{value:.1f}".removesuffix(".0") + "%")


def flops(value: float | None) -> Both:
    """Write a number of floating-point operations.

    Example:
        >>> flops(1.234e16)["en"]
        '12.3 PFLOP'
    """
    return _si(value, "FLOP")


def flops_per_second(value: float | None) -> Both:
    """Write a rate of floating-point operations.

    Example:
        >>> flops_per_second(93e9)["en"]
        '93.0 GFLOP/s'
    """
    return _si(value, "FLOP/s")


def bytes_per_second(value: float | None) -> Both:
    """Write a memory rate.

    Example:
        >>> bytes_per_second(17.2e9)["en"]
        '17.2 GB/s'
    """
    return _si(value, "B/s")


def _si(value: float | None, unit: str) -> Both:
    if value is None or not math.isfinite(value):
        return same(DASH)
    for scale, prefix in _SI:
        if abs(value) >= scale * 0.9995:
            return same(f"{_digits(value / scale, 3)} {prefix}{unit}")
    return same(f"{value:.3g} {unit}")


def size(value: float | None) -> Both:
    """Write a number of bytes in binary units.

    Example:
        >>> size(1536)["en"], size(5 * 2**30)["en"], size(12)["en"]
        ('1.50 KiB', '5.00 GiB', '12 B')
    """
    if value is None or not math.isfinite(value):
        return same(DASH)
    for scale, unit in _BINARY:
        if abs(value) >= scale:
            return same(f"{_digits(value / scale, 3)} {unit}")
    return same(f"{value:.0f} B")


def duration(seconds: float | None) -> Both:
    """Write a time span with two units at most.

    Example:
        >>> duration(252)["en"], duration(252)["zh"], duration(0.0123)["en"], duration(59.97)["en"]
        ('4 min 12 s', '4 分 12 秒', '12.3 ms', '1 min 0 s')
    """
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return same(DASH)
    if seconds < 1:
        return (
            both("duration.milliseconds", milliseconds=_digits(seconds * 1000, 3)) if seconds else same("0")
        )
    if seconds < 59.95:
        return both("duration.seconds", seconds=f"{seconds:.1f}".removesuffix(".0"))
    total = round(seconds)
    if total < 3600:
        return both("duration.minutes", minutes=total // 60, seconds=total % 60)
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return both("duration.hours", hours=minutes // 60, minutes=minutes % 60)
    hours = round(seconds / 3600)
    return both("duration.days", days=hours // 24, hours=hours % 24)


def moment(value: object) -> Both:
    """Write a point in time, given as seconds since 1970 or as ISO text, in UTC where the zone is known.

    Example:
        >>> moment(0)["en"], moment("2025-03-01T12:30:00+08:00")["en"], moment("soon")["en"]
        ('1970-01-01 00:00:00 UTC', '2025-03-01 04:30:00 UTC', 'soon')
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return same(DASH)
        if isinstance(value, str):
            instant = datetime.datetime.fromisoformat(value)
        else:
            instant = datetime.datetime.fromtimestamp(value, datetime.UTC)
        zone = "" if instant.tzinfo is None else " UTC"
        instant = instant.astimezone(datetime.UTC) if zone else instant
    except (ValueError, OverflowError, OSError):
        return same(str(value)[:40])
    return same(f"{instant:%Y-%m-%d %H:%M:%S}{zone}")


def sentences(parts: Iterable[Both]) -> Both:
    """Set sentences one after the other; Chinese ones need no space between.

    Example:
        >>> sentences([{"en": "One.", "zh": "一。"}, {"en": "Two.", "zh": "二。"}])
        {'en': 'One. Two.', 'zh': '一。二。'}
    """
    gaps = {"en": " ", "zh": ""}
    whole = list(parts)
    return {language: gaps[language].join(part[language] for part in whole) for language in LANGUAGES}
