"""Leaders of crowded scatters, axes with a zero, colours that can be told apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from mmpetl.analysis import charts, scatter

ROOT = Path(__file__).resolve().parents[2]


def _drawn(x, y, zero=False):
    figure, grid = charts.new_figure(8, max(4.5, 0.24 * len(x)))
    axes = grid[0, 0]
    if zero:
        x = scatter.log_with_zero(axes, x)
    else:
        axes.plot(x, y, ls='')
    names = [f'Method{i}' for i in range(len(x))]
    families = list(itertools.islice(itertools.cycle(charts.COLOURS), len(x)))
    scatter.named_points(axes, x, y, names, families)
    figure.draw_without_rendering()
    return axes, np.array(x)


def _box(note):
    """Where the words stand, the leader left aside."""
    from matplotlib.text import Text

    return Text.get_window_extent(note)


def _crowds():
    rng = np.random.default_rng(0)
    yield rng.uniform(90, 97, 30), rng.uniform(65, 77, 30), False
    records = json.loads((ROOT / 'docs/digits_all/records.json').read_text())
    counts = [r['backbone_params'] for r in records]
    assert 0 in counts
    yield counts, [r['accuracy'] for r in records], True


@pytest.mark.parametrize('crowd', list(_crowds()), ids=['shifted', 'digits'])
def test_a_leader_runs_from_its_name_to_its_point(crowd):
    axes, x = _drawn(*crowd)
    y = crowd[1]
    starts, ends = [], []
    for i, note in enumerate(axes.texts):
        assert note.get_text() == f'Method{i}'
        path = note.arrow_patch.get_transform().transform_path(
            note.arrow_patch.get_path()
        )
        start, end = path.vertices[0], path.vertices[-1]
        box = _box(note)
        middle = np.array([box.x0, (box.y0 + box.y1) / 2])
        point = axes.transData.transform((x[i], y[i]))
        # Half of a name's height would already be that of its neighbour.
        assert np.abs(start - middle).max() < 3
        assert np.abs(end - point).max() < 1
        starts.append(start)
        ends.append(end)
    assert len(starts) == len(x)
    assert scatter.crossings(np.array(starts), np.array(ends)) == 0
    boxes = sorted(_box(note).y0 for note in axes.texts)
    height = _box(axes.texts[0]).height
    assert np.diff(boxes).min() > 0.8 * height


def test_crossings_are_counted():
    a = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    straight = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert scatter.crossings(a, straight) == 0
    assert scatter.crossings(a, straight[[1, 0, 2]]) == 1
    assert scatter.crossings(a, straight[::-1]) == 3


def test_names_spread_to_both_sides():
    assert scatter.spaced([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert scatter.spaced([0.1, 0.9], 0.2) == pytest.approx([0.1, 0.9])
    assert scatter.spaced([0.97, 0.99], 0.1) == pytest.approx([0.9, 1.0])
    assert scatter.spaced([], 0.1) == []


def test_zero_has_a_place_of_its_own_on_a_logarithmic_axis():
    figure, grid = charts.new_figure(6, 4)
    axes = grid[0, 0]
    places = scatter.log_with_zero(axes, [0, 300, 90_000])
    figure.draw_without_rendering()
    assert places[1:] == [300, 90_000]
    left, right = axes.get_xlim()
    assert left < places[0] < 300
    ticks = dict(
        zip(
            axes.xaxis.get_majorticklocs(),
            [t.get_text() for t in axes.get_xticklabels()],
            strict=True,
        )
    )
    assert ticks.pop(places[0]) == '0'
    # No other tick, great or small, stands at or left of zero's place.
    assert min([*ticks, *axes.xaxis.get_minorticklocs()]) > places[0]
    assert any('10' in text for text in ticks.values())
    free = charts.new_figure(6, 4)[1][0, 0]
    assert scatter.log_with_zero(free, [10, 1000]) == [10, 1000]
    assert not free.lines


def test_where_all_are_zero_the_axis_stays_linear():
    axes = charts.new_figure(6, 4)[1][0, 0]
    assert scatter.log_with_zero(axes, [0.0, 0]) == [0.0, 0]
    assert axes.get_xscale() == 'linear'


def test_family_colours_can_be_seen_and_read():
    from matplotlib.colors import to_rgb

    for family in (*charts.COLOURS, 'of another project'):
        seen = charts._luminance(*to_rgb(charts.colour_of(family)))
        text = charts._luminance(*to_rgb(charts.text_colour_of(family)))
        assert 1.05 / (seen + 0.05) >= 3
        assert 1.05 / (text + 0.05) >= 4.5
    assert charts._luminance(1, 1, 1) == pytest.approx(1)


def test_every_map_has_a_bar_that_says_what_it_shows():
    figure, grid = charts.new_figure(4, 4)
    matrix = np.array([[1, 0.5], [0.5, 1]])
    charts.heat_map(grid[0, 0], matrix, ['a', 'b'], ['side', 'prompt'], 'kappa')
    (bar,) = (axes for axes in figure.axes if axes is not grid[0, 0])
    assert bar.get_ylabel() == 'kappa'
