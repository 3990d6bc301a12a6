"""One backbone, several dense tasks: a head and a loss for each.

Heads concatenate the maps of all stages at the finest resolution and mix them by two
1 x 1 convolutions, as the decoders of public multi-task code do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from mmpetl.core import PETLError, is_several, registered_methods, suggest
from mmpetl.core.several import written_out
from mmpetl.core.tasks import check_tasks, task_features, task_switch
from mmpetl.registry import MODELS

Samples = Sequence[BaseDataElement]


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing to (H, W)."""
    return F.interpolate(maps, size, mode='bilinear', align_corners=False)


class DenseHead(BaseModule):
    """Maps of several stages to one map of ``out_channels``.

    A subclass says what the loss is and what a prediction is.

    Args:
        in_channels: Channels of the maps that the backbone gives, finest first.
        channels: Channels between the two convolutions.
        out_channels: Channels of the output.
        loss_weight: Factor of the loss.
    """

    truth: str
    """Field of a sample that holds the annotation."""
    field: str
    """Field of a sample that takes the prediction."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        out_channels: int,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.loss_weight = loss_weight
        self.mix = nn.Conv2d(sum(in_channels), channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.out = nn.Conv2d(channels, out_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Scores at the resolution of the finest map, (B, out_channels, h, w).

        Raises:
            PETLError: The backbone gives other maps than the head was made for.
        """
        widths = tuple(maps.shape[1] for maps in features)
        if widths != self.in_channels:
            raise PETLError(
                f'{type(self).__name__} has in_channels={list(self.in_channels)}, the '
                f'backbone gives {list(widths)}; name these'
            )
        size = features[0].shape[-2:]
        maps = [features[0], *(resize(m, size) for m in features[1:])]
        return self.out(F.relu(self.norm(self.mix(torch.cat(maps, dim=1)))))

    def loss(self, scores: Tensor, samples: Samples) -> Tensor:
        """The weighted loss of a batch."""
        for sample in samples:
            if self.truth not in sample:
                raise PETLError(
                    f'{type(self).__name__} needs {self.truth} in every sample; load '
                    'and pack it in the training pipeline'
                )
        truth = torch.stack([getattr(s, self.truth).data for s in samples])
        return self.loss_weight * self.compare(resize(scores, truth.shape[-2:]), truth)

    def compare(self, scores: Tensor, truth: Tensor) -> Tensor:
        """Mean loss over the pixels that count; (B, C, H, W) and (B, 1, H, W)."""
        raise NotImplementedError

    def decide(self, scores: Tensor) -> Tensor:
        """A prediction from the scores of one image, (C, H, W) -> (1, H, W)."""
        raise NotImplementedError


@MODELS.register_module()
class SegmentationHead(DenseHead):
    """Labels by cross-entropy.

    Args:
        in_channels: Channels of the maps that the backbone gives, finest first.
        channels: Channels between the two convolutions.
        num_classes: Number of labels.
        loss_weight: Factor of the loss.
        ignore_index: Label of the pixels that do not count.
    """

    truth = 'gt_sem_seg'
    field = 'pred_sem_seg'

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        loss_weight: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(in_channels, channels, num_classes, loss_weight)
        self.ignore_index = ignore_index

    def compare(self, scores: Tensor, truth: Tensor) -> Tensor:
        labels = truth[:, 0]
        total = F.cross_entropy(
            scores, labels, ignore_index=self.ignore_index, reduction='sum'
        )
        return total / (labels != self.ignore_index).sum().clamp(min=1)

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(dim=0, keepdim=True)


@MODELS.register_module()
class DepthHead(DenseHead):
    """Depth in metres by its mean absolute error.

    Args:
        in_channels: Channels of the maps that the backbone gives, finest first.
        channels: Channels between the two convolutions.
        loss_weight: Factor of the loss.
        padding: Value that a batch is padded with. It counts as no reading, as 0 does.
    """

    truth = 'gt_depth_map'
    field = 'pred_depth_map'

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        loss_weight: float = 1.0,
        padding: float = 255.0,
    ) -> None:
        super().__init__(in_channels, channels, 1, loss_weight)
        self.padding = padding

    def compare(self, scores: Tensor, truth: Tensor) -> Tensor:
        seen = (truth > 0) & (truth != self.padding)
        gap = (scores - truth).abs() * seen
        return gap.sum() / seen.sum().clamp(min=1)

    def decide(self, scores: Tensor) -> Tensor:
        return scores


@MODELS.register_module()
class MultiTaskModel(BaseModel):
    """A shared backbone and a head per task.

    A multi-task method of the backbone gets the names of the heads as its tasks, unless
    it names its own. Where the method knows of no tasks, all heads read one feature.

    Args:
        backbone: Config of a ``mmpetl.PETLBackbone`` whose outputs are maps.
        heads: Config of a head, by task.
        data_preprocessor: Config of a preprocessor.
        init_cfg: As MMEngine takes it.

    Raises:
        PETLError: There is no head, or the method's tasks are not those of the heads.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        heads: Mapping[str, Mapping[str, Any]],
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        tasks = check_tasks(self, heads)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(with_tasks(backbone, tasks))
        self.heads = nn.ModuleDict(
            {task: MODELS.build(dict(head)) for task, head in heads.items()}
        )
        switch = task_switch(self.backbone)
        if switch is not None and set(switch.tasks) != set(heads):
            raise PETLError(
                f'the method has {len(switch.tasks)} tasks '
                f'({", ".join(switch.tasks)}), the model has heads for {len(heads)} '
                f'({", ".join(heads)}); name the same, or leave tasks out of the method'
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.heads)

    def scores(
        self, inputs: Tensor, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """What the heads give, by task.

        Args:
            inputs: (B, 3, H, W), preprocessed.
            tasks: Only these, all by default.

        Raises:
            PETLError: A task has no head.
        """
        tasks = self.tasks if tasks is None else tuple(tasks)
        for task in tasks:
            if task not in self.heads:
                raise PETLError(
                    f'unknown task {task!r}.{suggest(task, self.tasks)} '
                    f'The model has: {", ".join(self.tasks)}'
                )
        features = task_features(self.backbone, inputs, tasks)
        return {task: self.heads[task](features[task]) for task in tasks}

    def forward(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Scores by task (``tensor``), losses (``loss``) or samples (``predict``).

        Predictions have the size of the original image and lie in the samples'
        ``pred_sem_seg`` and ``pred_depth_map``.
        """
        scores = self.scores(inputs)
        if mode == 'tensor':
            return scores
        if mode == 'loss':
            return {
                f'loss_{task}': self.heads[task].loss(score, data_samples)
                for task, score in scores.items()
            }
        if mode != 'predict':
            raise PETLError(f"mode is 'tensor', 'loss' or 'predict', got {mode!r}")
        for task, score in scores.items():
            head = self.heads[task]
            full = resize(score, inputs.shape[-2:])
            for sample, own in zip(data_samples, full, strict=True):
                height, width = sample.img_shape[:2]
                own = resize(own[None, :, :height, :width], sample.ori_shape[:2])[0]
                sample.set_data({head.field: PixelData(data=head.decide(own))})
        return data_samples


def with_tasks(backbone: Mapping[str, Any], tasks: tuple[str, ...]) -> dict[str, Any]:
    """The backbone's config, with tasks for a multi-task method that names none."""
    config = dict(backbone)
    method = config.get('method')
    if isinstance(method, str | Mapping | list | tuple):
        told = [_told(entry, tasks) for entry in written_out(method)]
        config['method'] = told if is_several(method) else told[0]
    return config


def _told(method: Any, tasks: tuple[str, ...]) -> Any:
    method = {'type': method} if isinstance(method, str) else method
    if isinstance(method, Mapping):
        name = str(method.get('type')).rpartition('.')[2]
        cls = registered_methods().get(name)
        if cls is not None and cls.family == 'multi_task' and 'tasks' not in method:
            return {**method, 'tasks': tasks}
    return method
