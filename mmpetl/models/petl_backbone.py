"""PETLBackbone: build, initialise, load the base, inject, freeze; in that order.

The order matters. Upstream's initialisers redraw every Linear below them, so deltas
must come after; and MMEngine's optimizer and DDP take parameters once, so deltas must
come before.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmpetl.core import (
    Method,
    PETLError,
    build_method,
    describe,
    fingerprint,
    inject,
    injections,
)
from mmpetl.registry import MODELS


@MODELS.register_module(name='PETLBackbone')
def petl_backbone(
    backbone: Mapping[str, Any] | nn.Module,
    method: Method | Mapping[str, Any] | str | None = None,
    checkpoint: str | os.PathLike | None = None,
    head: Iterable[str] = (),
    frozen_drop_path: bool = False,
) -> nn.Module:
    """Build a backbone with a method in it.

    Args:
        backbone: Config of a foreign backbone, its scope in front of its type:
            ``dict(type='mmpretrain.SwinTransformer', arch='base')``.
        method: A method's config or name. None leaves the backbone as upstream
            built it, wholly trainable.
        checkpoint: File of the base weights, in any format that
            :func:`mmpetl.models.load_base_weights` reads. None leaves the base
            random, which is said loudly.
        head: Path prefixes of base parameters that train like a head, because no
            checkpoint holds them (``('fc_norm',)`` for a self-supervised VideoMAE).
        frozen_drop_path: Whether stochastic depth acts in the frozen trunk.

    Returns:
        The foreign backbone itself, an instance of its own class.

    Raises:
        PETLError: A package is missing, a name is unknown, the weights do not fit,
            or the backbone cannot serve the method.
    """
    if method is not None:
        method = build_method(method)
    source = dict(backbone) if isinstance(backbone, Mapping) else None
    module = build_foreign(backbone) if isinstance(backbone, Mapping) else backbone
    if getattr(module, 'pretrained2d', False):
        raise PETLError(
            f'{type(module).__name__} with pretrained2d=True wants to inflate a 2-D '
            'checkpoint; set pretrained2d=False and name the weights as `checkpoint` '
            'of mmpetl.PETLBackbone'
        )
    if checkpoint is not None and 'Pretrained' in str(getattr(module, 'init_cfg', '')):
        # It would read a second file, unchecked.
        raise PETLError(
            'name the base weights once: drop init_cfg=dict(type="Pretrained") '
            'of the backbone, since mmpetl.PETLBackbone has a checkpoint'
        )
    if hasattr(module, 'init_weights'):
        # With a checkpoint too: it may not hold the norms of dense outputs.
        module.init_weights()
    if checkpoint is None:
        print_log(
            f'THE BASE IS RANDOM: {type(module).__name__} got no checkpoint. Name one '
            'with model.backbone.checkpoint=FILE, unless this is a trial run.',
            logger='current',
            level=logging.WARNING,
        )
    else:
        from mmpetl.models.weights import load_base_weights

        report = load_base_weights(module, checkpoint)
        print_log(report.summary(), logger='current')
    if method is None:
        _mark_initialised(module)
        return module
    inject(module, method, head=head, frozen_drop_path=frozen_drop_path)
    for _, _, record in injections(module):
        record.source = {
            'backbone': source,
            'checkpoint': None if checkpoint is None else Path(checkpoint).name,
            'fingerprint': fingerprint(module),
        }
    print_log(describe(module), logger='current')
    return module


def build_foreign(config: Mapping[str, Any]) -> nn.Module:
    """A backbone of an upstream package, with random weights.

    Raises:
        PETLError: The package, the name or an argument is unknown.
    """
    kind = config.get('type')
    if isinstance(kind, str) and '.' in kind:
        scope = kind.partition('.')[0]
        try:
            importlib.import_module(f'{scope}.registry')
        except ModuleNotFoundError as error:
            raise PETLError(
                f'the backbone {kind!r} needs the package {scope!r}, which cannot be '
                f'imported ({error}); install it, or correct the name'
            ) from error
    try:
        return MODELS.build(dict(config))
    except KeyError as error:
        raise PETLError(
            f'unknown backbone {kind!r}; write its scope in front, as in '
            "'mmpretrain.VisionTransformer'"
        ) from error
    except TypeError as error:
        if 'argument' not in str(error):
            raise
        reason = str(error).rpartition('__init__() ')[2]
        raise PETLError(f'the backbone {kind!r} {reason}') from error


def _mark_initialised(module: nn.Module) -> None:
    """Keep the parent's ``init_weights`` from drawing the loaded weights anew."""
    for part in module.modules():
        if hasattr(part, '_is_init'):
            part._is_init = True
