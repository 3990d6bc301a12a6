"""PETLBackbone: build, initialise, load the base, inject, freeze; in that order.

The order matters. Upstream's initialisers redraw every Linear below them, so deltas
must come after; and MMEngine's optimizer and DDP take parameters once, so deltas must
come before. A model initialises itself once more when training starts: an injected
backbone keeps its values then (``core/init_guard.py``), and one without a method is
filled again.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpetl.core import (
    PETLError,
    build_entries,
    describe,
    fingerprint,
    inject,
    injections,
    quantise,
)
from mmpetl.core.several import Methods
from mmpetl.models.init_entries import drop_nameless, is_nameless
from mmpetl.models.weights import load_base_weights
from mmpetl.models.weights.address import base_name
from mmpetl.models.weights.convert import may_lack
from mmpetl.registry import MODELS


@MODELS.register_module(name='PETLBackbone')
def petl_backbone(
    backbone: Mapping[str, Any] | nn.Module,
    method: Methods | None = None,
    checkpoint: str | os.PathLike | None = None,
    head: Iterable[str] = (),
    frozen_drop_path: bool = False,
    checkpoint_part: str | None = None,
    layers: str | Iterable[str] | None = None,
    blocks: Any = None,
    base_bits: int | None = None,
) -> nn.Module:
    """Build a backbone with a method in it.

    Args:
        backbone: Config of a foreign backbone, its scope in front of its type:
            ``dict(type='mmpretrain.SwinTransformer', arch='base')``; or a backbone,
            whose values are kept where no checkpoint replaces them. A Video Swin with
            ``pretrained2d=True`` is started from the checkpoint of an image Swin.
        method: A method's config or name, or a list of several
            (:mod:`mmpetl.core.several`). None leaves the backbone as upstream built it,
            wholly trainable.
        checkpoint: File, folder or address of the base weights, in any format that
            :func:`mmpetl.models.load_base_weights` reads. None leaves the base to the
            backbone's own ``init_cfg``, or random, which is said loudly.
        head: Path prefixes of base parameters that train like a head, because no
            checkpoint holds them (``('fc_norm',)`` for a self-supervised VideoMAE).
        frozen_drop_path: Whether stochastic depth acts in the frozen trunk.
        checkpoint_part: Which weights, of a checkpoint that holds several:
            ``'teacher'``, ``'state_dict_ema'``.
        layers: Patterns of the layers that the method acts on, as
            :func:`mmpetl.inject` takes them; None means all.
        blocks: Indices or slices of the blocks that it acts in; None means all.
        base_bits: 8 or 4: the frozen weights of Linear layers are put into so few bits
            (:func:`mmpetl.quantise`). None leaves them as they are.

    Returns:
        The foreign backbone itself, an instance of its own class.

    Raises:
        PETLError: A package is missing, a name is unknown, the weights do not fit,
            or the backbone cannot serve the method.
    """
    if method is not None:
        build_entries(method)  # what is wrong with it is said before anything is built
    source = dict(backbone) if isinstance(backbone, Mapping) else None
    module = build_foreign(backbone) if isinstance(backbone, Mapping) else backbone
    filling = _filling(module, source, checkpoint, checkpoint_part)
    origin = filling()
    if method is None and base_bits is not None:
        raise PETLError(
            f'base_bits={base_bits} is of a frozen base, and no method is named, so '
            'that all of it trains; name a method, or leave base_bits out'
        )
    if method is None:
        _mark_initialised(module)
        if origin is not None:
            # The model's initialisers come first and this after, as for upstream's.
            module._is_init = False
            module.init_weights = filling
        return module
    inject(
        module,
        method,
        head=head,
        frozen_drop_path=frozen_drop_path,
        layers=layers,
        blocks=blocks,
    )
    for _, _, record in injections(module):
        record.source = {
            'backbone': source,
            'checkpoint': origin,
            'fingerprint': fingerprint(module),
        }
    if base_bits is not None:
        quantise(module, base_bits)
    print_log(describe(module), logger='current')
    return module


def build_foreign(config: Mapping[str, Any]) -> nn.Module:
    """A backbone of an upstream package, with random weights.

    Raises:
        PETLError: The package, the name or an argument is unknown.
    """
    kind = config.get('type')
    check_package(kind)
    try:
        # Some classes read their settings by attribute.
        return MODELS.build(ConfigDict(config))
    except KeyError as error:
        raise PETLError(
            f'unknown backbone {kind!r}; write its scope in front, as in '
            "'mmpretrain.VisionTransformer'"
        ) from error
    except TypeError as error:
        if 'argument' not in str(error):
            raise
        _, found, reason = str(error).rpartition('__init__() ')
        if not found:
            reason = f'cannot be built: {error}'
        raise PETLError(f'the backbone {kind!r} {reason}') from error


def check_package(kind: Any) -> None:
    """Import the package in front of a type's name.

    Raises:
        PETLError: It is not there.
    """
    if not (isinstance(kind, str) and '.' in kind):
        return
    scope = kind.partition('.')[0]
    try:
        importlib.import_module(f'{scope}.registry')
    except ModuleNotFoundError as error:
        if importlib.util.find_spec(scope) is not None:
            return  # a class by its dotted path
        raise PETLError(
            f'{kind!r} needs the package {scope!r}, which cannot be '
            f'imported ({error}); install it, or correct the name'
        ) from error


@dataclass
class _Filling:
    """Initialises a plain backbone and loads its base; may be called again.

    Attributes:
        module: The backbone.
        checkpoint: File of its base for our own reader.
        part: Which weights of the file.
        inflate: Whether an image Swin may start a Video Swin.
        own: The file that upstream is told to load.
        is_filled: Whether the backbone came with values: it was passed in as a module,
            or its constructor loads them (timm's ``pretrained=True``).
    """

    module: nn.Module
    checkpoint: str | os.PathLike | None
    part: str | None
    inflate: bool
    own: str | None
    is_filled: bool

    def __call__(self) -> str | None:
        """Fill the backbone; the file that its base came from, None if unknown."""
        name = type(self.module).__name__
        watch = self._initialise()
        if self.checkpoint is not None:
            report = load_base_weights(
                self.module, self.checkpoint, part=self.part, inflate=self.inflate
            )
            print_log(report.summary(), logger='current')
            return base_name(self.checkpoint)
        if self.own:
            watch.check(self.own)
            print_log(
                f'{watch.filled} of {watch.total} tensors of {name} from {self.own}, '
                "loaded by the backbone's own settings",
                logger='current',
            )
            return base_name(self.own)
        if self.is_filled:
            print_log(f'{name} keeps the weights that it came with', logger='current')
        else:
            print_log(
                f'THE BASE IS RANDOM: {name} got no checkpoint. Name one with '
                'model.backbone.checkpoint=FILE, unless this is a trial run: its '
                'deltas fit this draw alone, which the same randomness.seed draws '
                'again.',
                logger='current',
                level=logging.WARNING,
            )
        return None

    def _initialise(self) -> _Watch:
        """Upstream's way; also with a checkpoint, which may lack some norms."""
        watch = _Watch(self.module)
        if hasattr(type(self.module), 'init_weights') and not self.is_filled:
            for part in self.module.modules():
                if hasattr(part, '_is_init'):
                    part._is_init = False
            try:
                type(self.module).init_weights(self.module)
            except Exception as error:
                if not self.own or isinstance(error, PETLError):
                    raise
                # Readers of upstream raise all kinds where nothing is, or nothing fits.
                text = str(error).strip().partition('\n')[0]
                raise PETLError(
                    f'{self.own} does not load as init_cfg or pretrained of the '
                    f'backbone asks ({type(error).__name__}: {text}); '
                    f'{_way(self.module)}'
                ) from error
            finally:
                watch.handle.remove()
        return watch


class _Watch:
    """Counts what an initialiser of upstream loads, which it does without a check."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.filled = 0
        self.missing = [name for name, _ in module.named_parameters()]
        self.total = len(self.missing)
        self.handle = module.register_load_state_dict_pre_hook(self._count)

    def _count(
        self, module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any
    ) -> None:
        params = dict(module.named_parameters())
        self.missing = [
            name
            for name, param in params.items()
            if getattr(state.get(prefix + name), 'shape', None) != param.shape
        ]
        self.filled = self.total - len(self.missing)

    def check(self, file: str) -> None:
        """Raise PETLError unless the file filled all that files of the class have.

        Norms are added by tasks, and some tables start at zero.
        """
        lost = [name for name in self.missing if 'norm' not in name]
        lost = [name for name in lost if not may_lack(self.module, name)]
        if lost:
            raise PETLError(
                f'{file}, as upstream loads it, fills {self.filled} of {self.total} '
                f'tensors of the backbone ({lost[0]} is not among them); '
                f'{_way(self.module)}'
            )


def _way(module: nn.Module) -> str:
    """What to do about a file that upstream does not read."""
    by_hand = getattr(module, 'convert_weights', None) is False
    own = "set convert_weights=True for its authors' file, or " * by_hand
    return (
        f"{own}drop it from the backbone's init_cfg or pretrained and name it as "
        '`checkpoint` of mmpetl.PETLBackbone, which reads more formats'
    )


def _filling(
    module: nn.Module,
    source: Mapping[str, Any] | None,
    checkpoint: str | os.PathLike | None,
    part: str | None,
) -> _Filling:
    """How a backbone is to be filled.

    Raises:
        PETLError: Its base weights are named twice, or not at all where they must be.
    """
    is_filled = source is None or getattr(module, '_is_init', False)
    if not is_filled and any(map(is_nameless, module.modules())):
        if checkpoint is None:
            raise PETLError(
                f"init_cfg of {type(module).__name__} has checkpoint='': the config "
                'leaves the file of the base to be named; name it as `checkpoint` of '
                'mmpetl.PETLBackbone, or set init_cfg to None for a random base'
            )
        drop_nameless(module)
    own = None if is_filled else _pretrained_of(module, source)
    if checkpoint is not None and own:
        # It would read a second file, unchecked.
        raise PETLError(
            f'name the base weights once: drop {own} from init_cfg or pretrained of '
            'the backbone, since mmpetl.PETLBackbone has a checkpoint'
        )
    inflate = bool(getattr(module, 'pretrained2d', False))
    if inflate:
        checkpoint, own = checkpoint or own, None
        if checkpoint is None and not (source or {}).get('pretrained2d'):
            inflate = False  # the default of its class, which starts at random then
        elif checkpoint is None:
            raise PETLError(
                f'{type(module).__name__} with pretrained2d=True wants to inflate the '
                'weights of an image Swin; name them as `checkpoint` of '
                'mmpetl.PETLBackbone, or set pretrained2d=False'
            )
        # Ours is loaded below, with every key accounted for.
        module.pretrained, module.pretrained2d = None, False
    return _Filling(module, checkpoint, part, inflate, own, is_filled)


def _pretrained_of(module: nn.Module, source: Mapping[str, Any]) -> str | None:
    """The file that the backbone's own settings name."""
    # VideoMAE's class forgets the second, which the count then shows.
    return named_weights(getattr(module, 'init_cfg', None), source.get('pretrained'))


def named_weights(init_cfg: Any, pretrained: Any = None) -> str | None:
    """The file that settings of upstream name; None where they only say how to draw.

    Args:
        init_cfg: One initialiser, or a list of them.
        pretrained: The older key; a file where it is text.
    """
    entries = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg or {}]
    for entry in entries:
        kind = entry.get('type')
        if getattr(kind, '__name__', kind) in ('Pretrained', 'PretrainedInit'):
            return entry.get('checkpoint') or None
    return pretrained if isinstance(pretrained, str) and pretrained else None


def _mark_initialised(module: nn.Module) -> None:
    """Keep the parent's ``init_weights`` from drawing the loaded weights anew."""
    for part in module.modules():
        if hasattr(part, '_is_init'):
            part._is_init = True
