"""Try every config that the four OpenMMLab wheels ship with a method added to it.

Each config is read as it is, made small (two blocks per stage, small pictures, its own
widths), given the method as ``tools/train.py CONFIG --petl METHOD`` gives it, built,
and trained for one step on drawn data. One that fails is tried again without a method,
its batch norms in eval mode as those of a frozen trunk are: what fails either way,
because a compiled operator or a download is missing, counts as upstream's. Configs that
differ in learning rates, schedules, pictures or the number of classes alone train the
same model: one of them is tried, and the others are counted with it.

Example: python tools/misc/walk_upstream.py --packages mmseg --methods LoRA Mona
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).parent))

from walking import (  # noqa: E402
    append,
    check_unwritten,
    command,
    judged,
    moved,
    read,
    tuned,
    versions,
)
from walking_data import drawn_batch  # noqa: E402
from walking_small import class_of, make_small  # noqa: E402

from mmpetl.core import PETLError, registered_methods  # noqa: E402
from mmpetl.core.sitemap import site_map_of  # noqa: E402

PACKAGES = ('mmpretrain', 'mmseg', 'mmdet', 'mmaction')
PASSED_OVER = ('num_classes', 'test_cfg', 'lr', 'weight_decay', 'size', 'crop_size')
"""What models that count as the same may differ in."""

PLAIN_OPTIMIZER = {'type': 'AdamW', 'lr': 1e-3}

NO_BACKBONES = ('STGCN', 'AAGCN', 'ResNetAudio', 'VPD', 'RGBPoseConv3D')
"""Graph, audio and diffusion models: neither vision transformers nor ConvNets."""


def root_of(package: str) -> Path:
    """Folder of the configs that a package ships."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise PETLError(f'{package} is not installed')
    return Path(spec.origin).parent / '.mim' / 'configs'


def configs_of(package: str) -> list[str]:
    """Every config of a package that is no base, ``mask_rcnn/mask-rcnn_swin...py``."""
    root = root_of(package)
    found = (path.relative_to(root) for path in root.rglob('*.py'))
    return sorted(str(p) for p in found if '_base_' not in p.parts)


def backbone_of(config: Config) -> str | None:
    """Class of the backbone, None where a model has none by that name."""
    backbone = config.get('model', {}).get('backbone')
    kind = backbone.get('type') if isinstance(backbone, dict) else None
    return kind if isinstance(kind, str) or kind is None else kind.__name__


def model_of(config: Config) -> str:
    """Digest of what a config trains: its small model and groups of parameters."""

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: kept(v) for k, v in sorted(node.items()) if k not in PASSED_OVER}
        if isinstance(node, list | tuple):
            return [kept(child) for child in node]
        return node

    wrapper = config.optim_wrapper
    groups = {k: wrapper.get(k) for k in ('constructor', 'paramwise_cfg')}
    groups['type'] = wrapper.optimizer.type
    text = repr(kept([config.get('default_scope'), config.model.to_dict(), groups]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def try_config(
    package: str,
    name: str,
    method: str | None,
    known: dict[str, dict],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """One config, one method, one step; None is upstream's own training.

    Args:
        package: Whose config.
        name: Below the package's configs.
        method: Registered name.
        known: Rows of models tried before, by digest: such a row is given back.
        facts: Filled while they become known, so that they outlive an error.
    """
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import Runner

    config = Config.fromfile(root_of(package) / name)
    if 'optim_wrapper' not in config:  # for testing alone
        config.optim_wrapper = {'optimizer': PLAIN_OPTIMIZER}
    facts['backbone'] = backbone_of(config)
    why = _not_meant(package, config, facts['backbone'])
    if why is None and method and not registered_methods()[method].on_any_model():
        cls = class_of(package, config.model.backbone.type)
        if cls is None or site_map_of(cls.__new__(cls)) is None:
            why = f'{method} needs a backbone that a file describes'
    if why is not None:
        return facts | {'state': 'none', 'line': why}
    if 'data_preprocessor' in config:  # as the Runner does
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    make_small(package, config)
    facts['model'] = model_of(config)
    if facts['model'] in known:
        return known[facts['model']] | {'as': known[facts['model']]['config']}
    if method is not None:
        from mmpetl.apis import add_petl
        from mmpetl.engine.runner import safe_config

        config, _ = safe_config(add_petl(config, method))  # as the Runner does
    init_default_scope(config.get('default_scope') or package)
    model = MODELS.build(config.model)
    model.init_weights()
    if method is None:
        from mmengine.model import revert_sync_batchnorm

        model = revert_sync_batchnorm(model)
    batch = drawn_batch(package, config, model)
    wrapper = dict(config.optim_wrapper)
    wrapper['type'] = 'OptimWrapper'
    for key in ('loss_scale', 'accumulative_counts'):  # one step is one update
        wrapper.pop(key, None)
    optim_wrapper = Runner.build_optim_wrapper(_Fake(model), wrapper)
    model.train()
    if method is None:
        # Statistics that were never trained may blow up, with a method or without.
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
    before = tuned(model) if method is not None else {}
    held = versions(model)
    losses = model.train_step(batch, optim_wrapper)
    total = sum(float(v.sum()) for k, v in losses.items() if 'loss' in k)
    if not torch.isfinite(torch.tensor(total)):
        raise ValueError(f'the loss is {total}')
    facts['trained'] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts['all'] = sum(p.numel() for p in model.parameters())
    if method is not None:
        facts['deltas'] = moved(before, tuned(model))
        check_unwritten(model, held)
    return facts | {'state': 'worked', 'line': ''}


def _not_meant(package: str, config: Config, backbone: str | None) -> str | None:
    """Why a config trains nothing that a method could be added to."""
    if backbone is None:
        return 'no backbone by that name'
    if backbone in NO_BACKBONES:
        return 'no transformer and no ConvNet'
    kind = config.model.get('type')
    kind = kind if isinstance(kind, str) else kind.__name__
    if 'Audio' in kind + str(config.model.get('cls_head', {}).get('type')):
        return 'no transformer and no ConvNet'
    words = config.model.get('language_model') is not None
    if words and 'text' not in repr(config.get('train_dataloader')):
        return 'for testing alone: its training data bring no text'
    if package == 'mmpretrain':
        if kind not in ('ImageClassifier', 'TimmClassifier', 'mmdet.MaskRCNN'):
            return f'{kind}: pre-training or retrieval'
        if kind == 'ImageClassifier' and config.model.get('head') is None:
            return 'no head to train'
    return None


class _Fake:
    """What ``Runner.build_optim_wrapper`` reads of a Runner."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model


def walk(
    packages: list[str], methods: list[str], only: list[str], out: Path
) -> Iterator[dict[str, Any]]:
    """Every config times every method; those that ``out`` holds are not tried again."""
    rows = read(out)
    done = {(r['package'], r['config'], r['method']) for r in rows}
    rows = [r for r in rows if 'model' in r and 'as' not in r]
    for package in packages:
        __import__(f'{package}.models')
        for name in configs_of(package):
            if only and not any(word in name for word in only):
                continue
            for method in methods:
                if (package, name, method) in done:
                    continue
                known = {
                    r['model']: r
                    for r in rows
                    if r['method'] == method and r['package'] == package
                }
                row = judged(
                    partial(try_config, package, name, method, known),
                    partial(try_config, package, name, None, {}),
                    {'package': package, 'config': name, 'method': method},
                )
                if 'model' in row and 'as' not in row:
                    rows.append(row)
                append(out, row)
                yield row


def tried(rows: list[dict[str, Any]], packages: list[str], methods: list[str]) -> str:
    """How many of the configs that there are have been tried."""
    there = sum(len(configs_of(package)) for package in packages)
    done = {m: sum(row['method'] == m for row in rows) for m in methods}
    return '; '.join(f'{m}: {n} of {there} configs tried' for m, n in done.items())


def main() -> None:
    """Walk, and print the table."""
    command(__doc__, walk, PACKAGES, ['LoRA'], 'upstream', 'configs', tried)


if __name__ == '__main__':
    main()
