"""LST: a side network that reads the frozen blocks and answers in their place."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts
from torch import nn

import mmpetl
from mmpetl.core import PETLError, delta_state, load_delta_state
from mmpetl.core.inject import injection_of
from mmpetl.methods import lst
from mmpetl.methods.lst import LST


def tuned(stem: str, reduction: int = 8, **args) -> nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), LST(reduction, **args))
    model.eval()
    return model


def parts(model: nn.Module, kind: str) -> list[nn.Module]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == kind]
    return [core.get_submodule(site.path)['0'] for site in sites]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'sublayers')]


@pytest.mark.parametrize(
    ('host', 'count'),
    [
        ('vit_b', 2_376_492),
        ('timm_vit_b', 2_376_492),
        ('videomae_b', 2_376_492),
        ('swin_b', 2_444_064),
        ('swin_b_dense', 2_488_192),
        ('swin_l', 5_434_020),
        ('swin_l_dense', 5_532_468),
    ],
)
def test_published_and_specified_counts(host, count):
    assert counts(host, LST()).delta == count


@pytest.mark.parametrize('reduction', [4, 16])
def test_count_on_vit_b_follows_its_formula(reduction):
    c, n, d = 768, 12, 768 // reduction
    want = n * (12 * d**2 + 13 * d) + (n + 1) * (c * d + d) + (d * c + c) + 2 * d + n
    assert counts('vit_b', LST(reduction, init='random')).delta == want


def test_equals_the_ladder_written_out():
    plain = tiny.base('timm_vit', torch.double)
    model = tuned('timm_vit', 2)
    tiny.shake_(model, 0.1)
    x = tiny.images('timm_vit', dtype=torch.double)
    z = plain._pos_embed(plain.patch_embed(x))
    h = parts(model, 'embed')[0].down(z)
    for block, side in zip(plain.blocks, parts(model, 'block'), strict=True):
        z = block(z)
        mu = 1 / (1 + torch.exp(-side.alpha / 0.1))
        h = mu * h + (1 - mu) * side.down(z)
        b = side.block
        q, k, v = b.qkv(b.norm1(h)).view(2, 17, 3, 4, 4).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / 4**0.5).softmax(-1)
        h = h + b.proj((a @ v).transpose(1, 2).flatten(2))
        h = h + b.fc2(nn.functional.gelu(b.fc1(b.norm2(h))))
    (leave,) = parts(model, 'out')
    want = plain.head(leave.up(leave.norm(h))[:, 0])
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_the_trunk_builds_no_graph(stem):
    model, seen = tuned(stem), []
    for block in blocks(model):
        block.register_forward_hook(lambda m, i, y: seen.append(y))
    model.train()
    tiny.loss_of(tiny.outputs(model, tiny.images(stem, dtype=torch.double)))
    assert len(seen) == len(blocks(model))
    assert not any(z.requires_grad for z in seen)


def test_autograd_keeps_of_the_trunk_only_what_the_ladder_reads():
    """Per rung one (B, N, C); nothing of the width of qkv or of the hidden layer."""
    model = tuned('mmpretrain_vit')
    model.train()
    params = {p.data_ptr() for p in model.parameters()}
    kept: list[torch.Tensor] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in params:
            kept.append(t)
        return t

    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)[0]
    wide = {t.data_ptr() for t in kept if t.numel() >= 2 * 17 * 32}
    assert len(wide) == 1 + 2  # the embedding and two blocks
    rest = sum(t.numel() for t in {t.data_ptr(): t for t in kept}.values()) - 3 * 1088
    # Width 4 in place of 32: what the side blocks keep is below one trunk tensor each.
    assert rest < 2 * 17 * 4 * 40
    assert y.requires_grad


def test_only_the_side_network_gets_gradients_and_all_of_it_does(stem):
    model = tuned(stem)
    model.train()
    x = tiny.images(stem, odd=True, dtype=torch.double)
    tiny.loss_of(tiny.outputs(model, x)).backward()
    _, state = injection_of(model)
    for name, param in injection_of(model)[0].named_parameters():
        if name in state.base:
            head = name in state.head and param.requires_grad
            assert param.grad is None or head, name
        else:
            assert param.grad is not None, name
            assert param.grad.any(), name


@pytest.mark.parametrize('host', ['timm_vit', 'mmpretrain_vit', 'mmaction_vit'])
def test_without_reduction_the_side_block_is_the_host_block(host):
    plain, model = tiny.base(host, torch.double), tuned(host, 1)
    hosts = plain.layers if host == 'mmpretrain_vit' else plain.blocks
    h = torch.randn(2, 17, 32, dtype=torch.double)
    for block, side in zip(hosts, parts(model, 'block'), strict=True):
        torch.testing.assert_close(
            side.block(h, (4, 4)), block(h), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize('host', ['mmpretrain_swin', 'mmaction_swin3d'])
def test_without_reduction_side_windows_are_those_of_the_host(host):
    """Padded, shifted and biased alike, once the position table is the host's."""
    model = tuned(host, 1)
    grid = (9, 6) if host == 'mmpretrain_swin' else (4, 9, 6)
    sides = parts(model, 'block')
    plain = mmpetl.inject(tiny.base(host, torch.double), tiny.Nothing())
    plain.eval()
    for block, side in zip(blocks(plain)[:2], sides[:2], strict=True):
        attn = block.attn.w_msa if host == 'mmpretrain_swin' else block.attn
        with torch.no_grad():
            side.block.table.copy_(attn.relative_position_bias_table)
        n = torch.Size(grid).numel()
        h = torch.randn(2, n, 16, dtype=torch.double)
        want = block(h, mmpetl.core.Context(grid))
        torch.testing.assert_close(
            side.block(h, mmpetl.core.Context(grid)), want, rtol=1e-6, atol=1e-6
        )


def test_side_merging_is_the_patch_merging_of_the_host():
    model = tuned('mmaction_swin3d', 1)
    merge, (side,) = model.layers[0].downsample, parts(model, 'downsample')
    with torch.no_grad():
        side.norm.load_state_dict(merge.norm.state_dict())
        side.down.load_state_dict(merge.reduction.state_dict())
    h = torch.randn(2, 2 * 5 * 7, 16, dtype=torch.double)
    ctx = mmpetl.core.Context((2, 5, 7))
    side.notes(ctx)['h'] = h
    side.before(h, ctx)
    ctx.grid = (2, 3, 4)
    side.after(h, h, ctx)
    want = merge(h.view(2, 2, 5, 7, 16)).flatten(1, 3)
    got = side.notes(ctx)['h']
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_pruning_keeps_the_largest_residual_channels_in_order():
    base = tiny.base('timm_vit', torch.double)
    planted = [3, 11, 17, 30]
    with torch.no_grad():
        for block in base.blocks:
            block.mlp.fc2.weight[planted] *= 100
            block.norm1.weight.copy_(torch.arange(32.0))
    model = mmpetl.inject(base, LST(8))
    for block, side in zip(model.blocks, parts(model, 'block'), strict=True):
        assert side.block.norm1.weight.tolist() == planted
        fc2 = side.block.fc2
        assert torch.equal(fc2.bias, block.mlp.fc2.bias[planted])
        # Hidden channels keep their order too: each row is a subsequence of its own.
        row = block.mlp.fc2.weight[planted[0]]
        at = [int((row == w).nonzero()[0, 0]) for w in fc2.weight[0]]
        assert at == sorted(at)


def test_pruning_keeps_heads_apart_and_pairs_queries_with_keys():
    base = tiny.base('timm_vit', torch.double)
    with torch.no_grad():
        for block in base.blocks:
            qkv = block.attn.qkv.weight.view(3, 4, 8, 32)
            qkv[0, 0, 5] *= 1000  # a large query channel drags its key along
            block.attn.proj.weight.view(32, 4, 8)[:, 1, 2] *= 1000
    model = mmpetl.inject(base, LST(8))
    for block, side in zip(model.blocks, parts(model, 'block'), strict=True):
        got = side.block.qkv.bias.view(3, 4, 1)
        want = block.attn.qkv.bias.view(3, 4, 8)
        assert got[0, 0, 0] == want[0, 0, 5]
        assert got[1, 0, 0] == want[1, 0, 5]
        assert got[2, 1, 0] == want[2, 1, 2]


def test_a_wide_open_gate_leaves_the_blocks_out():
    model = tuned('mmpretrain_vit')
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    closed = model(x)[0]
    with torch.no_grad():
        for side in parts(model, 'block'):
            side.alpha.fill_(100)
    before = model(x)[0]
    for side in parts(model, 'block'):
        side.down.weight.data.mul_(-3)
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
    assert not torch.equal(before, closed)


def test_a_shut_gate_leaves_only_the_last_block():
    model = tuned('mmpretrain_vit')
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    with torch.no_grad():
        for side in parts(model, 'block'):
            side.alpha.fill_(-100)
        before = model(x)[0]
        parts(model, 'embed')[0].down.weight.mul_(-3)
        parts(model, 'block')[0].down.weight.mul_(-3)
        torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
        parts(model, 'block')[1].down.weight.mul_(-3)
    assert not torch.equal(model(x)[0], before)


def test_an_image_does_not_see_the_rest_of_its_batch(stem):
    x, model = tiny.images(stem, 3, odd=True, dtype=torch.double), tuned(stem)
    together = tiny.outputs(model, x)
    for i in range(3):
        alone = tiny.outputs(model, x[i : i + 1])
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got[0], want[i], rtol=1e-9, atol=1e-9)


def test_the_backbone_itself_is_untouched(stem):
    """What the blocks compute is what they compute without the side network."""
    x = tiny.images(stem)
    model = mmpetl.inject(tiny.base(stem), LST())
    plain = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    seen = []
    for m in (model, plain):
        m.eval()
        blocks(m)[-1].register_forward_hook(lambda m, i, y: seen.append(y))
        tiny.outputs(m, x)
    assert torch.equal(*seen)


def test_two_side_networks_take_turns():
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    model = tuned('mmpretrain_vit')
    alone = model(x)[0]
    with pytest.raises(PETLError, match="LST in slot '1' cannot act beside LST"):
        mmpetl.inject(model, LST(4))
    mmpetl.disable(model, '0')
    mmpetl.inject(model, LST(4))
    model.eval()
    assert not torch.equal(model(x)[0], alone)
    with pytest.raises(PETLError, match='cannot act beside'):
        mmpetl.enable(model, '0')
    mmpetl.eject(model, '1')
    mmpetl.enable(model, '0')
    torch.testing.assert_close(model(x)[0], alone, rtol=0, atol=0)


def test_start_from_magnitude_differs_from_random():
    a, b = (tuned('mmpretrain_vit', init=init) for init in ('magnitude', 'random'))
    base = a.layers[0].attn.qkv.bias
    assert torch.isin(parts(a, 'block')[0].block.qkv.bias, base).all()
    assert not torch.isin(parts(b, 'block')[0].block.qkv.bias, base).any()


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(PETLError, match='3 x heads divides; .* has 32 channels'):
        tuned('mmpretrain_vit', 3)


@pytest.mark.parametrize(
    ('args', 'fewer'),
    [
        # Per block 12 d^2 + 13 d of the side block, C d + d of D, and a gate.
        ({'side_blocks': [0, 2, 5, 11]}, 8 * (12 * 96**2 + 13 * 96 + 769 * 96 + 1)),
        ({'gated': False}, 12),
        ({'form': 'post_norm'}, 15 * 96 + 768),
    ],
)
def test_counts_of_the_forms_of_the_authors(args, fewer):
    assert counts('vit_b', LST(**args)).delta == 2_376_492 - fewer


def test_without_gates_and_some_side_blocks_equals_the_ladder_written_out():
    plain = tiny.base('timm_vit', torch.double)
    model = tuned('timm_vit', 2, side_blocks=[1], gated=False)
    tiny.shake_(model, 0.1)
    x = tiny.images('timm_vit', dtype=torch.double)
    z = plain._pos_embed(plain.patch_embed(x))
    h = parts(model, 'embed')[0].down(z)
    z = plain.blocks[1](plain.blocks[0](z))
    (side,), (leave,) = parts(model, 'block'), parts(model, 'out')
    h = side.block(h + side.down(z), mmpetl.core.Context((4, 4), 1))
    want = plain.head(leave.up(leave.norm(h))[:, 0])
    torch.testing.assert_close(model(x), want, rtol=1e-9, atol=1e-9)


def test_forms_that_do_not_fit_are_refused():
    with pytest.raises(PETLError, match="pre_norm or post_norm, got 'rms'"):
        LST(form='rms')
    with pytest.raises(PETLError, match='at least one of side_blocks; None takes all'):
        LST(side_blocks=[])
    with pytest.raises(
        PETLError, match='beside block 2; this backbone has blocks 0 to'
    ):
        tuned('timm_vit', side_blocks=[0, 2])


def test_an_unknown_start_is_refused():
    with pytest.raises(PETLError, match="fisher or random, got 'hessian'"):
        LST(init='hessian')


# -------------------------------------------------------- start by Fisher information


def samples(host: str = 'timm_vit', count: int = 6) -> list:
    """Two batches, the second one smaller."""
    x = tiny.images(host, batch=count, dtype=torch.double)
    return list(zip(x.split(4), (torch.arange(count) % 3).split(4), strict=True))


def squared_gradients(batches: list) -> dict[str, torch.Tensor]:
    """Of the plain model, image by image, mean over the images."""
    plain = tiny.base('timm_vit', torch.double)
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    total = {n: torch.zeros_like(p) for n, p in plain.named_parameters()}
    for image, label in zip(x, labels, strict=True):
        plain.zero_grad()
        nn.functional.cross_entropy(plain(image[None]), label[None]).backward()
        for n, p in plain.named_parameters():
            total[n] += p.grad**2 / len(x)
    return total


def test_fisher_keeps_what_squared_gradients_of_single_samples_say():
    plain, method = tiny.base('timm_vit', torch.double), LST(8, 'fisher')
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), method)
    method.calibrate(model, samples())
    f = squared_gradients(samples())
    residual = torch.zeros(32, dtype=torch.double)
    for i in range(2):
        at = f'blocks.{i}.'
        residual += f[at + 'attn.qkv.weight'].sum(0) + f[at + 'mlp.fc1.weight'].sum(0)
        for out in ('attn.proj', 'mlp.fc2'):
            residual += f[f'{at}{out}.weight'].sum(1) + f[f'{at}{out}.bias']
        for norm in ('norm1', 'norm2'):
            residual += f[f'{at}{norm}.weight'] + f[f'{at}{norm}.bias']
    kept = sorted(residual.argsort()[-4:].tolist())
    by_size = mmpetl.inject(tiny.base('timm_vit', torch.double), LST(8))
    for i, side in enumerate(parts(model, 'block')):
        host, at, own = plain.blocks[i], f'blocks.{i}.', side.block
        assert torch.equal(own.norm2.weight, host.norm2.weight[kept])
        rows = f[at + 'attn.qkv.weight'].sum(1) + f[at + 'attn.qkv.bias']
        q, k, v = rows.view(3, 4, 8)
        v = v + f[at + 'attn.proj.weight'].sum(0).view(4, 8)
        both, value = (q + k).argmax(1), v.argmax(1)  # one channel per head is left
        row = torch.arange(4) * 8
        inner = torch.cat((row + both, row + both + 32, row + value + 64))
        want = host.attn.qkv.weight[inner][:, kept]
        assert torch.equal(own.qkv.weight, want)
        assert torch.equal(own.proj.weight, host.attn.proj.weight[kept][:, row + value])
        size = f[at + 'mlp.fc1.weight'].sum(1) + f[at + 'mlp.fc1.bias']
        size = size + f[at + 'mlp.fc2.weight'].sum(0)
        hidden = sorted(size.argsort()[-8:].tolist())
        assert torch.equal(own.fc1.weight, host.mlp.fc1.weight[hidden][:, kept])
        assert torch.equal(own.fc2.bias, host.mlp.fc2.bias[kept])
        other = parts(by_size, 'block')[i].block
        assert not torch.equal(own.qkv.weight, other.qkv.weight)


@pytest.mark.parametrize('host', ['timm_vit', 'mmpretrain_vit', 'mmaction_vit'])
def test_fisher_without_reduction_gives_the_host_block(host):
    """On the backbones that give features alone a head stands behind."""
    method = LST(1, 'fisher')
    model = mmpetl.inject(tiny.base(host, torch.double), method)
    x = tiny.images(host, batch=4, dtype=torch.double)
    whole = model if host == 'timm_vit' else nn.Sequential(model, Head())
    method.calibrate(whole, [(x, torch.tensor([0, 1, 0, 2]))])
    plain = tiny.base(host, torch.double)
    hosts = plain.layers if host == 'mmpretrain_vit' else plain.blocks
    h = torch.randn(2, 17, 32, dtype=torch.double)
    for block, side in zip(hosts, parts(model, 'block'), strict=True):
        torch.testing.assert_close(side.block(h, (4, 4)), block(h))


class Head(nn.Module):
    """A linear head on the last feature, mean over a map."""

    def __init__(self, dims: int = 32) -> None:
        super().__init__()
        self.linear = nn.Linear(dims, 3).double()

    def forward(self, y) -> torch.Tensor:
        y = y[-1] if isinstance(y, list | tuple) else y
        return self.linear(y.flatten(2).mean(2) if y.ndim > 2 else y)


@pytest.mark.parametrize('host', ['mmpretrain_swin_cls', 'mmaction_swin3d'])
def test_fisher_keeps_a_set_of_channels_per_stage(host):
    method = LST(4, 'fisher')
    model = mmpetl.inject(tiny.base(host, torch.double), method)
    x = tiny.images(host, batch=3, dtype=torch.double)
    method.calibrate(nn.Sequential(model, Head()), [(x, torch.tensor([0, 1, 2]))])
    for i, (block, side) in enumerate(
        zip(blocks(model), parts(model, 'block'), strict=True)
    ):
        weight, own = block.norm1.weight, side.block.norm1.weight
        kept = [int((weight == w).nonzero()[0, 0]) for w in own]
        assert kept == sorted(kept)
        assert len(kept) == (4, 4, 8, 8)[i]
        host = block.ffn.layers[1] if hasattr(block, 'ffn') else block.mlp.fc2
        assert torch.equal(side.block.fc2.bias, host.bias[kept])


def test_fisher_pass_leaves_no_trace_but_side_blocks():
    method = LST(8, 'fisher')
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), method)
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    method.calibrate(model, samples())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    done = 'petl.shared.0.done'
    assert done in moved
    assert all('.block.' in k for k in moved - {done})
    assert any('.block.qkv.' in k for k in moved)


def test_fisher_looks_at_so_many_images_at_most(monkeypatch):
    method = LST(8, 'fisher')
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), method)
    monkeypatch.setattr(lst, 'FISHER_IMAGES', 3)
    few = method.information(model, samples())
    ((x, labels), _) = samples()
    first = method.information(model, [(x[:3], labels[:3])])
    assert few
    assert all(torch.equal(few[p], first[p]) for p in few)
    assert all((f >= 0).all() for f in few.values())


def test_fisher_takes_batches_of_openmmlab():
    from mmpretrain.models import ImageClassifier
    from mmpretrain.structures import DataSample

    method = LST(8, 'fisher')
    model = ImageClassifier(
        backbone=mmpetl.inject(tiny.base('mmpretrain_vit'), method),
        head={'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 32},
        data_preprocessor={'mean': [0.0] * 3, 'std': [1.0] * 3, 'to_rgb': False},
    )
    x = tiny.images('mmpretrain_vit', batch=4)
    labels = [0, 1, 2, 0]
    batch = {
        'inputs': list(x),
        'data_samples': [DataSample().set_gt_label(i) for i in labels],
    }
    found = method.information(model, [batch])
    plain, fc = tiny.base('mmpretrain_vit'), model.head.fc
    weight = plain.layers[1].ffn.layers[1].weight
    want = torch.zeros_like(weight)
    for image, label in zip(x, labels, strict=True):
        scores = fc(plain(image[None])[-1])
        loss = nn.functional.cross_entropy(scores, torch.tensor([label]))
        want += torch.autograd.grad(loss, weight)[0] ** 2 / 4
    got = found[model.backbone.layers[1].ffn.layers[1].weight]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-9)


def test_fisher_start_is_saved_and_not_made_again():
    method = LST(8, 'fisher')
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), method)
    assert method.calibrates
    assert not LST().calibrates
    method.calibrate(model, samples())
    other = mmpetl.inject(tiny.base('timm_vit', torch.double), LST(8, 'fisher'))
    load_delta_state(other, delta_state(model))
    assert other.petl.shared['0'].done
    x = tiny.images('timm_vit', dtype=torch.double)
    model.eval(), other.eval()
    assert torch.equal(model(x), other(x))


def test_fisher_without_its_pass_is_told():
    model = mmpetl.inject(tiny.base('timm_vit'), LST(8, 'fisher'))
    model.train()
    with pytest.warns(UserWarning, match='starts from random blocks: no data pass'):
        model(tiny.images('timm_vit'))


@pytest.mark.parametrize(
    ('batches', 'message'),
    [
        ([], 'prunes by data, and there are none'),
        ([(samples()[0][0], None)], 'needs labels, and these data have none'),
    ],
)
def test_fisher_needs_labelled_data(batches, message):
    method = LST(8, 'fisher')
    model = mmpetl.inject(tiny.base('timm_vit', torch.double), method)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError, match=message):
        method.calibrate(model, batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for n, p in model.named_parameters() if 'petl' in n)
