"""Configs that the wheels of upstream ship, shrunk, on drawn data.

Each keeps its ``_base_`` and every key but widths, data and length. ``SHRUNK`` is the
table: a config that is to join the tests is one entry here.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

LINE = "model = dict(type='mmpetl.PETLModel', of=_base_.model.type, petl='LoRA')"
IMPORTS = "custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)\n"
SWIN = {
    'embed_dims': 16,
    'depths': [1, 1, 1, 1],
    'num_heads': [1, 2, 4, 4],
    'window_size': 4,
}


@dataclass(frozen=True)
class Shrunk:
    """A config of upstream.

    Attributes:
        base: Its name, with the package.
        model: What makes its model small.
        data: What its data are drawn for: the name of a function below.
    """

    base: str
    model: dict[str, Any]
    data: str


SHRUNK = {
    'mmpretrain': Shrunk(
        'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py',
        {
            'backbone': {
                'arch': {
                    '_delete_': True,
                    'embed_dims': 32,
                    'num_layers': 2,
                    'num_heads': 4,
                    'feedforward_channels': 64,
                },
                'img_size': 32,
                'patch_size': 8,
            },
            'head': {'in_channels': 32, 'hidden_dim': 16, 'num_classes': 4},
        },
        'picture',
    ),
    'mmseg': Shrunk(
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512'
        '.py',
        {
            'data_preprocessor': {'size': (64, 64)},
            'backbone': SWIN,
            'decode_head': {
                'in_channels': [16, 32, 64, 128],
                'channels': 8,
                'num_classes': 4,
            },
            'auxiliary_head': {'in_channels': 64, 'channels': 8, 'num_classes': 4},
        },
        'map',
    ),
    'mmdet': Shrunk(
        'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
        {
            'backbone': SWIN,
            'neck': {'in_channels': [32, 64, 128], 'out_channels': 8},
            'bbox_head': {
                'num_classes': 4,
                'in_channels': 8,
                'feat_channels': 8,
                'stacked_convs': 1,
            },
        },
        'boxes',
    ),
    'mask_rcnn': Shrunk(
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        {
            'backbone': SWIN,
            'neck': {'in_channels': [16, 32, 64, 128], 'out_channels': 8},
            'rpn_head': {'in_channels': 8, 'feat_channels': 8},
            'roi_head': {
                'bbox_roi_extractor': {'out_channels': 8},
                'bbox_head': {
                    'in_channels': 8,
                    'fc_out_channels': 8,
                    'num_classes': 4,
                },
                'mask_roi_extractor': {'out_channels': 8},
                'mask_head': {
                    'num_convs': 1,
                    'in_channels': 8,
                    'conv_out_channels': 8,
                    'num_classes': 4,
                },
            },
        },
        'masks',
    ),
    'convnext': Shrunk(
        'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
        {
            'data_preprocessor': {'size': (64, 64)},
            'backbone': {
                'arch': {
                    '_delete_': True,
                    'depths': [1, 1, 1, 1],
                    'channels': [16, 32, 64, 128],
                }
            },
            'decode_head': {
                'in_channels': [16, 32, 64, 128],
                'channels': 8,
                'num_classes': 4,
            },
            'auxiliary_head': {'in_channels': 64, 'channels': 8, 'num_classes': 4},
        },
        'map',
    ),
    'mmaction': Shrunk(
        'mmaction::recognition/videomae/'
        'vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400.py',
        {
            'backbone': {
                'img_size': 32,
                'patch_size': 8,
                'embed_dims': 32,
                'depth': 2,
                'num_heads': 4,
                'num_frames': 4,
            },
            'cls_head': {'in_channels': 32, 'num_classes': 4},
        },
        'clip',
    ),
}

_count = 0


@DATASETS.register_module(name='DrawnData', force=True)
class DrawnData(Dataset):
    """Four drawn samples, as a pipeline of the task packs them."""

    METAINFO = {'classes': ('ant', 'bee', 'cat', 'dog')}

    def __init__(self, kind: str, **_: Any) -> None:
        self.kind = kind
        self.metainfo = dict(self.METAINFO)

    def full_init(self) -> None:
        """Nothing is read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        torch.manual_seed(index)
        return globals()[self.kind](index)


def picture(index: int) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    sample = DataSample().set_gt_label(index)
    return {'inputs': torch.rand(3, 32, 32) * 255, 'data_samples': sample}


def map(index: int) -> dict[str, Any]:  # noqa: A001
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    shape = (64, 64)
    sample = SegDataSample(
        metainfo={'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape}
    )
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, *shape)))
    return {'inputs': torch.rand(3, *shape) * 255, 'data_samples': sample}


def boxes(index: int) -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    shape = (64, 64)
    sample = DetDataSample(
        metainfo={
            'img_shape': shape,
            'ori_shape': shape,
            'pad_shape': shape,
            'scale_factor': (1.0, 1.0),
            'batch_input_shape': shape,
        }
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([index])
    )
    return {'inputs': torch.rand(3, *shape) * 255, 'data_samples': sample}


def masks(index: int) -> dict[str, Any]:
    from mmdet.structures.mask import BitmapMasks

    found = boxes(index)
    inside = np.zeros((1, 64, 64), dtype=np.uint8)
    inside[:, 8:40, 8:40] = 1
    found['data_samples'].gt_instances.masks = BitmapMasks(inside, 64, 64)
    return found


def clip(index: int) -> dict[str, Any]:
    from mmaction.structures import ActionDataSample

    sample = ActionDataSample().set_gt_label(index)
    return {'inputs': torch.rand(1, 3, 4, 32, 32) * 255, 'data_samples': sample}


@functools.cache
def _read(name: str, tuned: bool) -> Config:
    """A config as a person would write it: the ``_base_`` and one line."""
    shrunk = SHRUNK[name]
    with tempfile.TemporaryDirectory() as folder:
        # A file cannot write the key `model` twice, so the sizes are of a base.
        sizes = Path(folder) / f'{name}_sizes.py'
        sizes.write_text(f'_base_ = {shrunk.base!r}\nmodel = {shrunk.model!r}\n')
        path = Path(folder) / f'{name}.py'
        path.write_text(f'_base_ = {str(sizes)!r}\n{LINE if tuned else ""}\n{IMPORTS}')
        return Config.fromfile(path)


def config_of(
    name: str, folder: Path, petl: Any = 'LoRA', iters: int = 1, **ours: Any
) -> Config:
    """A config of upstream with the one line, shrunk in length and data.

    Args:
        name: A key of ``SHRUNK``.
        folder: Where the run is.
        petl: The method; None leaves the line out.
        iters: Steps.
        ours: Further arguments of ``mmpetl.PETLModel``.
    """
    config = copy.deepcopy(_read(name, petl is not None))
    if petl is not None:
        config.model.petl = petl
        config.model.update(ours)
    # Batches are mixed by a preprocessor that knows the number of classes.
    preprocessor = config.get('data_preprocessor') or {}
    if 'num_classes' in preprocessor:
        preprocessor.num_classes = 4
    shorten(config, folder, SHRUNK[name].data, iters)
    return config


def shorten(config: Config, folder: Path, data: str, iters: int = 1) -> None:
    """Let a config train for a few steps on drawn data."""
    global _count
    _count += 1
    for key in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            config[f'{key}_{part}'] = None
    loop = {'type': 'IterBasedTrainLoop', 'max_iters': iters, 'val_interval': 10**6}
    config.train_cfg = loop
    config.train_dataloader = {
        'batch_size': 2,
        'num_workers': 0,
        'persistent_workers': False,
        'sampler': {'type': 'mmengine.DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'mmengine.pseudo_collate'},
        'dataset': {'type': 'mmengine.DrawnData', 'kind': data},
    }
    config.param_scheduler, config.auto_scale_lr = [], None
    sgd = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}}
    config.setdefault('optim_wrapper', sgd)
    config.randomness, config.log_level = {'seed': 3}, 'WARNING'
    config.work_dir = str(folder)
    config.experiment_name = f'{folder.name}-{_count}'
    config.default_hooks = {
        'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': iters}
    }


@contextmanager
def quick() -> Iterator[None]:
    """MMEngine without what tests need not wait for.

    A Runner asks compilers for their versions, and lays the text of its config out
    anew for each checkpoint.
    """
    from mmengine.config import config
    from mmengine.registry import DefaultScope
    from mmengine.runner import runner

    was = runner.collect_env, config.FormatCode
    runner.collect_env = dict
    config.FormatCode = lambda text, **_: (text, True)
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            yield
    finally:
        runner.collect_env, config.FormatCode = was


def runner_of(config: Config) -> Any:
    """MMEngine's own Runner."""
    from mmengine.runner import Runner

    return Runner.from_cfg(config)


def build(config: Config) -> torch.nn.Module:
    """The model of a config, as upstream's own functions build it."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(config.default_scope)
    node = config.model.copy()
    node.setdefault('data_preprocessor', config.get('data_preprocessor'))
    return MODELS.build(node)


def whole_file(name: str, folder: Path, seed: int = 7) -> Path:
    """A checkpoint of the plain upstream model, every value drawn."""
    torch.manual_seed(seed)
    model = build(plain(name, folder))
    state = model.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            draw = torch.randn_like(value) * 0.1
            state[key] = draw.abs() + 0.5 if 'running_var' in key else draw
    path = folder / f'{name}-{seed}.pth'
    torch.save({'state_dict': state, 'meta': {}}, path)
    return path


def plain(name: str, folder: Path):
    """The config of upstream, without its file, which no test can fetch."""
    return without_file(config_of(name, folder, None))


def without_file(config):
    for node in (config.model, config.model.backbone):
        for key in ('init_cfg', 'pretrained'):
            node.pop(key, None)
    return config


def starting_from(config: Config, file: Path) -> Config:
    """A config whose backbone loads a checkpoint of the library by ``init_cfg``."""
    config = without_file(config)
    config.model.backbone.init_cfg = {
        'type': 'Pretrained',
        'checkpoint': str(file),
        'prefix': 'backbone.',
    }
    # mmdet's config reads the files of Swin's authors.
    config.model.backbone.pop('convert_weights', None)
    return config


def tensors(model: torch.nn.Module, name: str):
    """What a model computes in eval mode."""
    shape = {'picture': (2, 3, 32, 32), 'clip': (2, 1, 3, 4, 32, 32)}
    torch.manual_seed(1)
    inputs = torch.randn(shape.get(SHRUNK[name].data, (2, 3, 64, 64)))
    with torch.no_grad():
        out = model.eval()(inputs, mode='tensor')
    flat = []

    def visit(value):
        if isinstance(value, torch.Tensor):
            flat.append(value)
        elif isinstance(value, list | tuple):
            for part in value:
                visit(part)

    visit(out)
    assert flat
    return flat


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
