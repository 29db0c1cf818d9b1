"""Charts: scales, ticks, gaps, and values that cannot be drawn."""

from __future__ import annotations

import json
import re
from html import unescape
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.pages.charts import Level, Series, legend, line_chart, smoothed, thinned, ticks


def draw(*series, **settings):
    return line_chart(series, x_label="round", y_label="loss", **settings)


def paths(svg):
    return re.findall(r'<path class="line [^"]*" d="([^"]+)"', svg)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_and_are_few(low, width):
    found = ticks(low, low + width)
    slack = 1e-6 * max(abs(low), width)
    assert found[0] <= low + slack
    assert found[-1] >= low + width - slack
    assert 2 <= len(found) <= 9


def test_a_rising_line_rises_on_the_picture():
    svg = draw(Series("a", [0, 1, 2], [1.0, 2.0, 3.0]))
    points = [tuple(map(float, p.split(","))) for p in paths(svg)[0][1:].split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("log", [True, False])
def test_missing_and_infinite_values_leave_gaps(log):
    values = [1.0, 2.0, None, float("nan"), 3.0, float("inf"), 4.0, 5.0]
    svg = draw(Series("a", list(range(8)), values), log=log)
    assert len(paths(svg)) == 2
    assert svg.count("<circle") == 1
    assert "nan" not in svg
    assert "inf" not in svg


def test_nothing_to_draw_is_no_chart():
    assert draw(Series("a", [], [])) is None
    assert draw(Series("a", [1], [None])) is None


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, 1e-9])
def test_constant_lines_and_single_points(value):
    assert "<circle" in draw(Series("a", [1], [value]))
    assert paths(draw(Series("a", [1, 2], [value, value])))


def test_a_logarithmic_axis_with_a_zero_falls_back_to_a_straight_one():
    assert draw(Series("a", [1, 2], [0.0, 10.0]), log=True)


def test_names_are_escaped():
    series = [Series("<b>", [0, 1], [0.0, 1.0]), Series("other", [0, 1], [0.0, 1.0])]
    svg = draw(*series, levels=[Level("<script>", 0.5)])
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert "<b>" not in legend(series)
    data = json.loads(unescape(re.search(r'data-chart="([^"]*)"', svg)[1]))
    assert [row[0] for row in data["points"][0][2]] == ["<b>", "other"]


def test_long_series_are_averaged_not_dropped():
    line = Series("a", list(range(10_000)), [float(i % 2) for i in range(10_000)])
    short = thinned(line, 100)
    assert len(short.x) == 100
    assert set(short.y) == {0.5}


def test_smoothing_keeps_constants_and_bridges_gaps():
    assert smoothed([2.0] * 5, 2) == [2.0] * 5
    assert smoothed([1.0, None, 3.0], 1) == [1.0, 2.0, 3.0]
    assert smoothed([None], 1) == [None]


def test_one_line_needs_no_legend():
    assert legend([Series("a", [0], [1.0])]) is None


def test_rounds_have_no_halves_at_the_axis():
    shown = draw(Series("a", [1, 2, 3], [1.0, 2.0, 3.0]))
    ticks = re.findall(r'class="tick middle"[^>]*>([^<]*)<', shown)
    assert ticks == ["1", "2", "3"]


def test_a_narrow_logarithmic_axis_has_round_steps():
    shown = line_chart(
        [Series("a", [0, 1], [280.0, 232.0])], x_label="round", y_label="perplexity", log=True
    )
    marks = re.findall(r'class="tick end"[^>]*>([^<]*)<', shown)
    assert len(marks) >= 5
    assert (float(marks[0]), float(marks[-1])) == (230, 280)


def axis_labels(svg):
    return re.findall(r'<text class="tick end"[^>]*>([^<]+)</text>', svg)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([147.6, 160.0], ["147.5", "150.0", "152.5"]),
        ([175.05, 175.55], ["175.0", "175.1", "175.2"]),
        ([150.0, 190.0], ["150", "160", "170"]),
        ([1e6, 5e6], ["1,000,000", "2,000,000"]),
    ],
)
def test_the_marks_of_an_axis_are_written_as_they_are(values, labels):
    written = axis_labels(draw(Series("a", [1, 2], values)))
    assert written[: len(labels)] == labels
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("least", [0.0, -1.0, 1e-310])
def test_a_logarithmic_axis_leaves_out_what_is_not_positive(least):
    """Lines above 0 stay apart, and the marks do not lie on one another."""
    svg = draw(Series("a", [1, 2], [0.5, 0.25]), Series("none", [1, 2], [least, least]), log=True)
    heights = [float(y) for y in re.findall(r",([\d.]+)", paths(svg)[0])]
    if least <= 0:
        assert len(paths(svg)) == 1
        assert heights[1] - heights[0] > 50
    assert draw(Series("none", [1, 2], [least, least]), log=True) is None or least > 0


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1e30, 2e31], [3.0, 1e200], [1e-9, 5e-8], [0.5, 20_000.0]])
def test_marks_of_any_size_are_short_and_few(values, log):
    labels = axis_labels(draw(Series("a", [1, 2], values), log=log))
    assert 2 <= len(labels) <= 9
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= len("1.25 × 10⁻¹⁰⁰")
