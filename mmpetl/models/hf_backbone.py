"""Models of Hugging Face's transformers as backbones of OpenMMLab's configs."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mmengine.model import BaseModule, initialize
from safetensors import SafetensorError
from torch import Tensor, nn

from mmpetl.compat.extras import pip_line
from mmpetl.core import PETLError, SiteMap
from mmpetl.models.weights.convert import may_lack
from mmpetl.registry import BACKBONES, MODELS

EXTRA = (
    'mmpetl.HFBackbone needs the package transformers and Python 3.11 or later: '
    f'{pip_line("transformers")}'
)


@MODELS.register_module()
class HFBackbone(BaseModule):
    """A vision model of transformers that gives what necks and heads of OpenMMLab read.

    Outputs are those of layers behind the model's final norm, as its ``*Backbone``
    classes give them; those of a SegFormer are its stages', each behind its own norm.
    The model itself is at ``model``; sites are those of a file
    ``mmpetl/backbones/transformers_*.py``.

    Args:
        name_or_config: Name on the hub or local folder of a model
            (``'facebook/dinov2-base'``), or its config as a dict with ``model_type``
            (``dict(model_type='dinov2', hidden_size=384)``), which needs no network.
        pretrained: Whether the weights come with the model; a dict has none, so that it
            wants False. Then the values are drawn, and ``init_cfg`` or the
            ``checkpoint`` of ``mmpetl.PETLBackbone`` may fill them.
        out_indices: Layers, of a SegFormer stages, whose output leaves; negative ones
            are counted from the last.
        out_type: ``'featmap'`` for maps (B, C, *grid), ``'cls_token'`` for the first
            token (B, C), ``'avg_featmap'`` for the mean of the grid (B, C).
        model_args: Further arguments of the model's config. Without ``dtype`` among
            them the model is in float32, whatever its file is in.
        init_cfg: As in every module of MMEngine.

    Raises:
        PETLError: transformers is missing, nothing has that name, its weights do not
            fill the model, the model gives neither a plain sequence of tokens nor maps,
            or there is no class token to hand out.
    """

    def __init__(
        self,
        name_or_config: str | os.PathLike | Mapping[str, Any],
        pretrained: bool = True,
        out_indices: int | Iterable[int] = (-1,),
        out_type: Literal['featmap', 'cls_token', 'avg_featmap'] = 'featmap',
        model_args: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if out_type not in ('featmap', 'cls_token', 'avg_featmap'):
            raise PETLError(
                f'out_type is featmap, cls_token or avg_featmap, got {out_type!r}'
            )
        self.out_type = out_type
        self.model = build_model(name_or_config, pretrained, dict(model_args or {}))
        self._is_init = pretrained
        depth = self.model.config.num_hidden_layers
        stages = self.model.config.model_type in WITH_MAPS
        noun = 'stages' if stages else 'layers'
        given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        if not given or not all(-depth <= i < depth for i in given):
            raise PETLError(
                f'out_indices {given} of a model with {depth} {noun}; take numbers '
                f'from 0 to {depth - 1}, or negative ones from the last'
            )
        self.out_indices = tuple(i % depth for i in given)
        if stages:
            self.model.out_indices = self.out_indices
        if out_type == 'cls_token' and not self.num_prefix_tokens:
            raise PETLError(
                f'{type(self.model).__name__} has no class token; '
                "take out_type='avg_featmap'"
            )

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the grid."""
        kind = self.model.config.model_type
        if kind in WITH_MAPS:
            return 0
        return WITH_TOKENS[kind][1] + (
            getattr(self.model.config, 'num_register_tokens', 0)
            if kind in ('dinov2_with_registers', 'dinov3_vit')
            else 0
        )

    def init_weights(self) -> None:
        """Fill the model from ``init_cfg``; it was drawn when it was built."""
        if not self._is_init and self.init_cfg:
            initialize(self, self.init_cfg)
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of :attr:`out_indices`.

        Args:
            x: (B, 3, H, W), or (B, 3, T, H, W) of a video model.
        """
        kind = self.model.config.model_type
        # Upstream's video models want the frames in front of the channels.
        given = x.transpose(1, 2) if x.ndim == 5 else x
        result = self.model(given, output_hidden_states=True, **CALL.get(kind, {}))
        if kind in WITH_MAPS:
            maps = tuple(result.hidden_states[i] for i in self.out_indices)
            pooled = self.out_type == 'avg_featmap'
            return tuple(y.mean((2, 3)) for y in maps) if pooled else maps
        grid = self.grid_of(x)
        own, last = self.num_prefix_tokens, self.model.config.num_hidden_layers - 1
        outs = []
        for i in self.out_indices:
            y = result.last_hidden_state if i == last else result.hidden_states[i + 1]
            y = self.normed(y, i == last)
            if self.out_type == 'cls_token':
                outs.append(y[:, 0])
            elif self.out_type == 'avg_featmap':
                outs.append(y[:, own:].mean(1))
            else:
                outs.append(y[:, own:].mT.unflatten(2, grid).contiguous())
        return tuple(outs)

    def normed(self, x: Tensor, is_last: bool) -> Tensor:
        """The final norm, which the last output of most models has been through."""
        path, on_tokens = WITH_TOKENS[self.model.config.model_type][2:]
        norm = self.model
        for name in path.split('.'):
            norm = getattr(norm, name)
        if norm is None or (is_last and on_tokens):
            return x
        if hasattr(
            self.model, 'norm_tokens'
        ):  # an injected model, whose norm is a site
            return self.model.norm_tokens(x, norm)
        return norm(x)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Extents of the tokens of an input."""
        config = self.model.config
        patch = config.patch_size
        patches = tuple(patch) if isinstance(patch, list | tuple) else (patch,) * 2
        if x.ndim == 5:
            patches = (config.tubelet_size, *patches)
        return tuple(
            int(n) // int(p) for n, p in zip(x.shape[2:], patches, strict=True)
        )


WITH_TOKENS: dict[str, tuple[str, int, str, bool]] = {
    'vit': ('ViTModel', 1, 'layernorm', True),
    'dinov2': ('Dinov2Model', 1, 'layernorm', True),
    'dinov2_with_registers': ('Dinov2WithRegistersModel', 1, 'layernorm', True),
    'dinov3_vit': ('DINOv3ViTModel', 1, 'norm', True),
    'clip_vision_model': ('CLIPVisionModel', 1, 'post_layernorm', False),
    'siglip_vision_model': ('SiglipVisionModel', 0, 'post_layernorm', True),
    'beit': ('BeitModel', 1, 'layernorm', True),
    'videomae': ('VideoMAEModel', 0, 'layernorm', True),
    'vjepa2': ('VJEPA2Model', 0, 'encoder.layernorm', True),
}
"""By ``model_type``: class, class tokens, final norm, whether ``last_hidden_state`` has
been through it."""
WITH_MAPS = {'segformer': 'SegformerModel'}
"""Classes by ``model_type`` whose recorded states are maps of stages."""
CALL: dict[str, dict[str, Any]] = {
    'vit': {'interpolate_pos_encoding': True},
    'clip_vision_model': {'interpolate_pos_encoding': True},
    'siglip_vision_model': {'interpolate_pos_encoding': True},
    'beit': {'interpolate_pos_encoding': True},
    'vjepa2': {'skip_predictor': True},
}
TOWERS = {'clip': 'clip_vision_model', 'siglip': 'siglip_vision_model'}
"""Models of images and text, by the type of their image tower."""
BUILD: dict[str, dict[str, Any]] = {
    'vit': {'add_pooling_layer': False},
    'beit': {'add_pooling_layer': False},
}
"""What is left out of a backbone."""
UNREAD = re.compile(r'(^|\.)(pooler|predictor|mask_token)(\.|$)|^head\.')
"""Tensors that no output here is made of, so that files may come without them."""


def build_model(
    name_or_config: str | os.PathLike | Mapping[str, Any],
    pretrained: bool,
    model_args: dict[str, Any],
) -> nn.Module:
    """The model of a name, a folder or a config.

    Raises:
        PETLError: See :class:`HFBackbone`.
    """
    try:
        transformers = importlib.import_module('transformers')
    except ModuleNotFoundError as error:
        raise PETLError(EXTRA) from error
    if pretrained and isinstance(name_or_config, Mapping):
        raise PETLError(
            'a config as a dict has no weights; set pretrained=False of '
            'mmpetl.HFBackbone, and name a file as checkpoint of mmpetl.PETLBackbone'
        )
    config = _config(transformers, name_or_config, model_args)
    kind = config.model_type
    if kind not in (*WITH_TOKENS, *WITH_MAPS):
        raise PETLError(
            f'a model of type {kind!r} gives no plain sequence of tokens and no maps; '
            f'mmpetl.HFBackbone knows {", ".join((*WITH_TOKENS, *WITH_MAPS))}'
        )
    if kind in WITH_MAPS:
        config.reshape_last_stage = True
        cls = getattr(transformers, WITH_MAPS[kind])
    else:
        cls = getattr(transformers, WITH_TOKENS[kind][0])
    build = BUILD.get(kind, {})
    if not pretrained:
        return cls(config, **build)
    try:
        # Sizes that differ are listed below, each with both sides.
        model, info = cls.from_pretrained(
            name_or_config,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            # Else that of the file, which heads and inputs do not have.
            dtype=model_args.get('dtype', 'float32'),
            **build,
        )
    except OSError as error:
        raise PETLError(_first_line(name_or_config, error)) from error
    except (RuntimeError, SafetensorError) as error:
        said = str(error).strip().partition('\n')[0]
        raise PETLError(
            f'transformers cannot load the weights at {name_or_config!r}: {said}; '
            f'{ANOTHER_WAY}'
        ) from error
    _check_filled(model, name_or_config, info)
    return model


ANOTHER_WAY = (
    'give a folder or a name with the weights of this model, or set pretrained=False '
    'and name the file as checkpoint of mmpetl.PETLBackbone, which reads more names'
)


def _check_filled(model: nn.Module, source: Any, info: Mapping[str, Any]) -> None:
    """Refuse a model that transformers has drawn a part of, which it only warns of.

    Args:
        model: As it was loaded.
        source: Where from, for messages.
        info: What ``from_pretrained`` says of it: names in ``missing_keys``, names and
            both shapes in ``mismatched_keys``, lines in ``error_msgs``.

    Raises:
        PETLError: The weights lack what is read here, or have it in another size.
    """
    who = type(model).__name__

    def is_read(name: str) -> bool:
        return not UNREAD.search(name) and not may_lack(model, name)

    for name, there, here in sorted(info['mismatched_keys']):
        if is_read(name):
            raise PETLError(
                f'{name} has shape {tuple(there)} in the weights at {source!r} and '
                f'{tuple(here)} in {who}; {ANOTHER_WAY}'
            )
    lost = sorted(filter(is_read, info['missing_keys']))
    if lost:
        names = {name for name in model.state_dict() if is_read(name)}
        raise PETLError(
            f'the weights at {source!r} lack {len(lost)} of {len(names)} tensors of '
            f'{who} ({lost[0]} is one), which would be random; {ANOTHER_WAY}'
        )
    if info.get('error_msgs'):
        said = str(info['error_msgs'][0]).strip().partition('\n')[0]
        raise PETLError(f'{who} is not filled from {source!r}: {said}; {ANOTHER_WAY}')


def _config(
    transformers: Any,
    source: str | os.PathLike | Mapping[str, Any],
    model_args: dict[str, Any],
) -> Any:
    if isinstance(source, Mapping):
        kind = source.get('model_type')
        if kind is None:
            raise PETLError(
                'a config of mmpetl.HFBackbone names its model_type, as in '
                "dict(model_type='dinov2', hidden_size=384)"
            )
        given = {k: v for k, v in source.items() if k != 'model_type'} | model_args
        kind = TOWERS.get(kind, kind)
        try:
            return transformers.AutoConfig.for_model(kind, **given)
        except ValueError as error:
            raise PETLError(_first_line(kind, error)) from error
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise PETLError(_first_line(source, error)) from error
    if config.model_type in TOWERS:
        config = config.vision_config
    for name, value in model_args.items():
        if not hasattr(config, name):
            raise PETLError(
                f'the config of {source} ({config.model_type}) has no {name!r}'
            )
        setattr(config, name, value)
    return config


def _first_line(source: Any, error: Exception) -> str:
    said = str(error).strip().partition('\n')[0]
    return (
        f'transformers finds no model at {source!r}: {said} Give a folder with '
        'config.json, a name on the hub, or a config as a dict'
    )


@BACKBONES.register_module()
class MMPetlHFBackbone(SiteMap):
    """``mmpetl.HFBackbone``; the sites are those of the model inside of it."""

    host = HFBackbone

    def core(self, backbone: nn.Module) -> nn.Module:
        return backbone.model


__all__ = ['HFBackbone', 'build_model']
