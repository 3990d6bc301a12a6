"""From a run to what is compared: its base, its tuned model, and the same points."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpetl.apis.delta import TURNED
from mmpetl.apis.names import is_named
from mmpetl.apis.runs import find_run, is_run
from mmpetl.apis.runs import open_run as open_named
from mmpetl.core import (
    PETLError,
    check_range,
    disabled,
    eject,
    fingerprint,
    inject,
    injections,
)

Split = Literal['train', 'val', 'test']


@dataclass(frozen=True)
class Pair:
    """A base and what a method made of it, both in eval mode and with sites.

    Attributes:
        base: The whole model with the base's own weights and no method. Its task head
            is untrained, and so is what the config lets train with the head.
        tuned: The whole model with the delta.
        config: Config of the run.
        method: The method as it is written: ``LoRA(rank=4, ...)``.
        name: Its name alone.
    """

    base: nn.Module
    tuned: nn.Module
    config: Any
    method: str
    name: str


@dataclass(frozen=True)
class Points:
    """Some samples of a data set, in a fixed order.

    Attributes:
        dataset: The data set with the test pipeline.
        indices: Which of its samples, ascending.
        classes: Names of the classes, empty where nothing names them.
    """

    dataset: Any
    indices: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """Prepared samples, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield [self.dataset[i] for i in self.indices[start : start + size]]


def load_pair(config: Any, delta: str | os.PathLike, device: str = 'auto') -> Pair:
    """The base and the tuned model of a run.

    The base is built as the run built it, so that it holds the base's own values of
    what the method selects and trains, full fine-tuning included. Its fingerprint is
    held against the one that the delta was trained on.

    Args:
        config: Config of the run: path or ``Config``.
        delta: A published delta or a run's checkpoint.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: The config has no method, or the delta belongs to another base,
            method or depth.
    """
    from mmpetl.apis.building import build_model, dataset_meta, pick_device
    from mmpetl.apis.delta import load_delta, read_delta
    from mmpetl.config.load import as_config
    from mmpetl.core.delta_file import method_name

    place = pick_device(device)
    config = as_config(config)
    read = read_delta(delta)
    tuned = build_model(config)
    if not injections(tuned):
        raise PETLError(
            f'{delta} is a delta of {method_name(read.meta)}, the config has no '
            'method; set model.backbone.method to the one of the delta'
        )
    base = bare_copy(tuned)
    load_delta(tuned, delta)
    if fingerprint(base) != fingerprint(tuned):
        raise PETLError(f'the base of {delta} could not be restored')
    for model in (base, tuned):
        model.cfg = config
        model.dataset_meta = {**dataset_meta(config), **read.dataset}
        model.eval()
        model.to(place)
    slots = injections(tuned)[0][2].slots.values()
    methods = ' + '.join(repr(slot.method) for slot in slots)
    return Pair(base, tuned, config, methods, method_name(read.meta))


def bare_copy(model: nn.Module) -> nn.Module:
    """A copy without methods whose blocks still run sites.

    Base parameters keep the values they have now: of a freshly built model those of
    the base, of a trained one what the method made of them (see
    :func:`without_methods`).
    """
    bare = copy.deepcopy(model)
    for _, module, record in injections(bare):
        head, drop_path = tuple(record.head), record.frozen_drop_path
        for name in list(record.slots):
            eject(module, name, restore=False)
        inject(module, 'LinearProbe', head=head, frozen_drop_path=drop_path)
    return bare


@contextmanager
def without_methods(model: nn.Module) -> Iterator[None]:
    """Let a model in memory compute as its base, selected parameters restored.

    Raises:
        PETLError: A method trains most of the base (``Full``), so that no second copy
            of the base's values is kept; :func:`load_pair` builds the base anew.
    """
    with ExitStack() as until:
        for _, module, _ in injections(model):
            until.enter_context(disabled(module))
        yield


def load_points(
    config: Any, count: int, split: Split = 'test', seed: int = 0
) -> Points:
    """Draw points of a data set; all splits go through the test pipeline.

    Args:
        config: Config of the run: path or ``Config``.
        count: How many at most, at least 1.
        split: Whose data set.
        seed: Decides which points are drawn where there are more.

    Raises:
        FileNotFoundError: The data are not there.
        PETLError: The config has no such data set.
    """
    from mmengine.registry import DATASETS

    from mmpetl.apis.building import dataset_meta, scope_of
    from mmpetl.config.load import as_config
    from mmpetl.config.nodes import find_dataset, test_pipeline

    check_range('points', '--points', count, 1)
    config = as_config(config)
    node = find_dataset(config, (split,))
    if not node:
        there = [s for s in ('train', 'val', 'test') if find_dataset(config, (s,))]
        raise PETLError(
            f'the config has no {split} data set; it has: {", ".join(there) or "none"}'
        )
    with scope_of(config):
        dataset = DATASETS.build({**node, 'pipeline': test_pipeline(config)})
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    chosen = tuple(sorted(order[:count].tolist()))
    names = getattr(dataset, 'metainfo', {}).get('classes')
    names = names or dataset_meta(config).get('classes') or ()
    return Points(dataset, chosen, tuple(map(str, names)))


def label_of(sample: dict[str, Any]) -> int | None:
    """Class of a prepared sample; None where it has no single one."""
    label = getattr(sample.get('data_samples'), 'gt_label', None)
    if isinstance(label, Tensor) and label.numel() == 1:
        return int(label)
    return None


def prepare(model: nn.Module, samples: Sequence[dict[str, Any]]) -> tuple[Tensor, int]:
    """What the backbone is fed with, and how many views each sample has.

    Returns:
        (B * views, C, H, W) or (B * views, C, T, H, W), views of a sample next to
        each other.
    """
    from mmengine.dataset import pseudo_collate

    from mmpetl.apis.building import scope_of

    with scope_of(model.cfg), torch.no_grad():
        x = model.data_preprocessor(pseudo_collate(list(samples)), False)['inputs']
    if isinstance(x, list | tuple):
        x = torch.stack(list(x))
    if x.ndim == 6:  # clips and crops of a video
        return x.flatten(0, 1), x.shape[1]
    return x, 1


def as_pictures(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a prepared input looks like.

    Args:
        model: The whole model, whose preprocessor says how inputs are normalised.
        inputs: (B, 3, H, W) or (B, 3, T, H, W).

    Returns:
        (B, H, W, 3) or (B, T, H, W, 3) with values in [0, 1].
    """
    x = inputs.detach().float().cpu()
    prep = getattr(model, 'data_preprocessor', None)
    mean, std = getattr(prep, 'mean', None), getattr(prep, 'std', None)
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        shape = (1, -1, *(1,) * (x.ndim - 2))
        x = (x * std.cpu().reshape(shape) + mean.cpu().reshape(shape)) / 255
    else:
        low, high = x.amin(), x.amax()
        x = (x - low) / (high - low).clamp_min(1e-12)
    if x.ndim == 4 and not _is_rgb(prep):
        x = x.flip(1)
    return x.movedim(1, -1).clamp(0, 1)


def _is_rgb(prep: Any) -> bool:
    """Whether a preprocessor of pictures, which are read as BGR, hands out RGB."""
    said = [getattr(prep, name) for name in TURNED if hasattr(prep, name)]
    return any(said) if said else True


def add_run_arguments(
    parser: argparse.ArgumentParser, out: str, points: int | None = None
) -> None:
    """The arguments that the tools share which look at a run.

    Args:
        parser: Of the tool.
        out: Default of ``--out``.
        points: Default of ``--points``, None for a tool that takes no points.
    """
    from mmpetl.config.cli import DictAction

    parser.add_argument(
        'run', help='folder of a run, checkpoint, delta, or zoo/NAME; or its config'
    )
    parser.add_argument(
        'delta', nargs='?', help='published delta or checkpoint; a folder has its own'
    )
    parser.add_argument('--out', default=out, help=f'picture to write ({out})')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='test')
    if points is not None:
        parser.add_argument(
            '--points', type=int, default=points, help=f'how many at most ({points})'
        )
        parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--seed', type=int, default=0, help='which points are drawn')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )


def open_run(args: argparse.Namespace) -> tuple[Pair, str]:
    """The pair that :func:`add_run_arguments` asks for, and a name of its data."""
    from mmpetl.config.load import load_config

    if args.delta is None and is_run(args.run) and not Path(args.run).is_dir():
        run = open_named(args.run, options=args.cfg_options)
        name = args.run if is_named(args.run) else run.weights.absolute().parent.name
        return load_pair(run.config, run.weights, args.device), name
    path, delta = find_run(args.run, args.delta)
    config = load_config(path, args.cfg_options)
    pair = load_pair(config, delta, args.device)
    return pair, _data_name(path)


def _data_name(path: Path) -> str:
    """What a run is about: of a benchmark's run its recipe, else the config's name."""
    from mmpetl.benchmark.records import read_record

    record = path.with_name('record.json')
    if path.stem != 'config':
        return path.stem
    return read_record(record).job.recipe if record.is_file() else path.parent.name
