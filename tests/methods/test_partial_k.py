from __future__ import annotations

import pytest
import tiny
import torch
from full_size import counts

import mmpetl
from mmpetl.core import PETLError, owners
from mmpetl.methods.partial_k import PartialK

BLOCK = 12 * 768**2 + 13 * 768


@pytest.mark.parametrize(
    ('size', 'k', 'norm', 'number'),
    [
        ('vit_b', 1, True, 7_089_408),
        ('vit_b', 2, True, 14_177_280),
        ('vit_b', 4, True, 28_353_024),
        ('timm_vit_b', 1, True, 7_089_408),
        ('videomae_b', 1, True, 7_088_640),
        ('swin_b_dense', 1, False, 12_601_632),  # published 12.60M
        ('swin_l_dense', 1, False, 28_339_632),  # published 28.34M
        ('video_swin_b', 1, False, 12_677_344),
    ],
)
def test_count(size: str, k: int, norm: bool, number: int) -> None:
    got = counts(size, PartialK(k, include_final_norm=norm))
    assert got.selected == number
    assert got.delta == 0


def test_formula_on_vit() -> None:
    got = counts('vit_b', PartialK(3, include_final_norm=False)).selected
    assert got == 3 * BLOCK


def selected(model: torch.nn.Module) -> set[str]:
    """Prefixes of what trains."""
    names = [n for n, o in owners(model).items() if o.value == 'selected']
    assert names
    return {n.rpartition('.')[0] for n in names}


def under(names: set[str], *prefixes: str) -> bool:
    """Whether each prefix has a name and each name a prefix."""
    found = {p for p in prefixes for n in names if n == p or n.startswith(f'{p}.')}
    rest = [n for n in names if not any(n == p or n.startswith(f'{p}.') for p in found)]
    return found == set(prefixes) and not rest


@pytest.mark.parametrize(
    ('k', 'parts'),
    [
        (1, ['stages.1.blocks.1', 'norm1']),
        (2, ['stages.1.blocks.0', 'stages.1.blocks.1', 'norm1']),
        (
            3,
            [
                'stages.0.blocks.1',
                'stages.0.downsample',
                'stages.1.blocks.0',
                'stages.1.blocks.1',
                'norm1',
            ],
        ),
    ],
)
@pytest.mark.parametrize('norm', [True, False])
def test_a_merging_between_trained_blocks_trains(
    k: int, parts: list[str], norm: bool
) -> None:
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), PartialK(k, norm))
    # Two outputs, two norms; only the one behind the last block counts.
    assert under(selected(model), *(parts if norm else parts[:-1]))


def test_whole_parts_train() -> None:
    model = mmpetl.inject(tiny.base('mmpretrain_swin'), PartialK(3))
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    for part in ('stages.0.blocks.1', 'stages.0.downsample', 'stages.1', 'norm1'):
        inside = {
            f'{part}.{n}' for n, _ in model.get_submodule(part).named_parameters()
        }
        assert inside <= trains


@pytest.mark.parametrize(
    ('name', 'block', 'norm'),
    [
        ('mmpretrain_vit', 'layers.1', 'ln1'),
        ('timm_vit', 'blocks.1', 'norm'),
        ('mmaction_vit', 'blocks.1', 'fc_norm'),
        ('mmaction_swin3d', 'layers.1.blocks.1', 'norm1'),
    ],
)
def test_last_block_and_final_norm(name: str, block: str, norm: str) -> None:
    model = mmpetl.inject(tiny.base(name), PartialK())
    assert under(selected(model), block, norm)


def test_a_block_is_no_other_whose_number_begins_alike() -> None:
    model = tiny.timm_vit(depth=12)
    mmpetl.inject(model, PartialK(2))
    assert under(selected(model), 'blocks.10', 'blocks.11', 'norm')


def test_no_graph_in_front_of_the_trained_block() -> None:
    model = mmpetl.inject(tiny.base('timm_vit'), PartialK())
    seen = []
    model.blocks[0].register_forward_hook(lambda m, i, y: seen.append(y))
    model.train()
    model(tiny.images('timm_vit')).sum().backward()
    assert not seen[0].requires_grad
    assert all(p.grad is None for p in model.blocks[0].parameters())
    assert all(p.grad is not None for p in model.blocks[1].parameters())
    assert model.blocks[1].training
    assert not model.blocks[0].training


@pytest.mark.parametrize('k', [3, 99])
def test_more_blocks_than_there_are(k: int) -> None:
    with pytest.raises(PETLError, match=f'num_blocks of at most 2, .*got {k}'):
        mmpetl.inject(tiny.base('timm_vit'), PartialK(k))


def test_no_block() -> None:
    with pytest.raises(PETLError, match='num_blocks of at least 1, got 0'):
        PartialK(0)
