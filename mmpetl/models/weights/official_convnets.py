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


def resnet_to_mm(state: Tensors, wants: set[str]) -> State:
    """A ResNet of torchvision or timm to the ``ResNet`` of OpenMMLab's packages.

    Most names are the same. timm has a stem of three convolutions (V1c, V1d) as a list
    under ``conv1``; mmdet and mmseg have it as a list under ``stem``, mmpretrain as
    three modules of a convolution and a norm. Where a stage averages on its shortcut,
    mmpretrain leaves the average out of the first stage, which has stride 1.

    Args:
        state: The file.
        wants: Names of the model.
    """
    if 'conv1.0.weight' in state:
        state = renamed(state, (r'^conv1\.', 'stem.'), (r'^bn1\.', 'stem.7.'))
    if 'stem.0.weight' in state and 'stem.0.conv.weight' in wants:
        state = renamed(
            state,
            (r'^stem\.0\.', 'stem.0.conv.'),
            (r'^stem\.1\.', 'stem.0.bn.'),
            (r'^stem\.3\.', 'stem.1.conv.'),
            (r'^stem\.4\.', 'stem.1.bn.'),
            (r'^stem\.6\.', 'stem.2.conv.'),
            (r'^stem\.7\.', 'stem.2.bn.'),
        )
    shortcut = 'layer1.0.downsample'
    if f'{shortcut}.1.running_mean' in wants and f'{shortcut}.2.weight' in state:
        state = renamed(
            state,
            (r'^layer1\.0\.downsample\.1\.', f'{shortcut}.0.'),
            (r'^layer1\.0\.downsample\.2\.', f'{shortcut}.1.'),
        )
    return dict(state)
