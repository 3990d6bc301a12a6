"""Traced, exported, compiled and fake passes: any batch, and nothing left behind."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from tiny import (
    MethodCase,
    Pair,
    Tuned,
    images,
    loss_of,
    method_cases,
    outputs,
    pairs,
    randomise_,
    shake_,
    train,
)
from tiny_builds import mmpretrain_vit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmpetl.core import Partition, PETLError, inject, windows
from mmpetl.core.windows import CACHE_BYTES, ByteCache

PLAIN, SWIN, SWIN3D, TIMM = (
    'mmpretrain_vit',
    'mmpretrain_swin',
    'mmaction_swin3d',
    'timm_vit',
)
CASES = {case.id: case for case in method_cases()}
PAIRS = {pair.id: pair for pair in pairs()}
ELSEWHERE = [
    f'{method}-{stem}'
    for method, stem in (
        ('lora', SWIN),
        ('vpt_deep', SWIN),
        ('lst:random', SWIN),
        ('lst:random', SWIN3D),
        ('vpt_deep', 'mmaction_timesformer'),
        ('bitfit', 'mmaction_uniformerv2'),
    )
]


def once() -> list[str]:
    """Every method on a plain transformer, in its first setting; a few elsewhere."""
    plain = [f'{case}-{PLAIN}' for case in CASES if ':' not in case]
    return [id for id in plain if id in PAIRS] + ELSEWHERE


def shaken(pair: Pair) -> nn.Module:
    """A model of the pair that no longer is the base."""
    model = pair.inject()
    shake_(model)
    return model


def shallow(pair: Pair) -> nn.Module:
    """The same of one block, on the plain transformer; all of its blocks trace alike.

    HST, which divides them into stages, keeps its two.
    """
    if pair.stem != PLAIN or pair.method.name == 'HST':
        return shaken(pair)
    model = inject(randomise_(mmpretrain_vit(num_layers=1)), pair.method.build())
    model.eval()
    shake_(model)
    return model


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.allclose(y, z, rtol=1e-4, atol=1e-5) for y, z in zip(a, b, strict=True)
    )


def exported(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """``torch.export`` with a batch of any size."""
    batch = torch.export.Dim('batch')
    with torch.no_grad():
        program = torch.export.export(
            model, (x,), dynamic_shapes=({0: batch},), strict=False
        )
    return program.module()


def script(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """TorchScript's trace, as it comes back from a file."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file)


def check_any_batch(
    make: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]],
    model: nn.Module,
    stem: str,
) -> None:
    graph = make(model, images(stem, 2))
    for batch in (2, 5):
        x = images(stem, batch)
        with torch.no_grad():
            assert equal(outputs(graph, x), outputs(model, x)), batch


@pytest.mark.parametrize('id', once())
def test_an_exported_model_takes_any_batch(id: str) -> None:
    check_any_batch(exported, shallow(PAIRS[id]), PAIRS[id].stem)


# What trains in windowed attention takes another way there, and GPS and Mona functions
# of their own.
@pytest.mark.filterwarnings('ignore:.*no data pass')
@pytest.mark.parametrize('method', ['bitfit', 'mona', 'gps'])
def test_windows_export_where_gradients_are_recorded(method: str) -> None:
    pair = PAIRS[f'{method}-{SWIN}']
    model, batch = shaken(pair), torch.export.Dim('batch')
    shapes = ({0: batch},)
    x = images(SWIN, 2)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
    x = images(SWIN, 5)
    with torch.no_grad():
        assert equal(outputs(program.module(), x), outputs(model, x))


@pytest.mark.slow
@pytest.mark.parametrize('id', sorted(set(PAIRS) - set(once())))
def test_every_exported_model_takes_any_batch(id: str) -> None:
    check_any_batch(exported, shaken(PAIRS[id]), PAIRS[id].stem)


# In eval mode, but with gradients: neither GPS's own function nor the activation
# checkpointing of LAST can be saved.
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('id', once())
def test_a_saved_trace_takes_any_batch(id: str) -> None:
    check_any_batch(script, shallow(PAIRS[id]), PAIRS[id].stem)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('id', sorted(set(PAIRS) - set(once())))
def test_every_saved_trace_takes_any_batch(id: str) -> None:
    check_any_batch(script, shaken(PAIRS[id]), PAIRS[id].stem)


class Graphs:
    """A backend of torch.compile that runs a graph as it is, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.count += 1
        return graph.forward


def compiled_cases() -> list[str]:
    """GPS and SCT, whose data pass leaves a flag, and one method of every family."""
    found = {'gps': None, 'gps:mask': None, 'sct': None}
    families = set()
    for id, case in CASES.items():
        family = case.build().family
        if f'{id}-{TIMM}' in PAIRS and family not in families and trains(case):
            families.add(family)
            found[id] = None
    return list(found)


def trains(case: MethodCase) -> bool:
    """Whether there is something to train without a head."""
    return case.name != 'LinearProbe'


def gradients(
    run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor
) -> dict[str, Tensor]:
    torch.manual_seed(5)
    model.zero_grad()
    loss_of(outputs(run, x)).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compiled_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The same of one compiled graph."""
    torch._dynamo.reset()
    graphs = Graphs()
    run = torch.compile(model, backend=graphs, fullgraph=True)
    found = gradients(run, model, x)
    assert graphs.count == 1
    return found


def check_one_graph(id: str) -> None:
    model, x = shaken(PAIRS[f'{id}-{TIMM}']), images(TIMM)
    model.train()
    found = compiled_gradients(model, x)
    chance = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p]
    if chance:  # a graph draws other masks
        for module in chance:
            module.p = 0.0
        found = compiled_gradients(model, x)
    expected = gradients(model, model, x)
    assert found.keys() == expected.keys()
    assert equal(list(found.values()), list(expected.values()))


@pytest.mark.filterwarnings('ignore:.*no data pass')
@pytest.mark.parametrize('id', compiled_cases())
def test_training_compiles_to_one_graph(id: str) -> None:
    check_one_graph(id)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*no data pass')
@pytest.mark.parametrize(
    'id',
    [
        id
        for id, case in CASES.items()
        if f'{id}-{TIMM}' in PAIRS and id not in compiled_cases() and trains(case)
    ],
)
def test_training_of_every_method_compiles_to_one_graph(id: str) -> None:
    check_one_graph(id)


def test_windows_compile_to_one_graph() -> None:
    torch._dynamo.reset()
    model, x, graphs = shaken(PAIRS[f'lst:random-{SWIN}']), images(SWIN), Graphs()
    for module in model.modules():
        if type(module).__name__ == 'DropPath':  # upstream's rates are numpy's
            module.drop_prob = float(module.drop_prob)
    with torch.no_grad():
        run = torch.compile(model, backend=graphs, fullgraph=True)
        assert equal(outputs(run, x), outputs(model, x))
    assert graphs.count == 1


def fake(model: nn.Module, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(x)


def inferred(model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Gives windows caches in which nothing is, so that the next pass fills them."""

    def renew() -> None:
        for name in ('_region_array', '_row_array'):
            cache = getattr(windows, name)
            monkeypatch.setattr(windows, name, ByteCache(cache.make, cache.limit_bytes))

    return renew


@pytest.mark.parametrize('odd_pass', [exported, fake, inferred])
@pytest.mark.parametrize('id', [f'lora-{SWIN}', f'lora-{SWIN3D}', f'lst:random-{SWIN}'])
def test_no_pass_spoils_a_later_one(
    id: str, odd_pass: Callable, forget: Callable[[], None]
) -> None:
    x = images(PAIRS[id].stem)
    model = Tuned(shaken(PAIRS[id]), x)
    twin = copy.deepcopy(model)
    forget()
    odd_pass(model.backbone, x)
    for later in (model, twin):
        train(later, x)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        after, expected = model(x), twin(x)
    assert all(map(torch.equal, after, expected))
    assert all(type(y) is Tensor and not y.is_inference() for y in after)


def test_caches_hold_bytes_and_not_entries() -> None:
    """An index of an 8 x 7 x 7 window takes 392 * 392 * 4 bytes, 0.59 MiB."""
    for cache in (windows._region_array, windows._row_array):
        assert cache.limit_bytes == CACHE_BYTES
    cache, one = windows._row_array, 392 * 392 * 4
    for extra in range(CACHE_BYTES // one + 3):
        window = (8, 7, 7)
        partition = Partition((8, 7, 7), window, (0, 0, 0))
        partition.table_rows((8 + extra, 7, 7), torch.device('cpu'))
        assert next(reversed(cache.arrays.values())).nbytes == one
        held = sum(array.nbytes for array in cache.arrays.values())
        assert held == cache.held_bytes <= CACHE_BYTES


def test_the_least_used_leaves_a_cache_first() -> None:
    made = []

    def make(n: int):
        made.append(n)
        return torch.full((n,), n, dtype=torch.uint8).numpy()

    cache = ByteCache(make, limit_bytes=10)
    for n in (3, 4, 3, 2, 5, 3, 4):  # at 5 there are 4, 3 and 2; 4 is the oldest
        assert cache(n).tolist() == [n] * n
    assert made == [3, 4, 2, 5, 4]
    assert cache(11).nbytes == 11  # too large to be kept
    assert 11 not in {len(array) for array in cache.arrays.values()}
    assert cache.held_bytes <= 10


def test_hst_says_that_a_batch_of_one_cannot_train() -> None:
    for stem in (PLAIN, 'mmaction_vit'):
        model = PAIRS[f'hst-{stem}'].inject()
        with torch.no_grad():
            model(images(stem, 1))
        model.train()
        model(images(stem, 2))
        with pytest.raises(PETLError, match='batch of one.*drop_last=True'):
            model(images(stem, 1))
