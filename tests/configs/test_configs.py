"""Every config loads, says what its sources say, and builds the model it names."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmpetl.config.compose import published_pairs
from mmpetl.config.load import load_config, read_config
from mmpetl.config.names import is_table, recipe_names
from mmpetl.config.nodes import datasets_of
from mmpetl.core import build_method, count_trainable, inject, registered_methods
from mmpetl.datasets.catalog import BENCHMARK_IDS, CATALOG
from mmpetl.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
STEMS = {cls.stem(): name for name, cls in registered_methods().items()}
FILES = [
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for stem in STEMS
    for path in sorted((CONFIGS / stem).rglob('*.py'))
    if not is_table(path) and path.stem != 'search_space'
]
MINI = [name for name in recipe_names() if name.startswith('mini/')]
RECIPES = [f'recipes/{name}' for name in recipe_names() if name not in MINI]


@functools.cache
def load(name: str, **kwargs) -> Config:
    return load_config(CONFIGS / f'{name}.py', **kwargs)


def raw(name: str) -> Config:
    """A config before it is written out."""
    return read_config(CONFIGS / f'{name}.py')


@pytest.mark.parametrize('name', RECIPES + MINI + FILES)
def test_loads_and_names_a_method_that_exists(name):
    cfg = load(name)
    build_method(cfg.model.backbone.method)
    assert cfg.optim_wrapper.constructor == 'mmpetl.OwnerOptimWrapperConstructor'
    assert cfg.default_hooks.checkpoint.type == 'mmpetl.DeltaCheckpointHook'
    assert cfg.default_scope in ('mmpretrain', 'mmaction', 'mmseg', 'mmdet')
    leftovers = {'tune', 'published', 'timm'} & set(cfg)
    assert not leftovers | {key for key in cfg if key.startswith('_')}
    assert (cfg.protocol, cfg.stage) == ('honest', 'final')


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_are_linear_probes_open_to_one_override(name):
    # `--cfg-options model.backbone.method.type=LoRA` needs a method with no other key
    assert raw(name).model.backbone.method == dict(type='LinearProbe')


def test_every_dataset_has_a_recipe():
    names = {raw(name).get('dataset') for name in RECIPES}
    assert {*BENCHMARK_IDS, 'voc_seg', 'imagenet'} <= names
    assert {'cifar100_full', 'resisc45_full', 'clevr_dist_full'} <= names
    for name in ('hmdb51', 'ssv2', 'kinetics400'):
        assert {f'recipes/{name}', f'recipes/{name}_swin'} <= set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_class_count_is_that_of_the_catalogue(name):
    cfg = load(name)
    if cfg.get('dataset') is None:
        return  # several tasks at once
    wanted = CATALOG[cfg.dataset].num_classes
    counts = []

    def visit(node):
        if isinstance(node, dict):
            counts.extend(v for k, v in node.items() if k == 'num_classes')
            node = list(node.values())
        for child in node if isinstance(node, list | tuple) else ():
            visit(child)

    visit({k: v for k, v in cfg.model.items() if k != 'rpn_head'})
    assert counts
    assert set(counts) == {wanted}


@pytest.mark.parametrize('name', FILES)
def test_leaves_are_short_and_bear_their_stem(name):
    text = (CONFIGS / f'{name}.py').read_text()
    stem, _, dataset = name.partition('/')
    for phase in ('_supernet', '_search', '_retrain'):
        dataset = dataset.removesuffix(phase)
    up = '../' * (1 + dataset.count('/'))
    # The search of a method with phases reads the config of its supernet.
    phases = f'./{dataset.rpartition("/")[2]}_supernet.py'
    bases = (f'{up}recipes/{dataset}.py', phases)
    assert any(f"_base_ = '{base}'" in text for base in bases)
    kind = load(name).model.backbone.method.type.lower()
    assert kind == stem.replace('_', '')
    assert len(text.splitlines()) <= 40


def test_tables_say_where_their_values_are_from():
    tables = [p for s in STEMS for p in (CONFIGS / s).glob('*.py') if is_table(p)]
    assert len(tables) > 20
    for path in tables:
        text = path.read_text()
        assert text.startswith(('#', "_base_ = '../_base_/tables/vpetl_")), path


def test_pairs_are_files_or_rows():
    pairs = list(published_pairs())
    assert ('lora', 'vtab/svhn') in pairs
    assert ('mona', 'ade20k') in pairs
    assert ('full', 'vtab/svhn') not in pairs
    assert {f'{stem}/{name}' for stem, name in pairs} >= set(FILES)


@pytest.fixture
def meta(monkeypatch):
    """A context in which tensors have shapes only: full size at no cost."""
    # Video Swin reads its drop path rates off a tensor, which needs values.
    on_cpu = functools.partial(torch.linspace, device='cpu')
    monkeypatch.setattr(torch, 'linspace', on_cpu)
    return lambda: torch.device('meta')


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


# Settings as printed by sources that hyperparameters.csv lacks: AdaptFormer's
# repository, Mona's configs, PETL-ViT's Convpass, NOAH's phases.
PUBLISHED = {
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
        'test_evaluator.eval_mode': '11points',
        'model.backbone.backbone.out_indices': (1, 2, 3),
    },
    'partial_k/coco': {f'{METHOD}.include_final_norm': False},
    'convpass/vtab/cifar100': {
        LR: 1e-3,
        DECAY: 1e-4,
        BATCH: 64,
        f'{METHOD}.hidden_dims': 8,
        f'{METHOD}.scale': 0.1,
        f'{METHOD}.conv_init': 'identity',
        f'{METHOD}.drop_path_rate': 0.1,
    },
    'noah/vtab/cifar100_supernet': {
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
    'noah/vtab/cifar100_search': {
        'train_cfg.limit': 640_000,
        'val_dataloader.dataset.split': 'val200',
        'train_dataloader.dataset.split': 'train800',
        'test_dataloader': None,
    },
    'noah/vtab/cifar100_retrain': {
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


def test_data_and_weights_follow_the_environment(monkeypatch):
    monkeypatch.setenv('MMPETL_DATA', '/sets')
    monkeypatch.setenv('MMPETL_WEIGHTS', '/weights')
    cfg = load_config(CONFIGS / 'recipes/coco.py', stage='final')
    assert cfg.train_dataloader.dataset.data_root == '/sets/coco/'
    assert cfg.test_evaluator.ann_file.startswith('/sets/coco/annotations/')
    assert cfg.model.backbone.checkpoint.startswith('/weights/swin_base')


# Trainable parameters in the backbone at full size. From the published tables: 0.16M,
# 0.29M, 0.21M, 0.08M (VTAB), 3.11M, 0.20M, 0.06M (COCO), 1.19M, 1.09M (video); the last
# digits from the formulas of the papers.
COUNTS = {
    'full/vtab/cifar100': 85_798_656,
    'bitfit/vtab/cifar100': 102_912,
    'ln_tune/vtab/cifar100': 38_400,
    'adapter/vtab/cifar100': 156_768,
    'adaptformer/vtab/cifar100': 156_768,
    'lora/vtab/cifar100': 294_912,
    'ssf/vtab/cifar100': 205_824,
    'vpt_shallow/vtab/cifar100': 76_800,
    'vpt_deep/vtab/cifar100': 5 * 9_216,
    'hydra/vtab/cifar100': 239_712,
    'convpass/vtab/cifar100': 327_552,
    'diff_fit/vtab/cifar100': 140_544,
    'sct/vtab/cifar100': 111_744,
    'gps/vtab/cifar100': 167_424,
    'partial_k/coco': 12_601_632,
    'partial_k/ade20k': 28_339_632,
    'noah/vtab/cifar100': 320_330,
    'noah/vtab/cifar100_supernet': 6_461_616,
    'adapter/fgvc/cub_200_2011': 156_768,
    'lora/fgvc/cub_200_2011': 294_912,
    'prefix/fgvc/cub_200_2011': 364_727 - 180_407,
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
def test_full_size_counts(name, meta):
    spec = load(name).model.backbone
    with meta():
        backbone = MODELS.build(spec.backbone)
        inject(backbone, build_method(spec.method), head=spec.get('head', ()))
    counts = count_trainable(backbone)
    assert counts.delta + counts.selected == COUNTS[name]


# Whole models, heads included, with the size of the trunk that the papers print.
TRUNKS = {
    'vtab': 85_798_656,
    'fgvc': 85_798_656,
    'many_shot': 85_798_656,
    'imagenet_clip': 85_798_656 - 768 + 2 * 768,  # no bias in the stem, a norm behind
    'hmdb51': 86_227_200,
    'ssv2': 86_227_200,
    'kinetics400': 86_227_200,
    'kinetics400_clip': 85_798_656 - 768 + 2 * 768,
    'hmdb51_swin': 87_638_984,
    'ssv2_swin': 87_638_984,
    'kinetics400_swin': 87_638_984,
    'ade20k': 194_998_164,
    'voc_seg': 194_998_164,
    'voc': 194_997_780,  # no output norm on the first stage
    'coco': 86_745_016,
}


@pytest.mark.parametrize('name', [n for n in RECIPES if n != 'recipes/nyud_mt'])
def test_full_size_model_and_pipelines_build(name, meta):
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    cfg = copy.deepcopy(load(name))
    key = name.split('/')[1]
    cfg.model.backbone = cfg.model.backbone.backbone  # no initialisation, no weights
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        with meta():
            model = MODELS.build(cfg.model)
        for phase in ('train', 'val', 'test'):
            for dataset in datasets_of(cfg, phase):
                assert len(Compose(dataset['pipeline']).transforms) >= 2
    assert sum(p.numel() for p in model.backbone.parameters()) == TRUNKS[key]
