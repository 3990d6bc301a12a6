"""Names that records give to tasks, groups, backbones, devices and software."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpetl.core import registered_methods
from mmpetl.core.several import written_out

PACKAGES = (
    'torch',
    'torchvision',
    'mmengine',
    'mmcv',
    'mmcv-lite',
    'mmpretrain',
    'mmaction2',
    'mmsegmentation',
    'mmdet',
    'timm',
    'numpy',
)


def versions(method: str = '') -> dict[str, str]:
    """Versions of this project, Python, and the packages that are installed.

    Args:
        method: What is run. A method from outside of the package, of which no commit
            tells, has the digest of its file for a version.
    """
    from mmpetl.version import __version__

    found = {'mmpetl': __version__, 'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name in written_out(method) if method else ():
        cls = registered_methods().get(name)
        file = None if cls is None or cls.ours() else cls.file()
        if file is not None:
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the checkout, ``-dirty`` where it has edits; None outside of git."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str | None:
        # Optional locks are for people at a prompt, not for many readers at once.
        command = ['git', '--no-optional-locks', '-C', str(root), *args]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / '.git').exists():
        return None
    name = git('rev-parse', 'HEAD')
    if name is None:
        return None
    edits = git('status', '--porcelain', '--untracked-files=no')
    return f'{name}-dirty' if edits else name


def device() -> str:
    """Name of what a run in this process computes on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _cpu()


@functools.cache
def _cpu() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            for line in file:
                if line.startswith('model name'):
                    return 'cpu: ' + ' '.join(line.partition(':')[2].split())
    except OSError:
        pass
    return f'cpu: {platform.machine() or "unknown"}'


def machine() -> dict[str, Any]:
    """What this process runs on: processes, threads, host, CUDA and driver."""
    import torch
    from mmengine.dist import get_world_size

    on_gpu = torch.cuda.is_available()
    return {
        'processes': get_world_size(),
        'threads': torch.get_num_threads(),
        'host': platform.node(),
        'cuda': torch.version.cuda if on_gpu else None,
        'driver': _driver() if on_gpu else None,
    }


@functools.cache
def _driver() -> str | None:
    """Version of NVIDIA's driver as the kernel tells it; None where it does not."""
    try:
        with open('/sys/module/nvidia/version', encoding='ascii') as file:
            return file.read().strip() or None
    except OSError:
        return None


def batch_of(config: Any, processes: int) -> int | None:
    """Samples behind one step of the optimizer; None where a sampler decides."""
    loader = config.get('train_dataloader') or {}
    size = loader.get('batch_size')
    if not isinstance(size, int):
        return None
    wrapper = config.get('optim_wrapper') or {}
    return size * processes * (wrapper.get('accumulative_counts') or 1)


def resolution_of(config: Any) -> list[int] | None:
    """Height and width in pixels of what the test pipeline makes.

    Of a resizing that keeps the ratio of sides, its bounds. None where no step says a
    size.
    """
    from mmpetl.config.nodes import sides_made, test_pipeline

    found = sides_made(test_pipeline(config))
    return None if found is None else list(found)


def task_of(recipe: str, config: Any) -> tuple[str, str]:
    """Id and group of a recipe's task.

    A mini task bears the name of its recipe: its pictures are not those of the set
    whose layout it has.
    """
    from mmpetl.datasets import catalog

    stem = recipe.rpartition('/')[2]
    if recipe.startswith('mini/'):
        group = MINI_GROUPS.get(stem) or _family_group(config)
        return stem, group
    for name in (stem, stem.removesuffix('_swin'), _dataset_name(config)):
        if name in catalog.CATALOG:
            facts = catalog.CATALOG[name]
            return facts.id, facts.group
    return stem, _family_group(config)


MINI_GROUPS: Mapping[str, str] = {
    'digits': 'natural',
    'textures': 'specialised',
    'counting': 'structured',
    'cub': 'fine-grained',
}
"""Groups of the mini tasks, as those of the sets that they stand for."""


def _family_group(config: Any) -> str:
    families = {
        'mmpretrain': 'image',
        'mmaction': 'video',
        'mmseg': 'dense',
        'mmdet': 'dense',
    }
    if str(config.model.get('type', '')).endswith('MultiTaskModel'):
        return 'multi-task'
    return families.get(config.get('default_scope'), '')


def _dataset_name(config: Any) -> str:
    from mmpetl.config.nodes import find_dataset

    node = find_dataset(config)
    return str(node.get('task') or node.get('name') or '')


def backbone_of(config: Any) -> str:
    """Name of a backbone as tables print it: ``ViT-B/16``, ``Swin-L``, ``mini ViT``."""
    from mmpetl.config.nodes import petl_backbone_of

    node = petl_backbone_of(config)
    inner = node['backbone']
    if isinstance(inner.get('model_name'), str):
        return inner['model_name']  # of timm, which names size and patch itself
    kind = str(inner.get('type', '')).rpartition('.')[2]
    stem = Path(str(node.get('checkpoint') or '')).stem
    family = {
        'VisionTransformer': 'ViT',
        'SwinTransformer': 'Swin',
        'SwinTransformer3D': 'Video Swin',
    }.get(kind, kind)
    if stem.startswith('mini_'):
        video = 'Video ' if 'video_vit' in stem else ''
        return f'mini {video}{family}'
    arch = inner.get('arch')
    width = inner.get('embed_dims')
    letter = ''
    if isinstance(arch, str):
        letter = {'deit-base': 'B'}.get(arch, arch[0].upper())
    elif width is not None:
        letter = {192: 'Ti', 384: 'S', 768: 'B', 1024: 'L'}.get(width, str(width))
    name = f'{family}-{letter}' if letter else family
    patch = inner.get('patch_size', 16 if 'ViT' in family else None)
    return f'{name}/{patch}' if 'ViT' in family and isinstance(patch, int) else name


def settings_of(config: Any) -> dict[str, Any]:
    """Arguments of a config's method that differ from its defaults.

    Those of several have the number of their method in front, ``0.rank``.
    """
    from mmpetl.apis.delta import to_data
    from mmpetl.config.nodes import petl_backbone_of
    from mmpetl.core import build_entries, is_several

    methods = petl_backbone_of(config)['method']
    found = {}
    for number, entry in enumerate(build_entries(methods)):
        signature = inspect.signature(type(entry.method).__init__).parameters
        defaults = {name: to_data(p.default) for name, p in signature.items()}
        mark = f'{number}.' if is_several(methods) else ''
        found |= {
            f'{mark}{name}': to_data(value)
            for name, value in entry.config().items()
            if name != 'type' and to_data(value) != defaults.get(name)
        }
    return found


def preprocessing_of(config: Any) -> dict[str, Any]:
    """The named preset that a config states; else what its pipelines do.

    Without a preset ``channels`` is the order that mean and deviation are in.
    """
    from mmpetl.apis.delta import to_data
    from mmpetl.config.nodes import channel_order, statistics_node

    named = config.get('preprocessing')
    if named:
        return to_data(dict(named))
    stats = statistics_node(config)
    return {
        'normalisation': to_data({k: stats.get(k) for k in ('mean', 'std')}),
        'channels': channel_order(config),
        'augmentation': None,
        'pipeline': [step for step in _steps(config)],
    }


def _steps(config: Any) -> Iterator[str]:
    from mmpetl.config.nodes import find_dataset

    for step in find_dataset(config, ('train',)).get('pipeline') or ():
        yield str(step.get('type'))


def release_peak() -> int | None:
    """Forget the peak of this process's resident memory; returns what it holds now.

    None where the system cannot: elsewhere than on Linux.
    """
    try:
        with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
            file.write('5')
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return None


def peak_resident() -> int | None:
    """Most resident memory since :func:`release_peak`, bytes; None as there."""
    try:
        with open('/proc/self/status', encoding='ascii') as file:
            for line in file:
                if line.startswith('VmHWM:'):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
