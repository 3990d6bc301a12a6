from __future__ import annotations

from itertools import permutations

import pytest
import tiny
import torch

import mmpetl
from mmpetl.core import fold

METHODS = {
    'lora': {'type': 'LoRA', 'rank': 2},
    'ssf': {'type': 'SSF'},
    'rep_adapter': {'type': 'RepAdapter'},
    'wide_rep_adapter': {'type': 'RepAdapter', 'hidden_dims': 16},
    'arc': {'type': 'ARC', 'rank': 4},
    'ia3': {'type': 'IA3'},
}


@pytest.mark.parametrize('names', list(permutations(METHODS, 2)), ids='-'.join)
def test_two_methods_on_the_same_projections_fold_in_any_order(
    names: tuple[str, str],
) -> None:
    x = tiny.images('timm_vit', dtype=torch.float64)
    model = tiny.base('timm_vit', torch.float64)
    for name in names:
        mmpetl.inject(model, METHODS[name])
    model.eval()
    tiny.shake_(model)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(fold(model)(x), want, rtol=1e-9, atol=1e-9)
