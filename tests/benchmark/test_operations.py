"""What ``speed/operations.py`` counts is what can be counted by hand."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]

D, N, PATCH, BLOCKS = 32, 1 + 4, 8, 2
"""Width, tokens with the class token, side of a patch."""


@pytest.fixture(scope='module')
def script() -> Any:
    """What ``speed/operations.py`` defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', [str(ROOT / 'speed'), *sys.path])
        return runpy.run_path(str(ROOT / 'speed' / 'operations.py'))


@pytest.fixture
def references(script: Any) -> Any:
    """Of a trunk of two narrow blocks with one head, for one picture."""
    from mmpretrain.models import VisionTransformer

    arch = {'embed_dims': D, 'num_layers': BLOCKS, 'num_heads': 1}
    arch['feedforward_channels'] = 4 * D

    def make() -> nn.Module:
        torch.manual_seed(0)
        return VisionTransformer(arch=arch, img_size=16, patch_size=PATCH)

    return script['References'](make, torch.randn(1, 3, 16, 16))


def test_products_and_bytes(script: Any) -> None:
    a, b, c = torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 5)
    for run in (lambda: a @ b, lambda: torch.addmm(c, a, b), lambda: c.addmm_(a, b)):
        assert script['tally'](run).products == 3 * 4 * 5
    assert script['tally'](lambda: a @ b).traffic == 4 * (12 + 20 + 15)
    assert script['tally'](lambda: a + a).traffic == 4 * 3 * 12
    assert script['tally'](lambda: a.mul_(2)).traffic == 4 * 2 * 12
    line = torch.ones(4)
    assert script['tally'](lambda: a + line).traffic == 4 * (12 + 4 + 12)
    wide = line.expand(3, 4)
    assert script['tally'](lambda: a + wide).traffic == 4 * (12 + 4 + 12)


def test_views_and_empty_memory_are_free(script: Any) -> None:
    a = torch.ones(3, 4)
    run = script['tally'](lambda: (a.t().unflatten(1, (1, 3))[0], torch.empty(9)))
    assert (run.products, run.traffic) == (0, 0)


def test_attention_is_two_products_and_five_backward(script: Any) -> None:
    shape = 2, 3, 7, 16
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    one = 2 * 3 * 7 * 7 * 16
    forward = script['tally'](lambda: F.scaled_dot_product_attention(q, k, v))
    assert forward.products == 2 * one
    both = script['tally'](
        lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()
    )
    assert both.products == 7 * one


def test_the_bound_is_what_its_formulas_say(script: Any, references: Any) -> None:
    block, scores = 12 * D * D * N, D * N * N
    stem, head = 4 * 3 * PATCH**2 * D, 10 * D
    frozen = script['tally'](references.bound(None))
    assert frozen.products == stem + BLOCKS * (block + 2 * scores)
    bound = script['tally'](references.bound(0))
    back = BLOCKS * (block + 5 * scores) + 2 * head
    assert bound.products == frozen.products + head + back


def test_a_row_says_what_a_method_adds(script: Any, references: Any) -> None:
    bounds: dict = {}
    rows = {n: script['measure'](n, references, bounds) for n in ('LNTune', 'LoRA')}
    assert rows['LNTune']['products'] == 1
    assert rows['LNTune']['traffic'] > 1
    # Queries and values have a pair of rank 8 each: down, up, their two gradients, and
    # those of what is between them and in front. In the lowest block nothing learns
    # in front of it, so that neither that one is needed nor that of queries, keys and
    # values.
    one = 8 * D * N
    added = (2 * 6 + 2 * 5) * one - 3 * D * D * N
    whole = bounds[0].products
    assert rows['LoRA']['products'] == pytest.approx((whole + added) / whole, rel=1e-9)
    lines = script['table'](rows.values(), {'LNTune': 1.5}).splitlines()
    assert [line.split(' | ')[0] for line in lines[2:]] == ['| LoRA', '| LNTune']
    assert lines[3].endswith(' | 1.50 |')
    assert lines[2].endswith(' | - |')


def test_a_step_from_products_and_traffic(script: Any) -> None:
    """By hand: 0.2 for 2 and 0.1 for 1 above their products, so 0.1 for each."""
    rows = [
        {'method': 'A', 'products': 1.0, 'traffic': 3.0},
        {'method': 'B', 'products': 1.5, 'traffic': 2.0},
        {'method': 'C', 'products': 1.0, 'traffic': 9.0},
    ]
    timed = {'A': 1.2, 'B': 1.6}
    assert script['weight_of_traffic'](rows, timed) == pytest.approx(0.1)
    lines = script['table'](rows, timed).splitlines()
    assert lines[2] == '| B | 1.500 | 2.00 | 1.60 | 1.60 |'
    assert '| C | 1.000 | 9.00 | - | - |' in lines
