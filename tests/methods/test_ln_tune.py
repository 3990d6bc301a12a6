from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts, widths
from torch import nn

import mmpetl
from mmpetl.core.sitemap import is_norm
from mmpetl.methods.ln_tune import LNTune


@pytest.mark.parametrize(
    ('size', 'number'),
    [
        ('vit_b', 38_400),
        ('timm_vit_b', 38_400),
        ('swin_b', 57_600),
        ('swin_b_dense', 59_392),  # published 0.06M
        ('swin_l_dense', 89_088),  # published 0.09M
        ('videomae_b', 38_400),
        ('video_swin_b', 57_600),
    ],
)
def test_count(size: str, number: int) -> None:
    assert counts(size, LNTune()).selected == number


def test_formula_on_swin() -> None:
    d = [128, 256, 512, 1024]
    blocks = sum(4 * w for w in widths('swin_b'))
    merging = sum(2 * 4 * w for w in d[:3])
    assert counts('swin_b', LNTune()).selected == blocks + merging + 2 * d[0] + 2 * d[3]


def test_exactly_the_norms_train(stem: str) -> None:
    model = mmpetl.inject(tiny.base(stem), LNTune())
    norms = {
        f'{path}.{name}'
        for path, m in model.named_modules()
        if is_norm(m) and not f'{path}.'.startswith('head.')
        for name, _ in m.named_parameters()
    }
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert norms
    assert {n for n in trains if not n.startswith('head')} == norms


def test_train_and_eval_agree(stem: str) -> None:
    model = mmpetl.inject(tiny.base(stem), LNTune())
    x = tiny.images(stem)
    still = tiny.outputs(model, x)
    model.train()
    # Batch norms that train look at the batch.
    batch = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for a, b in zip(still, tiny.outputs(model, x), strict=True):
        assert torch.equal(a, b) is not batch
