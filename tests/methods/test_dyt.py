from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from full_size import counts

import mmpetl
from mmpetl.core import PETLError, collect_losses, teaching
from mmpetl.methods.dyt import DyT

FILE = Path(__file__).parents[1] / 'data' / 'golden' / 'dyt.npz'
F64 = torch.float64


@pytest.mark.parametrize(
    ('hidden_dims', 'number'), [(8, 165_996), (16, 313_548), (64, 1_198_860)]
)
def test_counts(hidden_dims: int, number: int) -> None:
    assert counts('vit_b', DyT(hidden_dims=hidden_dims)).delta == number


def reference() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """timm's ViT with the weights of the authors' model, and what came out of that."""
    import timm

    with np.load(FILE) as arrays:
        given = {k: torch.from_numpy(arrays[k]).double() for k in arrays.files}
    sizes = {'embed_dim': 32, 'depth': 2, 'num_heads': 2, 'num_classes': 5}
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, **sizes
    )
    model = mmpetl.inject(model.double(), DyT(hidden_dims=6)).eval()
    names = {
        'adaptmlp.down_proj': 'petl.ffn_sum.0.down',
        'adaptmlp.up_proj': 'petl.ffn_sum.0.up',
        'mlp_token_select.mlp_head': 'petl.ffn_sum.0.select',
    }
    state = {}
    for key, value in given.items():
        if key.startswith('param/'):
            key = key.removeprefix('param/')
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
            state[key] = value
    model.load_state_dict(state)
    return model, given


def test_patches_are_chosen_as_in_the_reference() -> None:
    model, given = reference()
    deltas = [block.petl.get_submodule('ffn_sum.0') for block in model.blocks]
    found = []
    for delta in deltas:
        keep = delta.keep
        delta.keep = lambda x, keep=keep: found.append(keep(x)) or found[-1]
    model(given['input'])
    want = given['select']
    got = torch.stack(found, dim=1 if want.shape[1] == len(deltas) else 0)
    got = got.detach().view(want.shape)
    torch.testing.assert_close(got, want)
    assert 0 < want.mean() < 1
    with torch.no_grad():
        for delta in deltas:
            del delta.keep
            delta.select.bias.fill_(1e6)
    want = given['output_complete']
    torch.testing.assert_close(model(given['input']), want, rtol=1e-6, atol=1e-6)


def test_all_kept_without_an_adapter_is_the_frozen_model() -> None:
    x = torch.randn(2, 3, 32, 32, dtype=F64)
    base = tiny.base('timm_vit', F64)
    want = base(x)
    model = mmpetl.inject(base, DyT(scale=0.0))
    for block in model.blocks:
        torch.nn.init.constant_(block.petl.get_submodule('ffn_sum.0.select').bias, 1e6)
    torch.testing.assert_close(model(x), want)


def test_a_skipped_patch_hands_the_network_no_gradient() -> None:
    delta = DyT(hidden_dims=2, drop_rate=0.0).build(
        next(s for s in tiny.record(_tuned()).sites if s.kind == 'ffn.sum')
    )
    delta.double().eval()
    x = torch.randn(2, 5, 32, dtype=F64)
    y = torch.randn(2, 5, 32, dtype=F64, requires_grad=True)
    ctx = mmpetl.core.Context((2, 2), 1)
    delta.after(x, y, ctx).square().sum().backward()
    keep = delta.keep(x[:, 1:])[..., 0] > 0.5
    assert keep.any()
    assert not keep.all()
    assert torch.equal((y.grad[:, 1:] != 0).all(-1), keep)
    assert (y.grad[:, 0] != 0).all()
    assert delta.select.weight.grad.any()


def _tuned(**args) -> torch.nn.Module:
    return mmpetl.inject(tiny.base('timm_vit', F64), DyT(**args)).train()


def test_the_loss_is_of_the_mean_over_all_blocks() -> None:
    model = _tuned(keep_rate=0.9, drop_rate=0.0)
    x = torch.randn(4, 3, 32, 32, dtype=F64)
    kept = []
    for block in model.blocks:
        delta = block.petl.get_submodule('ffn_sum.0')
        keep = delta.keep
        delta.keep = lambda x, keep=keep: kept.append(keep(x)) or kept[-1]
    model(x)
    (loss,) = collect_losses(model).values()
    want = 2 * (torch.cat(kept).mean() - 0.9) ** 2
    torch.testing.assert_close(loss, want)
    loss.backward()
    for block in model.blocks:
        weight = block.petl.get_submodule('ffn_sum.0.select').weight
        assert weight.grad.any()
    assert collect_losses(model) == {}


def test_noise_is_that_of_two_gumbel_variables() -> None:
    """Patches pass with the probability sigmoid(logit), whatever the temperature."""
    torch.manual_seed(0)
    delta = _tuned().blocks[0].petl.get_submodule('ffn_sum.0').train()
    torch.nn.init.zeros_(delta.select.weight)
    torch.nn.init.constant_(delta.select.bias, 1.0)
    rate = delta.keep(torch.zeros(100, 400, 32, dtype=F64)).mean().item()
    assert rate == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(PETLError, match='keep_rate of at least 0 and at most 1, got 2'):
        DyT(keep_rate=2)


@torch.no_grad()
def test_skipped_patches_do_not_enter_the_network(stem: str) -> None:
    """Where no gradients are recorded; outputs are those of the masked form."""
    model = mmpetl.inject(tiny.base(stem, F64), DyT(hidden_dims=3))
    tiny.shake_(model, 0.3)
    model.eval()
    x = tiny.images(stem, dtype=F64)
    shapes: list[tuple[int, ...]] = []
    norms = [m for n, m in model.named_modules() if n.endswith(('norm2', 'ln2'))]
    for norm in norms:
        norm.register_forward_hook(lambda m, args, y: shapes.append(args[0].shape))
    got = tiny.outputs(model, x)
    some, shapes[:] = list(shapes), []
    with torch.enable_grad():
        want = tiny.outputs(model, x)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-9, atol=1e-9)
    assert len(some) == len(shapes) == len(norms) > 0
    counts = [(a[0] * a[1], b[0] * b[1]) for a, b in zip(some, shapes, strict=True)]
    # A convolution between the projections needs every patch.
    by_token = stem != 'mmseg_mit'
    assert all((a < b) is by_token for a, b in counts), counts


@torch.no_grad()
def test_all_enter_a_network_that_holds_something_else() -> None:
    base = mmpetl.inject(tiny.base('timm_vit', F64), DyT(hidden_dims=3))
    mmpetl.inject(base, {'type': 'LoRA', 'rank': 2, 'targets': ['ffn.fc1']})
    tiny.shake_(base, 0.3)
    shapes: list[tuple[int, ...]] = []
    base.blocks[0].norm2.register_forward_hook(
        lambda m, args, y: shapes.append(args[0].shape)
    )
    x = tiny.images('timm_vit', dtype=F64)
    got = base.eval()(x)
    with torch.enable_grad():
        torch.testing.assert_close(got, base(x).detach())
    assert shapes[0] == shapes[1]


def test_the_teacher_lets_all_patches_pass_and_notes_nothing() -> None:
    model = _tuned(keep_rate=0.9, drop_rate=0.0, distill=True)
    tiny.shake_(model, 0.3)
    x = torch.randn(2, 3, 32, 32, dtype=F64)
    with teaching(model):
        got = model(x)
    assert collect_losses(model) == {}
    for block in model.blocks:
        torch.nn.init.constant_(block.petl.get_submodule('ffn_sum.0.select').bias, 1e6)
    torch.testing.assert_close(got, model(x))
