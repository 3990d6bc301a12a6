"""Every config parses, says what its sources say, and builds the model it names."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.core import build_method, count_trainable, inject
from mmpetl.registry import MODELS

pytest.importorskip('mmdet')

CONFIGS = Path(__file__).parents[2] / 'configs'
ALL = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for path in CONFIGS.rglob('*.py')
    if not {'_base_', 'pretrain'} & set(path.parts)
)
LEAVES = [name for name in ALL if not name.startswith(('recipes/', 'mini/'))]
RECIPES = [name for name in ALL if name.startswith('recipes/')]


@functools.cache
def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


@pytest.mark.parametrize('name', ALL)
def test_parses_and_names_a_method_that_exists(name):
    cfg = load(name)
    build_method(cfg.model.backbone.method)
    assert cfg.optim_wrapper.constructor == 'mmpetl.OwnerOptimWrapperConstructor'
    assert cfg.default_hooks.checkpoint.type == 'mmpetl.DeltaCheckpointHook'
    assert cfg.default_scope in ('mmpretrain', 'mmaction', 'mmseg', 'mmdet')
    leftovers = [key for key in cfg if key.startswith('_')]
    assert leftovers == []


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_are_linear_probes_open_to_one_override(name):
    # `--cfg-options model.backbone.method.type=LoRA` needs a method with no other key
    assert load(name).model.backbone.method == dict(type='LinearProbe')


@pytest.mark.parametrize('name', LEAVES)
def test_leaves_are_short_and_bear_their_stem(name):
    text = (CONFIGS / f'{name}.py').read_text()
    stem, dataset = name.split('/')
    for phase in ('_supernet', '_search', '_retrain'):
        dataset = dataset.removesuffix(phase)
    # The search of a method with phases reads the config of its supernet.
    bases = (f'../recipes/{dataset}.py', f'./{dataset}_supernet.py')
    assert any(f"_base_ = '{base}'" in text for base in bases)
    kind = load(name).model.backbone.method.type.lower()
    assert kind == stem.replace('_', '')
    assert len(text.splitlines()) <= 40


def value(cfg, path):
    for key in path.split('.'):
        cfg = cfg[int(key)] if key.isdigit() else cfg[key]
    return cfg


LR, DECAY = 'optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay'
DROP_PATH = 'model.backbone.backbone.drop_path_rate'
SMOOTH = 'model.head.loss.label_smooth_val'
BATCH = 'train_dataloader.batch_size'
METHOD = 'model.backbone.method'
EPOCHS = 'train_cfg.max_epochs'


def vpetl(lr, decay, **method):
    """V-PETL Bench on CIFAR-100 of VTAB-1k: 100 epochs, batch 64, smoothing 0.1."""
    facts = {LR: lr, DECAY: decay, SMOOTH: 0.1, BATCH: 64, EPOCHS: 100, DROP_PATH: 0.1}
    return facts | {f'{METHOD}.{key}': value for key, value in method.items()}


# Settings as printed by their sources: V-PETL Bench's scripts, SSF's and AdaptFormer's
# repositories, Mona's configs, OSU-MLB/ViT_PEFT_Vision (VPT-Deep).
PUBLISHED = {
    'linear_probe/vtab_cifar100': vpetl(1e-3, 1e-4),
    'full/vtab_cifar100': vpetl(5e-4, 0.1),
    'bitfit/vtab_cifar100': vpetl(3e-3, 1e-4),
    'ln_tune/vtab_cifar100': vpetl(8e-3, 0.01),
    'adapter/vtab_cifar100': vpetl(0.01, 1.0, hidden_dims=768 // 96),
    'adaptformer/vtab_cifar100': vpetl(0.01, 1.0, hidden_dims=8),
    'lora/vtab_cifar100': vpetl(5e-3, 5e-3, rank=8),
    'vpt_shallow/vtab_cifar100': vpetl(1e-3, 1e-4, num_tokens=100),
    'vpt_deep/vtab_cifar100': {LR: 1e-3, DECAY: 1e-3, f'{METHOD}.num_tokens': 5},
    'ssf/vtab_cifar100': {
        LR: 5e-3,
        DECAY: 5e-5,
        DROP_PATH: 0.0,
        BATCH: 32,
        'param_scheduler.0.start_factor': 1e-7 / 5e-3,
        'param_scheduler.1.eta_min': 1e-8,
        'model.head.loss.type': 'CrossEntropyLoss',
    },
    'ssf/cub_200_2011': {
        LR: 1e-2,
        DECAY: 5e-2,
        DROP_PATH: 0.0,
        SMOOTH: 0.1,
        'param_scheduler.0.start_factor': 1e-7 / 1e-2,
    },
    'lora/cub_200_2011': {LR: 1e-3, DECAY: 5e-2, BATCH: 128, EPOCHS: 100},
    'adaptformer/cub_200_2011': {LR: 1e-3, DECAY: 5e-2, BATCH: 64, DROP_PATH: 0.1},
    'adaptformer/ssv2': {
        LR: 0.1 * 1024 / 256,
        DECAY: 0.0,
        EPOCHS: 90,
        'param_scheduler.0.end': 10,
        'auto_scale_lr.base_batch_size': 1024,
        'optim_wrapper.optimizer.momentum': 0.9,
        DROP_PATH: 0.0,
        f'{METHOD}.hidden_dims': 64,
        f'{METHOD}.scale': 0.1,
        'model.backbone.backbone.num_frames': 8,
        'train_dataloader.dataset.pipeline.1.frame_interval': 4,
        'test_dataloader.dataset.pipeline.1.num_clips': 4,
        'test_dataloader.dataset.pipeline.4.type': 'ThreeCrop',
        'model.cls_head.num_classes': 174,
    },
    'full/hmdb51_swin': {DROP_PATH: 0.4, 'model.cls_head.num_classes': 51},
    'mona/ade20k': {
        LR: 3e-4,
        DECAY: 0.01,
        DROP_PATH: 0.2,
        BATCH: 2,
        'train_cfg.max_iters': 160_000,
        'param_scheduler.0.end': 1500,
        'param_scheduler.1.power': 1.0,
        'model.decode_head.num_classes': 150,
    },
    'lora/ade20k': {LR: 6e-5, DECAY: 0.01, DROP_PATH: 0.3, f'{METHOD}.rank': 64},
    'mona/coco': {
        LR: 1e-4,
        DECAY: 0.05,
        DROP_PATH: 0.3,
        EPOCHS: 36,
        'param_scheduler.1.milestones': [27, 33],
        'auto_scale_lr.base_batch_size': 16,
        'model.backbone.backbone.arch': 'base',
    },
    'mona/voc': {
        LR: 1e-4,
        DECAY: 0.05,
        DROP_PATH: 0.2,
        EPOCHS: 4,
        'train_dataloader.dataset.times': 3,
        'param_scheduler.0.milestones': [3],
        'val_evaluator.eval_mode': '11points',
        'model.backbone.backbone.out_indices': (1, 2, 3),
    },
    'partial_k/coco': {f'{METHOD}.include_final_norm': False},
    'hydra/vtab_cifar100': {
        LR: 5e-4,
        DECAY: 1e-4,
        BATCH: 16,
        f'{METHOD}.rank': 2,
        f'{METHOD}.scale': 0.1,
        f'{METHOD}.drop_rate': 0.2,
    },
    'convpass/vtab_cifar100': {
        LR: 1e-3,
        DECAY: 1e-4,
        BATCH: 64,
        f'{METHOD}.hidden_dims': 8,
        f'{METHOD}.scale': 0.1,
        f'{METHOD}.conv_init': 'identity',
        f'{METHOD}.drop_path_rate': 0.1,
    },
    'diff_fit/vtab_cifar100': {LR: 1e-3, DECAY: 0.0, BATCH: 64},
    'sct/vtab_cifar100': {
        LR: 0.013,
        DECAY: 1.0,
        BATCH: 64,
        SMOOTH: 0.1,
        EPOCHS: 100,
        f'{METHOD}.num_channels': 96,
        f'{METHOD}.scale': 0.4,
        'param_scheduler.0.start_factor': 1e-6 / 0.013,
        'param_scheduler.1.eta_min': 1e-5,
    },
    'gps/vtab_cifar100': {
        LR: 1e-2,
        DECAY: 0.0,
        BATCH: 32,
        DROP_PATH: 0.0,
        EPOCHS: 100,
        f'{METHOD}.num_weights': 1,
        'optim_wrapper.optimizer.type': 'Adam',
        'param_scheduler.0.start_factor': 1e-7 / 1e-2,
        'param_scheduler.1.eta_min': 1e-8,
        'model.head.loss.type': 'CrossEntropyLoss',
    },
    'noah/vtab_cifar100': {LR: 1e-3, DECAY: 1e-4, BATCH: 64, EPOCHS: 100},
    'noah/vtab_cifar100_supernet': {
        LR: 5e-4,
        DECAY: 1e-4,
        BATCH: 64,
        EPOCHS: 500,
        DROP_PATH: 0.1,
        'model.backbone.frozen_drop_path': True,
        'param_scheduler.0.start_factor': 1e-6 / 5e-4,
        'param_scheduler.0.end': 10,
        'param_scheduler.1.eta_min': 1e-5,
        'train_dataloader.dataset.split': 'train800',
        f'{METHOD}.space': {'widths': [1, 5, 10], 'depths': [3, 6, 9, 12]},
    },
    'noah/vtab_cifar100_search': {
        'train_cfg.limit': 640_000,
        'val_dataloader.dataset.split': 'val200',
        'train_dataloader.dataset.split': 'train800',
        'test_dataloader': None,
    },
    'noah/vtab_cifar100_retrain': {
        LR: 1e-3,
        DECAY: 1e-4,
        EPOCHS: 100,
        'train_dataloader.dataset.split': 'train800val200',
    },
    'adapter/coco': {f'{METHOD}.style': 'houlsby', f'{METHOD}.drop_rate': 0.1},
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_values_in_force_are_the_published_ones(name):
    cfg = load(name)
    for path, expected in PUBLISHED[name].items():
        is_float = isinstance(expected, float)
        wanted = pytest.approx(expected) if is_float else expected
        assert value(cfg, path) == wanted, path


def test_test_data_are_not_read_while_choosing():
    run, tune = load('recipes/vtab_cifar100'), load('recipes/vtab_cifar100_tune')
    assert run.train_dataloader.dataset.split == 'train800val200'
    assert run.test_dataloader.dataset.split == 'test'
    assert run.val_dataloader is None
    assert tune.train_dataloader.dataset.split == 'train800'
    assert tune.val_dataloader.dataset.split == 'val200'
    assert tune.test_dataloader is None
    cub = load('recipes/cub_200_2011')
    splits = [cub[f'{p}_dataloader'].dataset.split for p in ('train', 'val', 'test')]
    assert splits == ['train', 'val', 'test']


def test_data_and_weights_follow_the_environment(monkeypatch):
    monkeypatch.setenv('MMPETL_DATA', '/sets')
    monkeypatch.setenv('MMPETL_WEIGHTS', '/weights')
    cfg = Config.fromfile(CONFIGS / 'recipes/coco.py')
    assert cfg.train_dataloader.dataset.data_root == '/sets/coco/'
    assert cfg.val_evaluator.ann_file.startswith('/sets/coco/annotations/')
    assert cfg.model.backbone.checkpoint.startswith('/weights/swin_base')


# Trainable parameters in the backbone at full size. From the published tables: 0.16M,
# 0.29M, 0.21M, 0.08M (VTAB), 3.11M, 0.20M, 0.06M (COCO), 1.19M, 1.09M (video); the last
# digits from the formulas of the papers.
COUNTS = {
    'full/vtab_cifar100': 85_798_656,
    'bitfit/vtab_cifar100': 102_912,
    'ln_tune/vtab_cifar100': 38_400,
    'adapter/vtab_cifar100': 156_768,
    'adaptformer/vtab_cifar100': 156_768,
    'lora/vtab_cifar100': 294_912,
    'ssf/vtab_cifar100': 205_824,
    'vpt_shallow/vtab_cifar100': 76_800,
    'vpt_deep/vtab_cifar100': 5 * 9_216,
    'hydra/vtab_cifar100': 239_712,
    'convpass/vtab_cifar100': 327_552,
    'diff_fit/vtab_cifar100': 140_544,
    'sct/vtab_cifar100': 111_744,
    'gps/vtab_cifar100': 167_424,
    'partial_k/coco': 12_601_632,
    'partial_k/ade20k': 28_339_632,
    'noah/vtab_cifar100': 320_330,
    'noah/vtab_cifar100_supernet': 6_461_616,
    'adapter/cub_200_2011': 230_544,
    'lora/cub_200_2011': 589_824,
    'prefix/cub_200_2011': 364_727 - 180_407,
    'adaptformer/ssv2': 1_189_632,
    'adaptformer/hmdb51_swin': 1_553_664,
    'bitfit/hmdb51_swin': 1_090_376,
    'full/hmdb51': 86_227_200 - 1_536,  # fc_norm counts as head
    'full/hmdb51_swin': 87_638_984,
    'adapter/coco': 3_107_328,
    'bitfit/coco': 201_656,
    'full/coco': 86_745_016,
    'ln_tune/coco': 59_392,
    'mona/coco': 3_667_456,
    'lora/ade20k': 4_620_288,
    'mona/ade20k': 5_267_712,
    'full/ade20k': 194_998_164,
}


@pytest.mark.parametrize('name', COUNTS)
def test_full_size_counts(name):
    spec = load(name).model.backbone
    backbone = MODELS.build(spec.backbone)
    inject(backbone, build_method(spec.method), head=spec.get('head', ()))
    counts = count_trainable(backbone)
    assert counts.delta + counts.selected == COUNTS[name]


# Whole models, heads included, with the size of the trunk that the papers print.
TRUNKS = {
    'recipes/vtab_cifar100': 85_798_656,
    'recipes/cub_200_2011': 85_798_656,
    'recipes/ssv2': 86_227_200,
    'recipes/hmdb51_swin': 87_638_984,
    'recipes/ade20k': 194_998_164,
    'recipes/voc': 194_997_780,  # no output norm on the first stage
    'recipes/coco': 86_745_016,
}


@pytest.mark.parametrize('name', TRUNKS)
def test_full_size_model_builds(name):
    from mmengine.registry import DefaultScope

    cfg = copy.deepcopy(load(name))
    cfg.model.backbone = cfg.model.backbone.backbone  # no initialisation: seconds saved
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.backbone.parameters()) == TRUNKS[name]
