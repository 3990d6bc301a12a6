from __future__ import annotations

import itertools

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.u_tuning import TUNERS, UTuning


@pytest.mark.parametrize(
    ('size', 'number'),
    [
        ('vit_b', 377_976),
        ('timm_vit_b', 377_976),
        ('videomae_b', 377_976),
        ('swin_b', 493_552),
        ('swin_l', 740_208),
        ('video_swin_b', 493_552),
    ],
)
def test_count(size: str, number: int) -> None:
    got = counts(size, UTuning()).delta
    assert got == number
    assert got == sum(20 * d + 20 * d + 10 + d for d in widths(size))


def test_published_count_in_units_of_a_binary_million() -> None:
    # Published 0.36M.
    assert round(counts('vit_b', UTuning()).delta / 2**20, 2) == 0.36


def test_count_of_the_other_tuners() -> None:
    lora = UTuning(mha='lora', ffn='none')
    prompt = UTuning(mha='prompt', ffn='none')
    assert counts('vit_b', lora).delta == 12 * 4 * 768 * 10
    assert counts('vit_b', prompt).delta == 12 * 10 * 768


@torch.no_grad()
def attention(x: torch.Tensor, block, pk: torch.Tensor, pv: torch.Tensor):
    """The parallel form: two attentions, weighed by their sums of exponentials."""
    heads = block.attn.num_heads

    def split(t):
        return t.unflatten(-1, (heads, -1)).transpose(-2, -3)

    q, k, v = map(split, block.attn.qkv(x).chunk(3, -1))
    pk, pv = split(pk), split(pv)
    scale = q.shape[-1] ** -0.5
    own, learned = (torch.exp(q @ t.transpose(-1, -2) * scale) for t in (k, pk))
    share = learned.sum(-1, keepdim=True)
    m = share / (share + own.sum(-1, keepdim=True))
    o = (1 - m) * (own @ v) / own.sum(-1, keepdim=True) + m * (learned @ pv) / share
    return o.transpose(1, 2).flatten(2)


def test_prefixes_equal_the_parallel_form() -> None:
    model = plain_vit.tuned(UTuning(ffn='none', num_tokens=3), std=0.5)

    def edit(place, i, z, seen):
        if place != 'proj_in':
            return z
        own = plain_vit.delta(model, i, 'attn_core')
        return attention(seen['qkv_in'], model.blocks[i], own.Pk, own.Pv)

    plain_vit.check(model, edit)


def test_prompts_take_keys_and_values_from_the_frozen_projection() -> None:
    model = plain_vit.tuned(UTuning(mha='prompt', ffn='none', num_tokens=3), std=0.5)

    def edit(place, i, z, seen):
        if place != 'proj_in':
            return z
        own = plain_vit.delta(model, i, 'attn_qkv')
        _, pk, pv = model.blocks[i].attn.qkv(own.E).chunk(3, -1)
        return attention(seen['qkv_in'], model.blocks[i], pk, pv)

    plain_vit.check(model, edit)


def tuner(own: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    if hasattr(own.tuner, 'A'):
        return z @ own.tuner.A.T @ own.tuner.B.T
    return plain_vit.bottleneck(own.tuner, z, F.gelu)


@pytest.mark.parametrize('mode', ['parallel', 'serial'])
@pytest.mark.parametrize(
    ('place', 'kind'),
    # LoRA at attention is an update of the fused projection, below.
    [
        ('mha', 'adapter'),
        ('ffn', 'adapter'),
        ('ffn', 'lora'),
        ('block', 'adapter'),
        ('block', 'lora'),
    ],
)
def test_tuners_equal_the_formula(place: str, mode: str, kind: str) -> None:
    args = {'mha': 'none', 'ffn': 'none', place: kind, f'{place}_mode': mode}
    model = plain_vit.tuned(UTuning(**args, hidden_dims=4, rank=4))
    at, inside, key = {
        'mha': ('m', 'a', 'attn'),
        'ffn': ('f', 'g', 'ffn'),
        'block': ('x2', 'x0', 'block'),
    }[place]
    if mode == 'serial' and place != 'block':
        key += '_branch'

    def edit(where, i, z, seen):
        if where != at:
            return z
        own = plain_vit.delta(model, i, key)
        return z + tuner(own, seen[inside] if mode == 'parallel' else z)

    plain_vit.check(model, edit)


def test_lora_is_an_update_of_the_fused_projection_and_folds() -> None:
    model = plain_vit.tuned(UTuning(mha='lora', ffn='none', rank=4))

    def edit(place, i, z, seen):
        if place != 'qkv':
            return z
        return z + tuner(plain_vit.delta(model, i, 'attn_qkv'), seen['qkv_in'])

    plain_vit.check(model, edit)
    x = tiny.images('timm_vit', dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(mmpetl.core.fold(model)(x), want)


def test_only_lora_alone_folds() -> None:
    assert UTuning(mha='lora', ffn='none').folds
    assert not UTuning(mha='lora').folds
    assert not UTuning().folds
    model = mmpetl.inject(tiny.base('timm_vit'), UTuning())
    with pytest.raises(PETLError, match='UTuning in slot .* cannot be folded'):
        mmpetl.core.fold(model)


def test_no_token_and_zero_init_is_the_frozen_model(stem: str) -> None:
    x = tiny.images(stem, odd=True)
    method = UTuning(num_tokens=0, hidden_dims=3, zero_init=True)
    assert method.starts_as_identity
    assert not UTuning(zero_init=True).starts_as_identity
    plain = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    model = mmpetl.inject(tiny.base(stem), method)
    for a, b in zip(tiny.outputs(plain, x), tiny.outputs(model, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(('mha', 'names'), [('prefix', 'Pk Pv'), ('prompt', 'E')])
def test_tokens_get_gradients_and_their_order_does_not_matter(
    stem: str, mha: str, names: str
) -> None:
    method = UTuning(mha=mha, ffn='none', num_tokens=4)
    if method.lacks(tiny.offered(stem)):  # prompts enter one projection of all rows
        with pytest.raises(PETLError, match='keys and values come from a reduced map'):
            mmpetl.inject(tiny.base(stem), method)
        return
    model = mmpetl.inject(tiny.base(stem, torch.float64), method)
    x = tiny.images(stem, odd=True, dtype=torch.float64)
    ys = tiny.outputs(model, x)
    tiny.loss_of(ys).backward()
    tokens = {
        n: p
        for n, p in model.named_parameters()
        if 'petl' in n and n.rpartition('.')[2] in names.split()
    }
    assert tokens
    assert all(p.grad.abs().max() > 0 for p in tokens.values())
    projections = ('qkv.', 'in_proj_', '.q.', '.kv.')
    frozen = [
        p
        for n, p in model.named_parameters()
        if any(part in n for part in projections) and n not in tokens
    ]
    assert frozen
    assert all(p.grad is None for p in frozen)
    with torch.no_grad():
        for p in tokens.values():
            p.copy_(p[[2, 0, 3, 1]].clone())
        for a, b in zip(tiny.outputs(model, x), ys, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


def test_a_serial_adapter_stands_behind_stochastic_depth_or_in_front() -> None:
    sites = {}
    for behind in (True, False):
        model = mmpetl.inject(
            tiny.base('timm_vit'),
            UTuning(mha='adapter', mha_mode='serial', behind_drop_path=behind),
        )
        sites[behind] = set(model.blocks[0].petl._modules)
    assert sites == {True: {'attn_branch', 'ffn_branch'}, False: {'attn', 'ffn'}}


def test_every_combination_of_the_menu_runs() -> None:
    x = tiny.images('mmpretrain_swin_cls')
    base = tiny.outputs(tiny.base('mmpretrain_swin_cls'), x)[0]
    some = ('none', 'adapter', 'lora')
    for mha, ffn, block in itertools.product(TUNERS, some, some):
        if {mha, ffn, block} == {'none'}:
            continue
        method = UTuning(mha, ffn, block, num_tokens=2, hidden_dims=2, rank=2)
        model = mmpetl.inject(tiny.base('mmpretrain_swin_cls'), method)
        tiny.shake_(model)
        model.eval()
        with torch.no_grad():
            y = tiny.outputs(model, x)[0]
        assert torch.isfinite(y).all()
        assert (y - base).abs().max() > 1e-4, method


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'mha': 'none', 'ffn': 'none'}, 'needs a tuner'),
        ({'num_tokens': 0, 'ffn': 'none'}, 'needs a tuner'),
        ({'mha': 'vpt'}, "mha none or prefix or .*, got 'vpt'"),
        ({'ffn': 'prefix'}, "got 'prefix'; prefixes and prompts need the queries"),
        ({'block': 'prompt'}, "got 'prompt'; prefixes and prompts need the queries"),
        ({'mha_mode': 'serial'}, 'mha prefix in parallel only'),
        ({'ffn_mode': 'beside'}, "ffn_mode parallel or serial, got 'beside'"),
        ({'num_tokens': -1}, 'num_tokens of at least 0, got -1'),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        UTuning(**args)


def test_rank_of_a_whole_width_is_refused() -> None:
    with pytest.raises(PETLError, match=r'narrowest width \(32\), got 32'):
        mmpetl.inject(tiny.timm_vit(), UTuning(mha='lora', rank=32))


@pytest.mark.parametrize('mha', ['prefix', 'prompt'])
def test_tokens_start_within_the_bound_of_three_axes(mha):
    """Xavier-uniform over (1, P, C), as the authors hold them."""
    model = mmpetl.inject(tiny.base('timm_vit'), UTuning(mha=mha, num_tokens=10))
    names = ('Pk', 'Pv', 'E')
    tokens = [p for n, p in model.named_parameters() if n.split('.')[-1] in names]
    bound = (6 / ((10 + 1) * 32)) ** 0.5
    assert len(tokens) == (4 if mha == 'prefix' else 2)
    for token in tokens:
        assert 0.9 * bound < token.abs().max() <= bound
