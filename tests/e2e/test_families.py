"""One small model of each task family through its whole life.

Train, be killed, resume, test, export, test again, fold, load without mmpetl's classes,
draw with the demo. Data are tiny copies in the official layouts.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import KillAt, Killed

from mmpetl import apis
from mmpetl.apis.run import build_runner
from mmpetl.engine.hooks.common import plain_model

ROOT = Path(__file__).resolve().parents[2]

SHORT = {'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3}


@dataclass(frozen=True)
class Family:
    """A small config, what shortens it, its demo and a file for that."""

    config: str
    options: dict[str, Any]
    demo: str
    example: Callable[[Path], Path]
    shape: tuple[int, ...]


def first(pattern: str) -> Callable[[Path], Path]:
    return lambda root: sorted(root.glob(pattern))[0]


FAMILIES = {
    'image': Family(
        'digits',
        {
            'train_cfg.max_epochs': 3,
            'train_dataloader.batch_size': 8,
            'train_dataloader.dataset.indices': 20,
        },
        'image_demo',
        first('vtab-1k/digits/images/test/*.jpg'),
        (1, 3, 32, 32),
    ),
    'video_vit': Family(
        'hmdb51',
        {**SHORT, 'train_dataloader.batch_size': 2},
        'video_demo',
        first('hmdb51/**/*.mp4'),
        (1, 3, 8, 32, 32),
    ),
    'video_swin': Family(
        'hmdb51_swin',
        {**SHORT, 'train_dataloader.batch_size': 2},
        'video_demo',
        first('hmdb51/**/*.mp4'),
        (1, 3, 8, 32, 32),
    ),
    'segmentation': Family(
        'ade20k',
        {
            'train_cfg.max_iters': 6,
            'train_cfg.val_interval': 6,
            'train_dataloader.batch_size': 2,
            'default_hooks.checkpoint.interval': 2,
        },
        'seg_demo',
        first('ADEChallengeData2016/images/validation/*.jpg'),
        (1, 3, 64, 96),
    ),
    'instances': Family(
        'coco',
        # Upstream's metric is empty where no box passes the threshold.
        {
            **SHORT,
            'train_dataloader.batch_size': 2,
            'model.test_cfg.rcnn.score_thr': 0.0,
        },
        'det_demo',
        first('coco/val2017/*.jpg'),
        (1, 3, 64, 96),
    ),
    'detection': Family(
        'voc',
        {**SHORT, 'train_dataloader.batch_size': 2},
        'det_demo',
        first('VOCdevkit/VOC2007/JPEGImages/*.jpg'),
        (1, 3, 64, 96),
    ),
}


@pytest.fixture(scope='module')
def data(tiny_data) -> Path:
    """Tiny copies of every set."""
    names = 'vtab-1k/digits', 'hmdb51', 'ADEChallengeData2016', 'coco', 'VOCdevkit'
    return tiny_data(*names)


def train(config: Any, kill_at: int | None = None) -> Any:
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
    runner = build_runner(config)
    if kill_at:
        runner.register_hook(KillAt(kill_at))
        with pytest.raises(Killed):
            runner.train()
    else:
        runner.train()
    return runner


# Those that share a Runner, a demo and a metric with another are for the whole grid.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ('detection', 'instances', 'video_vit')
    else name
    for name in FAMILIES
]


@pytest.mark.parametrize('name', NAMES)
def test_from_training_to_a_picture(name, data, tmp_path, monkeypatch):
    family = FAMILIES[name]
    monkeypatch.setenv('MMPETL_DATA', str(data))
    path = ROOT / 'configs' / 'mini' / f'{family.config}.py'
    method = {'type': 'LoRA', 'rank': 2}
    count = 0

    def config(folder: str, **more: Any) -> Any:
        nonlocal count
        count += 1
        options = {'model.backbone.method': method, **family.options, **more}
        made = apis.load_config(path, options, tmp_path / folder)
        made.experiment_name = f'{name}-{tmp_path.name}-{count}'
        made.log_level = 'WARNING'
        return made

    whole = train(config('whole'))
    steps = whole.iter
    assert steps >= 4
    train(config('killed'), kill_at=steps - 1)
    resumed = train(config('killed', resume=True))
    mine, theirs = whole.model.state_dict(), resumed.model.state_dict()
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key

    whole_dir = tmp_path / 'whole'
    checkpoint = whole_dir / (whole_dir / 'last_checkpoint').read_text()
    metrics = apis.test(config('test'), checkpoint)
    assert metrics
    delta = apis.export_delta(checkpoint, config('export'), tmp_path / 'delta')
    again = apis.test(config('again'), delta)
    for key, value in metrics.items():
        assert again[key] == pytest.approx(value, nan_ok=True), key

    folded, stock = apis.fold_checkpoint(config('fold'), delta, tmp_path / 'folded.pth')
    assert 'mmpetl' not in stock.read_text()
    tuned = plain_model(whole)
    plain = build_stock(stock, folded)
    assert type(plain.backbone).__mro__[0].__module__.partition('.')[0] != 'mmpetl'
    x = torch.randn(family.shape, generator=torch.Generator().manual_seed(0))
    tuned.eval()
    with torch.no_grad():
        for a, b in zip(
            as_tuple(tuned.backbone(x)), as_tuple(plain.backbone(x)), strict=True
        ):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)

    out = tmp_path / ('drawn.mp4' if 'video' in name else 'drawn.png')
    argv = [family.demo, str(family.example(data)), str(path), '--delta', str(delta)]
    argv += ['--out', str(out), '--cfg-options', 'model.backbone.method.type=LoRA']
    argv += ['model.backbone.method.rank=2']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(ROOT / 'demo' / f'{family.demo}.py'), run_name='__main__')
    assert not_blank(out)


def as_tuple(x: Any) -> tuple:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def build_stock(config: Path, checkpoint: Path) -> torch.nn.Module:
    """The folded model, built by upstream's registries from upstream's classes."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope, init_default_scope

    cfg = Config.fromfile(config)
    DefaultScope._instance_dict.clear()
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    content = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(content['state_dict'], strict=True)
    model.eval()
    return model


def not_blank(path: Path) -> bool:
    import cv2

    if path.suffix == '.mp4':
        video = cv2.VideoCapture(str(path))
        picture = video.read()[1]
        video.release()
    else:
        picture = cv2.imread(str(path))
    return picture is not None and picture.std() > 1 and os.path.getsize(path) > 200
