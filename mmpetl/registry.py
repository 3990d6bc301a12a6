"""Registries: METHODS and BACKBONES are ours, the others are children of MMEngine's.

A class registered here is found by every OpenMMLab config as ``mmpetl.Name``.
"""

from __future__ import annotations

from mmengine import registry as _mmengine
from mmengine.registry import Registry

__all__ = [
    'BACKBONES',
    'DATASETS',
    'DATA_SAMPLERS',
    'HOOKS',
    'LOOPS',
    'METHODS',
    'METRICS',
    'MODELS',
    'MODEL_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'PARAM_SCHEDULERS',
    'RUNNERS',
    'TRANSFORMS',
    'VISUALIZERS',
]


def _child(name: str, parent: Registry, location: str) -> Registry:
    return Registry(name, parent=parent, scope='mmpetl', locations=[location])


METHODS = Registry('method', scope='mmpetl', locations=['mmpetl.methods'])
BACKBONES = Registry('site map', scope='mmpetl', locations=['mmpetl.backbones'])

MODELS = _child('model', _mmengine.MODELS, 'mmpetl.models')
DATASETS = _child('dataset', _mmengine.DATASETS, 'mmpetl.datasets')
DATA_SAMPLERS = _child('data sampler', _mmengine.DATA_SAMPLERS, 'mmpetl.engine')
TRANSFORMS = _child('transform', _mmengine.TRANSFORMS, 'mmpetl.datasets')
METRICS = _child('metric', _mmengine.METRICS, 'mmpetl.evaluation')
HOOKS = _child('hook', _mmengine.HOOKS, 'mmpetl.engine')
RUNNERS = _child('runner', _mmengine.RUNNERS, 'mmpetl.engine')
LOOPS = _child('loop', _mmengine.LOOPS, 'mmpetl.engine')
MODEL_WRAPPERS = _child('model_wrapper', _mmengine.MODEL_WRAPPERS, 'mmpetl.engine')
PARAM_SCHEDULERS = _child(
    'parameter scheduler', _mmengine.PARAM_SCHEDULERS, 'mmpetl.engine'
)
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor',
    _mmengine.OPTIM_WRAPPER_CONSTRUCTORS,
    'mmpetl.engine',
)
VISUALIZERS = _child('visualizer', _mmengine.VISUALIZERS, 'mmpetl.engine')
