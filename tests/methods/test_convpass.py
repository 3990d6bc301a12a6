from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts, widths

import mmpetl
from mmpetl.core import Context, PETLError
from mmpetl.methods.convpass import Convpass


@pytest.mark.parametrize(
    ('size', 'number'),
    [
        ('vit_b', 327_552),  # published 0.33M
        ('timm_vit_b', 327_552),
        ('videomae_b', 327_552),
        ('swin_b', 437_504),
        ('swin_l', 642_048),
        ('video_swin_b', 437_504),
    ],
)
def test_count(size: str, number: int) -> None:
    got = counts(size, Convpass()).delta
    each = [2 * d * 8 + 8 + d + 9 * 64 + 8 for d in widths(size)]
    assert got == number
    assert got == 2 * sum(each)
    assert counts(size, Convpass('attn')).delta == sum(each)


def q(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def expected(own: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    """The branch on a 4 x 4 grid behind one class token, tap by tap."""
    h = q(z @ own.down.weight.T + own.down.bias)
    taps, bias = own.conv.weight, own.conv.bias
    maps = h[:, 1:].reshape(len(h), 4, 4, -1)
    padded = torch.zeros(len(h), 6, 6, maps.shape[-1], dtype=h.dtype)
    padded[:, 1:5, 1:5] = maps
    out = sum(
        padded[:, i : i + 4, j : j + 4] @ taps[:, :, i, j].T
        for i in range(3)
        for j in range(3)
    )
    first = h[:, :1] @ taps[:, :, 1, 1].T
    h = q(torch.cat((first, out.flatten(1, 2)), dim=1) + bias)
    return h @ own.up.weight.T + own.up.bias


@pytest.mark.parametrize('style', ['both', 'attn'])
def test_equals_the_formula(style: str) -> None:
    model = plain_vit.tuned(Convpass(style, hidden_dims=4, scale=0.5))
    at = {'x1': ('a', 'attn_sum'), 'x2': ('g', 'ffn_sum')}
    if style == 'attn':
        del at['x2']

    def edit(place, i, z, seen):
        if place not in at:
            return z
        inside, key = at[place]
        return z + 0.5 * expected(plain_vit.delta(model, i, key), seen[inside])

    plain_vit.check(model, edit)


@pytest.mark.parametrize('hidden', [4, 8])
def test_the_convolution_starts_as_the_identity(hidden: int) -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), Convpass(hidden_dims=hidden))
    own = plain_vit.delta(model, 0, 'attn_sum')
    h = torch.randn(2, 17, hidden)
    ctx = Context((4, 4), 1)
    torch.testing.assert_close(own.convolve(h, ctx), h)
    other = mmpetl.inject(tiny.base('timm_vit'), Convpass(conv_init='xavier'))
    bound = (6 / (2 * 8 * 9)) ** 0.5
    weight = plain_vit.delta(other, 0, 'attn_sum').conv.weight
    assert 0.9 * bound < weight.abs().max() <= bound


def branch(prefix: int, grid: tuple[int, ...]):
    """The branch of one module with random numbers, and its input."""
    model = mmpetl.inject(tiny.base('timm_vit', torch.float64), Convpass(hidden_dims=4))
    model.eval()
    tiny.shake_(model, 0.5)
    ctx = Context(grid, prefix)
    z = torch.randn(1, prefix + torch.Size(grid).numel(), 32, dtype=torch.float64)
    own = plain_vit.delta(model, 0, 'attn_sum')
    return (lambda t: own.branch(t, ctx)), z


@pytest.mark.parametrize('grid', [(4, 6), (3, 4, 6)], ids=['image', 'video'])
@torch.no_grad()
def test_an_impulse_reaches_its_neighbours_of_one_frame_only(grid) -> None:
    run, z = branch(1, grid)
    at = (1, 1, 2)[-len(grid) :]
    place = torch.zeros(grid, dtype=torch.bool)
    place[at] = True
    moved = z.clone()
    moved[:, 1:][:, place.flatten()] += 1.0
    changed = (run(moved) - run(z)).abs().amax((0, 2)) > 1e-12
    near = torch.zeros(grid, dtype=torch.bool)
    rows, columns = slice(0, 3), slice(1, 4)
    near[(rows, columns) if len(grid) == 2 else (at[0], rows, columns)] = True
    assert torch.equal(changed[1:], near.flatten())
    assert not changed[0]


@torch.no_grad()
def test_tokens_in_front_depend_on_themselves_alone() -> None:
    run, z = branch(3, (4, 4))  # a class token and two others
    for i in range(3):
        moved = z.clone()
        moved[:, i] += 1.0
        changed = (run(moved) - run(z)).abs().amax((0, 2)) > 1e-12
        assert changed.nonzero().flatten().tolist() == [i]


def test_stochastic_depth_of_the_branch_is_its_own() -> None:
    method = Convpass(hidden_dims=4, drop_rate=0.0, drop_path_rate=0.5)
    model = mmpetl.inject(tiny.base('timm_vit'), method)
    tiny.shake_(model, 0.5)
    rates = [plain_vit.delta(model, i, 'ffn_sum').drop_path_rate for i in range(2)]
    assert rates == [0.0, 0.5]
    own = plain_vit.delta(model, 1, 'ffn_sum').train()
    z = torch.randn(2000, 17, 32)
    ctx = Context((4, 4), 1)
    own.notes(ctx)['ffn'] = z
    with torch.no_grad():
        out = own.after(z, torch.zeros_like(z), ctx)
        full = own.branch(z, ctx)
    kept = out.abs().amax((1, 2)) > 0
    assert 0.45 < kept.double().mean() < 0.55
    torch.testing.assert_close(out[kept], 2 * full[kept])


def test_nothing_is_kept_after_the_pass() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), Convpass(hidden_dims=4))
    contexts = []
    own = plain_vit.delta(model, 1, 'ffn_sum')
    after = own.after

    def look(x, y, ctx):
        contexts.append(ctx)
        return after(x, y, ctx)

    own.after = look
    model(tiny.images('timm_vit'))
    assert contexts[0].notes == {'0': {}}


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'style': 'mlp'}, "style both or attn, got 'mlp'"),
        ({'conv_init': 'zero'}, "conv_init identity or xavier, got 'zero'"),
        ({'hidden_dims': 0}, 'hidden_dims of at least 1, got 0'),
        ({'drop_path_rate': 1.0}, 'drop_path_rate of .* at most 0.99, got 1.0'),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        Convpass(**args)


def test_quick_gelu_is_that_of_the_paper() -> None:
    from mmpetl.methods.convpass import quick_gelu

    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(quick_gelu(x), q(x))
    assert (quick_gelu(x) - F.gelu(x)).abs().max() < 0.021


def test_serves_padded_maps_that_are_no_squares(stem: str) -> None:
    for odd in (False, True):
        x = tiny.images(stem, odd=odd)
        want = tiny.outputs(mmpetl.inject(tiny.base(stem), tiny.Nothing()), x)
        model = mmpetl.inject(tiny.base(stem), Convpass(hidden_dims=4))
        model.eval()
        got = tiny.outputs(model, x)
        assert [y.shape for y in got] == [y.shape for y in want]
        assert all(torch.isfinite(y).all() for y in got)
