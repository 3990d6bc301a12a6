"""The config that a command asks for: a file, a recipe, or a method and a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpetl.config.add_petl import add_petl
from mmpetl.config.compose import compose
from mmpetl.config.load import finish_config, read_config
from mmpetl.config.names import method_class, recipe_names
from mmpetl.config.nodes import is_petl_model, petl_backbone_of
from mmpetl.config.options import merge
from mmpetl.config.upstream import is_upstream_name
from mmpetl.core import PETLError, build_entries, is_several, with_arguments
from mmpetl.core.several import Methods, written_out


def asked_config(
    what: Sequence[str],
    method: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    base: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    protocol: str | None = None,
    stage: str | None = None,
    leaf: bool = False,
) -> Any:
    """A config, written out, with a method in it.

    Args:
        what: ``['configs/x.py']``, ``['mmdet::...']``, a recipe (``['vtab/svhn']``), or
            any of these behind a method: ``['lora', 'vtab/svhn']``.
        method: The method, where it does not stand in front.
        arguments: Arguments of the method; of several ``{'0.rank': 16}``.
        base: File of the base weights, for the method's config.
        options: Dotted keys that override the config.
        work_dir: Folder of the run.
        protocol: As of :func:`mmpetl.config.load.load_config`.
        stage: Likewise.
        leaf: Whether a recipe starts from the pair's published settings.

    Raises:
        PETLError: There is no such config, recipe or method, the method is named twice,
            or the config tunes its model by another one.
    """
    if len(what) > 2:
        raise PETLError(
            f'{len(what)} names are given ({" ".join(what)}); give a config, a recipe, '
            'or a method and a recipe: lora vtab/cifar100'
        )
    *front, name = what
    if front and _is_file(front[0]):
        raise PETLError(
            f'{front[0]} is a config, and the method stands in front of it: {name} '
            f'{front[0]}'
        )
    if front and method:
        raise PETLError(f'the method is named twice, as {front[0]} and as {method}')
    method = front[0] if front else method
    if method is None and (base or arguments):
        raise PETLError('--base and --petl-options need --petl METHOD')
    common = {'protocol': protocol, 'stage': stage}
    if _is_recipe(name):
        asked = None if method is None else named(method, arguments or {})
        config_options = dict(options or {})
        if base is not None:
            config_options.setdefault('model.backbone.checkpoint', os.fspath(base))
        return compose(
            name,
            asked or 'LinearProbe',
            config_options,
            work_dir=work_dir,
            leaf=leaf,
            **{key: value for key, value in common.items() if value},
        )
    if leaf:
        raise PETLError(
            f'published settings are of a method and a recipe, and {name} is a config'
        )
    config, options = read_config(name), dict(options or {})
    if method is not None:
        # Behind the config, which may import a method of one's own.
        asked = named(method, arguments or {})
        # In front of the method, which takes its base from what these name.
        starts = {key: options.pop(key) for key in list(options) if _is_start(key)}
        merge(config, starts)
        config = with_method(config, asked, base)
    return finish_config(config, options, work_dir, path=Path(name), **common)


def named(method: str, arguments: Mapping[str, Any]) -> Any:
    """A method's config, or a list of them, from names or stems: ``lora+vpt_deep``.

    Raises:
        PETLError: A name is unknown, or an argument is none of its method's.
    """
    names = [method_class(name).__name__ for name in written_out(method)]
    asked = with_arguments(' + '.join(names), arguments)
    build_entries(asked)
    return asked


def with_method(
    config: Any, method: Methods, base: str | os.PathLike | None = None
) -> Any:
    """A config with a method: one of upstream, or of ours that is a linear probe.

    Args:
        config: A ``Config``; one of ours is changed.
        method: The method, or several.
        base: File of the base weights.

    Raises:
        PETLError: As of :func:`mmpetl.config.add_petl.add_petl`.
    """
    node, weights, key = petl_backbone_of(config), 'checkpoint', 'method'
    if node is None and is_petl_model(config.get('model')):
        node, weights, key = config.model, 'base', 'petl'
    if node is None or not _is_probe(node.get(key)):
        return add_petl(config, method, base=base)
    node[key] = method
    if base is not None:
        node[weights] = os.fspath(base)
    return config


def set_base_bits(config: Any, bits: int) -> None:
    """Let a config hold its frozen trunk in few bits.

    Args:
        config: A ``Config`` with a method; it is changed.
        bits: 8 or 4.

    Raises:
        PETLError: It has no method, so that nothing is frozen.
    """
    node = petl_backbone_of(config)
    if node is None and is_petl_model(config.get('model')):
        node = config.model
    if node is None:
        raise PETLError(
            f'{bits} bits are for a frozen trunk, and the config names no method'
        )
    node['base_bits'] = bits


STARTS = ('load_from', 'resume', 'model.pretrained', 'model.init_cfg')
OF_TRUNK = ('pretrained', 'init_cfg')
"""Keys that say which file a trunk starts from."""


def _is_start(key: str) -> bool:
    if key.startswith('model.backbone.'):
        return key.split('.')[2] in OF_TRUNK
    return any(key == name or key.startswith(f'{name}.') for name in STARTS)


def _is_probe(method: Any) -> bool:
    if method is None or is_several(method):
        return False
    kind = method.get('type') if isinstance(method, Mapping) else method
    return str(kind).rpartition('.')[2] == 'LinearProbe'


def _is_file(name: str) -> bool:
    return is_upstream_name(name) or Path(name).is_file()


def _is_recipe(name: str) -> bool:
    if _is_file(name):
        return False
    if name in recipe_names():
        return True
    # What looks like no file is told which recipes there are.
    return not name.endswith('.py') and not Path(name).parent.is_dir()
