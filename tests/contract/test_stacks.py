"""Two methods on one backbone: exact by a calculation by hand, or refused in one line.

All pairs are in ``test_all_stacks.py``, which is slow.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stacked import batch, params_of, same, stack, trunk, untrained, without_gradient
from tiny import outputs
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, build_method, conflict, injection_of
from mmpetl.core.tasks import task_switch

VIT = 'timm_vit'
SWINS = ('mmpretrain_swin_cls', 'mmaction_swin3d')
LORA = {'type': 'LoRA', 'rank': 2, 'targets': ('attn.qkv',)}

# One setting per kind of interaction.
BESIDE_LORA: list[dict[str, Any]] = [
    {'type': 'AdaptFormer', 'hidden_dims': 4},
    {'type': 'BAPAT', 'hidden_dims': 4, 'adapter_dims': 4},
    {'type': 'BitFit'},
    {'type': 'Convpass'},
    {'type': 'DTL', 'rank': 2},
    {'type': 'E3VA', 'rank': 4},
    {'type': 'HST', 'dims': (8, 12), 'num_heads': (2, 4)},
    {'type': 'LAST'},
    {'type': 'LST', 'init': 'random', 'reduction': 4},
    {'type': 'LoRA', 'rank': 3, 'targets': ('attn.qkv',)},
    {'type': 'Mona', 'hidden_dims': 4},
    {'type': 'NOAH', 'num_tokens': (2, 3), 'rank': 2, 'hidden_dims': 0},
    {'type': 'PolyhistorLite', 'rank': 2},
    {'type': 'Prefix', 'num_tokens': 3},
    {'type': 'SNF'},
    {'type': 'UTuning', 'mha': 'prompt', 'num_tokens': 2},
    {'type': 'VMTAdapter', 'reduction': 4},
    {'type': 'VPTDeep', 'num_tokens': 2},
    {'type': 'VPTShallow', 'num_tokens': 3},
    {'type': 'VQT', 'num_tokens': 2},
]


def two(name: str, *configs: Any, seed: int = 0) -> nn.Module:
    return stack(name, *map(build_method, configs), seed=seed)


def deltas(model: nn.Module, slot: str) -> dict[str, nn.Module]:
    """The deltas of a slot by the path of their site."""
    module, record = injection_of(model)
    return {
        site.path: module.get_submodule(f'{site.path}.{slot}')
        for site in record.slots[slot].sites
    }


def take_over(model: nn.Module, other: nn.Module, slot: str) -> None:
    """Give the slot of ``model`` the values that it has in ``other``."""
    module, source = injection_of(model)[0], injection_of(other)[0]
    with torch.no_grad():
        for path in (*deltas(model, slot), f'petl.shared.{slot}'):
            full = path if path.startswith('petl.shared') else f'{path}.{slot}'
            for key, value in source.state_dict().items():
                if key.startswith(f'{full}.'):
                    module.state_dict()[key].copy_(value)
        for name in injection_of(model)[1].slots[slot].selected:
            module.get_parameter(name).copy_(source.get_parameter(name))


# By hand: a method beside LoRA is that method on a base whose weight holds B A


@pytest.mark.parametrize('order', ['ab', 'ba'])
@pytest.mark.parametrize('config', BESIDE_LORA, ids=lambda c: c['type'])
def test_beside_lora_is_on_a_base_that_holds_the_product(config, order) -> None:
    x = batch(VIT)
    first, second = (config, LORA) if order == 'ab' else (LORA, config)
    model = two(VIT, first, second)
    lora, slot = ('b', 'a') if order == 'ab' else ('a', 'b')

    plain = trunk(VIT)
    with torch.no_grad():
        for i, block in enumerate(plain.blocks):
            delta = model.blocks[i].petl.attn_qkv[lora]
            block.attn.qkv.weight += delta.B @ delta.A
    mmpetl.inject(plain, build_method(config), slot=slot)
    take_over(plain, model, slot)
    for got, want in zip(outputs(model, x), outputs(plain, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_bitfit_beside_lora_trains_the_bias_of_the_sum() -> None:
    model, x = two(VIT, 'BitFit', LORA), batch(VIT)
    plain = trunk(VIT)
    with torch.no_grad():
        for name, param in plain.named_parameters():
            if name.endswith('bias'):
                param.copy_(model.get_parameter(name))
        for i, block in enumerate(plain.blocks):
            delta = model.blocks[i].petl.attn_qkv.b
            block.attn.qkv.weight += delta.B @ delta.A
    torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_deep_prompts_stand_behind_shallow_ones_and_replace_only_their_own() -> None:
    """Block 0 sees [c, S, D0, g], block 1 [c, S', D1, g]: the deep ones are fresh."""
    shallow = {'type': 'VPTShallow', 'num_tokens': 3}
    deep = {'type': 'VPTDeep', 'num_tokens': 2}
    model, x, plain = two(VIT, shallow, deep), batch(VIT), trunk(VIT)
    s = model.blocks[0].petl.tokens.a.E.expand(2, -1, -1)
    z = plain._pos_embed(plain.patch_embed(x))
    cls, grid = z[:, :1], z[:, 1:]
    for i, block in enumerate(plain.blocks):
        d = model.blocks[i].petl.tokens.b.E.expand(2, -1, -1)
        z = block(torch.cat((cls, s, d, grid), dim=1))
        cls, s, grid = z[:, :1], z[:, 1:4], z[:, 6:]
    want = plain.forward_head(plain.norm(torch.cat((cls, grid), dim=1)))
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_at_one_site_the_method_injected_first_acts_first(order) -> None:
    """Hydra's branch behind the projection reads what SSF has made of it, or not."""
    hydra, ssf = {'type': 'Hydra', 'targets': ('attn.proj',)}, {'type': 'SSF'}
    model = two(VIT, *((hydra, ssf) if order == 'ab' else (ssf, hydra)))
    block = model.blocks[0]
    seen = {}
    block.attn.proj.register_forward_hook(lambda m, i, y: seen.update(x=i[0], y=y))
    block.drop_path1.register_forward_hook(lambda m, i, y: seen.update(out=i[0]))
    model(batch(VIT))
    h, s = (block.petl.attn_proj[slot] for slot in ('ab', 'ba')[order != 'ab'])

    def branch(y: Tensor) -> Tensor:
        parts = ((h.parallel, seen['x']), (h.sequential, y))
        return y + h.scale * sum(part.up(part.down(z)) for part, z in parts)

    def affine(y: Tensor) -> Tensor:
        return s.gamma * y + s.beta

    y = seen['y']
    want = affine(branch(y)) if order == 'ab' else branch(affine(y))
    torch.testing.assert_close(seen['out'], want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_an_adapter_reads_what_ssf_has_made_of_the_projection(order) -> None:
    """They act at two sites, one behind the other, so that no order matters."""
    configs = {'type': 'Adapter', 'hidden_dims': 4}, {'type': 'SSF'}
    model, x = two(VIT, *(configs if order == 'ab' else configs[::-1])), batch(VIT)
    adapter, ssf = order
    plain = trunk(VIT)
    sites = deltas(model, ssf)
    proj = plain.patch_embed.proj
    pair = sites['petl.embed_proj']
    proj.weight.mul_(pair.gamma[:, None, None, None])
    proj.bias.copy_(proj.bias * pair.gamma + pair.beta)
    z = plain._pos_embed(plain.patch_embed(x))

    def scaled(y: Tensor, i: int, key: str) -> Tensor:
        pair = sites[f'blocks.{i}.petl.{key}']
        return y * pair.gamma + pair.beta

    for i, block in enumerate(plain.blocks):
        attn, mlp = block.attn, block.mlp
        h = scaled(block.norm1(z), i, 'norm1')
        qkv = scaled(attn.qkv(h), i, 'attn_qkv').unflatten(-1, (3, 4, 8))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        o = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        z = z + scaled(attn.proj(o), i, 'attn_proj')
        h = scaled(block.norm2(z), i, 'norm2')
        b = scaled(mlp.fc2(F.gelu(scaled(mlp.fc1(h), i, 'ffn_fc1'))), i, 'ffn_fc2')
        delta = model.blocks[i].petl.ffn[adapter]
        z = z + b + delta.up(F.gelu(delta.down(b)))
    pair = sites['petl.out_norm_1']
    want = plain.forward_head(plain.norm(z) * pair.gamma + pair.beta)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


# Queries of VQT are tokens in front of no grid


def queries_seen(model: nn.Module, x: Tensor, slot: str, behind) -> Tensor:
    """The feature of VQT by hand, ``behind(i, name, y)`` being an adapter at sums."""
    plain = trunk(VIT)
    z = plain._pos_embed(plain.patch_embed(x))
    seen = []
    for i, block in enumerate(plain.blocks):
        e = model.blocks[i].petl.block[slot].E
        s = torch.cat((z, e.expand(2, -1, -1)), dim=1)
        n, attn = z.shape[1], block.attn
        h = block.norm1(s)
        q, k, v = attn.qkv(h).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        rows = (q @ k[:, :, :n].mT / 8**0.5).softmax(-1)
        o = (rows @ v[:, :, :n]).transpose(1, 2).flatten(2)
        s = behind(i, 'attn', h, s + attn.proj(o), n)
        h = block.norm2(s)
        s = behind(i, 'ffn', h, s + block.mlp(h), n)
        z = s[:, :n]
        seen.append(s[:, n:].flatten(1))
    parts = [plain.norm(z)[:, 0], *seen]
    return torch.cat([p / p.norm(dim=1, keepdim=True) for p in parts], dim=1)


@torch.no_grad()
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_queries_pass_the_convolutions_of_mona_by(order) -> None:
    mona = {'type': 'Mona', 'hidden_dims': 4}
    pair = (mona, 'VQT') if order == 'ab' else ('VQT', mona)
    model = two(VIT, *pair)
    slot, query = order

    def behind(i, name, h, y, n) -> Tensor:
        d = model.blocks[i].petl.get_submodule(f'{name}_sum.{slot}')
        low = d.down(d.gamma * d.norm(y) + d.gamma_x * y)
        maps = low[:, 1:n].transpose(1, 2).unflatten(2, (4, 4))
        conv = d.conv
        wide = [
            F.conv2d(maps, c.weight, c.bias, padding='same', groups=4)
            for c in (conv.dw3, conv.dw5, conv.dw7)
        ]
        t = sum(wide) / 3 + maps
        maps = (t + conv.mix(t)).flatten(2).transpose(1, 2)
        low = torch.cat((low[:, :1], maps, low[:, n:]), dim=1)
        return y + d.up(F.gelu(low))

    x = batch(VIT)
    want = queries_seen(model, x, query, behind)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_a_query_is_a_map_of_its_own_to_convpass(order) -> None:
    pair = ('Convpass', 'VQT') if order == 'ab' else ('VQT', 'Convpass')
    model = two(VIT, *pair)
    slot, query = order

    def quick(t: Tensor) -> Tensor:
        return t * torch.sigmoid(1.702 * t)

    def behind(i, name, h, y, n) -> Tensor:
        d = model.blocks[i].petl.get_submodule(f'{name}_sum.{slot}')
        low = quick(d.down(h))
        maps = d.conv(low[:, 1:n].transpose(1, 2).unflatten(2, (4, 4)))
        centre = low @ d.conv.weight[:, :, 1, 1].T + d.conv.bias
        low = torch.cat(
            (centre[:, :1], maps.flatten(2).transpose(1, 2), centre[:, n:]), dim=1
        )
        return y + d.up(quick(low))

    x = batch(VIT)
    want = queries_seen(model, x, query, behind)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_queries_go_through_the_adapters_of_the_task_at_hand(order) -> None:
    poly = {'type': 'PolyhistorLite', 'rank': 2}
    model = two(VIT, *((poly, 'VQT') if order == 'ab' else ('VQT', poly)))
    slot, query = order
    network = []

    def behind(i, name, h, y, n) -> Tensor:
        if name == 'attn':
            network[:] = [y]
            return y
        d = model.blocks[i].petl.ffn_skip[slot]
        down, down_bias, up, up_bias = d.weights('task')
        stream = network[0]
        return y + F.gelu(stream @ down.T + down_bias) @ up.T + up_bias

    x = batch(VIT)
    want = queries_seen(model, x, query, behind)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


# Side networks


@torch.no_grad()
@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_the_highway_carries_what_an_adapter_adds_to_the_stream(order) -> None:
    adapt, e3va = {'type': 'AdaptFormer', 'hidden_dims': 8}, {'type': 'E3VA', 'rank': 4}
    model = two(VIT, *((adapt, e3va) if order == 'ab' else (e3va, adapt)))
    slot, side = order
    x, plain = batch(VIT), trunk(VIT)
    z = h = plain._pos_embed(plain.patch_embed(x))
    for i, block in enumerate(plain.blocks):
        d, highway = (
            model.blocks[i].petl.ffn_sum[slot],
            model.blocks[i].petl.block[side],
        )
        a = block.attn(block.norm1(z))
        middle = z + a
        m = block.mlp(block.norm2(middle))
        added = d.up(F.relu(d.down(middle))) * 0.1
        h = h + a + highway.attn(a) + m + highway.ffn(m) + added
        z = middle + m + added
    norm = model.petl.out_norm_1[side]
    want = plain.forward_head(norm.gamma * plain.norm(h) + norm.beta)
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', SWINS)
def test_the_last_adapter_of_a_swin_reaches_the_end_of_the_highway(name) -> None:
    model = two(name, {'type': 'SNF'}, {'type': 'E3VA', 'rank': 4})
    assert without_gradient(model, batch(name)) == set()
    assert untrained(model) == set()


@pytest.mark.parametrize(
    ('editor', 'reader'),
    [
        ({'type': 'DTL', 'rank': 2, 'patch_mean': False}, 'LST'),
        ({'type': 'UTuning', 'block': 'adapter'}, 'LAST'),
        ({'type': 'LoRand', 'branches': 2, 'rank': 3}, {'type': 'E3VA', 'rank': 4}),
    ],
    ids=lambda c: c if isinstance(c, str) else c['type'],
)
def test_a_tap_reads_what_leaves_in_any_order_of_injection(editor, reader) -> None:
    x = batch(VIT)
    model, other = trunk(VIT), trunk(VIT)
    for slot, config in (('a', editor), ('b', reader)):
        mmpetl.inject(model, build_method(config), slot=slot)
    for slot, config in (('b', reader), ('a', editor)):
        mmpetl.inject(other, build_method(config), slot=slot)
    with torch.no_grad():
        for param in (*params_of(model, 'a').values(), *params_of(model, 'b').values()):
            param.add_(0.2 * torch.randn_like(param))
    for slot in 'ab':
        take_over(other, model, slot)
    assert same(outputs(model, x), outputs(other, x))
    assert without_gradient(model, x) == set()


@pytest.mark.parametrize('order', ['ab', 'ba'])
def test_a_norm_whose_output_is_replaced_does_not_train(order) -> None:
    x = batch(VIT)
    model = two(VIT, *(('BitFit', 'LST') if order == 'ab' else ('LST', 'BitFit')))
    selection, side = order
    assert untrained(model) == {'norm.weight', 'norm.bias'}
    assert not model.norm.bias.requires_grad
    assert model.blocks[1].norm2.bias.requires_grad
    assert without_gradient(model, x) == set()
    before = mmpetl.count_trainable(model).selected
    mmpetl.disable(model, side)
    assert model.norm.bias.requires_grad
    mmpetl.enable(model, side)
    assert not model.norm.bias.requires_grad
    mmpetl.eject(model, side)
    assert model.norm.bias.requires_grad
    assert mmpetl.count_trainable(model).selected == before + 32
    mmpetl.eject(model, selection)
    assert same(outputs(model, x), outputs(trunk(VIT), x))


@torch.no_grad()
@pytest.mark.parametrize('name', [VIT, *SWINS])
def test_the_side_state_of_dtl_passes_by_tokens_that_come_and_go(name) -> None:
    """Prompts of another number per block; they change DTL's sum through attention."""
    depth = 2 if name == VIT else 4
    noah = {'type': 'NOAH', 'num_tokens': tuple(range(1, depth + 1))}
    dtl = {'type': 'DTL', 'rank': 2, 'patch_mean': False}
    model = two(name, {**noah, 'rank': 0, 'hidden_dims': 0}, dtl)
    blocks = [m for m in model.modules() if hasattr(m, 'sublayers')]
    seen = []
    for block in blocks:
        if not hasattr(block.petl, 'block'):
            continue  # in a stage that DTL leaves alone
        kept = {}

        def spy(x, ctx, inside=block.sublayers, kept=kept):
            y = inside(x, ctx)
            kept.update(x=x, y=y, n=ctx.num_prefix - ctx.num_extra, p=ctx.num_prefix)
            return y

        block.sublayers = spy
        seen.append((block.petl.block.b, kept))
        block.register_forward_hook(lambda m, args, y, kept=kept: kept.update(out=y))
    model(batch(name))
    total = 0
    for delta, kept in seen:
        n, p = kept['n'], kept['p']
        own = torch.cat((kept['x'][:, :n], kept['x'][:, p:]), dim=1)
        total = total + own @ delta.A.T @ delta.B.T
        added = total * torch.sigmoid(100 * total) if delta.adds else 0 * total
        want = kept['y'].clone()
        want[:, :n] += added[:, :n]
        want[:, p:] += added[:, n:]
        torch.testing.assert_close(kept['out'], want, rtol=1e-9, atol=1e-9)


def test_two_settings_of_one_side_network_add_up() -> None:
    first, second = {'type': 'E3VA', 'rank': 4}, {'type': 'E3VA', 'rank': 2}
    model, x = two(VIT, first, second), batch(VIT)
    assert without_gradient(model, x) == set()
    norm = injection_of(model)[0].petl.out_norm_1
    with torch.no_grad():
        for slot in 'ab':
            norm[slot].gamma.fill_(1)
            norm[slot].beta.zero_()
        ends = {}
        model.norm.register_forward_hook(lambda m, i, y: ends.update(x=i[0]))

        def end(*off: str) -> Tensor:
            for slot in off:
                mmpetl.disable(model, slot)
            model(x)
            for slot in off:
                mmpetl.enable(model, slot)
            return ends['x']

        none = end('a', 'b')
        got, want = end() - none, end('b') - none + end('a') - none
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


# Refused

DTL_MEAN = {'type': 'DTL', 'rank': 2}
HST = {'type': 'HST', 'dims': (8, 12), 'num_heads': (2, 4)}
REFUSED = [
    ('LST', HST, 'HST hands over a feature of its own at feature_1, .* LST'),
    (
        'LST',
        'SSF',
        'LST hands over .* at out_1, which drops what SSF does at out_norm_1',
    ),
    ('LST', {'type': 'E3VA', 'rank': 4}, 'drops what E3VA does at out'),
    ('LST', 'LAST', 'drops what LAST does at out_1'),
    ('LST', DTL_MEAN, 'drops what DTL does at out_1'),
    ('LST', {'type': 'LST', 'reduction': 4}, 'drops what LST does at out_1'),
    (HST, 'VQT', 'HST hands over a feature of its own at feature'),
    (HST, 'SSF', 'drops what SSF does at out_norm_1'),
    ('VQT', {'type': 'VQT', 'num_tokens': 2}, 'both set the width'),
    (
        {'type': 'PolyhistorLite', 'rank': 2},
        {'type': 'VMTAdapter', 'reduction': 4},
        'both tell tasks apart',
    ),
    (
        {'type': 'LAST', 'num_parallel': 3},
        {'type': 'E3VA', 'rank': 4},
        'LAST hands over 3 features per input, and E3VA acts at out_1',
    ),
    (
        {'type': 'VMTAdapter', 'reduction': 4, 'tasks': ('depth', 'edges')},
        'VQT',
        'VMTAdapter hands over 2 features per input, and VQT acts at feature',
    ),
]


def name_of(config: Any) -> str:
    return config if isinstance(config, str) else config['type']


@pytest.mark.parametrize('swap', [False, True], ids=['ab', 'ba'])
@pytest.mark.parametrize(
    ('first', 'second', 'why'),
    REFUSED,
    ids=[f'{name_of(a)}+{name_of(b)}' for a, b, _ in REFUSED],
)
def test_what_cannot_act_together_is_refused(first, second, why, swap) -> None:
    a, b = (second, first) if swap else (first, second)
    model, x = two(VIT, a), batch(VIT)
    switch, keys = task_switch(model), list(model.state_dict())
    with nullcontext() if switch is None else switch.asking(switch.tasks):
        before = outputs(model, x)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(PETLError, match=why) as error:
        mmpetl.inject(model, build_method(b), slot='b')
    line = str(error.value)
    assert '\n' not in line
    assert line.startswith(f"{name_of(b)} in slot 'b' cannot act beside {name_of(a)}")
    assert 'disable or eject one of them' in line
    assert list(model.state_dict()) == keys
    assert [p.requires_grad for p in model.parameters()] == flags
    with nullcontext() if switch is None else switch.asking(switch.tasks):
        assert same(outputs(model, x), before)
    mmpetl.eject(model)
    assert same(outputs(model, x), outputs(trunk(VIT), x))


def test_a_slot_that_is_off_is_in_nobodys_way_until_it_comes_on() -> None:
    model, x = two(VIT, 'LST'), batch(VIT)
    mmpetl.disable(model, 'a')
    mmpetl.inject(model, build_method(HST), slot='b')
    both = outputs(model, x)
    with pytest.raises(PETLError, match="LST in slot 'a' cannot act beside HST"):
        mmpetl.enable(model, 'a')
    assert [s.enabled for s in mmpetl.slots(model)] == [False, True]
    assert same(outputs(model, x), both)
    mmpetl.disable(model, 'b')
    mmpetl.enable(model, 'a')
    with pytest.raises(PETLError, match="HST in slot 'b' cannot act beside LST"):
        mmpetl.enable(model, 'b')


@pytest.mark.parametrize('name', SWINS)
def test_prompts_that_are_pooled_need_the_feature_that_lst_replaces(name) -> None:
    model = two(name, 'LST')
    with pytest.raises(PETLError, match='drops what VPTDeep does at out_1'):
        mmpetl.inject(model, 'VPTDeep', slot='b')
    mmpetl.inject(model, {'type': 'VPTDeep', 'pool_prompts': False}, slot='b')
    assert without_gradient(model, batch(name)) == set()


def test_methods_do_not_know_each_other() -> None:
    """A new method is judged by what it declares and where it acts."""

    class Mine(type(build_method('LST'))):
        replaces = ('out',)

    mine, last = Mine(), build_method('LAST')
    sites = injection_of(two(VIT, 'LAST'))[1].sites
    ours = [s for s in sites if mine.wants(s)]
    assert 'Mine hands over' in conflict(mine, ours, last, last.choose(list(sites)))
    lora = build_method(LORA)
    assert conflict(mine, ours, lora, lora.choose(list(sites))) is None


def test_a_copy_of_a_stack_is_a_stack() -> None:
    model, x = two(VIT, 'BitFit', 'LST'), batch(VIT)
    twin = copy.deepcopy(model)
    assert same(outputs(twin, x), outputs(model, x))
    assert not twin.norm.bias.requires_grad
    mmpetl.eject(twin, 'b')
    assert twin.norm.bias.requires_grad
    assert not model.norm.bias.requires_grad
