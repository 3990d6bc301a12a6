"""What methods need for a pass over data: batches, labels, and a look at sites."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmpetl.core.context import Context, has_values
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError
from mmpetl.core.injection import plug_of, prune
from mmpetl.core.packed import PackedWeight
from mmpetl.core.site import Site

Observer = Callable[[Any, Any, Context], None]
"""Is called with what entered a site, what leaves it, and the context."""


class Calibrated(nn.Module):
    """Says in every checkpoint whether the data pass of a method has been made."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('done', torch.zeros((), dtype=torch.bool))


def warn_uncalibrated(delta: Delta, what: str) -> None:
    """Warn, once per delta, where training goes on without the data pass.

    A traced or compiled pass says nothing, for no graph can ask what a flag holds, nor
    one without numbers.

    Args:
        delta: One whose method shares a :class:`Calibrated`.
        what: What it does meanwhile, for the message.
    """
    if not delta.training or delta.__dict__.get('_warned'):
        return
    if not has_values(delta.shared.done):
        return
    delta.__dict__['_warned'] = True  # once: reading a flag makes a GPU wait
    if not delta.shared.done:
        warnings.warn(
            f'{what}: no data pass has chosen any. Add mmpetl.CalibrationHook to the '
            'run, or call calibrate(model, batches) of the method',
            stacklevel=3,
        )


class _Views(Dataset):
    """Each sample several times, as its random transforms make it."""

    def __init__(self, inner: Dataset, views: int) -> None:
        self.inner, self.views = inner, views

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.inner[index] for _ in range(self.views)]


class _CollateViews:
    """One collated batch per view."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[list[Any]]) -> list[Any]:
        return [self.collate(list(view)) for view in zip(*samples, strict=True)]


def one_epoch(
    batches: Iterable[Any], *, views: int = 1, shuffle: bool = False
) -> Iterator[list[Any]]:
    """Every sample once, whatever the sampler of a data loader says.

    The loader of a run may share samples out to several processes, or never end.

    Args:
        batches: A data loader, or any iterable of batches.
        views: How often each sample of a loader is read; a random transform then
            gives several views of it. Other iterables repeat the batch.
        shuffle: Whether a loader's samples are drawn in random order.

    Yields:
        One batch per view.
    """
    if not isinstance(batches, DataLoader):
        for batch in batches:
            yield [batch] * views
        return
    loader = DataLoader(
        _Views(batches.dataset, views),
        batch_size=batches.batch_size or batches.batch_sampler.batch_size,
        shuffle=shuffle,
        num_workers=batches.num_workers,
        worker_init_fn=batches.worker_init_fn,
        collate_fn=_CollateViews(batches.collate_fn),
    )
    yield from loader


def _preprocessed(model: nn.Module, batch: Any) -> tuple[Tensor, list[Any]]:
    """Inputs and samples of a batch of OpenMMLab as its model is tested on them.

    Pictures of several sizes are filled up to the largest, as mmdet does: mmseg stacks
    those of one size alone.
    """
    sizes = {picture.shape for picture in batch['inputs']}
    parts = [batch] if len(sizes) == 1 else one_by_one(batch)
    found = [model.data_preprocessor(part, False) for part in parts]
    inputs = [part['inputs'] for part in found]
    samples = [s for part in found for s in part.get('data_samples') or []]
    if len(inputs) > 1:
        height, width = (max(x.shape[side] for x in inputs) for side in (-2, -1))
        inputs = [
            F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in inputs
        ]
    return torch.cat(inputs), samples


def inputs_and_labels(
    model: nn.Module, module: nn.Module, batch: Any
) -> tuple[Tensor, Tensor | None]:
    """What enters the backbone, and one label per input, None where there is none.

    Args:
        model: The whole model. One with a ``data_preprocessor`` gets its batches as
            OpenMMLab collates them, any other one as ``(inputs, labels)``.
        module: The backbone.
        batch: A batch.

    Returns:
        (B, ...) and (B,) integers. Clips of one video count as inputs of their own.
    """
    if hasattr(model, 'data_preprocessor'):
        inputs, samples = _preprocessed(model, batch)
        labels = [getattr(sample, 'gt_label', None) for sample in samples]
        # A sample may have no label, or several; dense ones have maps and boxes.
        single = labels and all(t is not None and t.numel() == 1 for t in labels)
        labels = torch.cat([t.flatten() for t in labels]) if single else None
        if inputs.ndim == 6:  # videos, (B, clips, C, T, H, W)
            clips = inputs.shape[1]
            inputs = inputs.flatten(0, 1)
            labels = None if labels is None else labels.repeat_interleave(clips)
    else:
        inputs, labels = batch
    like = next(module.parameters())
    inputs = inputs.to(like.device, like.dtype)
    return inputs, None if labels is None else labels.to(like.device)


class _Watcher(Delta):
    """Shows what passes, and changes nothing."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def after(self, x: Any, y: Any, ctx: Context) -> Any:
        self.observer(x, y, ctx)
        return y


@contextmanager
def watching(
    module: nn.Module, observers: Mapping[Site, Observer], first: bool = False
) -> Iterator[None]:
    """Call ``observer(x, y, ctx)`` whenever a site runs; it may be nested.

    Args:
        module: The module with the sites.
        observers: By site; each sees what entered and what leaves.
        first: Whether they stand before all deltas, so that ``y`` is what the site
            itself has made of ``x``; else they see what the deltas made of it.
    """
    watchers: list[tuple[Site, str]] = []
    try:
        for site, observer in observers.items():
            plug = plug_of(module, site)
            others = dict(plug._modules) if first else {}
            name = next(n for i in count() if (n := f'watcher{i}') not in plug)
            for other in others:
                del plug[other]
            plug[name] = _Watcher(observer).eval()  # as all that is watched
            plug.update(others)
            watchers.append((site, name))
        yield
    finally:
        for site, name in watchers:
            del plug_of(module, site)[name]
            prune(module.get_submodule(site.host))


def task_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own training loss on a batch.

    Args:
        model: A model of OpenMMLab, or one that gives scores (B, classes).
        batch: What it takes, or ``(inputs, labels)``.
    """
    if hasattr(model, 'data_preprocessor'):
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        return model.parse_losses(losses)[0]
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def batch_size(batch: Any) -> int:
    """Samples in a batch of OpenMMLab, or in ``(inputs, labels)``."""
    return len(batch['inputs'] if isinstance(batch, Mapping) else batch[0])


def one_by_one(batch: Any) -> Iterator[Any]:
    """Every sample of a batch as a batch of its own."""
    for i in range(batch_size(batch)):
        if isinstance(batch, Mapping):
            yield {key: value[i : i + 1] for key, value in batch.items()}
        else:
            yield tuple(None if v is None else v[i : i + 1] for v in batch)


def parameters_behind(
    module: nn.Module, views: Iterable[Tensor]
) -> dict[Tensor, nn.Parameter]:
    """The parameter in whose storage each view of base weights lies.

    Args:
        module: The backbone.
        views: Of :attr:`mmpetl.core.Affine.tensors`, made inside of
            :func:`~mmpetl.core.affine.in_rows`.

    Raises:
        PETLError: One is of a quantised weight, which has no gradient.
    """
    params = [p for p in module.parameters() if not isinstance(p, PackedWeight)]
    owner = {p.untyped_storage().data_ptr(): p for p in params}
    found = {}
    for view in views:
        packed = isinstance(view, PackedWeight)
        param = None if packed else owner.get(view.untyped_storage().data_ptr())
        if param is None:
            raise PETLError(
                'gradients of base weights are asked for, and some of this base are '
                'in few bits and have none; calibrate first, then quantise'
            )
        found[view] = param
    return found


def gradient_at(view: Tensor, param: nn.Parameter) -> Tensor:
    """What a backward pass has left for a view of a parameter, in its shape."""
    if param.grad is None:
        return torch.zeros_like(view)
    start = view.storage_offset() - param.storage_offset()
    return param.grad.as_strided(view.shape, view.stride(), start)


@contextmanager
def only_trains(
    backbone: nn.Module, weights: list[nn.Parameter], train_mode: bool
) -> Iterator[None]:
    """Let gradients reach ``weights`` and nothing else; deltas are in eval mode.

    Afterwards everything is as it was, running statistics of heads included.

    Args:
        backbone: An injected backbone, or the whole model around it.
        weights: Parameters of it.
        train_mode: Whether the rest is in train mode, so that dropout and stochastic
            depth act.
    """
    flags = {p: p.requires_grad for p in backbone.parameters()}
    modes = {m: m.training for m in backbone.modules()}
    buffers = {b: b.clone() for b in backbone.buffers()}
    for param in flags:
        param.requires_grad_(False)
    for param in weights:
        param.requires_grad_(True)
        param.grad = None
    for name, module in backbone.named_modules():
        module.training = train_mode and 'petl' not in name.split('.')
    try:
        yield
    finally:
        for param, flag in flags.items():
            param.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
        for param in weights:
            param.grad = None
