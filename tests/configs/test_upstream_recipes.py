"""Recipes on configs of upstream: what they change, and a step of each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmpetl.config.load import load_config
from mmpetl.core import Owner, build_method, owners

ROOT = Path(__file__).parents[2]
FOLDERS = sorted((ROOT / 'configs' / 'upstream').iterdir())
METHODS = {
    'linear_probe': 'LinearProbe',
    'lora': 'LoRA',
    'mona': 'Mona',
    'adaptformer': 'AdaptFormer',
}


def tool(name: str) -> ModuleType:
    """A module of tools/misc."""
    path = ROOT / 'tools' / 'misc' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_a_recipe_is_the_config_of_upstream_with_a_method(folder: Path) -> None:
    assert {path.stem for path in folder.glob('*.py')} == METHODS.keys()
    probe = load_config(folder / 'linear_probe.py')
    assert probe.model.type == 'mmpetl.PETLModel'
    assert probe.model.of in ('EncoderDecoder', 'Mask2Former', 'DINO')
    assert probe.runner_type == 'mmpetl.TuningRunner'
    for stem, name in METHODS.items():
        config = load_config(folder / f'{stem}.py')
        assert type(build_method(config.model.petl)).__name__ == name
        for other in (probe, config):
            other.pop('work_dir', None)
            other.model.pop('petl', None)
        assert config.to_dict() == probe.to_dict()
        probe.model.petl = {'type': 'LinearProbe'}


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('folder', FOLDERS, ids=lambda f: f.name)
def test_a_small_copy_trains(folder: Path, method: str) -> None:
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import Runner

    from mmpetl.engine.runner import safe_config

    config = load_config(folder / f'{method}.py')
    package = config.default_scope
    tool('walking_small').make_small(package, config)
    config.model.pop('base', None)
    if 'TIMM' in config.model.backbone.type:
        side = 112 if 'dinov2' in folder.name else 128
        config.model.backbone.update(depth=4, out_indices=(0, 1, 2, 3), img_size=side)
    config, _ = safe_config(config)
    init_default_scope(package)
    if 'data_preprocessor' in config:
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(config.model)
    model.init_weights()
    batch = tool('walking_data').drawn_batch(package, config, model)
    wrapper = {**config.optim_wrapper, 'type': 'OptimWrapper'}
    wrapper.pop('loss_scale', None)
    holder = type('Holder', (), {'model': model})()
    optim_wrapper = Runner.build_optim_wrapper(holder, wrapper)
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train_step(batch, optim_wrapper)
    owner = owners(model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert not {n for n in moved if owner[n] is Owner.BASE}
    assert any(owner[n] is Owner.HEAD for n in moved)
    if method != 'linear_probe':
        assert any(owner[n] is Owner.DELTA for n in moved)
