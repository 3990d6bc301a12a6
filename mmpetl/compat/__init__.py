"""Lets the OpenMMLab packages run, as wheels, on current torch, numpy and Python.

`install` is called by ``import mmpetl``. It costs milliseconds: each gap is closed by
an import hook that does its work only when the package concerned is imported.

=====================================================  ==============================
Gap                                                    Closed in
=====================================================  ==============================
``mmcv-lite`` has no compiled ``mmcv._ext``            `hooks`, `kernels`
the mmaction2 wheel lacks ``localizers.drn``           `hooks`
mmpretrain's multimodal models break on transformers   `hooks`
mmcv with Pillow turns 16-bit grey pictures white      `hooks`, `pictures`
MMEngine lays out a config for every checkpoint        `hooks`, `texts`
MMEngine does not say how many steps an optimizer has  `hooks`, `counting`
torch refuses MMEngine's resume files                  `loading`
MMEngine's launcher wants a GPU                        `distributed`
=====================================================  ==============================
"""

from __future__ import annotations

from .distributed import init_dist_any
from .hooks import install_hooks
from .loading import allow_mmengine_types, load_file

__all__ = ['init_dist_any', 'install', 'load_file']


def install() -> None:
    """Close every gap of the table above; calling it again changes nothing."""
    install_hooks()
    allow_mmengine_types()
