"""Memory of a config's training, before it is run and without its data.

The model is built with a random base, random batches of the shape that the training
pipeline makes go through it, and the samples of a task carry labels, boxes or maps of
the same kinds as its data would.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.analysis.memory import MemoryEstimate, estimate
from mmpetl.apis.building import build_model, pick_device
from mmpetl.apis.counting import without_files
from mmpetl.config.nodes import sides_made, train_pipeline
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError, check_range
from mmpetl.engine.offload import BESIDE_COMPILE, LEAST, Offloading
from mmpetl.engine.sharding import sharded_bytes

BOXES = 8
"""Objects that a picture of a detection batch shows."""


def estimate_memory(
    config: Any,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    device: str = 'auto',
    processes: int = 1,
) -> MemoryEstimate:
    """Memory of training as a config says, by part, in one of its processes.

    Args:
        config: Path or ``Config``.
        batch: Samples of a step on one device; the config's where None.
        size: Height and width of what the backbone is shown, in pixels; those of the
            training pipeline where None.
        device: ``auto``, ``cpu`` or ``cuda``: where the small batches run.
        processes: How many train together, which shares the base where the config has
            ``shard_base``.

    Where the config has ``offload_activations``, what is kept is what stays on the
    device.

    Raises:
        PETLError: The config does not say how large batches or pictures are, its model
            is of no known task, or a base is to be shared that cannot be.
    """
    config = without_files(config)
    if config.get('deepspeed'):
        raise PETLError(
            'what deepspeed shards is not estimated; leave deepspeed out for the '
            'memory without it, or say shard_base = True in its place'
        )
    batch = batch_of(config) if batch is None else batch
    check_range('estimate', 'batch', batch, 1)
    check_range('estimate', 'processes', processes, 1)
    sides = tuple(size or pictures_of(config))
    where = pick_device(device)
    model = build_model(config, quiet=True).to(where).train()
    sample = sample_maker(model, sides)
    shape = input_shape(config, sides)

    offloads = bool(config.get('offload_activations'))
    if offloads and config.get('compile'):
        raise PETLError(BESIDE_COMPILE)
    offloaded: dict[int, int] = {}

    def loss_of(n: int) -> Tensor:
        data = {
            'inputs': [
                torch.randint(256, shape, dtype=torch.uint8, device=where)
                for _ in range(n)
            ],
            'data_samples': [sample() for _ in range(n)],
        }
        ready = model.data_preprocessor(data, training=True)
        # What a sample keeps is small here; it goes where that of the batch would. Of
        # what no batch changes, too much may go.
        passes = Offloading(model, -(-LEAST * n // batch)) if offloads else None
        with passes or nullcontext():
            losses = model(ready['inputs'], ready['data_samples'], mode='loss')
        if passes:
            offloaded[n] = passes.held
        return model.parse_losses(losses)[0]

    with scope_of(config):
        optimizer = optimizer_of(config, model)
        found = estimate(model, loss_of, optimizer, batch)
    if offloads:
        (small, first), (large, last) = sorted(offloaded.items())
        slope = (last - first) // (large - small)
        found = replace(found, offloaded=last + slope * (batch - large))
    if processes > 1:
        # DistributedDataParallel averages gradients in buffers of their size.
        found = replace(found, exchanged=found.gradients)
    if config.get('shard_base'):
        spared, largest = sharded_bytes(model, processes)
        whole = found.trunk + found.deltas + found.heads + found.exchanged
        # The next block's weights come while one is at work.
        found = replace(
            found, trunk=found.trunk - spared, gathered=2 * largest, before=whole
        )
    return found


def batch_of(config: Any) -> int:
    """Samples of a step on one device."""
    loader = config.get('train_dataloader') or {}
    size = loader.get('batch_size')
    if not isinstance(size, int):
        raise PETLError(
            'the config has no train_dataloader.batch_size; say how many samples a '
            'step takes: --batch 16'
        )
    return size


def pictures_of(config: Any) -> tuple[int, int]:
    """Height and width of a training picture."""
    found = sides_made(train_pipeline(config))
    if found is None:
        raise PETLError(
            'no step of the training pipeline says how large its pictures are; say it: '
            '--size 224 224'
        )
    return found


def frames_of(config: Any) -> int | None:
    """Frames of a training clip; None for pictures."""
    for step in train_pipeline(config):
        if step.get('clip_len'):
            return int(step['clip_len'])
    return None


def input_shape(config: Any, sides: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a sample: (3, H, W), (1, 3, T, H, W) of a clip.

    Where a trunk of pictures reads frames one by one, (clips * T, 3, H, W).

    Args:
        config: A ``Config``.
        sides: Height and width.
    """
    frames = frames_of(config)
    if not frames:
        return (3, *sides)
    steps = train_pipeline(config)
    if any(step.get('input_format') == 'NCHW' for step in steps):
        clips = next((s['num_clips'] for s in steps if s.get('num_clips')), 1)
        return (clips * frames, 3, *sides)
    return (1, 3, frames, *sides)


def optimizer_of(config: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The config's optimizer of what trains."""
    from mmengine.optim import build_optim_wrapper

    node = config.get('optim_wrapper')
    if not node:
        raise PETLError('the config has no optim_wrapper, so nothing is said to train')
    wrapper = build_optim_wrapper(
        model, {**copy.deepcopy(dict(node)), 'type': 'OptimWrapper'}
    )
    return wrapper.optimizer


def sample_maker(model: nn.Module, sides: Iterable[int]) -> Callable[[], Any]:
    """What makes a sample of the kind that a model's loss reads.

    Raises:
        PETLError: The model is of no toolbox whose samples are known.
    """
    sides = tuple(sides)
    for cls in type(model).__mro__:
        make = SAMPLES.get(cls.__module__.partition('.')[0])
        if make is not None:
            return lambda: make(model, sides)
    raise PETLError(
        f'the loss of {type(model).__name__} reads samples that are not known here; '
        f'known are models of {", ".join(SAMPLES)}'
    )


def _of_classes(model: nn.Module, sides: tuple[int, ...]) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_facts(sides)).set_gt_label(0)


def _of_clips(model: nn.Module, sides: tuple[int, ...]) -> Any:
    from mmaction.structures import ActionDataSample

    return ActionDataSample(metainfo=_facts(sides)).set_gt_label(0)


def _of_masks(model: nn.Module, sides: tuple[int, ...]) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.zeros((1, *sides), dtype=torch.long)
    return SegDataSample(metainfo=_facts(sides), gt_sem_seg=PixelData(data=labels))


def _of_tasks(model: nn.Module, sides: tuple[int, ...]) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=_facts(sides))
    for head in model.heads.values():
        kind = torch.long if head.truth == 'gt_sem_seg' else torch.float32
        data = torch.ones((1, *sides), dtype=kind)
        sample.set_data({head.truth: PixelData(data=data)})
    return sample


def _of_boxes(model: nn.Module, sides: tuple[int, ...]) -> Any:
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = sides
    corner = torch.rand(BOXES, 2) * torch.tensor([width / 2, height / 2])
    extent = torch.tensor([width / 4, height / 4]) * (0.5 + torch.rand(BOXES, 1))
    truth = InstanceData(
        bboxes=torch.cat((corner, corner + extent), dim=1),
        labels=torch.zeros(BOXES, dtype=torch.long),
        masks=BitmapMasks(np.ones((BOXES, *sides), np.uint8), *sides),
    )
    return DetDataSample(
        metainfo=_facts(sides),
        gt_instances=truth,
        ignored_instances=InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        ),
    )


def _facts(sides: tuple[int, ...]) -> dict[str, Any]:
    return {
        'img_shape': sides,
        'ori_shape': sides,
        'pad_shape': sides,
        'batch_input_shape': sides,
        'scale_factor': (1.0, 1.0),
    }


SAMPLES: Mapping[str, Callable[[nn.Module, tuple[int, ...]], Any]] = {
    'mmpretrain': _of_classes,
    'mmaction': _of_clips,
    'mmseg': _of_masks,
    'mmdet': _of_boxes,
    'mmpetl': _of_tasks,
}
"""What makes a sample, by the toolbox that a model's class is of."""


def lines_of(found: MemoryEstimate, limit: float | None = None) -> list[str]:
    """An estimate as the lines of a table, in MiB.

    Args:
        found: The estimate.
        limit: Memory of the device in GiB, where the largest batch is asked for.
    """
    rows = [
        ('trunk', found.trunk),
        ('deltas', found.deltas),
        ('heads', found.heads),
        ('optimizer', found.optimizer),
        ('gradients', found.gradients),
        ('gradients in exchange', found.exchanged),
        (f'activations kept, batch {found.batch}', found.kept),
        ('weights gathered', found.gathered),
        ('peak', found.peak),
    ]
    apart = ('gradients in exchange', 'weights gathered')  # of several processes alone
    rows = [(name, size) for name, size in rows if size or name not in apart]
    wide = max(len(name) for name, _ in rows)
    lines = [f'{name:{wide}}  {size / 2**20:>10,.1f} MiB' for name, size in rows]
    lines.append(
        f'one more sample adds {found.passes_per_sample / 2**20:,.1f} MiB to the peak, '
        f'{found.kept_per_sample / 2**20:,.1f} of them kept'
    )
    if found.offloaded:
        lines.append(
            f'{found.offloaded / 2**20:,.1f} MiB of activations of each process wait '
            'in the memory of the machine'
        )
    elif found.offloaded is not None:
        lines.append('no activation is large enough to wait elsewhere')
    if limit is not None:
        fits = found.fits(math.floor(limit * 2**30))
        lines.append(
            f'within {limit:g} GiB fit batches of up to {fits}'
            if fits
            else f'no batch fits within {limit:g} GiB'
        )
    return lines
