"""Any upstream config, with a method in its model's trunk."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.logging import print_log

from mmpetl.config.nodes import MODEL_BUILDER, is_petl_model, petl_backbone_of
from mmpetl.core import PETLError, build_entries, with_arguments
from mmpetl.core.several import Methods
from mmpetl.core.sitemap import is_below
from mmpetl.engine.runner import safe_config

RUNNER = 'mmpetl.TuningRunner'


def add_petl(
    config: Any,
    petl: Methods,
    options: Mapping[str, Any] | None = None,
    *,
    base: str | os.PathLike | None = None,
    where: str | Iterable[str] | None = None,
    freeze: str | Iterable[str] = (),
    layers: Any = None,
    blocks: Any = None,
) -> Any:
    """A copy of a config whose model is tuned by a method.

    ``model.type`` becomes ``mmpetl.PETLModel``; all other keys of the model stay where
    they are. The runner becomes :class:`mmpetl.engine.TuningRunner`, which adds small
    checkpoints, guards, and an optimizer that applies ``paramwise_cfg`` to what is
    outside of the backbone. The file that starts the trunk (``load_from``, or
    ``init_cfg`` or ``pretrained`` of the backbone) is named as ``model.base``, which
    upstream's ``init_detector`` and ``init_model`` leave alone. Where a config leaves
    that file to be named (``checkpoint=''``, as those that tune MAE's weights do), so
    does what comes out: by ``base``, or ``model.base`` later. What comes out can be
    dumped, and the dump repeats the run.

    Args:
        config: A config of upstream: a path, a name such as ``mmdet::...``, or a
            ``Config``, which is not changed.
        petl: The method, its name or its config; or several: a list of these, or
            ``'LoRA + VPTDeep'``.
        options: Arguments of the method; of several with the number of the method in
            front, ``{'0.rank': 16}``.
        base: File of the base weights; see :func:`mmpetl.models.petl_model`.
        where: Path of the trunk in the model, likewise.
        freeze: Paths of modules outside of it that shall not train, likewise.
        layers: Patterns of layers, likewise.
        blocks: Numbers of blocks, likewise.

    Raises:
        PETLError: The config has no model, or a method already; the method or an
            argument is unknown; the base is named twice; or something in the config
            would keep deltas from learning.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmpetl.apis import add_petl
        >>> config = Config(dict(model=dict(type='ImageClassifier')))
        >>> add_petl(config, 'LoRA', dict(rank=16)).model.petl
        {'type': 'LoRA', 'rank': 16}
    """
    config = _copy_of(config)
    model = config.get('model')
    if not isinstance(model, dict) or not model.get('type'):
        raise PETLError('the config has no model with a type, so nothing can be tuned')
    if is_petl_model(model) or petl_backbone_of(config) is not None:
        raise PETLError(
            'the config tunes its model already (mmpetl.PETLModel or PETLBackbone in '
            'it); change the method there'
        )
    method = with_arguments(petl, options or {})
    build_entries(method)
    _check_checkpointing(config, where)
    ours = {'where': where, 'freeze': freeze, 'layers': layers, 'blocks': blocks}
    # As it is written, for an attribute would import a class that a lazy config names.
    dict.__setitem__(model, 'of', dict.__getitem__(model, 'type'))
    model.type, model.petl = MODEL_BUILDER, method
    for name, value in ours.items():
        if value is not None and value != ():
            model[name] = value
    said = [] if base is not None else _name_base(config, model)
    if base is not None:
        _check_one_base(config, base)
        model.base = os.fspath(base)
    imports = dict(config.get('custom_imports') or {'allow_failed_imports': False})
    # First, for it closes the gaps that other imports would meet.
    others = [name for name in _listed(imports.get('imports')) if name != 'mmpetl']
    config.custom_imports = {**imports, 'imports': ['mmpetl', *others]}
    own = config.get('runner_type')
    if own in (None, 'Runner', 'mmengine.Runner'):
        config.runner_type = RUNNER
    elif str(own) != RUNNER:
        config, added = safe_config(config)
        said.append(f'runner_type {own} stays; added {", ".join(added)}')
    for line in said:
        print_log(line, logger='current')
    return config


def _copy_of(config: Any) -> Any:
    from mmengine.config import Config

    from mmpetl.config.load import read_config

    if not isinstance(config, Config):
        config = read_config(config)
    return copy.deepcopy(config)


def _listed(imports: Any) -> list[str]:
    return [imports] if isinstance(imports, str) else list(imports or ())


def _check_checkpointing(config: Any, where: str | Iterable[str] | None) -> None:
    """Refuse what wraps the trunk in a checkpoint that deltas cannot learn through."""
    names = [str(n) for n in _listed(config.get('activation_checkpointing'))]
    trunks = _listed(where or 'backbone')
    if any(is_below(n, t) or is_below(t, n) for n in names for t in trunks):
        raise PETLError(
            f'activation_checkpointing={names} of the config wraps the backbone in '
            "torch's reentrant checkpoint, which hands no gradient to deltas over a "
            'frozen trunk; set activation_checkpointing=None and '
            'model.backbone.with_cp=True'
        )


def _check_one_base(config: Any, base: str | os.PathLike) -> None:
    """Refuse a base beside a whole model in ``load_from``; runs compare the rest."""
    file = config.get('load_from')
    is_delta = str(file).endswith('.safetensors')
    if file and not config.get('resume') and not is_delta:
        raise PETLError(
            f'base={os.fspath(base)} is asked for and load_from={file} would be loaded '
            'over it; keep one of the two (load_from=None, or no base)'
        )


def _name_base(config: Any, model: Any) -> list[str]:
    """Name the file that starts the trunk as ``base``; what was done, in words."""
    if config.get('load_from') and not config.get('resume'):
        model.base, config.load_from = config.load_from, None
        return [f'load_from={model.base} is now model.base: it loads before injection']
    backbone = model.get('backbone')
    if not isinstance(backbone, dict) or backbone.get('pretrained2d'):
        return []
    entries = backbone.get('init_cfg') or []
    entries = entries if isinstance(entries, list | tuple) else [entries]
    for entry in entries:
        # With another prefix, or of another type, only the class knows how it is read.
        prefix = str(entry.get('prefix') or 'backbone').rstrip('.')
        named = entry.get('type') == 'Pretrained' and entry.get('checkpoint')
        if named and prefix == 'backbone':
            model.base = named
            return []
    for given in (model.get('pretrained'), backbone.get('pretrained')):
        if isinstance(given, str) and given:
            model.base = given
            return []
    return []
