"""Pre-train a mini backbone on an upstream task drawn by the project.

Draws the task's data if it is missing, trains with the stock MMEngine Runner, and
writes three files: NAME.safetensors (the backbone alone), NAME.json (how to build it,
what it was trained on, the accuracy reached) and NAME.log.

Example:
    python tools/misc/pretrain_mini.py configs/mini/pretrain/vit_letters.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='a file below configs/mini/pretrain')
    parser.add_argument('--out', default='demo/weights', help='where results go')
    parser.add_argument('--work-dir', help='default: work_dirs/pretrain/<config>')
    parser.add_argument('--data', help='data root (default: MMPETL_DATA, else data)')
    parser.add_argument('--resume', action='store_true', help='go on where it stopped')
    return parser.parse_args()


def plain(config: object) -> object:
    """A config value as JSON values."""
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def progress(work_dir: Path) -> list[str]:
    """The training and validation lines of all runs in a work folder, by time."""
    logs = sorted(work_dir.glob('*/*.log'))
    lines = [line for log in logs for line in log.read_text('utf-8').splitlines()]
    return [line for line in lines if 'Epoch(' in line]


def last_scores(lines: list[str]) -> dict[str, float]:
    """Top-1 and top-5 of the last validation, percent.

    mmpretrain logs percent, mmaction a share of one.
    """
    last = [line for line in lines if 'Epoch(val)' in line][-1]
    scores = {}
    for family, rank, value in re.findall(r'(accuracy|acc)/(top\d): ([\d.]+)', last):
        scores[rank] = round(float(value) * (100 if family == 'acc' else 1), 2)
    return scores


def inflate(weights: Path, model) -> dict:
    """The state of a Video Swin that starts as a Swin on every frame.

    Args:
        weights: Backbone weights of an ``mmpretrain.SwinTransformer`` of equal sizes.
        model: The recognizer with an ``mmaction.SwinTransformer3D``.

    Returns:
        State of the recognizer's backbone: projections of patches spread over the
        frames of a tubelet, position tables repeated over the offsets in time.
    """
    import torch
    from safetensors.torch import load_file

    renames = (
        ('stages.', 'layers.'),
        ('.w_msa.', '.'),
        ('.ffn.layers.0.0.', '.mlp.fc1.'),
        ('.ffn.layers.1.', '.mlp.fc2.'),
        ('patch_embed.projection.', 'patch_embed.proj.'),
    )
    target = model.backbone.state_dict()
    state = {}
    for key, value in load_file(weights).items():
        for old, new in renames:
            key = key.replace(old, new)
        if key.endswith('relative_position_index'):
            continue
        if key == 'patch_embed.proj.weight':
            frames = target[key].shape[2]
            value = value.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
        elif key.endswith('relative_position_bias_table'):
            value = value.repeat(len(target[key]) // len(value), 1)
        elif '.downsample.' in key:
            # nn.Unfold puts channels outermost and neighbours by rows; Video Swin
            # puts neighbours outermost, by columns.
            by_neighbour = value.unflatten(-1, (-1, 4)).movedim(-1, -2)
            order = torch.tensor([0, 2, 1, 3])
            value = by_neighbour.index_select(-2, order).flatten(-2)
        state[f'backbone.{key}'] = value
    lacking = {f'backbone.{k}' for k in target} - set(state)
    assert all(k.endswith('relative_position_index') for k in lacking), lacking
    return state


def export(runner, stem: Path, config_file: str) -> None:
    """Write ``stem``.safetensors, .json and .log, each whole or not at all."""
    import torch
    from safetensors.torch import save

    stem.parent.mkdir(parents=True, exist_ok=True)
    backbone = runner.model.backbone
    state = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    weights = save(state)
    lines = progress(Path(runner.work_dir))
    preprocessor = runner.cfg.model.data_preprocessor
    facts = dict(
        format=1,
        backbone=plain(runner.cfg.model.backbone),
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        mean=plain(preprocessor.mean),
        std=plain(preprocessor.std),
        channels='RGB',
        upstream=runner.cfg.upstream,
        inflated_from=runner.cfg.get('inflate'),
        command=f'python tools/misc/pretrain_mini.py {config_file}',
        seed=runner.cfg.randomness.seed,
        epochs=runner.max_epochs,
        accuracy=last_scores(lines),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    for suffix, content in (
        ('.safetensors', weights),
        ('.json', (json.dumps(facts, indent=1) + '\n').encode()),
        ('.log', ''.join(f'{line}\n' for line in lines).encode()),
    ):
        partial = stem.with_name(stem.name + suffix + '.partial')
        partial.write_bytes(content)
        os.replace(partial, stem.with_name(stem.name + suffix))


def main() -> None:
    """Make the data, train, write the three files."""
    args = parse_args()
    if args.data:
        os.environ['MMPETL_DATA'] = args.data
    root = os.environ.setdefault('MMPETL_DATA', 'data')

    from mmengine.config import Config
    from mmengine.runner import Runner

    from mmpetl.datasets import mini

    cfg = Config.fromfile(args.config)
    name = Path(args.config).stem
    cfg.work_dir = args.work_dir or f'work_dirs/pretrain/{name}'
    cfg.resume = args.resume
    mini.make(root, [cfg.upstream])
    runner = Runner.from_cfg(cfg)
    if cfg.get('inflate') and not args.resume:
        import torch

        start = Path(cfg.work_dir) / 'inflated.pth'
        weights = Path(args.out) / f'{cfg.inflate}.safetensors'
        torch.save({'state_dict': inflate(weights, runner.model)}, start)
        # Loaded by the Runner after it has initialised the model.
        runner._load_from = str(start)
    runner.train()
    stem = Path(args.out) / cfg.weights
    export(runner, stem, args.config)
    print(f'wrote {stem}.safetensors, .json and .log')


if __name__ == '__main__':
    main()
