"""Common slips of whoever writes a method, each refused in a line that names it."""

from __future__ import annotations

import pytest
import torch
from tiny import base, images, outputs
from torch import nn

from mmpetl.core import Affine, Delta, Method, PETLError, fold, inject

STEM = 'timm_vit'


class Sum(Delta):
    def __init__(self, dims):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dims, dims))

    def after(self, x, y, ctx):
        return y + x @ self.weight


def method(delta: type | None, **attributes) -> Method:
    """A method that puts a delta at the values, or builds nothing."""

    def build(self, site):
        return None if delta is None else delta(site.out_dims)

    given = {'targets': ('attn.v',), 'build': build, **attributes}
    return type('Made', (Method,), given)()


class NoPort(Delta):
    def __init__(self, dims):
        super().__init__()
        self.layer = nn.Linear(dims, dims)

    def forward(self, x):
        return self.layer(x)


class NoContext(Sum):
    def after(self, x, y):
        return y


class Hidden(Sum):
    def __init__(self, dims):
        super().__init__(dims)
        self.layers = [nn.Linear(dims, dims)]


class Foreign(nn.Module):
    def __init__(self, dims):
        super().__init__()


def keeps_nothing(self, rank=4):
    pass


def takes_anything(self, **settings):
    self.settings = settings


@pytest.mark.parametrize(
    ('delta', 'attributes', 'said'),
    [
        (NoPort, {}, 'NoPort overrides neither `before` nor `after`'),
        (NoContext, {}, r'NoContext.after takes .*it is called as after\(x, y, ctx\)'),
        (Hidden, {}, 'Hidden.layers is a list that holds modules.*nn.ModuleList'),
        (Foreign, {}, 'Made.build gave Foreign for .*attn.v; it returns a .*Delta'),
        (None, {}, 'Made.build gave NoneType for'),
        (
            Sum,
            {'targets': 'attn.v'},
            r"Made.targets is the text 'attn.v'; .*'attn.v',\)",
        ),
        (
            Sum,
            {'targets': ()},
            'Made names no targets, so that `build` is never called',
        ),
        (
            Sum,
            {'__init__': keeps_nothing},
            "keeps no attribute 'rank'.*self.rank = rank",
        ),
        (Sum, {'__init__': takes_anything}, r'takes \*\*settings; name each argument'),
    ],
)
def test_what_could_never_act_train_or_be_saved_is_not_injected(
    delta, attributes, said
):
    model = base(STEM)
    before = list(model.state_dict())
    with pytest.raises(PETLError, match=said) as error:
        inject(model, method(delta, **attributes))
    assert '\n' not in str(error.value)
    assert list(model.state_dict()) == before


class Returns(Sum):
    give = staticmethod(lambda x, y: None)

    def after(self, x, y, ctx):
        return self.give(x, y)


def returning(give) -> type[Delta]:
    return type('Returns', (Returns,), {'give': staticmethod(give)})


class Appends(Sum):
    def __init__(self, dims):
        super().__init__(dims)
        self.prompt = nn.Parameter(torch.zeros(1, 2, dims))

    def before(self, x, ctx):
        return torch.cat((x, self.prompt.expand(len(x), -1, -1)), dim=1)


class ReadsUnsaid(Sum):
    def after(self, x, y, ctx):
        return y + ctx.affine('attn.v').weight.sum()


class NotesUnsaid(Sum):
    def after(self, x, y, ctx):
        self.add_term('size', y.mean())
        return y


@pytest.mark.parametrize(
    ('delta', 'said'),
    [
        (
            returning(lambda x, y: None),
            'Returns.after gave None at attn.v, in place of',
        ),
        (returning(lambda x, y: y[..., :1]), r'gave a \(2, \d+, 1\) at attn.v'),
        (
            returning(lambda x, y: y + x.mul_(2)),
            'Returns.after writes into x at attn.v',
        ),
        (ReadsUnsaid, 'asks for the base weights of attn.v; .*reads_base = True'),
        (NotesUnsaid, r"notes a term 'size', .*write losses = \('size',\)"),
    ],
)
def test_what_a_pass_would_break_elsewhere_is_said_of_the_delta(delta, said):
    model = inject(base(STEM), method(delta))
    model.train()
    with pytest.raises(PETLError, match=said) as error:
        outputs(model, images(STEM))
    assert '\n' not in str(error.value)


def test_tokens_that_nobody_counts_are_not_taken_for_the_grid():
    model = inject(base(STEM), method(Appends, targets=('tokens',)))
    with pytest.raises(PETLError, match=r'Appends.before changes the number.*join_tok'):
        outputs(model, images(STEM))


@pytest.mark.parametrize(
    'write',
    [
        lambda affine, delta: affine.add_(delta.weight[0]),
        lambda affine, delta: affine.scale_(delta.weight[0, :1]),
        lambda affine, delta: affine.shift_(delta.weight),
    ],
)
def test_folding_does_not_broadcast(write):
    def fold_(self, site, delta, affine: Affine):
        write(affine, delta)

    model = inject(base(STEM), method(Sum, fold=fold_))
    with pytest.raises(
        PETLError, match=r'attn.v: Affine\.\w+_ takes a tensor of shape'
    ):
        fold(model)


def test_the_instance_may_be_called_otherwise():
    def start(this, rank=4):
        this.rank = rank

    made = method(Sum, __init__=start)
    assert made.config() == {'type': 'Made', 'rank': 4}
