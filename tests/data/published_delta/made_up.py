"""A tiny classifier whose weights are fractions, the same on every machine.

Run as a script it publishes a delta of it: ``python made_up.py OUT``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

BACKBONE = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': {
        'embed_dims': 16,
        'num_layers': 2,
        'num_heads': 2,
        'feedforward_channels': 32,
    },
    'img_size': 16,
    'patch_size': 8,
    'out_type': 'cls_token',
}


def fractions(shape: torch.Size, start: int) -> torch.Tensor:
    """Numbers in [-0.25, 0.25) that float32 holds exactly."""
    index = torch.arange(shape.numel(), dtype=torch.int64)
    return ((index * 7919 + start * 104729) % 4001 - 2000).reshape(shape) / 8192


def write_config(folder: Path) -> Path:
    """The base's file and a config with LoRA on it."""
    from mmpretrain.models import VisionTransformer

    args = {k: v for k, v in BACKBONE.items() if k != 'type'}
    state = VisionTransformer(**args).state_dict()
    base = {k: fractions(v.shape, i) for i, (k, v) in enumerate(state.items())}
    torch.save(base, folder / 'fractions.pth')
    config = folder / 'ants.py'
    config.write_text(
        f"""
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.PETLBackbone',
        backbone={BACKBONE!r},
        checkpoint={str(folder / 'fractions.pth')!r},
        method=dict(type='LoRA', rank=2, alpha=6),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=3,
        in_channels=16,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
test_dataloader = dict(
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='absent',
        metainfo=dict(classes=['ant', 'bee', 'cat']),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
"""
    )
    return config


def scores(model: torch.nn.Module) -> torch.Tensor:
    """What the classifier says of two pictures, (2, 3)."""
    with torch.no_grad():
        return model(4 * fractions(torch.Size((2, 3, 16, 16)), 5), mode='tensor')


def main(out: Path) -> None:
    """Publish ``ants`` with made-up deltas, and what the model then says."""
    from mmpetl import apis

    out.mkdir(parents=True, exist_ok=True)
    config = write_config(out)
    model = apis.init_model(str(config), device='cpu')
    with torch.no_grad():
        trained = [p for p in model.parameters() if p.requires_grad]
        for i, param in enumerate(trained):
            param.copy_(fractions(param.shape, 100 + i))
    apis.export_delta(model, str(config), out / 'ants', {'accuracy/top1': 50.0})
    text = json.dumps([[round(x, 6) for x in row] for row in scores(model).tolist()])
    (out / 'scores.json').write_text(text + '\n')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
