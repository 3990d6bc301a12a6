from __future__ import annotations

import plain_vit
import pytest
import tiny
import torch
from full_size import counts, widths
from torch import Tensor, nn

import mmpetl
from mmpetl.core import PETLError, Site
from mmpetl.methods.consolidator import Consolidator

KEYS = {'qkv': 'attn_qkv', 'm': 'attn_proj', 'u': 'ffn_fc1', 'f': 'ffn_fc2'}


@pytest.mark.parametrize(
    ('size', 'groups', 'number'),
    [
        ('vit_b', (384,), 304_128),  # published 0.30M
        ('vit_b', (192, 384), 829_440),
        ('timm_vit_b', (384,), 304_128),
        ('videomae_b', (384,), 304_128),
        ('swin_b', (64,), 1_416_960),
    ],
)
def test_count(size: str, groups: tuple[int, ...], number: int) -> None:
    got = counts(size, Consolidator(groups)).delta
    each = [12 * d * d / n + 9 * d for d in widths(size) for n in groups]
    assert got == number
    assert got == sum(each)


def test_the_base_trains_norms_and_biases_of_blocks_beside_it() -> None:
    def selected(**args) -> int:
        return counts('vit_b', Consolidator(**args)).selected

    norms, biases = 25 * 2 * 768, 12 * 9 * 768
    assert selected() == norms + biases == 38_400 + 82_944
    assert selected(train_biases=False) == norms
    assert selected(train_norms=False) == biases
    assert selected(train_norms=False, train_biases=False) == 0


def added(own: nn.Module, z: Tensor, shuffle: bool) -> Tensor:
    """Every branch group by group, its channels found one at a time."""
    total = 0
    for branch in own.branches:
        n, width = branch.groups, z.shape[-1]
        order = list(range(width))
        if shuffle:  # channel c goes to place (c mod k) n + c div k
            k = width // n
            places = [(c % k) * n + c // k for c in order]
            order = sorted(order, key=lambda c: places[c])
        parts = z[..., order].chunk(n, -1)
        rows = branch.weight.chunk(n)
        out = [part @ w.T for part, w in zip(parts, rows, strict=True)]
        total = total + torch.cat(out, -1) + branch.bias
    return total


@pytest.mark.parametrize('shuffle', [False, True])
def test_equals_the_formula(shuffle: bool) -> None:
    method = Consolidator(
        (2, 8), shuffle=shuffle, train_norms=False, train_biases=False
    )
    model = plain_vit.tuned(method, std=0.3)
    inputs = {'qkv': 'qkv_in', 'm': 'proj_in', 'u': 'fc1_in', 'f': 'fc2_in'}

    def edit(place, i, z, seen):
        if place not in KEYS:
            return z
        own = plain_vit.delta(model, i, KEYS[place])
        return z + added(own, seen[inputs[place]], shuffle)

    plain_vit.check(model, edit)


def test_shuffled_branches_fold_into_the_channels_they_read() -> None:
    torch.manual_seed(0)
    own = Consolidator((2, 3), shuffle=True).build(Site('ffn.fc1', 'b', 12, 18))
    own = own.double()
    x, y = torch.randn(5, 12).double(), torch.randn(5, 18).double()
    want = own.after(x, y, None)
    torch.testing.assert_close(y + x @ own.increment().T + own.constant(), want)
    # Each row reads one channel of every three, or of every two.
    reads = Consolidator((3,), shuffle=True).build(Site('ffn.fc1', 'b', 12, 18))
    assert (reads.increment() != 0).sum() == 18 * 12 / 3


def test_branches_are_dropped_by_image_and_in_training_only() -> None:
    method = Consolidator((4, 8), drop_path_rate=0.5)
    own = method.build(Site('ffn.fc1', 'b', 16, 16))
    torch.manual_seed(0)
    x, y = torch.randn(1, 3, 16).expand(400, 3, 16), torch.zeros(400, 3, 16)
    parts = [branch(x[:1]) for branch in own.branches]
    whole = own.eval().after(x, y, None)
    torch.testing.assert_close(whole[:1], sum(parts))
    rows = own.train().after(x, y, None)
    choices = [2 * (i * parts[0] + j * parts[1]) for i in (0, 1) for j in (0, 1)]
    near = torch.stack([(rows - c).abs().amax((1, 2)) < 1e-8 for c in choices])
    assert near.any(0).all()
    assert (near.float().mean(1) > 0.15).all()


def test_branches_start_within_a_thousandth_or_at_zero() -> None:
    def start(**args) -> Tensor:
        own = Consolidator((4,), **args).build(Site('ffn.fc1', 'b', 64, 64))
        return torch.cat([param.flatten() for param in own.parameters()])

    drawn = start()
    assert drawn.abs().max() <= 1e-3
    assert drawn.std().item() == pytest.approx(1e-3 / 3**0.5, rel=0.1)
    assert not start(zero_init=True).any()


def test_groups_may_differ_by_layer() -> None:
    groups = {'*.mlp.*': [8], '*': [2, 4]}
    model = mmpetl.inject(tiny.base('timm_vit'), Consolidator(groups))
    assert [b.groups for b in plain_vit.delta(model, 0, 'attn_qkv').branches] == [2, 4]
    assert [b.groups for b in plain_vit.delta(model, 0, 'ffn_fc1').branches] == [8]


@pytest.mark.parametrize(
    ('groups', 'message'),
    [
        ((), r'groups for one branch or several, such as \(384,\), got \(\)'),
        (384, r'groups for one branch or several, such as \(384,\), got 384'),
        ((0,), 'Consolidator needs groups of at least 1, got 0'),
        ((5,), 'blocks.0:attn.qkv maps 32 to 96, got 5'),
    ],
)
def test_bad_groups_are_named(groups: tuple[int, ...], message: str) -> None:
    with pytest.raises(PETLError, match=message):
        mmpetl.inject(tiny.timm_vit(), Consolidator(groups))
