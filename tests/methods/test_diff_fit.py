from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths

import mmpetl
from mmpetl.core import Owner, PETLError, owners
from mmpetl.core.sitemap import is_norm
from mmpetl.methods.bitfit import BitFit
from mmpetl.methods.diff_fit import DiffFit

TABLE = 'relative_position_bias_table'


@pytest.mark.parametrize(
    ('size', 'number'),
    [
        ('vit_b', 140_544),
        ('timm_vit_b', 140_544),
        ('videomae_b', 131_328),
        ('swin_b', 190_080),
    ],
)
def test_count(size: str, number: int) -> None:
    got = counts(size, DiffFit())
    assert got.delta + got.selected == number
    assert got.delta == sum(2 * d for d in widths(size))


def test_count_is_bitfit_with_norms_and_scales() -> None:
    biases = counts('vit_b', BitFit()).selected
    assert (biases, 25 * 768, 24 * 768) == (102_912, 19_200, 18_432)
    assert counts('vit_b', DiffFit()).selected == biases + 19_200
    assert counts('vit_b', DiffFit(first_blocks=6)).delta == 18_432 // 2


def test_equals_the_formula() -> None:
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), DiffFit())
    model.eval()
    own = owners(model)
    with torch.no_grad():
        for name, p in model.named_parameters():  # the base stays, scales move
            if own[name] is Owner.DELTA:
                p.add_(0.3 * torch.randn_like(p))

    at = {'m': 'attn_proj', 'f': 'ffn_fc2'}

    def edit(place, i, z, seen):
        return z * plain_vit.delta(model, i, at[place]).gamma if place in at else z

    plain_vit.check(model, edit)


@pytest.mark.parametrize('tables', [True, False])
def test_biases_norms_and_scales_train_and_nothing_else(
    stem: str, tables: bool
) -> None:
    model = mmpetl.inject(tiny.base(stem), DiffFit(include_rel_pos_bias=tables))
    norms = {
        f'{n}.{k}'
        for n, m in model.named_modules()
        if is_norm(m)
        for k, _ in m.named_parameters()
    }
    own = owners(model)
    for name, p in model.named_parameters():
        if own[name] not in (Owner.SELECTED, Owner.BASE):
            continue
        last = name.rpartition('.')[2]
        table = last == TABLE
        wanted = tables if table else name in norms or last.endswith('bias')
        assert p.requires_grad is wanted, name
    assert any(n.endswith(TABLE) for n in own) is ('swin' in stem)


def test_layer_scale_and_stochastic_depth_commute_with_the_scale() -> None:
    # The formula has the scale behind them.
    torch.manual_seed(0)
    model = tiny.timm_vit(init_values=0.5, drop_path_rate=0.4)
    mmpetl.inject(model, DiffFit(), frozen_drop_path=True)
    block = model.blocks[1]
    gamma = block.petl.attn_proj['0'].gamma
    with torch.no_grad():
        gamma.uniform_(0.5, 1.5)
        block.petl.ffn_fc2['0'].gamma.zero_()
    model.train()
    x = torch.randn(64, 17, 32)
    seen = {}
    block.ls1.register_forward_hook(lambda m, i, y: seen.update(scaled=y))
    block.drop_path1.register_forward_hook(lambda m, i, y: seen.update(dropped=y))
    model.blocks[0].register_forward_hook(lambda m, i, y: seen.update(x=y))
    with torch.no_grad():
        model(tiny.images('timm_vit', batch=64))
        kept = seen['dropped'].abs().amax((1, 2)) > 0
        plain = seen['scaled'] / gamma
        torch.testing.assert_close(
            seen['dropped'][kept], (plain * gamma)[kept] / 0.6, rtol=1e-4, atol=1e-6
        )
    assert 0 < kept.sum() < len(x)


def test_key_rows_of_the_bias_get_no_gradient() -> None:
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), DiffFit())
    x = tiny.images('timm_vit', dtype=torch.float64)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    q, k, v = model.blocks[0].attn.qkv.bias.grad.chunk(3)
    assert k.abs().max() < 1e-10 * v.abs().max()
    assert q.abs().max() > 0


def test_scales_get_no_weight_decay() -> None:
    from mmpetl.engine.optim import OwnerOptimWrapperConstructor

    model = mmpetl.inject(tiny.base('mmpretrain_vit'), DiffFit())
    groups = OwnerOptimWrapperConstructor(
        {'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}}
    ).groups(model)
    assert {g['weight_decay'] for g in groups} == {0.0}


@pytest.mark.parametrize(
    ('count', 'message'),
    [(0, 'first_blocks of at least 1'), (3, 'first_blocks of at most 2.*got 3')],
)
def test_bad_argument_is_named(count: int, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.base('timm_vit'), DiffFit(first_blocks=count))
