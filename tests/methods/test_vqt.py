"""VQT: learned queries that look into every frozen block."""

from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.core.inject import injection_of
from mmpetl.methods.vqt import VQT

VITS = ('mmpretrain_vit', 'mmaction_vit')


def tuned(stem: str, num_tokens: int = 2, std: float = 0.3) -> nn.Module:
    model = mmpetl.inject(tiny.base(stem, torch.double), VQT(num_tokens))
    model.eval()
    tiny.shake_(model, std)
    return model


def timm_without_head() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.randomise_(tiny.timm_vit(num_classes=0)).double().eval()


def queries(model: nn.Module) -> list[nn.Parameter]:
    core, state = injection_of(model)
    sites = [s for s in state.slots['0'].sites if s.kind == 'block']
    return [core.get_submodule(site.path)['0'].E for site in sites]


def streams(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What every block gives, and the output."""
    seen: list[Tensor] = []
    blocks = [m for m in model.modules() if hasattr(m, 'sublayers')]
    hooks = [b.register_forward_hook(lambda m, i, y: seen.append(y)) for b in blocks]
    out = tiny.outputs(model, x)[0]
    for hook in hooks:
        hook.remove()
    return [*seen, out]


def in_one_sequence(
    plain: nn.Module, prompts: list[Tensor], x: Tensor, detach: bool = False
) -> Tensor:
    """The feature as the authors compute it: queries and tokens in one sequence."""
    z = plain._pos_embed(plain.patch_embed(x))
    seen = []
    for block, prompt in zip(plain.blocks, prompts, strict=True):
        t, b = len(prompt), len(z)
        s = torch.cat((prompt.expand(b, -1, -1), z), dim=1)
        qkv = block.attn.qkv(block.norm1(s)).unflatten(-1, (3, 4, 8))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        rows = q @ k[:, :, t:].transpose(-1, -2) / 8**0.5
        o = (rows.softmax(-1) @ v[:, :, t:]).transpose(1, 2).flatten(2)
        s = s + block.attn.proj(o)
        s = s + block.mlp(block.norm2(s))
        seen.append(s[:, :t])
        z = s[:, t:].detach() if detach else s[:, t:]
    z = plain.norm(z)[:, 0]
    parts = [z, *(s.flatten(1) for s in seen)]
    return torch.cat([p / p.norm(dim=1, keepdim=True) for p in parts], dim=1)


@pytest.mark.parametrize(
    ('num_tokens', 'count'), [(1, 9_216), (10, 92_160), (20, 184_320)]
)
def test_specified_counts(num_tokens, count):
    for host in ('vit_b', 'timm_vit_b', 'videomae_b'):
        assert counts(host, VQT(num_tokens)).delta == count


def test_the_feature_grows_by_one_width_per_query_and_block():
    model = tuned('mmpretrain_vit', 3)
    _, state = injection_of(model)
    (site,) = (s for s in state.slots['0'].sites if s.kind == 'feature')
    y = model(tiny.images('mmpretrain_vit', dtype=torch.double))[0]
    assert y.shape == (2, VQT(3).feature_dims(site)) == (2, 32 * (1 + 2 * 3))


@pytest.mark.parametrize('detach', [False, True], ids=['one_graph', 'detached'])
def test_equals_one_sequence_in_feature_and_gradient(detach):
    plain = timm_without_head()
    model = mmpetl.inject(timm_without_head(), VQT(3))
    model.eval()
    tiny.shake_(model, 0.3)
    x = tiny.images('timm_vit', dtype=torch.double)
    prompts = [e.detach().clone().requires_grad_() for e in queries(model)]
    got, want = model(x), in_one_sequence(plain, prompts, x, detach)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    w = torch.randn_like(got)
    (got * w).sum().backward()
    (want * w).sum().backward()
    for mine, theirs in zip(queries(model), prompts, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10)
        assert mine.grad.any()


@pytest.mark.parametrize('host', VITS)
def test_the_trunk_is_bit_identical_for_any_queries(host):
    x = tiny.images(host)
    plain = mmpetl.inject(tiny.base(host), tiny.Nothing())
    model = mmpetl.inject(tiny.base(host), VQT(2))
    tiny.shake_(model, 3.0)
    plain.eval()
    model.eval()
    *tokens, feature = streams(model, x)
    *wanted, frozen = streams(plain, x)
    assert all(map(torch.equal, tokens, wanted))
    z = frozen / frozen.norm(dim=1, keepdim=True)
    torch.testing.assert_close(feature[:, :32], z)


@pytest.mark.parametrize('host', VITS)
@torch.no_grad()
def test_queries_of_a_block_change_only_what_they_see(host):
    x, model = tiny.images(host, dtype=torch.double), tuned(host)
    before = tiny.outputs(model, x)[0].unflatten(1, (-1, 32))
    for i, e in enumerate(queries(model)):
        kept = e.clone()
        e.add_(0.5)
        moved = (tiny.outputs(model, x)[0].unflatten(1, (-1, 32)) != before).any(2)
        e.copy_(kept)
        rows = moved.any(0).nonzero().flatten().tolist()
        assert rows == [1 + 2 * i, 2 + 2 * i]


@pytest.mark.parametrize('host', VITS)
def test_every_part_of_the_feature_has_length_one(host):
    y = tiny.outputs(tuned(host), tiny.images(host, dtype=torch.double))[0]
    for part in (y[:, :32], y[:, 32:96], y[:, 96:]):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2, dtype=torch.double))


@pytest.mark.parametrize('host', VITS)
def test_autograd_keeps_of_the_trunk_only_the_keys_and_values_they_look_at(host):
    model = tuned(host, 1)
    model.train()
    params = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in params:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 8
        return t

    x = tiny.images(host, dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        *tokens, y = streams(model, x)
    assert y.requires_grad
    assert not any(z.requires_grad for z in tokens)
    whole = tokens[0].numel()
    wide = [n for n in kept.values() if n >= whole]
    # Per block keys and values, exactly (B, N, C) each: no stream, no hidden layer.
    assert wide == [whole] * (2 * 2)
    # A query row keeps a few widths of numbers, not of tokens.
    assert sum(kept.values()) - sum(wide) < 2 * 2 * 40 * 32


def test_dropout_acts_on_the_queries_alone_and_only_in_training():
    model = tuned('mmpretrain_vit')
    x = tiny.images('mmpretrain_vit', dtype=torch.double)
    quiet = model(x)[0]
    assert torch.equal(model(x)[0], quiet)
    model.train()
    noisy = model(x)[0]
    assert torch.equal(noisy[:, :32], quiet[:, :32])
    assert not torch.equal(noisy[:, 32:], quiet[:, 32:])


def test_start_is_the_bound_of_the_prompts():
    model = mmpetl.inject(tiny.base('mmpretrain_vit'), VQT(50))
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    for e in queries(model):
        assert e.abs().max() <= bound
        assert abs(e.abs().mean().item() / bound - 0.5) < 0.05


@pytest.mark.parametrize('host', ['mmpretrain_swin', 'mmaction_swin3d', 'timm_vit'])
def test_backbones_that_hand_over_no_vector_are_refused(host):
    """Maps have no room for queries; a classifier inside has a width of its own."""
    with pytest.raises(PETLError, match='VQT needs site kind feature'):
        mmpetl.inject(tiny.base(host), VQT())


def test_no_queries_are_refused():
    with pytest.raises(PETLError, match='VQT needs num_tokens of at least 1, got 0'):
        VQT(0)
