"""ConvNets' official names into those of OpenMMLab's classes.

Functions of tensors by name; a name that is not known passes through.
"""

from __future__ import annotations

import re

from mmpetl.models.weights.entries import State, Tensors, renamed


def convnext_to_mmpretrain(state: Tensors) -> State:
    """ConvNeXt and ConvNeXt V2, the authors' names, to ``mmpretrain.ConvNeXt``."""
    stages = {m[1] for n in state if (m := re.match(r'^stages\.(\d+)\.', n))}
    return renamed(
        state,
        (r'\.dwconv\.', '.depthwise_conv.'),
        (r'\.pwconv([12])\.', r'.pointwise_conv\1.'),
        (r'^norm\.', f'norm{len(stages) - 1}.'),
    )


def convnext_of_timm(state: Tensors) -> State:
    """A ConvNeXt of timm as its authors name it."""
    return renamed(
        state,
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d+)\.downsample\.', r'downsample_layers.\1.'),
        (r'^stages\.(\d+)\.blocks\.', r'stages.\1.'),
        (r'\.conv_dw\.', '.dwconv.'),
        (r'\.mlp\.fc([12])\.', r'.pwconv\1.'),
        (r'\.mlp\.grn\.weight$', '.grn.gamma'),
        (r'\.mlp\.grn\.bias$', '.grn.beta'),
        (r'^head\.norm\.', 'norm.'),
        (r'^head\.fc\.', 'head.'),
    )


def resnet_to_mm(state: Tensors) -> State:
    """A ResNet of torchvision or timm to the ``ResNet`` of OpenMMLab's packages.

    Names are the same but for a stem of three convolutions (V1c, V1d), where timm has a
    list of layers under ``conv1`` and OpenMMLab one under ``stem``.
    """
    if 'conv1.0.weight' not in state:
        return dict(state)
    return renamed(state, (r'^conv1\.', 'stem.'), (r'^bn1\.', 'stem.7.'))
