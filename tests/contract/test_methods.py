"""What is promised across methods, and that nothing escapes the contract."""

from __future__ import annotations

import json
import pkgutil
from importlib.util import find_spec
from itertools import combinations

import pytest
import tiny
import torch
from tiny import (
    SETTINGS,
    TINY,
    Costly,
    MethodCase,
    Pair,
    bare,
    base,
    fits,
    images,
    outputs,
    record,
)

import mmpetl.backbones
from mmpetl.core import (
    FAMILIES,
    Owner,
    PETLError,
    build_method,
    find_injected,
    inject,
    owners,
    registered_methods,
)


def test_every_site_map_has_a_tiny_backbone() -> None:
    modules = pkgutil.iter_modules(mmpetl.backbones.__path__)
    files = {
        m.name
        for m in modules
        if not m.ispkg and find_spec(m.name.partition('_')[0]) is not None
    }
    assert files == {t.site_map for t in TINY.values()}, (
        'every file of mmpetl/backbones needs an entry in TINY of tests/tiny.py'
    )


def test_every_setting_is_of_a_registered_method() -> None:
    assert SETTINGS.keys() <= registered_methods().keys()


def test_a_method_fits_some_host(method_case: MethodCase) -> None:
    # A vector that leaves is offered where no classifier stands in a ViT, and frames of
    # clips where a wrapper hands them to one.
    more = 'timm_vit_bare', 'mmpretrain_vit_frames'
    assert any(fits(method_case, stem) for stem in (*tiny.hosts(), *more))


def test_each_site_is_met_by_a_method_that_runs_by_default(stem: str) -> None:
    sites = list(record(inject(base(stem), tiny.Nothing())).sites)
    fitting = [case for case in tiny.method_cases() if fits(case, stem)]
    wanted = {
        case.id: {site.kind for site in case.build().choose(sites)} for case in fitting
    }
    met = [Pair(case, stem) for case in fitting if not Pair(case, stem).slow]
    assert set().union(*wanted.values()) == set().union(
        *(wanted[p.method.id] for p in met)
    )
    assert len(met) <= 15 or stem in tiny.hosts()


def test_each_method_meets_a_host_by_default() -> None:
    by_default = {pair.method.id for pair in tiny.pairs() if not pair.slow}
    assert by_default == {case.id for case in tiny.method_cases()}


def test_a_backbone_that_lacks_a_site_is_refused_in_one_line(
    choosy_case: MethodCase,
) -> None:
    for stem in [stem for stem in TINY if not fits(choosy_case, stem)]:
        model = bare(stem)  # as it is refused, it is as it was
        lacks = choosy_case.build().lacks(tiny.offered(stem))  # or shapes do not fit
        said = 'needs site kind' if lacks else choosy_case.name
        with pytest.raises(PETLError, match=said) as error:
            inject(model, choosy_case.build())
        assert '\n' not in str(error.value)
        assert find_injected(model) == []


@torch.no_grad()
def test_what_does_not_start_as_the_base_differs_somewhere(
    drifting_case: MethodCase,
) -> None:
    changed = False
    for stem in (*tiny.hosts(), 'timm_vit_bare'):
        if not changed and fits(drifting_case, stem):
            tuned = outputs(Pair(drifting_case, stem).injected(), images(stem))
            alike = zip(tuned, tiny.plain_outputs(stem), strict=True)
            changed = any(
                y.shape != z.shape or not torch.allclose(y, z) for y, z in alike
            )
    assert changed


def test_only_what_is_added_trains_unless_base_is_selected(
    method_case: MethodCase,
) -> None:
    # Class token, windows, and a fused projection without biases of the keys.
    stems = ('mmpretrain_vit', 'mmpretrain_swin', 'mmaction_vit')
    for stem in [s for s in stems if s in TINY and fits(method_case, s)]:
        model = inject(base(stem), method_case.build())
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        owner = owners(model)
        assert trains == {n for n, o in owner.items() if o is not Owner.BASE}
        added = {n for n in owner if 'petl' in n.split('.')}
        assert added == {n for n, o in owner.items() if o is Owner.DELTA}
        selected = {n for n, o in owner.items() if o is Owner.SELECTED}
        # Tests of their own say which of it.
        assert tiny.selects(method_case.build()) or not selected


def test_config_builds_the_method_again(method_case: MethodCase) -> None:
    method = method_case.build()
    config = method.config()
    again = build_method(json.loads(json.dumps(config)))
    assert again.config() == config
    assert type(again) is type(method)


def test_a_family_is_named(method_case: MethodCase) -> None:
    assert method_case.build().family in FAMILIES


def _fingerprint(case: MethodCase, stem: str) -> tuple[tuple, list[torch.Tensor]]:
    """Shapes of what the method trains, and outputs with numbers drawn in order."""
    model = inject(base(stem, torch.float64), case.build())
    model.eval()
    mine = [n for n, o in owners(model).items() if o in (Owner.DELTA, Owner.SELECTED)]
    params = dict(model.named_parameters())
    # Selected base parameters are told apart by name, new ones by shape alone, so that
    # a copied file with other names does not pass.
    selected = [n for n in mine if 'petl' not in n.split('.')]
    added = sorted((n for n in mine if n not in selected), key=_place)
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name in added:
            p = params[name]
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        ys = outputs(model, images(stem, dtype=torch.float64))
    return (tuple(selected), tuple(params[n].shape for n in added)), ys


def _place(name: str) -> str:
    """The host of a delta, so that deltas are ordered by where they are."""
    return name.partition('petl')[0]


# SPT is LoRA at layers that it finds sensitive, and at all of them where nothing was
# looked for; in blocks without attention these are LoRA's own.
SAME_WITHOUT_ATTENTION = {('lora', 'spt')}


def test_no_two_methods_are_the_same_computation(costly_stem: Costly) -> None:
    stem = costly_stem.stem
    same = () if 'attn.qkv' in tiny.offered(stem) else SAME_WITHOUT_ATTENTION
    cases = [c for c in tiny.method_cases() if fits(c, stem)]
    prints = {c.id: _fingerprint(c, stem) for c in cases}
    for a, b in combinations(prints, 2):
        shapes_a, ys_a = prints[a]
        shapes_b, ys_b = prints[b]
        if shapes_a == shapes_b and (a, b) not in same:
            far = max((p - q).abs().max() for p, q in zip(ys_a, ys_b, strict=True))
            assert far > 1e-6, f'{a} and {b} compute the same on {stem}'
