"""A tiny classifier on a saved base, for tests of what users call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

BACKBONE = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
    },
    'img_size': 32,
    'patch_size': 8,
    'out_type': 'cls_token',
}
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone={backbone!r},
        checkpoint={base!r},
        method={method!r},
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=4,
        in_channels=32,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='absent',
        metainfo=dict(classes=['ant', 'bee', 'cat', 'dog']),
        pipeline=[
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            dict(type='Resize', scale=32),
            dict(type='PackInputs'),
        ],
    ),
)
test_cfg = dict()
test_evaluator = dict(type='Accuracy')
default_hooks = dict(checkpoint=dict(type='mmpetl.DeltaCheckpointHook'))
custom_hooks = [dict(type='mmpetl.BaseGuardHook')]
"""


class Workbench:
    """Writes bases and configs, builds models with weights that differ from zero."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def base(self, name: str = 'base', seed: int = 0, **changes: Any) -> Path:
        """A file of base weights."""
        from mmpetl.config.scope import build_backbone

        torch.manual_seed(seed)
        module = build_backbone({**BACKBONE, **changes})
        path = self.folder / f'{name}.pth'
        torch.save(
            {k: torch.randn_like(v) * 0.1 for k, v in module.state_dict().items()}, path
        )
        return path

    def config(
        self, method: Any, base: Path | None = None, name: str = 'run', **changes: Any
    ) -> Path:
        """A config file."""
        path = self.folder / f'{name}.py'
        text = CONFIG.format(
            backbone={**BACKBONE, **changes},
            base=str(base or self.base()),
            method=method,
        )
        path.write_text(text)
        return path

    def tuned(self, config: Path, seed: int = 1) -> nn.Module:
        """The model, as if it had been trained."""
        from mmpetl.apis.building import build_model, dataset_meta
        from mmpetl.config.load import as_config

        torch.manual_seed(seed)
        model = build_model(str(config))
        with torch.no_grad():
            for param in model.parameters():
                if param.requires_grad:
                    param.add_(0.2 * torch.randn_like(param))
        model.dataset_meta = dataset_meta(as_config(str(config)))
        return model
