"""The mini recipes: they fit their weights, read the mini sets and train a step."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.config.load import load_config
from mmpetl.registry import MODELS

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
PRETRAIN = {
    'digits': 'vit_letters',
    'cub': 'vit_letters',
    'hmdb51': 'videomae_moving_letters',
    'hmdb51_frames': 'vit_letters',
    'hmdb51_swin': 'swin3d_moving_letters',
    'ade20k': 'swin_letters',
    'coco': 'swin_letters',
    'voc': 'swin_letters',
    'nyud_mt': 'swin_letters',
}


def shapes(spec):
    """Name and shape of each tensor, but for the output norms of dense models."""
    state = MODELS.build(spec).state_dict()
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if not key.startswith(('norm0', 'norm1', 'norm2', 'norm3'))
    }


@pytest.mark.parametrize('name', PRETRAIN)
def test_backbone_is_the_one_that_was_pretrained(name):
    ours = Config.fromfile(CONFIGS / f'mini/{name}.py').model.backbone
    theirs = Config.fromfile(CONFIGS / f'mini/pretrain/{PRETRAIN[name]}.py')
    # Frames of clips go through a trunk of pictures.
    trunk = ours.backbone.get('backbone', ours.backbone)
    assert shapes(trunk) == shapes(theirs.model.backbone)


@pytest.mark.parametrize('name', PRETRAIN)
def test_weights_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Config.fromfile(CONFIGS / f'mini/{name}.py').model.backbone
    path = Path(spec.checkpoint).resolve()
    assert path.parent == ROOT / 'demo/weights'
    assert path.is_file()
    assert json.loads(path.with_suffix('.json').read_text())


@pytest.fixture(scope='session')
def mini_root(tiny_data):
    pictures = 'digits', 'CUB_200_2011', 'nyud_mt'
    return tiny_data(*pictures, 'hmdb51', 'ADEChallengeData2016', 'coco', 'VOCdevkit')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['LinearProbe', 'LoRA'])
@pytest.mark.parametrize('name', PRETRAIN)
def test_trains_and_tests_on_mini_data(name, method, mini_root, tmp_path, monkeypatch):
    from mmengine.runner import Runner

    from mmpetl.datasets import check_config, guard_runner

    monkeypatch.setenv('MMPETL_DATA', str(mini_root))
    cfg = load_config(
        CONFIGS / f'mini/{name}.py', {'model.backbone.method.type': method}
    )
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = f'{name}_{method}_{time.time_ns()}'
    limit = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[limit] = cfg.train_cfg.val_interval = 1
    if name == 'cub':
        cfg.train_dataloader.dataset.indices = 8
    assert check_config(cfg, ('train', 'val', 'test'))['train'] > 0
    runner = Runner.from_cfg(cfg)
    guard_runner(runner)
    runner.train()
    runner.test()
    assert list(tmp_path.glob('*.pth'))
