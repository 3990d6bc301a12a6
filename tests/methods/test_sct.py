from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts
from torch.utils.data import DataLoader, TensorDataset

import mmpetl
from mmpetl.core import PETLError, delta_state, load_delta_state
from mmpetl.methods.sct import SCT

POSITIONS = {'attn': 'attn_sum', 'mlp': 'ffn_fc2', 'qkv': 'attn_q'}


@pytest.mark.parametrize(
    ('size', 'args', 'number'),
    [
        ('vit_b', {}, 111_744),  # published 0.11M
        ('timm_vit_b', {}, 111_744),
        ('videomae_b', {}, 111_744),
        ('vit_b', {'num_channels': 192}, 444_672),
        ('vit_b', {'position': 'qkv'}, 223_488),
        ('vit_b', {'position': 'mlp'}, 111_744),
        ('vit_b', {'last_blocks': 6}, 55_872),
        ('swin_b', {}, 223_488),
        ('swin_l', {}, 223_488),
        ('video_swin_b', {}, 223_488),
    ],
)
def test_count(size: str, args: dict, number: int) -> None:
    assert counts(size, SCT(**args)).delta == number


def test_a_narrow_stage_takes_every_channel() -> None:
    # Widths 128, 256, 512 and 1024 with 2, 2, 18 and 2 blocks.
    got = counts('swin_b', SCT(num_channels=200)).delta
    assert got == 2 * (128**2 + 128) + 22 * (200**2 + 200)


def rewrite(own: torch.nn.Module, z: torch.Tensor, scale: float, on_x: bool):
    """The formula channel by channel."""
    out = z.clone()
    s = own.index
    for row, channel in enumerate(s.tolist()):
        update = z[..., s] @ own.linear.weight[row] + own.linear.bias[row]
        old = z[..., channel]
        out[..., channel] = scale * old + update if on_x else old + scale * update
    return out


def chosen(method: SCT) -> torch.nn.Module:
    """The tiny ViT with random tensors and channels that are not the first."""
    model = plain_vit.tuned(method)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith('index'):
                buffer.copy_(torch.tensor([3, 8, 9, 20, 31]))
    return model


@pytest.mark.parametrize('on_x', [False, True])
@pytest.mark.parametrize('position', POSITIONS)
def test_equals_the_formula(position: str, on_x: bool) -> None:
    model = chosen(SCT(5, position, scale=0.4, scale_on_x=on_x))

    def edit(place, i, z, seen):
        if position == 'qkv' and place == 'qkv':
            q, k, v = z.chunk(3, -1)
            q, v = (
                rewrite(plain_vit.delta(model, i, f'attn_{n}'), t, 0.4, on_x)
                for n, t in (('q', q), ('v', v))
            )
            return torch.cat((q, k, v), dim=-1)
        if place != {'attn': 'x1', 'mlp': 'f'}.get(position):
            return z
        return rewrite(plain_vit.delta(model, i, POSITIONS[position]), z, 0.4, on_x)

    plain_vit.check(model, edit)


def test_zero_init_is_the_frozen_model_bit_for_bit(stem: str) -> None:
    x = tiny.images(stem, odd=True)
    plain = mmpetl.inject(tiny.base(stem), tiny.Nothing())
    model = mmpetl.inject(tiny.base(stem), SCT(8, zero_init=True))
    for a, b in zip(tiny.outputs(plain, x), tiny.outputs(model, x), strict=True):
        assert torch.equal(a, b)
    assert SCT(8, zero_init=True).starts_as_identity
    assert SCT(8, zero_init=True, scale_on_x=True).starts_as_identity
    assert not SCT(8, zero_init=True, scale_on_x=True, scale=0.5).starts_as_identity
    assert not SCT(8).starts_as_identity


def test_only_selected_channels_change() -> None:
    model = chosen(SCT(5))
    own = plain_vit.delta(model, 0, 'attn_sum')
    y = torch.randn(2, 17, 32, dtype=torch.float64)
    out = own.after(y, y, None)
    changed = ((out - y).abs() > 0).any(0).any(0).nonzero().flatten()
    assert changed.tolist() == [3, 8, 9, 20, 31]


@pytest.mark.parametrize('on_x', [False, True])
@pytest.mark.parametrize('position', ['mlp', 'qkv'])
@pytest.mark.parametrize('name', ['mmpretrain_swin', 'mmaction_vit', 'timm_vit'])
@torch.no_grad()
def test_folds_with_any_scale(name: str, position: str, on_x: bool) -> None:
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        method = SCT(6, position, scale=0.3, scale_on_x=on_x)
        model = mmpetl.inject(tiny.base(name, dtype), method)
        model.eval()
        tiny.shake_(model)
        for n, buffer in model.named_buffers():
            if n.endswith('.index') and 'petl' in n:
                buffer.copy_(torch.tensor([0, 2, 5, 11, 12, 15]))
        x = tiny.images(name, odd=True, dtype=dtype)
        want = tiny.outputs(model, x)
        got = tiny.outputs(mmpetl.core.fold(model), x)
        for a, b in zip(want, got, strict=True):
            assert (a - b).abs().max() < close * max(1, a.abs().max())


def test_the_stream_does_not_fold() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), SCT(8))
    with pytest.raises(PETLError, match='SCT in slot .* cannot be folded'):
        mmpetl.core.fold(model)


# ------------------------------------------------------------------ the data pass


def model_and_data(method: SCT, count: int = 12, dtype=torch.float64):
    model = mmpetl.inject(tiny.base('timm_vit', dtype), method)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 5, 5])[:count]
    return model, tiny.images('timm_vit', batch=count, dtype=dtype), labels


def pieces(x: torch.Tensor, labels: torch.Tensor, size: int = 5) -> list:
    return list(zip(x.split(size), labels.split(size), strict=True))


def features(x: torch.Tensor, place: str) -> list[torch.Tensor]:
    """A tensor of the frozen model by block, class token removed."""
    found = []

    def edit(where, i, z, seen):
        if where == place:
            found.append(z[:, 1:])
        return z

    with torch.no_grad():
        plain_vit.forward(tiny.base('timm_vit', x.dtype), x, edit)
    return found


def by_hand(h: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over classes of the norm over all patches of the class."""
    each = [h[labels == c].reshape(-1, h.shape[-1]).norm(dim=0) for c in (0, 1, 5)]
    return torch.stack(each).mean(0)


@pytest.mark.parametrize(
    ('args', 'place'),
    [
        ({}, 'x1'),
        ({'position': 'mlp'}, 'f'),
        ({'position': 'mlp', 'choose_by': 'block'}, 'x2'),
    ],
)
def test_scores_are_those_of_the_closed_form(args: dict, place: str) -> None:
    method = SCT(5, scale=0.4, **args)
    model, x, labels = model_and_data(method)
    tiny.shake_(model, 0.5)  # what has been trained does not take part
    scores = method.scores(model, pieces(x, labels))
    for score, h in zip(scores.values(), features(x, place), strict=True):
        assert score.dtype == torch.float64
        torch.testing.assert_close(score, by_hand(h, labels), rtol=1e-9, atol=0)
        pooled = h.reshape(-1, 32).norm(dim=0)
        assert not torch.allclose(score / score.sum(), pooled / pooled.sum(), 1e-3)
    method.calibrate(model, pieces(x, labels))
    key = 'attn_sum' if place == 'x1' else 'ffn_fc2'
    for i, score in enumerate(scores.values()):
        index = plain_vit.delta(model, i, key).index
        assert index.tolist() == sorted(score.argsort()[-5:].tolist())


def test_queries_and_values_choose_apart() -> None:
    method = SCT(5, 'qkv')
    model, x, labels = model_and_data(method)
    method.calibrate(model, pieces(x, labels))
    for i, h in enumerate(features(x, 'qkv')):
        for name, part in zip('qkv', h.chunk(3, -1), strict=True):
            if name != 'k':
                index = plain_vit.delta(model, i, f'attn_{name}').index
                best = by_hand(part, labels).argsort()[-5:]
                assert index.tolist() == sorted(best.tolist())


def test_a_large_channel_is_chosen(stem: str) -> None:
    method = SCT(3, 'mlp')
    model = tiny.base(stem)
    with torch.no_grad():
        for name, p in model.named_parameters():
            last = ('fc2', 'layers.1', 'layers.3', 'layers.4')
            if name.rpartition('.')[0].endswith(last):
                p[11] *= 100
    mmpetl.inject(model, method)
    before = [p.clone() for p in model.parameters()]
    batch = tiny.images(stem, batch=4), torch.tensor([0, 1, 0, 1])
    method.calibrate(model, [batch])
    index = {n: b for n, b in model.named_buffers() if n.endswith('.index')}
    assert all(11 in b.tolist() for n, b in index.items() if 'petl' in n)
    assert all(map(torch.equal, before, model.parameters()))
    assert not [n for n, _ in model.named_modules() if 'watching' in n]


def test_ten_copies_of_a_class_weigh_as_one_with_longer_norm() -> None:
    method = SCT(5)
    model, x, labels = model_and_data(method)
    many = torch.cat([x, *[x[7:10]] * 9])
    more = torch.cat([labels, *[labels[7:10]] * 9])
    scores = method.scores(model, pieces(many, more))
    for score, h in zip(scores.values(), features(x, 'x1'), strict=True):
        each = [h[labels == c].reshape(-1, 32).norm(dim=0) for c in (0, 1, 5)]
        each[1] = each[1] * 10**0.5
        torch.testing.assert_close(score, torch.stack(each).mean(0))


def test_ties_still_give_the_full_number() -> None:
    method = SCT(5)
    model = tiny.base('timm_vit')
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    mmpetl.inject(model, method)
    method.calibrate(model, [(tiny.images('timm_vit'), torch.tensor([0, 1]))])
    assert len(set(plain_vit.delta(model, 0, 'attn_sum').index.tolist())) == 5


def test_batches_and_order_do_not_matter() -> None:
    method = SCT(5)
    model, x, labels = model_and_data(method)
    one = method.scores(model, pieces(x, labels, 12))
    order = torch.randperm(12)
    other = method.scores(model, pieces(x[order], labels[order], 3))
    loader = DataLoader(TensorDataset(x, labels), batch_size=4, shuffle=True)
    third = method.scores(model, loader)
    for a, b, c in zip(one.values(), other.values(), third.values(), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_the_choice_survives_saving_and_loading() -> None:
    method = SCT(5)
    model, x, labels = model_and_data(method)
    method.calibrate(model, pieces(x, labels))
    tiny.shake_(model)
    state = delta_state(model)
    other = mmpetl.inject(tiny.base('timm_vit', torch.float64), SCT(5))
    other.eval()
    assert not other.petl.shared['0'].done
    load_delta_state(other, state)
    assert other.petl.shared['0'].done
    index = plain_vit.delta(model, 0, 'attn_sum').index
    assert torch.equal(plain_vit.delta(other, 0, 'attn_sum').index, index)
    assert index.tolist() != list(range(5))
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def test_training_without_the_data_pass_is_told() -> None:
    model, x, labels = model_and_data(SCT(5))
    model.train()
    with pytest.warns(UserWarning, match='SCT .*: no data pass has chosen any'):
        model(x)
    other, x, labels = model_and_data(SCT(5))
    other.petl.shared['0'].done.fill_(True)
    other.train()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        other(x)


def test_no_data() -> None:
    method = SCT(5)
    model, _, _ = model_and_data(method)
    with pytest.raises(PETLError, match='there are none'):
        method.calibrate(model, [])
    assert not model.petl.shared['0'].done
    assert model.petl.shared is not None


def test_one_class() -> None:
    method = SCT(5)
    model, x, _ = model_and_data(method)
    same = torch.full((len(x),), 7)
    before = delta_state(model)
    with pytest.raises(PETLError, match=r'the data hold one only \(7\)'):
        method.calibrate(model, pieces(x, same))
    after = delta_state(model)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_inputs_without_labels_count_as_one_class() -> None:
    method = SCT(5)
    model, x, labels = model_and_data(method)
    scores = method.scores(model, [(x, None)])
    for score, h in zip(scores.values(), features(x, 'x1'), strict=True):
        torch.testing.assert_close(score, h.reshape(-1, 32).norm(dim=0))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'num_channels': 0}, 'num_channels of at least 1, got 0'),
        ({'position': 'ffn'}, "position attn or mlp or qkv, got 'ffn'"),
        ({'choose_by': 'block'}, "at position 'mlp' only, got 'attn'"),
        ({'choose_by': 'x', 'position': 'mlp'}, "output or block, got 'x'"),
        ({'last_blocks': 0}, 'last_blocks of at least 1, got 0'),
    ],
)
def test_bad_argument_is_named(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        SCT(**args)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({}, 'num_channels of at most 32, the channels that there are, got 96'),
        ({'num_channels': 4, 'last_blocks': 3}, 'last_blocks of at most 2, .* got 3'),
    ],
)
def test_more_than_there_is(args: dict, message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.base('timm_vit'), SCT(**args))


def test_a_model_without_it_cannot_be_calibrated() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), SCT(5))
    with pytest.raises(PETLError, match='does not hold SCT'):
        SCT(6).calibrate(model, [])
