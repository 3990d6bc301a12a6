"""Colours of the report page: contrast, and what colour-blind eyes tell apart."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mmpetl.benchmark import report


def _luminance(colour: np.ndarray) -> np.ndarray:
    return _linear(colour) @ np.array([0.2126, 0.7152, 0.0722])


def _linear(colour: np.ndarray) -> np.ndarray:
    return np.where(
        colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4
    )


def _contrast(a: np.ndarray, b: np.ndarray) -> float:
    low, high = sorted((float(_luminance(a)), float(_luminance(b))))
    return (high + 0.05) / (low + 0.05)


def _schemes() -> dict[str, dict[str, np.ndarray]]:
    """Colours of the page by scheme and name, in [0, 1]."""
    text = (Path(report.__file__).parent / 'page.css').read_text()
    light, dark = text.split('@media (prefers-color-scheme: dark)')
    dark = dark.split('* { box-sizing')[0]
    found = {}
    for name, part in (('light', light), ('dark', dark)):
        pairs = re.findall(r'--([\w-]+): (#[0-9a-f]{6});', part)
        found[name] = {
            key: np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            for key, value in pairs
        }
    assert set(found['light']) == set(found['dark'])
    return found


SIGHTS = {
    'all cones': np.eye(3),
    'no long': np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    'no middle': np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    'no short': np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
"""Machado, Oliveira and Fernandes (2009), severity 1, of linear RGB."""


def _oklab(linear: np.ndarray) -> np.ndarray:
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(np.clip(linear, 0, 1) @ to_cones.T) @ to_lab.T


def test_the_formulas_of_sight_are_right():
    white, black = np.ones(3), np.zeros(3)
    assert _contrast(white, black) == pytest.approx(21)
    assert _oklab(white) == pytest.approx([1, 0, 0], abs=1e-4)
    for matrix in SIGHTS.values():
        assert matrix.sum(1) == pytest.approx(1, abs=1e-5)  # grey stays grey


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_and_graphics_stand_out(scheme):
    colours = _schemes()[scheme]
    for text in ('ink', 'soft', 'accent', 'warn'):
        for ground in ('paper', 'panel', 'tint', 'warn-tint'):
            if (text, ground) in (('accent', 'warn-tint'), ('warn', 'tint')):
                continue  # never on one another
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for end in ('low', 'mid', 'high'):  # numbers in the cells of maps
        assert _contrast(colours['ink'], colours[end]) >= 4.5, end
    for graphic in ('edge', 'accent', *(f'c{i}' for i in range(8))):
        for ground in ('paper', 'panel'):
            assert _contrast(colours[graphic], colours[ground]) >= 3, graphic


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('sight', SIGHTS)
def test_lines_are_told_apart_by_every_eye(scheme, sight):
    colours = _schemes()[scheme]
    lines = _linear(np.array([colours[f'c{i}'] for i in range(8)]))
    seen = _oklab(np.clip(lines @ SIGHTS[sight].T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)
    # A step of 0.02 is just seen; symbols and dashes are the second code.
    assert apart[~np.eye(8, dtype=bool)].min() > 0.1
