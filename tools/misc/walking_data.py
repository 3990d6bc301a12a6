"""Drawn data in the structures that models of upstream train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import Tensor, nn

SIDE = 128
"""Pictures are SIDE x SIDE where a model does not ask for another size."""


def drawn_batch(package: str, config: Config, model: nn.Module) -> Any:
    """Two samples, as the data loader of a config would give them."""
    pre = str((config.model.get('data_preprocessor') or {}).get('type'))
    if 'Track' in pre:
        return _video(config, model)
    kind = str(config.model.get('of') or config.model.get('type'))
    if 'Classifier' in kind:
        package = 'mmpretrain'
    elif 'DetData' in pre:
        package = 'mmdet'
    for part in model.modules():  # what a hook of upstream tells some heads
        if getattr(part, 'epoch', 0) is None:
            part.epoch = 0
    MessageHub.get_current_instance().update_info('iter', 0)  # the Runner, others
    return {
        'mmpretrain': _classification,
        'mmseg': _segmentation,
        'mmdet': _detection,
        'mmaction': _action,
    }[package](config, model)


def side_of(config: Config, default: int = SIDE) -> int:
    """The size that a model is built for."""
    backbone = config.model.backbone
    size = backbone.get('img_size', default)
    return size[0] if isinstance(size, list | tuple) else int(size)


def picture(channels: int, *extents: int) -> Tensor:
    """(channels, *extents) of bytes."""
    return torch.randint(0, 256, (channels, *extents), dtype=torch.uint8)


def find(node: Any, key: str) -> Any:
    """The first value of a key anywhere in a config."""
    if isinstance(node, Mapping):
        if key in node:
            return node[key]
        node = node.values()
    elif not isinstance(node, list | tuple):
        return None
    for child in node:
        found = find(child, key)
        if found is not None:
            return found
    return None


def _classification(config: Config, model: nn.Module) -> Any:
    from mmpretrain.structures import DataSample, MultiTaskDataSample

    kind = str(config.model.backbone.get('type'))
    fixed = any(word in kind for word in ('Conv', 'ResNet', 'VGG', 'Net'))
    side = side_of(config, 64 if fixed and 'LeNet' not in kind else 224)
    if 'LeNet' in kind:
        side = 32
    channels = config.model.backbone.get('in_channels', 1 if 'LeNet' in kind else 3)
    classes = find(config.model.get('head', {}), 'num_classes') or 2
    samples = []
    for _ in range(2):
        sample = DataSample()
        if 'MultiTask' in str(config.model.get('head', {}).get('type', '')):
            sample = MultiTaskDataSample()
        sample.set_gt_label(int(torch.randint(classes, ())))
        samples.append(sample)
    return {
        'inputs': [picture(channels, side, side) for _ in samples],
        'data_samples': samples,
    }


def _segmentation(config: Config, model: nn.Module) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    side = side_of(config)
    if find(config.model.get('decode_head', {}), 'type') == 'LRASPPHead':
        side = 512  # it pools windows of 49 x 49 at a stride of 8
    pre = config.model.get('data_preprocessor') or {}
    if pre.get('size') is not None:
        pre['size'] = (side, side)
        model.data_preprocessor.size = (side, side)
    channels = len(pre.get('mean') or '123')  # 6: two pictures in one
    classes = find(config.model.get('decode_head', {}), 'num_classes') or 2
    samples = []
    for _ in range(2):
        sample = SegDataSample()
        labels = torch.randint(classes, (1, side, side))
        sample.gt_sem_seg = PixelData(data=labels)
        edges = torch.randint(2, (1, side, side))
        sample.gt_edge_map = PixelData(data=edges)
        shape = (side, side)
        sample.set_metainfo(
            {'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape}
        )
        samples.append(sample)
    return {
        'inputs': [picture(channels, side, side) for _ in samples],
        'data_samples': samples,
    }


def _detection(config: Config, model: nn.Module) -> Any:
    from mmdet.testing import demo_mm_inputs
    from mmengine.structures import InstanceData

    text = str(
        config.model.to_dict() if hasattr(config.model, 'to_dict') else config.model
    )
    panoptic = 'anoptic' in text or 'semantic_head' in text
    masks = any(
        w in text
        for w in (
            'mask_head',
            'MaskFormer',
            'Mask2Former',
            'SOLO',
            'Yolact',
            'CondInst',
            'RTMDetIns',
            'with_mask',
            'PointRend',
            'DINOv',
            'mask',
        )
    )
    side = 320 if 'SSD' in text else side_of(config)
    batch = demo_mm_inputs(
        2,
        [(3, side, side)] * 2,
        num_items=[2, 3],
        num_classes=2,
        with_mask=masks,
        with_semantic=panoptic,
        use_box_type=True,
    )
    _fit_labels(config, batch['data_samples'])
    if 'roi_head' in config.model and not config.model.get('rpn_head'):
        for sample in batch['data_samples']:  # proposals that a file would bring
            sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes.tensor)
            sample.proposals.scores = torch.ones(len(sample.proposals))
    if config.model.get('language_model') is not None:
        for sample in batch['data_samples']:
            sample.text, sample.custom_entities = ('cat', 'dog'), True
    return batch


def _fit_labels(config: Config, samples: list) -> None:
    """Class 0 where a model knows one class only."""
    if find(config.model, 'num_classes') == 1:
        for sample in samples:
            sample.gt_instances.labels.zero_()


def _video(config: Config, model: nn.Module) -> Any:
    from mmdet.testing import demo_track_inputs

    return demo_track_inputs(
        batch_size=1,
        num_frames=2,
        key_frames_inds=[0],
        image_shapes=(3, SIDE, SIDE),
        num_items=[2],
        num_classes=2,
        with_mask='mask' in str(config.model).lower(),
    )


def _action(config: Config, model: nn.Module) -> Any:
    from mmaction.structures import ActionDataSample

    side = side_of(config, 112)
    kind = str(config.model.get('of') or config.model.get('type'))
    backbone = config.model.backbone
    name = str(backbone.get('type'))
    side = 224 if 'timm.' in name or 'UniFormer' in name or 'Swin' in name else side
    side = backbone.get('input_resolution') or side
    channels = backbone.get('in_channels') or 3
    classes = find(config.model.get('cls_head', {}), 'num_classes') or 2
    keys = ('num_frames', 'num_segments', 't_size')
    frames = next((backbone[key] for key in keys if backbone.get(key)), 8)
    frames = 16 if name == 'C3D' else frames  # what its linear layers are made for
    if 'RCNN' in kind:
        return _actions_in_boxes(config, side, frames)
    samples, inputs = [], []
    for _ in range(2):
        sample = ActionDataSample()
        sample.set_gt_label(int(torch.randint(classes, ())))
        samples.append(sample)
        if 'Recognizer2D' in kind:
            inputs.append(picture(frames, channels, side, side))
        else:
            clip = picture(channels, max(frames, 8), side, side)
            inputs.append(clip.unsqueeze(0))
    return {'inputs': inputs, 'data_samples': samples}


def _actions_in_boxes(config: Config, side: int, frames: int) -> Any:
    """Two clips, and two people in each with two actions, as AVA has them."""
    from mmaction.structures import ActionDataSample
    from mmengine.structures import InstanceData

    classes = find(config.model.get('roi_head', {}), 'num_classes') or 81
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.9], [0.3, 0.2, 0.9, 0.8]]) * side
    samples = []
    for _ in range(2):
        labels = torch.zeros(2, classes)
        labels[:, 1:3] = 1
        sample = ActionDataSample()
        sample.gt_instances = InstanceData(bboxes=boxes.clone(), labels=labels)
        sample.proposals = InstanceData(bboxes=boxes.clone(), scores=torch.ones(2))
        sample.set_metainfo({'img_shape': (side, side), 'img_key': 'clip,0902'})
        samples.append(sample)
    clips = [picture(3, max(frames, 8), side, side) for _ in samples]
    return {'inputs': clips, 'data_samples': samples}
