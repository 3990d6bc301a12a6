from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.rlrr import RLRR

VTAB_HEAD = 38_045  # mean over the classes of the 19 tasks


@pytest.mark.parametrize('size', ['vit_b', 'timm_vit_b'])
def test_count(size: str) -> None:
    """In + 2 out for each projection, and a pair behind patches and every norm."""
    d, m = 768, 3072
    projections = 12 * (4 * 3 * d + (d + 2 * m) + (m + 2 * d))
    pairs = 2 * d * (1 + 2 * 12 + 1)
    got = counts(size, RLRR()).delta
    assert (projections, got) == (248_832, 288_768)
    assert got == projections + pairs


def test_published_count_holds_the_head() -> None:
    assert counts('vit_b', RLRR()).delta + VTAB_HEAD == 326_813  # 0.33M


@torch.no_grad()
def test_the_weights_are_those_of_the_formula() -> None:
    """``W + diag(s_out) W diag(s_in)`` and ``b + t`` on a model without the method."""
    model = plain_vit.tuned(RLRR())
    plain = tiny.base('timm_vit', torch.float64)
    own = {'embed_proj': plain.patch_embed.proj, 'out_norm_1': plain.norm}
    pairs = [(model.petl.get_submodule(f'{k}.0'), m) for k, m in own.items()]
    for i, block in enumerate(plain.blocks):
        qkv = block.attn.qkv
        weights, biases = qkv.weight.chunk(3), qkv.bias.chunk(3)
        for key, weight, bias in zip('qkv', weights, biases, strict=True):
            rescale(plain_vit.delta(model, i, f'attn_{key}'), weight, bias)
        for key, part in (
            ('attn_proj', block.attn.proj),
            ('ffn_fc1', block.mlp.fc1),
            ('ffn_fc2', block.mlp.fc2),
        ):
            rescale(plain_vit.delta(model, i, key), part.weight, part.bias)
        norms = (('norm1', block.norm1), ('norm2', block.norm2))
        pairs += [(plain_vit.delta(model, i, key), part) for key, part in norms]
    for pair, part in pairs:
        part.weight.mul_(pair.gamma.view(-1, *[1] * (part.weight.ndim - 1)))
        part.bias.copy_(part.bias * pair.gamma + pair.beta)
    x = tiny.images('timm_vit', dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-10)


def rescale(delta: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    weight += torch.diag(delta.s_out) @ weight @ torch.diag(delta.s_in)
    bias += delta.t


@torch.no_grad()
def test_starts_are_drawn_as_released_or_at_the_base() -> None:
    torch.manual_seed(0)
    model = mmpetl.inject(tiny.base('timm_vit'), RLRR())
    fc2 = plain_vit.delta(model, 0, 'ffn_fc2')
    width = len(fc2.s_in)
    for values, bound in ((fc2.s_in, (6 / width) ** 0.5), (fc2.s_out, 6**0.5)):
        assert 0.8 * bound < values.abs().max() <= bound
    assert not fc2.t.any()
    pair = plain_vit.delta(model, 0, 'norm1')
    assert 0.01 < (pair.gamma - 1).std() < 0.03
    model = mmpetl.inject(tiny.base('timm_vit'), RLRR(exact_identity=True))
    fc2 = plain_vit.delta(model, 0, 'ffn_fc2')
    assert not fc2.s_out.any()
    assert fc2.s_in.all()


def test_dropout_is_of_elements_behind_both_sublayers() -> None:
    model = plain_vit.tuned(RLRR(drop_rate=1.0)).train()
    seen = []
    for name in ('drop_path1', 'drop_path2'):
        part = model.blocks[-1].get_submodule(name)
        part.register_forward_hook(lambda m, i, y: seen.append(i[0]))
    model(tiny.images('timm_vit', dtype=torch.float64))
    assert len(seen) == 2
    assert not any(branch.any() for branch in seen)


def test_rate_of_dropout_rises_from_zero_to_that_of_the_last_block() -> None:
    import timm

    base = timm.create_model('vit_tiny_patch16_224', depth=5, num_classes=0)
    model = mmpetl.inject(base, RLRR(drop_rate=0.4))
    for kind in ('attn_proj', 'ffn_fc2'):
        rates = [plain_vit.delta(model, i, kind).drop.p for i in range(5)]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert plain_vit.delta(model, 4, 'ffn_fc1').drop.p == 0


def test_bad_arguments() -> None:
    with pytest.raises(PETLError, match='RLRR needs drop_rate of at least 0 and at'):
        RLRR(drop_rate=1.5)
