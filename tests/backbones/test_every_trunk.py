"""Every backbone, swapped, is the original to all who use it.

One suite for all entries of ``tests/trunks`` and ``tests/tiny.py``. What options of a
class change is in files of their own beside this one.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    TINY,
    Everything,
    Nothing,
    bare,
    base,
    call,
    core,
    folding,
    images,
    loss_of,
    outputs,
    record,
    shake_,
)
from torch import Tensor, nn

from mmpetl.core import eject, find_injected, inject

F64 = torch.float64
TESTS = Path(__file__).parents[1]


def check_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Equal within a part of the largest value, 0 for bit by bit."""
    assert [y.shape for y in ours] == [y.shape for y in theirs]
    assert [y.dtype for y in ours] == [y.dtype for y in theirs]
    for y, z in zip(ours, theirs, strict=True):
        assert torch.isfinite(z).all()
        far = (y - z).abs().max()
        assert far <= tolerance * z.abs().max(), f'differs by {far}'


def layout(y: Any) -> Any:
    """Kinds of containers, shapes and memory layouts of what a backbone gives."""
    if isinstance(y, Tensor):
        return tuple(y.shape), y.is_contiguous()
    if isinstance(y, Mapping):
        return type(y), {key: layout(part) for key, part in y.items()}
    if isinstance(y, list | tuple):
        return type(y), [layout(part) for part in y]
    return y


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules of the base by path."""
    found = model.named_modules()
    return {path: m for path, m in found if 'petl' not in path.split('.')}


def tuned(stem: str) -> nn.Module:
    """A backbone that computes something else than the base."""
    torch.manual_seed(4)
    model = inject(base(stem), folding(stem).build())
    shake_(model)
    model.eval()
    return model


@pytest.mark.parametrize('odd', [False, True], ids=['square', 'odd'])
@torch.no_grad()
def test_outputs_and_their_containers(any_stem: str, odd: bool) -> None:
    x = images(any_stem, odd=odd)
    ours = call(inject(base(any_stem), Nothing()), x)
    theirs = call(bare(any_stem), x)
    assert layout(ours) == layout(theirs)
    check_close(
        outputs(inject(base(any_stem), Nothing()), x),
        outputs(bare(any_stem), x),
        0.0 if TINY[any_stem].exact else 1e-5,
    )


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Of a loss over all outputs, with respect to parameters and, as ``''``, input."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(5)
    loss_of(outputs(model, x)).backward()
    return {'': x.grad, **{n: p.grad for n, p in model.named_parameters()}}


def check_gradients(
    ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]
) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(g.abs().max() for g in theirs.values() if g is not None)
    assert scale > 0
    for name, grad in theirs.items():
        assert (ours[name] is None) is (grad is None), name
        if grad is not None:
            assert (ours[name] - grad).abs().max() <= 1e-9 * scale, name


def test_gradients_of_input_and_base(any_stem: str) -> None:
    """Also while training, where norms of batches count and are moved."""
    plain, model = base(any_stem, F64), inject(base(any_stem, F64), Everything())
    x = images(any_stem, dtype=F64, odd=True)
    check_gradients(gradients(model, x), gradients(plain, x))
    plain.train()
    model.train()
    check_gradients(gradients(model, x), gradients(plain, x))
    moved = dict(model.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(moved[name], buffer, msg=name)


def switch_checkpointing(model: nn.Module) -> bool:
    """Upstream's own switches for memory; whether there is one."""
    found = False
    for module in model.modules():
        if 'with_cp' in vars(module):
            module.with_cp = found = True
    names = ['set_grad_checkpointing']
    if getattr(model, 'supports_gradient_checkpointing', False):
        names.append('gradient_checkpointing_enable')  # of transformers
    for name in names:
        if hasattr(model, name):
            getattr(model, name)()
            found = True
    return found


def test_upstreams_checkpointing_gives_the_same_gradients(any_stem: str) -> None:
    model, x = inject(base(any_stem, F64), Everything()), images(any_stem, dtype=F64)
    model.train()
    without = gradients(model, x)
    if switch_checkpointing(model):
        check_gradients(gradients(model, x), without)


def test_keys_classes_and_their_names(any_stem: str) -> None:
    plain, model = bare(any_stem), inject(base(any_stem), Nothing())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model, type(plain))
    theirs, ours = own_modules(plain), own_modules(model)
    assert list(ours) == list(theirs)
    swapped = {}
    for path, module in theirs.items():
        assert isinstance(ours[path], type(module)), path
        if type(ours[path]) is not type(module):
            swapped[type(module)] = type(ours[path])
    # Layer decay of OpenMMLab reads the names of classes.
    for cls, ours_ in swapped.items():
        assert ours_.__name__ == f'PETL{cls.__name__}'
    site_map = record(model).site_map
    hosts = {type(m) for _, m in site_map.hosts(find_injected(model)[0][1])}
    assert {*hosts, site_map.swapped} == set(swapped.values())
    for cls, ours_ in site_map.served().items():
        assert ours_.__name__ == f'PETL{cls.__name__}'


def test_modes_give_back_the_model(any_stem: str) -> None:
    """Upstream's ``train()`` gives nothing back in OpenMMLab; ours can be chained."""
    model = core(inject(base(any_stem), Nothing()))
    assert model.train() is model
    assert model.eval() is model
    assert model.train(False) is model
    assert not any(module.training for module in model.modules())


@torch.no_grad()
def test_frozen_training_computes_what_evaluation_does(any_stem: str) -> None:
    model, x = tuned(any_stem), images(any_stem)
    before = outputs(model, x)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    model.train()
    for part in model.modules():  # of the method, whose own dropout acts
        if isinstance(part, nn.Dropout):
            part.eval()
    check_close(outputs(model, x), before, 1e-6)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


@torch.no_grad()
def test_a_deep_copy_is_whole_and_the_class_comes_back(any_stem: str) -> None:
    model, x = tuned(any_stem), images(any_stem)
    before = outputs(model, x)
    other = copy.deepcopy(model)
    assert all(map(torch.equal, outputs(other, x), before))
    eject(other)
    plain = bare(any_stem)
    assert [type(m) for m in other.modules()] == [type(m) for m in plain.modules()]
    assert all(map(torch.equal, outputs(other, x), outputs(plain, x)))
    assert all(map(torch.equal, outputs(model, x), before))
    assert not all(map(torch.equal, before, outputs(plain, x)))


LOAD = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
found = {}
for path in sys.argv[2:]:
    model = torch.load(path, weights_only=False)
    import mmpetl
    import tiny
    saved = torch.load(path + '.out', weights_only=False)
    with torch.no_grad():
        tuned = tiny.outputs(model, saved['x'])
        mmpetl.eject(model)
        plain = tiny.outputs(model, saved['x'])
    found[path] = [
        all(map(torch.equal, tuned, saved['tuned'])),
        all(map(torch.equal, plain, saved['plain'])),
        [f'{type(m).__module__}.{type(m).__qualname__}' for m in model.modules()],
    ]
print('FOUND' + json.dumps(found))
"""


@pytest.fixture(scope='module')
def elsewhere(request, tmp_path_factory) -> dict[str, list]:
    """What another process finds in the files of the backbones that are asked for.

    One process for all of them, as to start it takes seconds.
    """
    folder = tmp_path_factory.mktemp('pickled')
    stems = dict.fromkeys(
        item.callspec.params['any_stem']
        for item in request.session.items
        if 'elsewhere' in getattr(item, 'fixturenames', ())
    )
    for stem in stems:
        model, x = tuned(stem), images(stem)
        with torch.no_grad():
            saved = {
                'x': x,
                'tuned': outputs(model, x),
                'plain': outputs(bare(stem), x),
            }
        torch.save(model, folder / stem)
        torch.save(saved, folder / f'{stem}.out')
    run = subprocess.run(
        [sys.executable, '-c', LOAD, TESTS, *(folder / stem for stem in stems)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.rpartition('FOUND')[2])
    return {Path(path).name: facts for path, facts in found.items()}


def test_another_process_loads_and_ejects(any_stem: str, elsewhere) -> None:
    tuned_alike, plain_alike, classes = elsewhere[any_stem]
    assert tuned_alike
    assert plain_alike
    assert classes == [
        f'{type(m).__module__}.{type(m).__qualname__}' for m in bare(any_stem).modules()
    ]


@pytest.mark.parametrize(
    ('dtype', 'most'), [(torch.float16, 0.005), (torch.bfloat16, 0.04)], ids=str
)
@torch.no_grad()
def test_half_precision_is_the_same_but_for_rounding(
    any_stem: str, dtype: torch.dtype, most: float
) -> None:
    """Swapped Swins run in it, where upstream's masks stop them."""
    x = images(any_stem)
    exact = outputs(bare(any_stem), x)
    ours = outputs(inject(base(any_stem, dtype), Nothing()), x.to(dtype))
    assert {y.dtype for y in ours} == {dtype}
    for y, true in zip(ours, exact, strict=True):
        assert (y.float() - true).norm() <= most * true.norm()
