"""Lets the OpenMMLab packages run, as wheels, on current torch, numpy and Python.

`install` is called by ``import mmpetl``. It costs milliseconds: each gap is closed by
an import hook that does its work only when the package concerned is imported, torch
included. Where that is in memory already, the work is done at once.

=====================================================  ==============================
Gap                                                    Closed in
=====================================================  ==============================
``mmcv-lite`` has no compiled ``mmcv._ext``            `hooks`, `kernels`
the mmaction2 wheel lacks ``localizers.drn``           `hooks`
mmpretrain's multimodal models break on transformers   `hooks`
mmcv with Pillow turns 16-bit grey pictures white      `hooks`, `pictures`
MMEngine lays out a config for every checkpoint        `hooks`, `texts`
MMEngine finds configs of its own packages alone       `hooks`, `bases`
MMEngine does not say how many steps an optimizer has  `hooks`, `counting`
torch refuses MMEngine's resume files                  `hooks`, `loading`
MMEngine looks for our classes in registries unseen    `hooks`
MMEngine's launcher wants a GPU                        `distributed`
=====================================================  ==============================
"""

from __future__ import annotations

from mmpetl.lazy import lazy_names

from .hooks import install_hooks as install

_HOMES = {'init_dist_any': 'distributed', 'load_file': 'loading'}

__all__ = ['init_dist_any', 'install', 'load_file']  # noqa: F822

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
