"""A tuned model as a plain checkpoint and config that upstream loads by itself."""

from __future__ import annotations

import copy
import io
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from mmpetl.apis.building import without_memory
from mmpetl.apis.delta import DeltaFile, read_delta, slot_names
from mmpetl.apis.model import init_model
from mmpetl.apis.names import is_named
from mmpetl.apis.runs import open_run
from mmpetl.apis.timm_folding import as_timm, timm_trunk
from mmpetl.config.known import SCOPES
from mmpetl.config.load import as_config
from mmpetl.config.nodes import (
    BUILDER,
    built_model,
    is_petl_model,
    test_pipeline,
    upstream_model,
)
from mmpetl.config.registered import check_types
from mmpetl.config.scope import build_backbone, package_of
from mmpetl.config.text import is_data
from mmpetl.core import (
    PETLError,
    delta_state,
    find_injected,
    fold,
    inject,
    load_delta_state,
)
from mmpetl.core.delta_file import (
    check_facts,
    head_of,
    methods_of,
    plain_copies,
    plain_key,
    state_for,
    write_all,
)
from mmpetl.core.state import completed
from mmpetl.engine.hooks.delta_checkpoint import delta_meta
from mmpetl.models.weights.containers import read_tensors

TEST_PART = ('test_dataloader', 'test_evaluator', 'test_cfg', 'test_pipeline')
RUNTIME = ('default_scope', 'visualizer', 'vis_backends', 'env_cfg', 'log_level')
IMAGE_FOLDER = 'data/test'
"""Placeholder root for classification data, one folder below it for each class."""


def fold_checkpoint(
    config: Any,
    delta: str | os.PathLike,
    out: str | os.PathLike,
    safetensors: bool = False,
    base: str | os.PathLike | None = None,
) -> tuple[Path, Path | None]:
    """Fold a delta into its base and write what stock upstream code loads.

    Args:
        config: Config of the run: path or ``Config``. With ``base``, None writes no
            config; of ``zoo/NAME`` or ``hub://USER/NAME``, None is their own.
        delta: A published delta or a run's checkpoint.
        out: The checkpoint, ``<name>.pth``; the config goes to ``<name>.py``.
        safetensors: Whether to write ``<name>.safetensors`` as well.
        base: File of the base weights, by the backbone's own keys. The model is then
            not built; see :func:`fold_state_dict`.

    Returns:
        Checkpoint and config. Of a classifier on a trunk of timm the checkpoint is that
        of timm's own model, which :func:`mmpetl.apis.load_line` loads, and the config
        None.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: The delta does not belong to the model, the method has no exact
            equivalent in the base weights, or upstream could not read the config.
    """
    if config is None and base is None:
        if not is_named(delta):
            raise PETLError('name the config of the run, or its base weights')
        run = open_run(delta)
        config, delta = run.config, run.weights
    config = None if config is None else as_config(config)
    if base is None:
        state, dataset = _folded_model(config, delta)
    else:
        state = fold_state_dict(delta, read_base(base))
        dataset = read_delta(delta).dataset
    model = config.model if config is not None else read_delta(delta).meta.get('model')
    if timm_trunk(model):
        config, state = None, as_timm(state, model)
    left = [key for key in state if 'petl' in key.split('.')]
    if left:
        raise PETLError(f'{left[0]} is still in the folded model; this is a defect')

    out = Path(out)
    stem = out.with_suffix('') if out.suffix in ('.pth', '.py', '.safetensors') else out
    target = {s: stem.with_name(stem.name + s) for s in ('.pth', '.py', '.safetensors')}
    buffer = io.BytesIO()
    torch.save({'meta': {'dataset_meta': dataset}, 'state_dict': state}, buffer)
    files = {target['.pth']: buffer.getvalue()}
    if config is not None:
        text = stock_config(config, dataset).pretty_text
        if not is_data(text):
            raise PETLError(
                f'the config of the folded model would not be data alone, so {out} is '
                'not written; name the base (base=) to fold without a config'
            )
        files[target['.py']] = text.encode()
    if safetensors:
        from safetensors.torch import save

        files[target['.safetensors']] = save(plain_copies(state))
    write_all(files)
    return target['.pth'], None if config is None else target['.py']


def _folded_model(
    config: Any, delta: str | os.PathLike
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the folded model, and what is known of its classes."""
    model = init_model(config, delta, 'cpu')
    if not find_injected(model):
        raise PETLError('the config has no method, so there is nothing to fold')
    for _, backbone in find_injected(model):
        fold(backbone)
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return state, model.dataset_meta


def fold_state_dict(
    delta: str | os.PathLike, base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Fold a delta into the state dict of its base; no model is built.

    The backbone that the delta's record names is made without memory, and the base's
    tensors take the place of its parameters. Heads, data and Runner play no part.

    Args:
        delta: A published delta or a checkpoint of a run.
        base: The base weights by the keys of the backbone, or of a model around it.

    Returns:
        What the tuned model holds: the keys of the base, as they are called in the
        model of the delta, with the deltas folded in, and what was trained beside the
        backbone. ``base`` stays as it is.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: The delta does not say its backbone, the base is not its own, or the
            method has no exact equivalent in the base weights.
    """
    read = read_delta(delta)
    path, node = _backbone_of(read)
    backbone = _outline(node['backbone'], read)
    state = _taken(backbone, base, read.state, path)
    # Copies, for folding writes in place.
    copies = {key: value.detach().clone() for key, value in state.items()}
    backbone.load_state_dict(copies, strict=False, assign=True)
    head = node.get('head') or head_of(read.meta)
    for method, where in methods_of(read.meta):
        inject(backbone, method, head=head, **where)
    root = _at(path, backbone)
    inside = {k: v for k, v in read.state.items() if _below(k, path)}
    try:
        check_facts(read.meta, delta_meta(root))
        wanted = delta_state(root)
        state = state_for(inside, wanted, slot_names(root))
        load_delta_state(root, completed(root, wanted, state, read.meta))
        fold(backbone)
    except PETLError as error:
        raise PETLError(f'{read.path}: {error}') from None
    folded = {k: v for k, v in root.state_dict().items() if not v.is_meta}
    return folded | {k: v for k, v in read.state.items() if k not in inside}


MODULES = 8_000
"""How many modules a backbone that a record describes may have."""


def _outline(config: Mapping[str, Any], delta: DeltaFile) -> nn.Module:
    """The backbone that a delta's record describes, without memory.

    Raises:
        PETLError: The record names what is not registered, or a size that cannot be.
    """
    place, scope = f'{delta.path}: backbone', delta.meta.get('scope')
    if scope is not None and scope not in SCOPES:
        raise PETLError(
            f'{delta.path}: scope is {scope!r}, expected one of {", ".join(SCOPES)}'
        )
    check_types(config, place, scope)
    count = itertools.count(1)

    def bound(*_: Any) -> None:
        if next(count) > MODULES:
            raise PETLError(f'{place} has more than {MODULES:,} modules')

    watch = register_module_module_registration_hook(bound)
    try:
        with without_memory():
            return build_backbone(config, scope)
    except PETLError as error:
        if str(delta.path) in str(error):
            raise
        raise PETLError(f'{place}: {error}') from None
    except Exception as error:  # of whatever the record lets a class calculate
        said = ' '.join(str(error).split())[:200]
        raise PETLError(
            f'{place} cannot be built: {type(error).__name__}: {said}'
        ) from None
    finally:
        watch.remove()


def _backbone_of(delta: DeltaFile) -> tuple[str, Mapping[str, Any]]:
    """Path of the backbone in the delta's model, and the builder's arguments.

    A delta without a model on record is of a bare backbone, or of a run's checkpoint,
    whose models all call it so.
    """
    model = delta.meta.get('model')
    if model:
        path, node = next(_builders(model), ('', None))
    else:
        inside = any(key.startswith('backbone.') for key in delta.state)
        path = 'backbone' if inside else ''
        node = {'backbone': delta.meta.get('backbone')}
    config = (node or {}).get('backbone')
    if not config or _is_class_alone(config):
        raise PETLError(
            f'{delta.path} does not say which backbone it is on; build it, load base '
            'and delta, and call mmpetl.fold'
        )
    return path, node


def _is_class_alone(config: Any) -> bool:
    """Whether a record only names a class, as that of a user's own model does."""
    if not isinstance(config, Mapping) or set(config) != {'type'}:
        return False
    package, dot, _ = str(config['type']).rpartition('.')
    return bool(dot) and package not in SCOPES


def _builders(
    node: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if node.get('type') == BUILDER:
            yield '.'.join(path), node
        for key, value in node.items():
            yield from _builders(value, (*path, key))


def _taken(
    backbone: nn.Module,
    base: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    path: str,
) -> dict[str, Tensor]:
    """The part of a base that a backbone takes, by the backbone's keys.

    What trains with the head need not be in the base; its values are the delta's.

    Raises:
        PETLError: A parameter is not in the base, or has another shape there.
    """
    own = backbone.state_dict()
    plain = {plain_key(k): v for k, v in base.items()}
    inner = {k: f'{path}.{k}'.lstrip('.') for k in own}
    found = {k: plain.get(k, plain.get(inner[k], delta.get(inner[k]))) for k in own}
    missing = [k for k, _ in backbone.named_parameters() if found[k] is None]
    if missing:
        raise PETLError(
            f'the base lacks {len(missing)} parameters of {type(backbone).__name__} '
            f'({missing[0]} is one); weights under other names are folded with the '
            'model built'
        )
    found = {k: v for k, v in found.items() if v is not None}
    for key, value in found.items():
        if value.shape != own[key].shape:
            raise PETLError(
                f'{key} has shape {tuple(value.shape)} in the base and '
                f'{tuple(own[key].shape)} in {type(backbone).__name__}; weights of '
                'other sizes are folded with the model built'
            )
        if value.is_floating_point() != own[key].is_floating_point():
            raise PETLError(
                f'{key} is {value.dtype} in the base and {own[key].dtype} in '
                f'{type(backbone).__name__}; save the base as floating point'
            )
    return found


def _at(path: str, module: nn.Module) -> nn.Module:
    """A module that holds another at a path."""
    for name in reversed(path.split('.') if path else []):
        outer = nn.Module()
        outer.add_module(name, module)
        module = outer
    return module


def _below(key: str, path: str) -> bool:
    return not path or key.startswith(f'{path}.')


def read_base(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a weight file as they are called there (.pth or .safetensors).

    Raises:
        FileNotFoundError: There is no such file.
        PETLError: It is damaged or holds something else.
    """
    return read_tensors(Path(path)).tensors


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

    keep = {k: config[k] for k in (*RUNTIME, *TEST_PART) if k in config}
    keep['model'] = built_model(config)
    plain: dict[str, Any] = copy.deepcopy(Config(keep)._cfg_dict.to_dict())
    scope, scopes = config.get('default_scope'), set()
    if is_petl_model(plain['model']):
        plain['model'] = upstream_model(plain['model'])
    plain['model'] = _unwrap(plain['model'], scope, scopes)
    scopes.discard(scope)
    imports = [f'{scope}.models' for scope in sorted(scopes)]
    imports += [name for name in _imported(config) if name not in imports]
    if imports:
        plain['custom_imports'] = {'imports': imports, 'allow_failed_imports': False}
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


def _imported(config: Any) -> Iterator[str]:
    """Modules that a config imports, those of mmpetl left out."""
    said = (config.get('custom_imports') or {}).get('imports') or ()
    for name in [said] if isinstance(said, str) else said:
        if name.partition('.')[0] != 'mmpetl':
            yield name


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
