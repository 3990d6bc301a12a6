"""A tuned model as a plain checkpoint and config that upstream loads by itself."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmpetl.apis.model import init_model
from mmpetl.config.load import as_config
from mmpetl.config.nodes import BUILDER, test_pipeline
from mmpetl.config.scope import package_of
from mmpetl.core import PETLError, find_injected, fold
from mmpetl.core.delta_file import write_all

TEST_PART = ('test_dataloader', 'test_evaluator', 'test_cfg', 'test_pipeline')
RUNTIME = ('default_scope', 'visualizer', 'vis_backends', 'env_cfg', 'log_level')
IMAGE_FOLDER = 'data/test'
"""Placeholder root for classification data, one folder below it for each class."""


def fold_checkpoint(
    config: Any,
    delta: str | os.PathLike,
    out: str | os.PathLike,
    safetensors: bool = False,
) -> tuple[Path, Path]:
    """Fold a delta into its base and write what stock upstream code loads.

    Args:
        config: Config of the run: path or ``Config``.
        delta: A published delta or a run's checkpoint.
        out: The checkpoint, ``<name>.pth``; the config goes to ``<name>.py``.
        safetensors: Whether to write ``<name>.safetensors`` as well.

    Returns:
        Checkpoint and config.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: The delta does not belong to the model, the method has no exact
            equivalent in the base weights, or upstream could not read the config.
    """
    config = as_config(config)
    model = init_model(config, delta, 'cpu')
    if not find_injected(model):
        raise PETLError('the config has no method, so there is nothing to fold')
    for _, backbone in find_injected(model):
        fold(backbone)
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    left = [key for key in state if 'petl' in key.split('.')]
    if left:
        raise PETLError(f'{left[0]} is still in the folded model; this is a defect')
    plain = stock_config(config, model.dataset_meta)

    out = Path(out)
    stem = out.with_suffix('') if out.suffix in ('.pth', '.py', '.safetensors') else out
    target = {s: stem.with_name(stem.name + s) for s in ('.pth', '.py', '.safetensors')}
    buffer = io.BytesIO()
    torch.save(
        {'meta': {'dataset_meta': model.dataset_meta}, 'state_dict': state}, buffer
    )
    files = {
        target['.pth']: buffer.getvalue(),
        target['.py']: plain.pretty_text.encode(),
    }
    if safetensors:
        from safetensors.torch import save

        files[target['.safetensors']] = save(state)
    write_all(files)
    return target['.pth'], target['.py']


def stock_config(config: Any, dataset: Mapping[str, Any] | None = None) -> Any:
    """The config of the folded model: nothing of mmpetl in it, made for testing.

    Model, test data, metrics and runtime stay; training goes. A dataset that only
    mmpetl can read becomes a folder of images, one folder for each class, whose
    ``data_root`` is to be filled in.

    Args:
        config: Config of the run.
        dataset: ``classes`` of the data, for such a folder.

    Raises:
        PETLError: Something of mmpetl would be left in it.
    """
    from mmengine.config import Config

    keep = {k: config[k] for k in (*RUNTIME, *TEST_PART, 'model') if k in config}
    plain: dict[str, Any] = copy.deepcopy(Config(keep)._cfg_dict.to_dict())
    scope, scopes = config.get('default_scope'), set()
    plain['model'] = _unwrap(plain['model'], scope, scopes)
    scopes.discard(scope)
    if scopes:
        plain['custom_imports'] = {
            'imports': [f'{scope}.models' for scope in sorted(scopes)],
            'allow_failed_imports': False,
        }
    loader = plain.get('test_dataloader')
    if loader and str(loader['dataset'].get('type')).startswith('mmpetl.'):
        loader['dataset'] = {
            'type': 'CustomDataset',
            'data_root': IMAGE_FOLDER,
            'metainfo': {'classes': list((dataset or {}).get('classes') or ())},
            'pipeline': test_pipeline(config),
        }
        if not loader['dataset']['metainfo']['classes']:
            del loader['dataset']['metainfo']
    _refuse_ours(plain)
    return Config(plain)


def _unwrap(node: Any, scope: str | None, scopes: set[str | None]) -> Any:
    """Replace the builder by the backbone it builds; collect scopes of that type."""
    if isinstance(node, dict):
        if node.get('type') == BUILDER:
            inner = node['backbone']
            scopes.add(package_of(inner['type'], scope))
            return inner
        return {k: _unwrap(v, scope, scopes) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_unwrap(v, scope, scopes) for v in node)
    return node


def _refuse_ours(node: Any, path: str = '') -> None:
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        if isinstance(node, str) and node.startswith('mmpetl.'):
            raise PETLError(
                f'{path} of the config is {node}, which upstream does not have; '
                'replace it before folding'
            )
        return
    for key, value in items:
        _refuse_ours(value, f'{path}.{key}'.lstrip('.'))
