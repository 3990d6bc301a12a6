"""Estimates of a step's memory beside what torch's own profiler saw allocated."""

import dataclasses
import json
from pathlib import Path
from statistics import median

import pytest
import torch
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn
from two_processes import in_two_processes

from mmpetl.analysis.memory import estimate, step_memory, weights_of
from mmpetl.core import inject, quantise
from mmpetl.core.quantise import base_bytes
from mmpetl.engine.offload import Offloading
from mmpetl.engine.sharding import shard_base, sharded_bytes

BATCH = 24


def vit() -> nn.Module:
    return VisionTransformer(
        arch={
            'embed_dims': 96,
            'num_layers': 4,
            'num_heads': 3,
            'feedforward_channels': 384,
        },
        img_size=32,
        patch_size=4,
    )


def loss_of(model: nn.Module, batch: int) -> Tensor:
    return model(torch.randn(batch, 3, 32, 32))[0].square().sum()


def allocated(
    model: nn.Module, optimizer: torch.optim.Optimizer, file: Path, batch: int = BATCH
) -> int:
    """The most that a step allocates, by the allocator's own account."""
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(profile_memory=True) as profiler:
        loss_of(model, batch).backward()
        optimizer.step()
    profiler.export_chrome_trace(str(file))
    events = json.loads(file.read_text())['traceEvents']
    totals = [
        (e['ts'], e['args']['Total Allocated'], e['args']['Bytes'])
        for e in events
        if e['name'] == '[memory]'
    ]
    _, total, size = min(totals)
    return max(t for _, t, _ in totals) - (total - size)


@pytest.mark.parametrize(
    ('method', 'bits'),
    [
        ('Full', None),
        ('LoRA', None),
        ('SSF', None),
        ('VPTDeep', None),
        ('LST', None),
        ('LoRA', 8),
        ('SSF', 4),
    ],
)
def test_peak_is_what_the_allocator_saw(method, bits, tmp_path):
    model = inject(vit(), {'type': method}).train()
    if bits is not None:
        pytest.importorskip('torchao')
        quantise(model, bits)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    found = estimate(model, lambda n: loss_of(model, n), optimizer, BATCH)
    seen = allocated(model, optimizer, tmp_path / 'trace.json')
    assert found.peak - found.resting == pytest.approx(seen, rel=0.1)
    size = sum(p.numel() * p.element_size() for p in trained)
    assert found.gradients == pytest.approx(size, rel=0.01)
    # Two moments; and a step count for each tensor.
    assert found.optimizer == 2 * size + 4 * len(trained)


def test_what_is_kept_is_what_the_graph_saves():
    model = inject(vit(), {'type': 'LoRA'}).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    found = estimate(model, lambda n: loss_of(model, n), optimizer, BATCH)
    own = {
        t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())
    }
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = loss_of(model, BATCH)
    assert found.kept == pytest.approx(sum(saved.values()), rel=0.1)
    assert loss.requires_grad


def test_what_stays_on_the_device_is_a_line_in_the_batch_too():
    """A tensor goes by its size in the batch that is asked for, not in those tried."""
    model = inject(vit(), {'type': 'LoRA'}).train()
    optimizer = adam(model)
    least = 2**20
    held = {}

    def offloaded(n: int, of: int) -> Tensor:
        passes = Offloading(model, least * n // of)
        with passes:
            loss = loss_of(model, n)
        held[n] = passes.held
        return loss

    found = estimate(model, lambda n: offloaded(n, BATCH), optimizer, BATCH)
    there = step_memory(lambda: offloaded(BATCH, BATCH), optimizer)
    plain = estimate(model, lambda n: loss_of(model, n), optimizer, BATCH)
    assert found.kept == pytest.approx(there.kept, rel=0.01)
    assert found.passes == pytest.approx(there.passes, rel=0.01)
    # Inputs of norms and the smaller products are below a MiB, those of GELU above.
    assert 0.2 * plain.kept < found.kept < 0.8 * plain.kept
    assert held[3] * BATCH == held[BATCH] * 3
    assert held[BATCH] == pytest.approx(plain.kept - found.kept, rel=0.1)


def test_the_largest_batch_that_fits():
    model = inject(vit(), {'type': 'LoRA'}).train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    found = estimate(model, lambda n: loss_of(model, n), optimizer, BATCH)
    limit = found.peak + 5 * found.passes_per_sample
    assert found.fits(limit) == BATCH + 5
    assert found.fits(limit - 1) == BATCH + 4
    assert found.fits(found.resting) == 0
    late = dataclasses.replace(found, before=limit)
    assert late.peak == limit
    assert late.fits(limit) == BATCH + 5
    assert late.fits(limit - 1) == 0


def test_weights_that_are_shared_count_once():
    model = inject(vit(), {'type': 'LoRA'})
    model.again = model.layers[0]
    before = weights_of(inject(vit(), {'type': 'LoRA'}))
    assert weights_of(model) == before


@pytest.mark.parametrize(('bits', 'share'), [(8, 0.26), (4, 0.14)])
def test_a_trunk_in_few_bits_counts_as_it_is_stored(bits, share):
    pytest.importorskip('torchao')
    model = inject(vit(), {'type': 'LoRA'})
    before = weights_of(model)
    linear = sum(p.numel() * 4 for n, p in model.named_parameters() if linear_weight(n))
    quantise(model, bits)
    after = weights_of(model)
    assert before['trunk'] - after['trunk'] == pytest.approx(
        (1 - share) * linear, rel=0.02
    )
    assert sum(after.values()) == base_bytes(model)


def linear_weight(name):
    return name.endswith('weight') and ('attn' in name or 'ffn' in name)


WIDE = {
    'embed_dims': 256,
    'num_layers': 4,
    'num_heads': 4,
    'feedforward_channels': 1024,
}
FEW = 4
"""Samples of a step whose activations are not much more than a block's weights."""


def wide() -> nn.Module:
    torch.manual_seed(0)
    net = VisionTransformer(arch=WIDE, img_size=32, patch_size=8)
    return inject(net, {'type': 'LoRA'}).train()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)


def _shared(rank: int, folder: Path) -> None:
    """One of two processes that train together; what it held and allocated."""
    file = folder / f'{rank}.json'
    model = wide()
    optimizer = adam(model)
    together = nn.parallel.DistributedDataParallel(model)
    # What was allocated before a step and is given back in it can hide a part of it.
    found = {
        'whole': median(allocated(together, optimizer, file, FEW) for _ in range(3))
    }
    found['spared'] = shard_base(together)
    # Threads that exchange give buffers back when they come to it: now and then a
    # step has one or two shares more.
    steps = [allocated(together, optimizer, file, FEW) for _ in range(12)]
    found['shared'] = min(steps)
    torch.save(found, file.with_suffix('.pth'))


def test_two_processes_allocate_what_is_told(tmp_path):
    """Most of what a step of so few samples takes are the weights of two blocks."""
    model = wide()
    found = estimate(model, lambda n: loss_of(model, n), adam(model), FEW)
    spared, largest = sharded_bytes(model, 2)
    in_two_processes(_shared, tmp_path)
    for rank in range(2):
        there = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert found.passes == pytest.approx(there['whole'], rel=0.1)
        assert there['spared'] == spared
        told = found.passes + 2 * largest
        assert told == pytest.approx(there['shared'], rel=0.1)
