"""Readers of files of bytes, for the fuzzers."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import samples
from .targets import Target


def containers() -> list[Target]:
    """Readers of files of bytes."""
    return [*_of_weights(), *_of_arrays(), *_of_pictures(), *_of_archives()]


def _of(
    name: str,
    seeds: list[bytes],
    read: Callable[[Path], Any],
    file: str,
    seal: str = '',
    **more: Any,
) -> Target:
    more.setdefault('sealed', seeds if seal else ())
    return Target(name, 'container', seeds, read, file, seal=seal, **more)


def _of_weights() -> list[Target]:
    from mmpetl.apis.delta import load_tensors
    from mmpetl.engine.latest import newest_checkpoint
    from mmpetl.models.weights.containers import read_tensors

    nested = {'model': samples.state(), 'args': {'lr': 0.1, 'x': ['y', (1, None)]}}
    plain, whole = samples.torch_file(), samples.checkpoint()
    legacy = [samples.torch_file(new=False), samples.torch_file(nested, new=False)]
    read, packed = of_delta()
    return [
        _of('torch zip', [plain], read_tensors, 'a.pth', 'zip'),
        _of('legacy torch', legacy, read_tensors, 'a.pth'),
        _of(
            'safetensors',
            [samples.safetensors()],
            read_tensors,
            'a.safetensors',
            'safetensors',
        ),
        _of('npz', [samples.npz()], read_tensors, 'a.npz', 'zip'),
        _of('TorchScript', [samples.torchscript()], read_tensors, 'a.pt', 'zip'),
        _of('run checkpoint', [whole], load_tensors, 'epoch_1.pth', 'zip'),
        _of(
            'newest checkpoint',
            [whole],
            lambda path: newest_checkpoint(path.parent),
            'epoch_1.pth',
            'zip',
        ),
        _of('delta', [packed], read, 'delta.safetensors', 'safetensors'),
    ]


def of_delta() -> tuple[Callable[[Path], Any], bytes]:
    """A reader of a delta whose record has the digest of its tensors."""
    from mmpetl.core.delta_file import read_delta_file

    facts, packed = samples.delta()

    def read(path: Path) -> Any:
        data = path.read_bytes()
        facts['tensors']['sha256'] = hashlib.sha256(data).hexdigest()
        facts['tensors']['bytes'] = len(data)
        path.with_suffix('.json').write_text(json.dumps(facts))
        return read_delta_file(path)

    return read, packed


def _of_arrays() -> list[Target]:
    import numpy as np

    from mmpetl.datasets.convert.matlab import read_table
    from mmpetl.datasets.convert.npz import read_examples
    from mmpetl.engine.hooks.predictions import read_predictions

    labels = np.zeros(3, np.int64)
    scored = samples.npz(logits=np.ones((3, 2), np.float32), labels=labels)
    drawn = samples.npz(images=np.ones((3, 2, 2, 3), np.uint8), labels=labels)
    return [
        _of('predictions', [scored], read_predictions, 'predictions.npz', 'zip'),
        _of('npz of pictures', [drawn], read_examples, 'train.npz', 'zip'),
        _of(
            'MATLAB',
            [samples.matlab()],
            lambda path: read_table(
                path.name, path.read_bytes(), 'annotations', ('class', 'fname')
            ),
            'cars_annos.mat',
        ),
    ]


def _of_pictures() -> list[Target]:
    from mmpetl.apis.draw import _open
    from mmpetl.datasets.maps import fault_of_stored
    from mmpetl.datasets.verify.opening import fault_of

    kinds = ('JPEG', 'PNG', 'BMP', 'TIFF', 'GIF', 'WEBP')
    every = [samples.picture(kind) for kind in kinds]
    pngs = [samples.picture('PNG'), samples.picture('PNG', 'P')]
    maps = [
        *(samples.picture('PNG', mode) for mode in ('L', 'P', 'I;16')),
        samples.picture('TIFF', 'I;16'),
    ]

    def verified(path: Path) -> Any:
        from mmpetl.datasets.catalog import facts_of
        from mmpetl.datasets.items import Item

        item = Item('a list', path, mask=path)
        return fault_of(facts_of('voc_seg'), item)

    # A picture may have 179 million pixels, whatever its bytes: those take seconds.
    long = {'seconds': 20.0}
    return [
        _of('picture', every, picture, 'picture.jpg', 'png', sealed=pngs, **long),
        _of('drawn picture', every, _open, 'picture.jpg', 'png', sealed=pngs, **long),
        _of(
            'label map',
            maps,
            fault_of_stored,
            'map.png',
            'png',
            sealed=maps[:3],
            **long,
        ),
        _of('verified map', maps, verified, 'map.png', 'png', sealed=maps[:3], **long),
    ]


@functools.cache
def _pipeline() -> Any:
    import mmpretrain.datasets  # noqa: F401
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    from mmpetl.datasets.reading import GuardedPipeline

    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('fuzz', scope_name='mmpretrain')
    load = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}
    return GuardedPipeline(Compose([load]))


def picture(path: Path) -> Any:
    """A picture as a run reads it."""
    return _pipeline()({'img_path': str(path)})


def _of_archives() -> list[Target]:
    from mmpetl.datasets.convert.unpack import unpack

    def unpacked(path: Path) -> Any:
        target = path.parent / 'out'
        shutil.rmtree(target, ignore_errors=True)
        return unpack([path], target, lambda place: place)

    tars = [samples.tar(), samples.tar(tarfile.PAX_FORMAT)]
    return [
        _of('zip', [samples.archive()], unpacked, 'a.zip', 'zip'),
        _of('tar', tars, unpacked, 'a.tar', 'tar'),
    ]
