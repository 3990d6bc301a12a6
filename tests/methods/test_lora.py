from __future__ import annotations

import pytest
import tiny
import torch
from full_size import FGVC_HEAD, counts, widths

import mmpetl
from mmpetl.core import PETLError
from mmpetl.methods.lora import LoRA


@pytest.mark.parametrize(
    ('size', 'rank', 'number'),
    [
        ('vit_b', 8, 294_912),
        ('vit_b', 16, 589_824),
        ('timm_vit_b', 8, 294_912),
        ('videomae_b', 8, 294_912),
        ('swin_b', 64, 3_080_192),
        ('swin_b', 16, 770_048),
        ('swin_l', 64, 4_620_288),
        ('video_swin_b', 16, 770_048),
    ],
)
def test_count(size: str, rank: int, number: int) -> None:
    got = counts(size, LoRA(rank=rank)).delta
    assert got == number
    assert got == sum(4 * d * rank for d in widths(size))


def test_published_count_with_the_fgvc_head() -> None:
    assert counts('vit_b', LoRA(rank=16)).delta + FGVC_HEAD == 770_231  # 0.77M


def test_shared_a_over_the_fused_projection_counts_the_same() -> None:
    assert counts('vit_b', LoRA(targets=('attn.qkv',))).delta == 294_912


def pair(dtype: torch.dtype, **args) -> tuple[torch.nn.Module, torch.nn.Module]:
    base = tiny.mmpretrain_vit().to(dtype)
    torch.manual_seed(1)
    for param in base.parameters():
        torch.nn.init.normal_(param, std=0.2)
    tuned = tiny.mmpretrain_vit().to(dtype)
    tuned.load_state_dict(base.state_dict())
    mmpetl.inject(tuned, LoRA(**args))
    for name, param in tuned.named_parameters():
        if '.petl.' in name:
            torch.nn.init.normal_(param, std=0.3)
    base.eval()
    tuned.eval()
    return base, tuned


def test_equals_weights_written_by_hand() -> None:
    """``W + (alpha / r) B A`` on the q and v rows of an untouched model."""
    base, tuned = pair(torch.float64, rank=2, alpha=6.0)
    with torch.no_grad():
        for mine, theirs in zip(base.layers, tuned.layers, strict=True):
            d = theirs.attn.proj.in_features
            for site, rows in (('attn_q', slice(0, d)), ('attn_v', slice(2 * d, None))):
                delta = theirs.petl.get_submodule(f'{site}.0')
                mine.attn.qkv.weight[rows] += 3.0 * delta.B @ delta.A
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for a, b in zip(base(x), tuned(x), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_folding_leaves_the_key_rows_bit_identical() -> None:
    base, tuned = pair(torch.float32, rank=2)
    mmpetl.fold(tuned)
    for mine, theirs in zip(base.layers, tuned.layers, strict=True):
        before, after = mine.attn.qkv.weight, theirs.attn.qkv.weight
        q, k, v = (
            torch.equal(a, b) for a, b in zip(*_thirds(before, after), strict=True)
        )
        assert k
        assert not q
        assert not v


def _thirds(*weights: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return [weight.chunk(3) for weight in weights]


def test_dropout_acts_on_the_low_rank_path_only() -> None:
    base, tuned = pair(torch.float64, rank=2, drop_rate=1.0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tuned.train()
    for a, b in zip(base(x), tuned(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'LoRA needs rank of at least 1, got 0'),
        ({'drop_rate': 2}, 'LoRA needs drop_rate of at least 0 and at most 1, got 2'),
        ({'targets': ('attn.sum',)}, "LoRA cannot act at 'attn.sum'"),
        ({'targets': ()}, 'LoRA needs at least one of: attn.qkv'),
    ],
)
def test_bad_arguments(args: dict, message: str) -> None:
    with pytest.raises(PETLError) as info:
        LoRA(**args)
    assert message in str(info.value)


def test_a_rank_as_wide_as_the_projection_is_refused() -> None:
    with pytest.raises(
        PETLError, match=r'below the narrowest projection \(32\), got 32'
    ):
        mmpetl.inject(tiny.mmpretrain_vit(), LoRA(rank=32))


def test_folding_in_and_out_again_restores_the_weights() -> None:
    base, tuned = pair(torch.float64, rank=2, alpha=6.0)
    factors = {
        n: p.detach().clone() for n, p in tuned.named_parameters() if 'petl' in n
    }
    mmpetl.fold(tuned)
    assert (tuned.layers[0].attn.qkv.weight - base.layers[0].attn.qkv.weight).any()
    # The same factors with the other sign take out what was written in.
    mmpetl.inject(tuned, LoRA(rank=2, alpha=6.0))
    with torch.no_grad():
        for name, param in tuned.named_parameters():
            if name in factors:
                param.copy_(factors[name] * (-1 if name.endswith('.B') else 1))
    mmpetl.fold(tuned)
    want = dict(base.named_parameters())
    assert [n for n, _ in tuned.named_parameters()] == list(want)
    for name, param in tuned.named_parameters():
        assert (param - want[name]).abs().max() <= 1e-12, name


def test_a_folded_model_cannot_be_folded_twice() -> None:
    _, tuned = pair(torch.float32, rank=2)
    weight = mmpetl.fold(tuned).layers[0].attn.qkv.weight.clone()
    with pytest.raises(PETLError, match='holds 0 injected backbones'):
        mmpetl.fold(tuned)
    assert torch.equal(tuned.layers[0].attn.qkv.weight, weight)


# Options: the scale of rsLoRA, the rates of LoRA+, and other starts


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    assert LoRA(rank=4, alpha=8).scale == 2
    assert LoRA(rank=4, alpha=8, scaling='sqrt').scale == 4
    assert LoRA(rank=16, scaling='sqrt').scale == 4


def test_lora_plus_moves_b_by_the_ratio_times_its_gradient() -> None:
    from mmpetl.engine import OwnerOptimWrapperConstructor

    model = mmpetl.inject(tiny.base('timm_vit'), LoRA(rank=2, lr_ratio=16.0))
    tiny.shake_(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = {'type': 'SGD', 'lr': 0.01}
    wrapper = OwnerOptimWrapperConstructor({'optimizer': optimizer})(model)
    model(tiny.images('timm_vit')).square().sum().backward()
    wrapper.step()
    for name, param in model.named_parameters():
        if 'petl' in name:
            factor = 16 if name.endswith('.B') else 1
            moved = before[name] - 0.01 * factor * param.grad
            torch.testing.assert_close(param.detach(), moved)
    names = [group.get('name', '') for group in wrapper.param_groups]
    assert [n for n in names if 'delta' in n] == ['delta', 'delta_x16']


def started(start: str, **args) -> tuple[torch.nn.Module, list]:
    """A model, and (W, delta) of its queries and values."""
    model = mmpetl.inject(
        tiny.base('timm_vit', torch.float64), LoRA(start=start, **args)
    )
    plain = tiny.base('timm_vit', torch.float64)
    pairs = []
    for mine, theirs in zip(model.blocks, plain.blocks, strict=True):
        q, _, v = theirs.attn.qkv.weight.detach().chunk(3)
        pairs += [(q, mine.petl.attn_q['0']), (v, mine.petl.attn_v['0'])]
    return model, pairs


@pytest.mark.parametrize('start', ['pissa', 'minor'])
@torch.no_grad()
def test_singular_starts_are_the_balanced_best_or_least_part(start: str) -> None:
    """By the eigenvalues of ``W W^T``, and not by another decomposition of W."""
    rank, scale = 3, 2.0
    _, pairs = started(start, rank=rank, alpha=6.0)
    for weight, delta in pairs:
        values, vectors = torch.linalg.eigh(weight @ weight.T)  # ascending
        part = slice(-rank, None) if start == 'pissa' else slice(rank)
        U, S = vectors[:, part], values[part].sqrt()
        torch.testing.assert_close(scale * delta.B @ delta.A, U @ U.T @ weight)
        order = S.flip(0) / scale  # descending, as the singular values are
        torch.testing.assert_close(delta.A @ delta.A.T, torch.diag(order))
        torch.testing.assert_close(delta.B.T @ delta.B, torch.diag(order))


@torch.no_grad()
def test_the_qr_start_projects_on_the_first_columns() -> None:
    _, pairs = started('qr', rank=3, alpha=6.0)
    for weight, delta in pairs:
        one = torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(delta.B.T @ delta.B, one)
        first = weight[:, :3]  # Q_r spans them; the scale has no part in it
        onto = first @ torch.linalg.inv(first.T @ first) @ first.T
        torch.testing.assert_close(delta.B @ delta.A, onto @ weight)
        assert not delta.A.tril(-1).any()


@pytest.mark.parametrize('start', ['pissa', 'minor', 'qr'])
def test_starts_off_the_base_act_by_what_has_changed_since(start: str) -> None:
    """``W + s (B A - B0 A0)``: outputs, gradients, fold and state; W stays."""
    model, pairs = started(start, rank=3, alpha=6.0)
    model.eval()
    x = tiny.images('timm_vit', dtype=torch.float64)
    plain = tiny.base('timm_vit', torch.float64)
    assert torch.equal(model(x), plain(x))
    for _, delta in pairs:
        largest = delta.A.abs().argmax(dim=1, keepdim=True)
        assert (delta.A.gather(1, largest) > 0).all()
    assert mmpetl.count_trainable(model).delta == 2 * 2 * 2 * 3 * 32
    was = [(d.A.detach().clone(), d.B.detach().clone()) for _, d in pairs]
    tiny.shake_(model)
    # As public code has it: the start is taken out of the weight, and B A is added.
    others = [[part.detach().requires_grad_() for part in (d.A, d.B)] for _, d in pairs]
    for i, block in enumerate(plain.blocks):
        weight = block.attn.qkv.weight.detach().clone()
        rows = list(weight.chunk(3))
        for j, k in ((0, 2 * i), (2, 2 * i + 1)):
            (A, B), (A0, B0) = others[k], was[k]
            rows[j] = (rows[j] - 2 * B0 @ A0) + 2 * B @ A
        del block.attn.qkv.weight
        block.attn.qkv.weight = torch.cat(rows)
    ours, theirs = model(x), plain(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    got = torch.autograd.grad(
        ours.square().sum(), [p for _, d in pairs for p in (d.A, d.B)]
    )
    want = torch.autograd.grad(
        theirs.square().sum(), [p for pair in others for p in pair]
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    state = mmpetl.core.delta_state(model)
    assert sum(key.endswith(('.A0', '.B0')) for key in state) == 8
    torch.testing.assert_close(mmpetl.fold(model)(x), ours, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_start_off_a_convolution_is_that_of_its_matrix() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3, padding=1).double()
    model, x = torch.nn.Sequential(conv), torch.randn(2, 4, 5, 5).double()
    plain = model(x)
    mmpetl.inject(model, LoRA(rank=2, start='pissa'), delta_dtype=torch.float64)
    assert torch.equal(model(x), plain)
    own = next(part for part in conv.modules() if hasattr(part, 'A0'))
    left = torch.linalg.svdvals(conv.weight.flatten(1) - own.B @ own.A)
    want = torch.linalg.svdvals(conv.weight.flatten(1))
    torch.testing.assert_close(left[:4], want[2:])


def eva(batches: list, rank: int = 3) -> torch.nn.Module:
    method = LoRA(rank=rank, start='eva')
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), method)
    method.calibrate(model, batches)
    return model


@torch.no_grad()
def test_eva_starts_from_the_centred_principal_directions_of_the_inputs() -> None:
    torch.manual_seed(3)
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    plain, seen = tiny.base('timm_vit', torch.float64), []
    plain.blocks[1].attn.qkv.register_forward_hook(lambda m, i, y: seen.append(i[0]))
    want = plain(x)
    rows = seen[0].flatten(0, 1)
    centred = rows - rows.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:3]
    one, split = eva([(x, None)]), eva([(x[:4], None), (x[4:], None)])
    for model in (one, split):
        for key in ('attn_q', 'attn_v'):
            A = model.blocks[1].petl.get_submodule(key)['0'].A
            cosines = (A * directions).sum(1).abs()
            torch.testing.assert_close(cosines, torch.ones_like(cosines))
            torch.testing.assert_close(A.norm(dim=1), torch.ones_like(cosines))
            assert (A.gather(1, A.abs().argmax(1, keepdim=True)) > 0).all()
        assert torch.equal(model.eval()(x), want)
        assert model.petl.shared['0'].done


def test_eva_without_data_is_refused_and_without_its_pass_warned_about() -> None:
    with pytest.raises(PETLError, match="start='eva' reads directions off data"):
        eva([])
    model = mmpetl.inject(tiny.base('timm_vit'), LoRA(rank=2, start='eva')).train()
    with pytest.warns(UserWarning, match="start='eva' keeps its random A"):
        model(tiny.images('timm_vit'))
    assert not LoRA().calibrates


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'scaling': 'root'}, "LoRA needs scaling rank or sqrt, got 'root'"),
        ({'start': 'pisa'}, "got 'pisa'. Did you mean 'pissa'?"),
        ({'lr_ratio': -1}, 'LoRA needs lr_ratio of at least 0, got -1'),
        ({'start': 'minor', 'alpha': 0}, "start='minor' divides by its scale"),
    ],
)
def test_bad_options(args: dict, message: str) -> None:
    with pytest.raises(PETLError) as info:
        LoRA(**args)
    assert message in str(info.value)
