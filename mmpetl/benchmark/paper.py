"""What a plan would cost, on paper: samples, operations, days on a stated device.

Operations are counted, not guessed: the backbone of every recipe with every method is
built without memory, and one forward and one backward pass of one sample are counted
(:func:`mmpetl.analysis.costs.flops_of`). Autograd itself leaves out what a method does
not need. From counts to days it takes assumptions, all of which are fields of
:class:`Assumptions`, and printed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.analysis.costs import Operations, flops_of
from mmpetl.apis.building import without_memory
from mmpetl.benchmark import run_facts
from mmpetl.core import PETLError, methods_name
from mmpetl.core.calibration import Calibrated

TRAINED: Mapping[str, tuple[int, int]] = {
    'coco': (640, 864),
    'voc': (608, 800),
    'ade20k': (512, 512),
}
"""Height and width of a training picture: of COCO the mean of the short sides drawn
(480 to 800) at 3:4, of VOC its own at 600; both padded to 32."""

TESTED: Mapping[str, tuple[int, int]] = {
    'coco': (800, 1088),
    'voc': (608, 800),
    'ade20k': (512, 704),
}
"""The same of a test picture."""

ABOUT: Mapping[tuple[str, str], int] = {
    ('kinetics400', 'train'): 240_000,
    ('kinetics400', 'val'): 20_000,
}
"""Sizes that the catalogue leaves open, since copies of the set differ."""

BATCH = 2
"""Samples that are counted at once: some methods norm over the batch."""

ROIS, MASKS = 512, 128
"""Boxes per picture and stage that a cascade trains on, and those with a mask."""


FIXED = {
    'CenterCrop',
    'LoadImageFromFile',
    'LoadOnce',
    'PackInputs',
    'Resize',
    'ResizeEdge',
}
"""Steps that show a picture alike in every epoch."""


@dataclass(frozen=True)
class Assumptions:
    """From operations to days.

    Attributes:
        device: What is spoken of.
        peak_tflops: Its peak for dense products, in the precision of ``precision``.
        precision: In which products are computed.
        alone: Share of the peak that a job reaches that has the device for itself.
        packed: The same of several small jobs that share it.
        small: Samples of a step times GFLOPs of one of them (forward) below which a
            job is small, that is, leaves room for others.
        overhead: Share of time that is not the model's: data, validation, start.
    """

    device: str = 'A100 80 GB'
    peak_tflops: float = 156.0
    precision: str = 'TF32'
    alone: float = 0.35
    packed: float = 0.45
    small: float = 3000.0
    overhead: float = 0.10


@dataclass(frozen=True)
class Work:
    """What one run of a recipe does, whatever the method.

    Attributes:
        recipe: Its name.
        trained: Samples that pass through training.
        tested: Samples that are tested, views counted.
        batch: Samples of a step.
        epochs: Passes over the training data; None where it counts steps.
        fixed: Whether every epoch shows the backbone the same pixels, so that what a
            frozen trunk says of them can be kept.
    """

    recipe: str
    trained: int
    tested: int
    batch: int
    epochs: int | None
    fixed: bool

    @property
    def steps(self) -> int:
        """Steps of training."""
        return -(-self.trained // self.batch)


@dataclass(frozen=True)
class Flops:
    """Operations of one sample.

    Attributes:
        group: What recipes of one count share: backbone, input, heads.
        method: The method.
        forward: Of a forward pass of the whole model, in training.
        step: Of forward and backward pass.
        test: Of a forward pass over a test sample.
        trunk: Of the frozen trunk's forward pass, where nothing goes back through it
            and it computes what the base alone would: it can be kept. Else 0.
    """

    group: str
    method: str
    forward: int
    step: int
    test: int
    trunk: int


@dataclass
class Counter:
    """Counts operations, each distinct pair of backbone and method once."""

    found: dict[tuple[str, str], Flops] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)

    def count(self, config: Any, recipe: str, method: Any) -> Flops:
        """Operations of a recipe's model with a method.

        Args:
            config: The recipe, composed with any method.
            recipe: Its name.
            method: Config of the method, or a list of several.

        Raises:
            PETLError: The backbone cannot serve the method.
        """
        group, name = group_of(config, recipe), methods_name(method)
        if (group, name) not in self.found:
            self.found[group, name] = self._count(config, recipe, group, method)
        return self.found[group, name]

    def _count(self, config: Any, recipe: str, group: str, method: Any) -> Flops:
        node = config.model.backbone
        if group not in self.plain:
            self.plain[group] = _Plain(config, recipe)
        plain = self.plain[group]
        with without_memory(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model = tuned(plain.trunk, method, node.get('head') or ())
            settle(model)
        forward, step, kept = passes(model, plain.x)
        test = forward
        if plain.z.shape != plain.x.shape:
            test = passes(model.eval(), plain.z)[0]
        return Flops(
            group,
            methods_name(method),
            forward + plain.heads,
            # Heads train whole: gradients of weights and of inputs, as much again each.
            step + 3 * plain.heads,
            test + plain.test_heads,
            plain.forward if kept else 0,
        )


def tuned(trunk: nn.Module, method: Any, head: Iterable[str]) -> nn.Module:
    """A copy of a backbone with a method, or several, in training mode."""
    from mmpetl.core import inject

    return inject(copy.deepcopy(trunk), method, head=tuple(head)).train()


class _Plain:
    """A recipe's backbone without a method, its inputs, and what its heads take."""

    def __init__(self, config: Any, recipe: str) -> None:
        from mmpetl.config.scope import build_backbone

        node = config.model.backbone
        with without_memory(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.trunk = build_backbone(dict(node.backbone))
            self.x = torch.zeros(BATCH, *shape_of(config, recipe))
            self.z = torch.zeros(BATCH, *shape_of(config, recipe, tested=True))
            probe = tuned(self.trunk, {'type': 'LinearProbe'}, ())
        self.forward = passes(probe, self.x)[0]
        self.heads = heads_of(config, probe, self.x)
        self.test_heads = heads_of(config, probe, self.z)


def settle(model: nn.Module) -> None:
    """Say of methods that look at data first that they have done so.

    What they choose changes no size, and the flag itself cannot be read without memory.
    """
    for module in model.modules():
        if isinstance(module, Calibrated):
            module.done = torch.ones((), dtype=torch.bool, device='cpu')


def passes(model: nn.Module, x: Tensor) -> tuple[int, int, bool]:
    """Operations per sample of a forward pass, and of it with the backward pass.

    Returns:
        Both, and whether what the blocks put out depends on the picture alone: then it
        can be kept for later epochs.
    """
    from mmpetl.core import injections

    moved = []
    hooks = [
        block.register_forward_hook(
            lambda m, args, y: moved.extend(t.requires_grad for t in tensors_of(y))
        )
        for _, module, record in injections(model)
        for _, block in record.site_map.blocks(module)
    ]
    try:
        with Operations() as counter:
            total = sum(t.sum() for t in tensors_of(model(x)))
            forward = counter.total
            if total.requires_grad:
                total.backward()
            step = counter.total
    finally:
        for hook in hooks:
            hook.remove()
    model.zero_grad()
    return forward // len(x), step // len(x), not any(moved)


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, list | tuple):
        return []
    return [t for item in value for t in tensors_of(item)]


def heads_of(config: Any, trunk: nn.Module, x: Tensor) -> int:
    """Operations of necks and dense heads on one sample; 0 for a classifier's.

    Of a cascade the boxes that it trains on, in every stage.
    """
    from mmengine.registry import MODELS

    from mmpetl.config.scope import scope_of

    node = config.model
    if not any(key in node for key in ('decode_head', 'bbox_head', 'roi_head')):
        return 0
    with scope_of(config), without_memory(), torch.no_grad():
        maps = trunk(x)

        def build(key: str) -> nn.Module:
            return MODELS.build(copy.deepcopy(node[key]))

        total = 0
        if node.get('neck'):
            neck = build('neck')
            total += flops_of(lambda: neck(maps))
            maps = neck(maps)
        for key in ('decode_head', 'auxiliary_head', 'bbox_head', 'rpn_head'):
            if node.get(key):
                head = build(key).eval()  # one picture has no batch to normalise by
                total += flops_of(lambda h=head: h(maps))
        total //= len(x)
        if node.get('roi_head'):
            total += _cascade(build('roi_head'))
    return total


def _cascade(head: nn.Module) -> int:
    total = 0
    for stage in head.bbox_head:
        boxes = torch.zeros(
            ROIS, stage.in_channels, *stage.roi_feat_size, device='meta'
        )
        total += flops_of(lambda s=stage, b=boxes: s(b))
    for stage in head.mask_head:
        maps = torch.zeros(MASKS, stage.in_channels, 14, 14, device='meta')
        total += flops_of(lambda s=stage, m=maps: s(m))
    return total


def group_of(config: Any, recipe: str) -> str:
    """What recipes share whose samples cost the same: backbone, input, heads."""
    shape = 'x'.join(map(str, shape_of(config, recipe)[1:]))
    return f'{run_facts.backbone_of(config)}, {shape}, {config.model.type}'


def shape_of(config: Any, recipe: str, tested: bool = False) -> tuple[int, ...]:
    """Shape of one sample as the backbone takes it: (3, H, W) or (3, T, H, W)."""
    sides = (TESTED if tested else TRAINED).get(recipe)
    sides = sides or run_facts.resolution_of(config)
    if sides is None:
        raise PETLError(f'the recipe {recipe} does not say how large its pictures are')
    frames = _sampling(config).get('clip_len')
    return (3, frames, *sides) if frames else (3, *sides)


def _sampling(config: Any) -> Mapping[str, Any]:
    """The step that draws the frames of a test clip; empty for pictures."""
    from mmpetl.config.nodes import test_pipeline

    for step in test_pipeline(config):
        if str(step.get('type')).endswith('SampleFrames'):
            return step
    return {}


def work_of(config: Any, recipe: str) -> Work:
    """Samples and steps of one run of a recipe."""
    from mmpetl.config.nodes import test_pipeline

    task, _ = run_facts.task_of(recipe, config)
    train, test = _sizes(config, task)
    views = int(_sampling(config).get('num_clips') or 1)
    crops = [str(s.get('type')) for s in test_pipeline(config)]
    views *= 3 if 'ThreeCrop' in crops else 10 if 'TenCrop' in crops else 1
    loop = config.train_cfg
    base = (config.get('auto_scale_lr') or {}).get('base_batch_size')
    batch = base or config.train_dataloader.batch_size
    epochs = loop.get('max_epochs')
    trained = epochs * train if epochs else loop['max_iters'] * batch
    return Work(recipe, trained, views * test, batch, epochs, _fixed(config))


def _sizes(config: Any, task: str) -> tuple[int, int]:
    """Samples of an epoch and of the test set, from the catalogue."""
    from mmpetl.datasets.catalog import CATALOG

    facts = CATALOG.get(task)
    if facts is None:
        raise PETLError(f'the catalogue does not know the size of {task!r}')
    sizes = {s.name: s.size or ABOUT.get((task, s.name)) for s in facts.splits}
    node = config.train_dataloader.dataset
    train = next(
        n
        for n in (
            sizes.get(str(node.get('split'))),
            sizes.get('train'),
            sum(n for name, n in sizes.items() if name.startswith('trainval')) or None,
        )
        if n
    )
    test = next(
        sizes[n] for n in ('test', 'test2007', 'val') if sizes.get(n)
    )  # of those that a recipe tests on, by their usual order
    return train * int(node.get('times') or 1), test


def _fixed(config: Any) -> bool:
    """Whether training pictures look the same in every epoch."""
    pipeline = config.train_dataloader.dataset.get('pipeline') or ()
    steps = [str(step.get('type')).rpartition('.')[2] for step in pipeline]
    return bool(steps) and set(steps) <= FIXED


@dataclass(frozen=True)
class Cost:
    """What all runs of a group and a method take, on paper.

    Attributes:
        runs: How many.
        steps: Training steps of all of them.
        flops: Operations of all of them, tests included.
        days: On the assumed device, one job after another.
        packed_days: Small jobs sharing it.
        kept_days: As packed, and what a frozen trunk says of a picture kept.
    """

    runs: int = 0
    steps: int = 0
    flops: float = 0.0
    days: float = 0.0
    packed_days: float = 0.0
    kept_days: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        mine, others = vars(self), vars(other)
        return Cost(**{key: mine[key] + others[key] for key in mine})


def cost_of(work: Work, flops: Flops, seeds: int, given: Assumptions) -> Cost:
    """What the runs of a pair take.

    Args:
        work: What one run does.
        flops: Operations of a sample.
        seeds: Runs of the pair.
        given: From operations to days.
    """
    train, test = float(work.trained * flops.step), float(work.tested * flops.test)
    saved = 0.0
    if work.fixed and work.epochs and flops.trunk:
        # Each picture passes the trunk once; the seeds see the same pictures.
        passes_saved = work.trained - work.trained / work.epochs / seeds
        saved = passes_saved * flops.trunk
    small = work.batch * flops.forward / 1e9 < given.small
    rate = given.peak_tflops * 1e12 * 86400 * (1 - given.overhead)
    packed = given.packed if small else given.alone
    total = train + test
    return Cost(
        seeds,
        seeds * work.steps,
        seeds * total,
        seeds * total / (rate * given.alone),
        seeds * total / (rate * packed),
        seeds * (total - saved) / (rate * packed),
    )


def sum_of(costs: Sequence[Cost]) -> Cost:
    """All of them together."""
    return sum(costs, Cost())
