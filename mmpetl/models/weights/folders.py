"""The weight file of a folder as the hub of transformers and timm lays it out."""

from __future__ import annotations

import os
from pathlib import Path

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_utf8
from mmpetl.models.weights.errors import WeightsError, shorten

FILES = (
    'model.safetensors.index.json',
    'model.safetensors',
    'pytorch_model.bin.index.json',
    'pytorch_model.bin',
    'open_clip_model.safetensors',
    'open_clip_pytorch_model.bin',
)
"""In the order in which the hub's own readers take them."""


def file_in(path: Path) -> Path:
    """The weights of a model's folder, of a snapshot, or of a repository in the cache.

    What is no such folder comes back as it is.

    Raises:
        WeightsError: A repository in the cache has several snapshots and says not
            which one is the current one.
    """
    if not path.is_dir():
        return path
    folder = _snapshot(path) if (path / 'snapshots').is_dir() else path
    return next((folder / name for name in FILES if (folder / name).exists()), folder)


def _snapshot(path: Path) -> Path:
    """The snapshot of ``models--NAME--NAME`` that its main branch stands for."""
    main = path / 'refs' / 'main'
    if main.is_file():
        try:
            name = read_utf8(main, 'name of a snapshot', 4096).strip()
        except PETLError:
            name = ''
        folder = path / 'snapshots' / name
        plain = name == os.path.basename(name) and name not in ('', '.', '..')
        if plain and os.path.isdir(folder):
            return folder
    found = sorted(p for p in (path / 'snapshots').iterdir() if p.is_dir())
    if len(found) != 1:
        names = shorten(f'snapshots/{p.name}' for p in found) or 'none'
        raise WeightsError(f'{path} has {len(found)} snapshots ({names}); name one')
    return found[0]
