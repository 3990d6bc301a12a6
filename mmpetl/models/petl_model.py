"""PETLModel: any upstream config, and one line.

A function in ``MODELS`` that takes every key of an upstream model's config as it is::

    _base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
    model = dict(type='mmpetl.PETLModel', of=_base_.model.type, petl='LoRA')

It builds the model, runs upstream's own initialisation and sees that it filled the
trunk, injects, freezes, and returns upstream's own object. Parameters exist before the
Runner makes an optimizer or wraps the model, and the base is there before deltas read
it; a hook would come after the former and before the latter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import nn

from mmpetl.core import (
    Method,
    PETLError,
    build_entries,
    describe,
    fingerprint,
    inject,
    injections,
    quantise,
)
from mmpetl.core.several import Methods
from mmpetl.models.petl_backbone import check_package
from mmpetl.models.whole import (
    fill_base,
    find_trunks,
    guard_model,
    initialise,
    read_published_deltas,
)
from mmpetl.models.whole.initialise import drop_files, run_init
from mmpetl.registry import MODELS

OURS = ('PETLModel', 'PETLBackbone')
HEADS = ('head', 'cls_head')


@MODELS.register_module(name='PETLModel')
def petl_model(
    of: str | type | None = None,
    petl: Methods | None = None,
    base: str | os.PathLike | None = None,
    where: str | Iterable[str] | None = None,
    freeze: str | Iterable[str] = (),
    layers: Any = None,
    blocks: Any = None,
    base_bits: int | None = None,
    **model: Any,
) -> nn.Module:
    """Build a model of upstream with a method in its trunk.

    Args:
        of: Type of the model: ``'MaskRCNN'``, ``'mmseg.EncoderDecoder'``, or a class.
        petl: The method, its name or its config; or a list of several
            (:mod:`mmpetl.core.several`).
        base: File of the base weights: a whole detector or segmentor, or a trunk. It
            takes the place of ``init_cfg`` and ``pretrained`` of the trunk. Every
            tensor of the trunk must be in it; other modules are filled where names
            and shapes fit.
        where: Path of the trunk in the model, or several. By default ``backbone``, or
            the only submodule that is described.
        freeze: Paths of modules outside of the trunk that shall not train.
        layers: Patterns of layers, as :func:`mmpetl.inject` takes them.
        blocks: Numbers of blocks, likewise.
        base_bits: 8 or 4, as of ``mmpetl.PETLBackbone``.
        model: All other keys of the model's config, as upstream has them.

    Returns:
        The model of upstream, of its own class, every key where it was.

    Raises:
        PETLError: A package, a name or a file is missing, the base did not load, the
            trunk is not found, or it cannot serve the method.

    Examples:
        >>> import mmpetl, mmpretrain.models
        >>> from mmpetl.registry import MODELS
        >>> arch = dict(embed_dims=32, num_layers=2, num_heads=4,
        ...             feedforward_channels=64)
        >>> model = MODELS.build(dict(
        ...     type='PETLModel', of='mmpretrain.ImageClassifier', petl='LoRA',
        ...     backbone=dict(type='mmpretrain.VisionTransformer', arch=arch,
        ...                   img_size=32, patch_size=8),
        ...     head=dict(type='mmpretrain.LinearClsHead', num_classes=3,
        ...               in_channels=32)))
        >>> type(model).__name__
        'ImageClassifier'
        >>> model.backbone.layers[0].ln1.weight.requires_grad
        False
    """
    methods = _checked(of, petl)
    built = _build(of, model)
    if not is_distributed():
        # The Runner would do it after the injection, and lose what it exchanges.
        built = revert_sync_batchnorm(built)
    paths = find_trunks(built, where)
    _check_names(built, paths)
    for method in methods:
        _check_head(method, built, paths, model)
    if not base:
        filled = initialise(built, paths, model)
    else:
        inflated = [
            path
            for path in paths
            if getattr(built.get_submodule(path), 'pretrained2d', False)
        ]
        left_out = drop_files(built, paths)
        if left_out:
            print_log(f'base={base} replaces {", ".join(left_out)}', logger='current')
        run_init(built)
        filled = fill_base(built, paths, base, inflated)
    # Some classes freeze stages when they are put into train mode, and not before.
    built.train()
    narrowed = {'layers': layers, 'blocks': blocks}
    narrowed = {name: value for name, value in narrowed.items() if value is not None}
    for path in paths:
        inject(built.get_submodule(path), petl, head=filled[path].fresh, **narrowed)
    for path, _, record in injections(built):
        trunk = next(p for p in paths if f'{path}.'.startswith(f'{p}.'))
        record.source = {
            'backbone': _config_of(model, trunk),
            'checkpoint': filled[trunk].file,
            'given': os.fspath(base) if base else None,
        }
    for _, _, record in injections(built):
        record.source['fingerprint'] = fingerprint(built)
    if base_bits is not None:
        quantise(built, base_bits)
    guard_model(built, freeze)
    read_published_deltas()
    print_log(describe(built), logger='current')
    return built


def _checked(of: Any, petl: Any) -> list[Method]:
    name = getattr(of, '__name__', str(of)).rpartition('.')[2]
    if of is None or name in (*OURS, 'petl_model'):
        what = 'no type' if of is None else f'of={of!r}'
        raise PETLError(
            f'mmpetl.PETLModel got {what}; name the model of upstream, as in '
            'of=_base_.model.type'
        )
    if petl is None:
        raise PETLError(
            "mmpetl.PETLModel got no method; name one, as in petl='LoRA' or "
            "petl=dict(type='LoRA', rank=16)"
        )
    return [entry.method for entry in build_entries(petl)]


def _build(of: str | type, model: Mapping[str, Any]) -> nn.Module:
    """The model of upstream, as its constructor leaves it."""
    node = model.get('backbone')
    inner = node.get('type') if isinstance(node, Mapping) else None
    if str(inner).rpartition('.')[2] in OURS:
        raise PETLError(
            'the config has mmpetl.PETLBackbone in it, which tunes the backbone '
            'already; take out one of the two'
        )
    # A preprocessor that the Runner did not find is None, which not all classes take.
    config = {k: v for k, v in model.items() if k != 'data_preprocessor' or v}
    name = of if isinstance(of, str) else of.__name__
    check_package(name)
    try:
        built = MODELS.build({'type': of, **config})
    except KeyError as error:
        reason = str(error.args[0]).partition('. ')[0]
        if 'registry' not in reason:
            raise
        raise PETLError(
            f'the model {name} cannot be built: {reason}; correct the name, write its '
            'package in front (mmpretrain.VisionTransformer), or set default_scope'
        ) from error
    except TypeError as error:
        if 'argument' not in str(error):
            raise
        raise PETLError(f'the model {name} cannot be built: {error}') from error
    if any(cls.__name__ == 'BaseSelfSupervisor' for cls in type(built).__mro__):
        raise PETLError(
            f'{type(built).__name__} pre-trains a backbone and hides parts of its '
            'input; tune the classifier, detector or segmentor that is made of it'
        )
    return built


def _check_names(built: nn.Module, paths: Iterable[str]) -> None:
    """Refuse a model whose state has other names than its modules."""
    state = built.state_dict()
    for path in paths:
        absent = [
            n
            for n in built.get_submodule(path).state_dict()
            if f'{path}.{n}' not in state
        ]
        if absent:
            raise PETLError(
                f'{type(built).__name__} saves {path}.{absent[0]} under another name, '
                'so no delta could be told from its base; use ImageClassifier with the '
                'backbone alone (mmpretrain.TIMMBackbone for timm)'
            )


def _config_of(model: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The config of a trunk, where it stands under the path of the trunk."""
    node: Any = model
    for part in path.split('.'):
        node = node.get(part) if isinstance(node, Mapping) else None
    return dict(node) if isinstance(node, Mapping) else None


def _check_head(
    method: Method, built: nn.Module, paths: Iterable[str], model: Mapping[str, Any]
) -> None:
    """Refuse a head that is not as wide as the feature of the method."""
    if type(method).feature_dims is Method.feature_dims:
        return
    from mmpetl.core import wanted_sites

    for path in paths:
        sites = wanted_sites(built.get_submodule(path), method)
        widths = [method.feature_dims(s) for s in sites if s.kind == 'feature']
        for key in HEADS:
            head = model.get(key)
            there = head.get('in_channels') if isinstance(head, Mapping) else None
            if widths and there not in (None, widths[-1]):
                raise PETLError(
                    f'the feature of {type(method).__name__} is {widths[-1]} wide, '
                    f'{key}.in_channels is {there}; set '
                    f'model.{key}.in_channels={widths[-1]}'
                )
