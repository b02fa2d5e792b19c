"""Charts keep the shape of what they draw, and are well-formed markup whatever they are given."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.evaluation import charts, formats
from luban.evaluation.charts import Line, Scale, extremes, line_chart, nice_ticks, scale, share_bar, smooth

FINITE = st.floats(-1e12, 1e12, allow_nan=False)
ANY = st.floats(allow_nan=True, allow_infinity=True)


def _draw(lines: Sequence[Line], y: Scale | None = None) -> ElementTree.Element:
    y = y or scale([line.y for line in lines])
    x = scale([line.x for line in lines], from_zero=True)
    title = formats.same('<script>"&')
    return ElementTree.fromstring(line_chart(lines, title=title, x=x, y=y, x_axis="step", table="train"))


def _line(y: Sequence[float], look: str = "line") -> Line:
    return Line(
        "loss", np.arange(1, len(y) + 1, dtype=np.float64), np.array(y, dtype=np.float64), "c-loss", look
    )


@given(FINITE, st.floats(1e-9, 1e12), st.integers(2, 9))
def test_ticks_are_round_even_and_within(low: float, span: float, target: int) -> None:
    high = low + span
    ticks = nice_ticks(low, high, target)
    if high - low < abs(low) * 1e-6:
        return
    assert 1 <= len(ticks) <= 2 * target + 2
    assert all(low - span * 1e-3 <= t <= high + span * 1e-3 for t in ticks)
    gaps = np.diff(ticks)
    assert gaps.size == 0 or np.allclose(gaps, gaps[0], rtol=1e-3)
    assert all(len(f"{gap / 10.0 ** math.floor(math.log10(gap) + 1e-9):.3g}") <= 3 for gap in gaps)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_no_ticks_where_there_is_no_range(low: float, high: float) -> None:
    assert nice_ticks(low, high) == []


@given(st.lists(ANY, min_size=1, max_size=400), st.integers(8, 60))
def test_thinning_keeps_ends_lowest_highest_and_gaps(values: list[float], limit: int) -> None:
    array = np.array(values)
    kept = extremes(array, limit)
    assert len(kept) <= limit
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all()
    finite = array[np.isfinite(array)]
    if finite.size:
        thinned = array[kept]
        thinned = thinned[np.isfinite(thinned)]
        assert thinned.min() == finite.min()
        assert thinned.max() == finite.max()
    assert np.isnan(array).any() == np.isnan(array[kept]).any()


@given(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), min_size=1, max_size=60), st.integers(1, 9)
)
def test_smoothing_is_the_mean_of_the_neighbourhood(values: list[float], half: int) -> None:
    smoothed = smooth(np.array(values), half)
    for i, value in enumerate(smoothed):
        reach = min(half, i)
        around = [v for v in values[i - reach : i + reach + 1] if not math.isnan(v)]
        assert math.isclose(value, sum(around) / len(around), abs_tol=1e-8) if around else math.isnan(value)


@given(st.lists(ANY, max_size=50))
def test_any_values_give_well_formed_svg_without_bad_numbers(values: list[float]) -> None:
    svg = _draw([_line(values), _line(values, "faint"), _line(values, "dots")], Scale(0.0, 10.0, (0.0, 5.0)))
    for path in svg.iter("path"):
        assert "nan" not in path.attrib["d"]
        assert "inf" not in path.attrib["d"]


def test_a_value_that_is_no_number_breaks_the_line() -> None:
    broken = next(_draw([_line([1.0, 2.0, math.nan, 2.0, 1.0])]).iter("path")).attrib["d"]
    whole = next(_draw([_line([1.0, 2.0, 2.0, 2.0, 1.0])]).iter("path")).attrib["d"]
    assert (broken.count("M"), whole.count("M")) == (2, 1)


def test_points_lie_where_their_values_say() -> None:
    svg = _draw([_line([0.0, 10.0], "dots")], Scale(0.0, 10.0, ()))
    places = [(c.attrib["cx"], c.attrib["cy"]) for c in svg.iter("circle")]
    assert places == [("50.00%", "100.00%"), ("100.00%", "0.00%")]


def test_a_long_curve_stays_small() -> None:
    rng = np.random.default_rng(0)
    line = Line("loss", np.arange(100_000.0), rng.normal(size=100_000), "c-loss")
    path = next(_draw([line]).iter("path")).attrib["d"]
    assert path.count("L") < charts.MAX_POINTS
    assert len(path) < 12_000


def test_names_are_escaped_and_in_both_languages() -> None:
    svg = _draw([_line([1.0, 2.0])])
    assert svg.attrib["aria-label"] == svg.attrib["data-label-zh"] == '<script>"&'
    ticks = line_chart(
        [_line([1.0, 2.0])],
        title=formats.same("t"),
        x=Scale(0, 4e4, (4e4,)),
        y=Scale(0, 1, ()),
        x_axis="step",
        table="train",
    )
    assert '<tspan class="en">40 k</tspan><tspan class="zh">4 万</tspan>' in ticks


def test_shares_fill_the_bar() -> None:
    bar = ElementTree.fromstring(share_bar([(0.2, "a"), (0.0, "b"), (0.6, "c")], formats.same("shares")))
    widths = [float(rect.attrib["width"].rstrip("%")) for rect in bar.iter("rect")]
    assert widths == [25.0, 75.0]


@given(st.lists(st.floats(-1e100, 1e100), max_size=20))
def test_a_scale_always_has_room(values: list[float]) -> None:
    made = scale([np.array(values)])
    assert made.high > made.low
    finite = [v for v in values if math.isfinite(v)]
    assert all(made.low <= v <= made.high for v in finite)
