"""PPT against figures that V-PETL Bench prints."""

from __future__ import annotations

import pytest

from mmpetl.evaluation import ppt

# score in percent, million parameters, printed PPT: LoRA and Mona on VOC and ADE20K
# in the README of V-PETL Bench
PRINTED = [
    (87.5, 4.57, 0.74),
    (50.34, 4.57, 0.43),
    (51.36, 5.08, 0.43),
    (87.3, 5.08, 0.73),
]


@pytest.mark.parametrize(('score', 'millions', 'printed'), PRINTED)
def test_ppt_equals_the_printed_value(score, millions, printed):
    assert ppt(score / 100, round(millions * 1e6)) == pytest.approx(printed, abs=5e-3)


def test_ppt_by_hand():
    # 90 million parameters: log10(10) = 1, so the factor is 1 / e
    assert ppt(1.0, 90_000_000) == pytest.approx(0.36787944)
    assert ppt(0.5, 0) == 0.5


def test_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r'score in \[0, 1\], got 85'):
        ppt(85, 10)
    with pytest.raises(ValueError, match='number of parameters'):
        ppt(0.5, -1)
