from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts

import mmpetl
from mmpetl.methods.bitfit import BitFit

TABLE = 'relative_position_bias_table'


@pytest.mark.parametrize(
    ('size', 'with_tables', 'without'),
    [
        ('vit_b', 102_912, 102_912),  # published 0.10M
        ('timm_vit_b', 102_912, 102_912),
        ('swin_b_dense', 201_656, 138_112),  # published 0.20M
        ('swin_l_dense', 302_484, 207_168),  # published 0.30M
        ('videomae_b', 93_696, 93_696),
        ('video_swin_b', 1_090_376, 137_216),  # published 1.09M
    ],
)
def test_count(size: str, with_tables: int, without: int) -> None:
    assert counts(size, BitFit()).selected == with_tables
    assert counts(size, BitFit(include_rel_pos_bias=False)).selected == without


def test_formula_on_vit() -> None:
    blocks, d = 12, 768
    assert counts('vit_b', BitFit()).selected == blocks * 11 * d + 2 * d


@pytest.mark.parametrize('tables', [True, False])
def test_no_matrix_trains_except_position_tables(stem: str, tables: bool) -> None:
    model = mmpetl.inject(tiny.base(stem), BitFit(include_rel_pos_bias=tables))
    wide = {
        name.rpartition('.')[2]
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim >= 2 and not name.startswith('head')
    }
    assert wide == ({TABLE} if tables and 'swin' in stem else set())


@pytest.mark.parametrize(
    'stem_', ['mmpretrain_vit', 'timm_vit', 'mmpretrain_swin', 'mmaction_swin3d']
)
def test_key_rows_of_the_fused_bias_get_no_gradient(stem_: str) -> None:
    model = mmpetl.inject(tiny.base(stem_, torch.float64), BitFit())
    x = tiny.images(stem_, odd=True, dtype=torch.float64)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    fused = [p for n, p in model.named_parameters() if n.endswith('qkv.bias')]
    assert fused
    for bias in fused:
        q, k, v = bias.grad.chunk(3)
        assert k.abs().max() < 1e-10 * v.abs().max()
        assert q.abs().max() > 1e-6 * v.abs().max()


@pytest.mark.parametrize('tables', [True, False])
def test_exactly_the_biases_train(stem: str, tables: bool) -> None:
    model = mmpetl.inject(tiny.base(stem), BitFit(include_rel_pos_bias=tables))
    kinds = {'bias', 'q_bias', 'v_bias', 'in_proj_bias'} | (
        {TABLE} if tables else set()
    )
    biases = {n for n, _ in model.named_parameters() if n.rpartition('.')[2] in kinds}
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trains if not n.startswith('head')} == {
        n for n in biases if not n.startswith('head')
    }
