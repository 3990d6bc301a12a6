"""Places of any model by name: ``places={'ffn': '*.mlp'}``."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from leafy import Wrapped, make, vit
from tiny import base, images, shake_
from torch import nn

from mmpetl.core import (
    PETLError,
    delta_facts,
    disabled,
    eject,
    fold,
    inject,
    injection_of,
    load_delta,
    save_delta,
)

FORMER = {
    'type': 'AdaptFormer',
    'hidden_dims': 4,
    'input': 'post_norm',
    'drop_rate': 0.0,
}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_a_named_place_does_what_the_described_one_does() -> None:
    """Golden: the same adapters, by a description and by name."""
    ours, x = make('wrapped')
    theirs = copy.deepcopy(ours.inner)
    before = ours(x)
    inject(ours, FORMER, places={'ffn': '*.mlp'}, example=x)
    close(ours(x), before)
    inject(theirs, FORMER)
    shake_(ours, 0.5)
    state = {
        k.removeprefix('inner.').replace('.mlp.petl', '.petl'): v
        for k, v in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    close(ours(x), theirs(x))
    with disabled(ours):
        close(ours(x), before)


def test_whole_blocks_are_places_of_a_residual_sum() -> None:
    ours, x = make('wrapped')
    theirs = copy.deepcopy(ours.inner)
    mona = {'type': 'AdaptFormer', 'hidden_dims': 4, 'drop_rate': 0.0}
    inject(ours, mona, places={'ffn.sum': 'inner.blocks.?'}, example=(x,), blocks=[0])
    shake_(ours, 0.5)
    hook = theirs.blocks[0].register_forward_hook(
        lambda _, args, y: (
            y
            + ours.inner.blocks[0].petl.get_submodule('ffn_sum.0').update(args[0]) * 0.1
        )
    )
    wanted = theirs(x)
    hook.remove()
    close(ours(x), wanted)


@pytest.mark.parametrize('layout', ['first', 'last'])
def test_maps_have_a_grid_in_either_layout(layout) -> None:
    """Mona's convolutions on ConvNeXt's blocks, whose streams are maps."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))

        def forward(self, x):
            return self.block(x)

    if layout == 'first':
        model, x = make('convnext')
        where = {'ffn.sum': '*.stages.*.blocks.?'}
        host = model.inner.stages[1].blocks[0]
    else:
        model, x = Last().eval(), torch.randn(2, 4, 6, 8)
        where = {'ffn.sum': 'block'}
        host = model.block
    mona = {'type': 'Mona', 'hidden_dims': 4, 'drop_rate': 0.0}
    inject(model, mona, places=where, example=x)
    shake_(model, 0.3)
    delta = host.petl.get_submodule('ffn_sum.0')
    seen = {}
    handle = host.register_forward_hook(lambda _, args, y: seen.update(x=args[0], y=y))
    model(x).sum().backward()
    handle.remove()
    plain = type(host)._foreign_class.forward(host, seen['x'])
    z = plain.movedim(1, -1) if layout == 'first' else plain
    h = delta.down(delta.gamma * delta.norm(z) + delta.gamma_x * z)
    h = delta.conv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    wanted = z + delta.up(nn.functional.gelu(h))
    close(seen['y'], wanted.movedim(-1, 1) if layout == 'first' else wanted)
    assert all(p.grad is not None for p in delta.parameters())


def test_places_lie_in_the_delta_and_are_pickled(tmp_path) -> None:
    model, x = make('convnext')
    twin = copy.deepcopy(model)
    args = {'places': {'ffn': ['*.mlp', '!*.stages.0.*']}, 'example': {'x': x}}
    inject(model, {'type': 'LoRA', 'rank': 2}, layers='*.fc1')
    inject(
        model, {'type': 'Adapter', 'hidden_dims': {'*.stages.3.*': 2, '*': 3}}, **args
    )
    shake_(model)
    tuned = model(x)
    assert delta_facts(model)['where'][1]['places'] == {
        'ffn': ['*.mlp', '!*.stages.0.*']
    }
    file = save_delta(model, tmp_path / 'adapter', slot='1')
    inject(
        twin, {'type': 'Adapter', 'hidden_dims': {'*.stages.3.*': 2, '*': 3}}, **args
    )
    load_delta(twin, file)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(x), tuned, rtol=0, atol=0)
    for one in (again, model):
        eject(one, '0')
        torch.testing.assert_close(one(x), twin(x), rtol=0, atol=0)
        eject(one, '1')
        assert not any(hasattr(type(m), '_foreign_class') for m in one.modules())
    with pytest.raises(PETLError, match='has no exact equivalent'):
        fold(twin)
    assert len({s.host for s in injection_of(twin)[1].slots['0'].sites}) == 8


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.ReLU())
        self.wide, self.two = nn.Sequential(nn.Linear(4, 8)), Twice()

    def forward(self, x):
        return self.two(self.wide(self.used(x)))[0]


class Twice(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ('method', 'places', 'text'),
    [
        ('Adapter', {'ffn': 'idle'}, 'idle is not called in a pass'),
        ('Adapter', {'ffn': 'wide'}, r'wide takes \(2, 3, 4\) and gives \(2, 3, 8\)'),
        ('Adapter', {'ffn': 'two'}, r'two takes .* and gives a tuple'),
        ('Adapter', {'ffn': 'used.0'}, r'used.0 \(Linear 4->4\) is a single layer'),
        (
            'Adapter',
            {'ffn': 'usd'},
            "no module of Pair matches 'usd'. Did you mean 'used'",
        ),
        (
            'Adapter',
            {'attn': 'used'},
            "Adapter does not act at 'attn'. It acts at: ffn",
        ),
        ('Adapter', {}, 'places takes a dict'),
        ('Mona', {'ffn.sum': 'used'}, 'Mona reads the grid .* used takes a sequence'),
        ('LST', {'block': 'used'}, 'LST reads more than what enters and leaves'),
    ],
)
def test_places_that_cannot_be(method, places, text) -> None:
    model = Pair()
    with pytest.raises(PETLError, match=text) as error:
        inject(model, method, places=places, example=torch.zeros(2, 3, 4))
    assert '\n' not in str(error.value)
    assert type(model) is Pair


def test_places_need_an_example_and_an_undescribed_model() -> None:
    with pytest.raises(PETLError, match='give an input of the model as example='):
        inject(Pair(), 'Adapter', places={'ffn': 'used'})
    with pytest.raises(PETLError, match='is described, places and all'):
        inject(
            base('timm_vit'),
            'Adapter',
            places={'ffn': '*.mlp'},
            example=images('timm_vit'),
        )
    with pytest.raises(PETLError, match=r"Or name places: places=\{'ffn': "):
        inject(Wrapped(vit()), 'Adapter', layers='*')
