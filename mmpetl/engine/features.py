"""Features of a frozen trunk in the place of its passes: who may have them, and how.

What a linear probe reads of a picture is the same in every epoch and run, as long as
trunk, picture and preprocessing are. A loader of stored features hands on numbers of
rows in the place of pictures (:class:`StoredPipeline`); the model's preprocessor turns
them into features, and the trunk hands these on (:class:`Readers`). Samplers, random
generators, labels, head and loss run as ever.

Beside a side network the stream of the trunk is as fixed, up to the first block that a
gradient reaches. There the pictures stay, with their numbers
(:class:`NumberedPipeline`): the stem runs, and blocks hand on what they have given,
in front of the site ``block``, whose deltas run (:class:`Interior`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmpetl.core import Context, fingerprint, injections, tensor_digests
from mmpetl.core.host import STOCHASTIC_DEPTH, BlockHost
from mmpetl.datasets.fixed import drawing_step, steps_as_data
from mmpetl.datasets.identity import read_of
from mmpetl.engine.feature_files import FeatureSet, Rows
from mmpetl.version import __version__

FORMAT = 1
PACKAGES = (
    *('torch', 'torchvision', 'numpy', 'pillow', 'safetensors'),
    *('mmengine', 'mmcv', 'mmcv-lite', 'mmpretrain', 'timm', 'transformers'),
    *('opencv-python', 'opencv-python-headless'),
    *('opencv-contrib-python', 'opencv-contrib-python-headless'),
)
"""What reads pictures and computes."""

VARYING = ('Dropout', *STOCHASTIC_DEPTH, 'BatchNorm', 'InstanceNorm')
"""Parts of names of modules whose output varies in training."""


class StoredPipeline:
    """Packs the labels of a sample, and its number in the place of the picture.

    Args:
        pack: The step that packs, the last of the pipeline.
    """

    def __init__(self, pack: Callable[[dict], dict]) -> None:
        self.pack = pack
        self.transforms = [pack]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        # A number without axes, as no picture is: every collating keeps it one.
        return {**self.pack(dict(data)), 'inputs': torch.tensor(data['sample_idx'])}


class NumberedPipeline:
    """A pipeline whose samples know their numbers.

    Args:
        pipeline: The data set's own.
    """

    def __init__(self, pipeline: Callable[[dict], dict | None]) -> None:
        self.pipeline = pipeline
        self.transforms = getattr(pipeline, 'transforms', [])

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        number = data['sample_idx']
        sample = self.pipeline(data)
        if sample is not None:
            sample['data_samples'].set_metainfo({NUMBER: number})
        return sample


NUMBER = 'stored_row'
"""Name of a sample's number among what is known of its picture."""


@dataclass(frozen=True)
class Stored:
    """The features of a batch, where a trunk expects pictures."""

    value: Any


@dataclass
class Readers:
    """Lets a classifier take stored features beside pictures, and no more after.

    Attributes:
        model: The classifier.
        blocks: Paths of the blocks whose features are stored, in the backbone; empty
            where what leaves the trunk is.
        sets: Features by phase.
        specs: How what the trunk gives is put together, by phase.
    """

    model: nn.Module
    blocks: tuple[str, ...] = ()
    sets: dict[str, FeatureSet] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    _due: dict[int, list[int]] = field(default_factory=dict)
    _phase: str = ''

    def attach(self) -> None:
        """Stand in front of preprocessor and trunk; no module and no key changes."""
        self.model.data_preprocessor.forward = self._preprocess
        if not self.blocks:
            self.model.backbone.forward = self._trunk
        for index, path in enumerate(self.blocks):
            block = self.model.backbone.get_submodule(path)
            block.sublayers = Interior(self, index, block)

    def detach(self) -> None:
        """Take all of it away again."""
        for module in (self.model.data_preprocessor, self.model.backbone):
            vars(module).pop('forward', None)
        for path in self.blocks:
            vars(self.model.backbone.get_submodule(path)).pop('sublayers', None)

    def due(self, phase: str, numbers: list[int]) -> None:
        """Let each block hand on these rows in the pass that comes; of none, run."""
        self._phase = phase
        self._due = {index: numbers for index in range(len(self.blocks)) if numbers}

    def taken(self, index: int) -> Tensor | None:
        """What a block hands on, once in a pass; None where it is to run."""
        numbers = self._due.pop(index, None)
        if numbers is None:
            return None
        return self.sets[self._phase].part(index, numbers)

    def _preprocess(self, data: dict[str, Any], training: bool = False) -> Any:
        module = self.model.data_preprocessor
        run = type(module).forward
        phase = 'train' if training else 'val'
        if self.blocks:
            samples = data.get('data_samples') or ()
            known = phase in self.sets and all(NUMBER in s for s in samples)
            self.due(phase, [int(s.get(NUMBER)) for s in samples] if known else [])
            return run(module, data, training)
        numbers = _numbers(data['inputs'])
        if numbers is None:
            return run(module, data, training)
        # What it does to labels it does beside pictures of one pixel.
        blank = torch.zeros(3, 1, 1, dtype=torch.uint8)
        found = run(module, {**data, 'inputs': [blank] * len(numbers)}, training)
        parts = self.sets[phase].rows(numbers)
        parts = tuple(part.to(module.device) for part in parts)
        value = pytree.tree_unflatten(parts, self.specs[phase])
        return {**found, 'inputs': Stored(value)}

    def _trunk(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Stored):
            return x.value
        return type(self.model.backbone).forward(
            self.model.backbone, x, *args, **kwargs
        )


class Interior:
    """What lies between the two ports of a block's site ``block``, run or read."""

    def __init__(self, readers: Readers, index: int, block: nn.Module) -> None:
        self.readers = readers
        self.index = index
        self.block = block

    def __call__(self, x: Tensor, ctx: Context) -> Tensor:
        rows = self.readers.taken(self.index)
        if rows is None:
            return type(self.block).sublayers(self.block, x, ctx)
        return rows.to(x.device)


class _Recorder:
    """Runs the interior of a block and keeps what leaves it."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.given: list[Tensor] = []
        self.fixed = False

    def __call__(self, x: Tensor, ctx: Context) -> Tensor:
        if self.given:  # a delta runs the block once more, on a stream of its own
            return type(self.block).sublayers(self.block, x, ctx)
        before = _stream(ctx)
        y = type(self.block).sublayers(self.block, x, ctx)
        self.fixed = (
            _stream(ctx) == before and not x.requires_grad and not y.requires_grad
        )
        self.given.append(y.detach())
        return y


def _stream(ctx: Context) -> tuple[Any, ...]:
    """Facts of the stream that a block could change for those behind it."""
    return ctx.grid, ctx.num_prefix, ctx.num_extra, id(ctx.handed)


AROUND = ('block', 'tokens')
"""Sites of a block in front of and behind which its interior lies."""


def side_blocks(backbone: nn.Module) -> dict[str, nn.Module]:
    """Blocks with no delta inside of them and no parameter that trains, by path."""
    return {
        path: block
        for path, block in backbone.named_modules()
        if isinstance(block, BlockHost)
        and set(getattr(block._modules.get('petl'), '_modules', ())) <= set(AROUND)
        and not any(
            param.requires_grad
            for name, param in block.named_parameters()
            if not name.startswith('petl.')
        )
    }


@contextlib.contextmanager
def recording(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, _Recorder]]:
    """Record what the interiors of blocks give, meanwhile."""
    found = {path: _Recorder(block) for path, block in blocks.items()}
    for path, block in blocks.items():
        block.sublayers = found[path]
    try:
        yield found
    finally:
        for block in blocks.values():
            vars(block).pop('sublayers', None)


def _numbers(inputs: Any) -> list[int] | None:
    """Numbers of rows that stand for pictures, None where pictures are."""
    if isinstance(inputs, Tensor):
        return inputs.tolist() if inputs.ndim == 1 else None
    if isinstance(inputs, list | tuple) and inputs and inputs[0].ndim == 0:
        return [int(number) for number in inputs]
    return None


def refusal_of_model(model: nn.Module) -> str | None:
    """Why a model's features are not the same at every look; None where they are."""
    from mmpretrain.models import ClsDataPreprocessor, ImageClassifier

    if type(model) is not ImageClassifier:
        return (
            f'the model is a {type(model).__name__}, and features are stored of '
            "mmpretrain's ImageClassifier"
        )
    preprocessor = model.data_preprocessor
    if type(preprocessor) is not ClsDataPreprocessor:
        return f'its preprocessor is a {type(preprocessor).__name__}'
    if preprocessor.batch_augments is not None:
        return 'its preprocessor mixes pictures at random (batch_augments)'
    if not injections(model.backbone):
        return 'its backbone has no method, so all of it trains'
    trains = [n for n, p in model.backbone.named_parameters() if p.requires_grad]
    if trains and not side_blocks(model.backbone):
        methods = ', '.join(
            type(slot.method).__name__
            for _, _, record in injections(model.backbone)
            for slot in record.slots.values()
        )
        return (
            f'{methods} trains {len(trains)} tensors inside of the blocks of the trunk '
            f'({trains[0]} for one); LinearProbe, LST, DTL and their like do not'
        )
    if {'forward', 'train_step'} & set(vars(model)):
        return 'the model is compiled (take compile out of the config)'
    was = model.training
    model.train()
    varying = [
        name
        for name, module in model.backbone.named_modules()
        if module.training
        and 'petl' not in name.split('.')
        and any(v in type(module).__name__ for v in VARYING)
    ]
    model.train(was)
    if varying:
        return f'backbone.{varying[0]} varies in training'
    return None


def inner_set(dataset: Any) -> tuple[BaseDataset | None, str]:
    """The data set that a loader's repeats or chooses from, or why there is none."""
    while not isinstance(dataset, BaseDataset):
        inner = getattr(dataset, 'dataset', None)
        if inner is None:
            return None, f'{type(dataset).__name__} is no set of samples with numbers'
        dataset = inner
    kind = type(dataset)
    if kind.prepare_data is not BaseDataset.prepare_data:
        return None, f'{kind.__name__} prepares its samples in a way of its own'
    dataset.full_init()
    steps = getattr(dataset.pipeline, 'transforms', [])
    drawn = drawing_step(steps)
    if drawn is not None:
        return None, f'{drawn} is not known to give the same pixels in every epoch'
    if not steps or type(steps[-1]).__name__ != 'PackInputs':
        return None, 'the pipeline does not end with PackInputs'
    if 'sample_idx' not in dataset.get_data_info(0):
        return None, f'{kind.__name__} does not number its samples'
    return dataset, ''


def facts_of(
    model: nn.Module,
    dataset: BaseDataset,
    batch: int,
    training: bool,
    mixed: str,
    blocks: tuple[str, ...] = (),
) -> dict[str, Any] | None:
    """What decides the features of a data set; None where its samples name no file.

    Args:
        model: The classifier.
        dataset: As :func:`inner_set` gives it.
        batch: Pictures that go through the trunk at a time: sums in products may be
            taken in another order at another size.
        training: Whether the trunk runs as in training.
        mixed: Mixed precision of the pass; empty without.
        blocks: Blocks whose features are meant; what lies beside them is no part.
    """
    read = read_of(dataset)
    if not read.digest:
        return None
    backbone, preprocessor = model.backbone, model.data_preprocessor
    tensors = tensor_digests(
        {
            name: tensor
            for name, tensor in backbone.state_dict().items()
            if not (blocks and 'petl' in name.split('.'))
        }
    )
    (preset,) = steps_as_data([_Plain(preprocessor)])
    return {
        'format': FORMAT,
        'base': fingerprint(model),
        'trunk': _digest(sorted(tensors.items())),
        'backbone': f'{type(backbone).__module__}.{type(backbone).__qualname__}',
        'built': _digest(list(_built(backbone, bool(blocks)))),
        'blocks': list(blocks),
        'data': read.digest,
        'changed': _times(read.places.values()) if read.by == 'size' else '',
        'pipeline': steps_as_data(dataset.pipeline.transforms),
        'preprocessor': preset,
        'batch': batch,
        'training': training,
        'mixed': mixed,
        **_machine(next(iter(backbone.parameters())).device),
        'versions': _versions(),
    }


class _Plain:
    """The settings of a preprocessor, tensors as lists."""

    def __init__(self, module: nn.Module) -> None:
        for name, value in vars(module).items():
            if not name.startswith('_') or name == '_enable_normalize':
                setattr(self, name, value)
        del self.training
        for name, buffer in module.named_buffers():
            setattr(self, name, buffer.flatten().tolist())


def _built(backbone: nn.Module, without_deltas: bool) -> Iterator[Any]:
    """How a backbone is put together."""
    for _, _, record in injections(backbone):
        yield str(record.source.get('backbone'))
    for name, module in backbone.named_modules():
        if not (without_deltas and 'petl' in name.split('.')):
            yield [name, type(module).__qualname__, module.extra_repr()]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _times(paths: Any) -> str:
    """Of files that are too many to be read: when each was last written."""
    times = []
    for path in paths:
        try:
            times.append(os.stat(path).st_mtime_ns)
        except OSError:
            times.append(0)
    return _digest(times)


def _machine(device: torch.device) -> dict[str, Any]:
    """What decides how the device rounds."""
    on_gpu = device.type == 'cuda'
    name = torch.cuda.get_device_name(device) if on_gpu else ''
    return {
        'device': name or device.type,
        'capability': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'precision': torch.get_float32_matmul_precision(),
        'tf32': [
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ],
        'deterministic': [
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ],
    }


def _versions() -> dict[str, str]:
    found = {'mmpetl': __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass
class Trunk:
    """Runs pictures of a data set through a classifier's trunk, as a phase does.

    Attributes:
        model: The classifier.
        dataset: As :func:`inner_set` gives it.
        loader: The phase's own, for its workers and the way it collates.
        training: Whether it is the training.
        context: A context in which the phase runs the model.
    """

    model: nn.Module
    dataset: BaseDataset
    loader: Any
    training: bool
    context: Callable[[], Any]
    blocks: tuple[str, ...] = ()
    spec: Any = None

    def find_blocks(self, batch: int) -> None:
        """Say whose features are stored: those in front of the first gradient.

        Raises:
            ValueError: A gradient reaches the stream in front of all of them.
        """
        there = side_blocks(self.model.backbone)
        numbers = list(range(min(batch, len(self.dataset))))
        (data,) = self._data([numbers])
        with self._mode(grad=True), recording(there) as seen:
            self._pass(data)
        self.blocks = tuple(
            path
            for path, found in seen.items()
            if found.fixed and found.given and len(found.given[0]) == len(numbers)
        )
        if not self.blocks:
            raise ValueError('a gradient reaches the stream of every block')

    def batches(self, numbers: Sequence[Sequence[int]]) -> Iterator[Rows]:
        """What the trunk gives of these pictures, a batch after the other, on the CPU.

        Raises:
            ValueError: It gives something else than tensors with a row a picture.
        """
        for batch, data in zip(numbers, self._data(numbers), strict=True):
            parts = self._parts(data)
            if not parts or not all(
                isinstance(p, Tensor) and p.ndim and len(p) == len(batch) for p in parts
            ):
                raise ValueError('the trunk does not give a row for each picture')
            if any(part.requires_grad for part in parts):
                raise ValueError('what the trunk gives has a gradient')
            yield tuple(part.detach().cpu() for part in parts)

    def outputs(
        self, numbers: Sequence[int], readers: Readers, phase: str
    ) -> tuple[Rows, Rows]:
        """What leaves the backbone where blocks run, and where they hand on rows."""
        found = []
        for rows in ([], list(numbers)):
            (data,) = self._data([numbers])
            if rows:
                readers.attach()
            try:
                with self._mode(grad=self.training):
                    readers.due(phase, rows)
                    given, _ = pytree.tree_flatten(self._pass(data))
            finally:
                readers.detach()
            found.append(tuple(part.detach().cpu() for part in given))
        return found[0], found[1]

    def _data(self, numbers: Sequence[Sequence[int]]) -> Any:
        return torch.utils.data.DataLoader(
            _Numbered(self.dataset),  # type: ignore[arg-type]
            batch_sampler=list(numbers),
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            worker_init_fn=self.loader.worker_init_fn,
        )

    def _parts(self, data: Any) -> Sequence[Any]:
        if not self.blocks:
            with self._mode(grad=self.training, training=self.training):
                parts, self.spec = pytree.tree_flatten(self._pass(data))
            return parts
        backbone = self.model.backbone
        blocks = {path: backbone.get_submodule(path) for path in self.blocks}
        with self._mode(grad=self.training), recording(blocks) as seen:
            self._pass(data)
        return [found.given[0] for found in seen.values()]

    def _pass(self, data: Any) -> Any:
        run = type(self.model.data_preprocessor).forward
        with self.context():
            data = run(self.model.data_preprocessor, data, self.training)
            return self.model.backbone(data['inputs'])

    @contextlib.contextmanager
    def _mode(self, grad: bool, training: bool = False) -> Iterator[None]:
        """A mode of the model; beside a side network one in which that rests.

        A frozen trunk evaluates in either.
        """
        was = self.model.training
        self.model.train(training)
        try:
            with torch.set_grad_enabled(grad):
                yield
        finally:
            self.model.train(was)


class _Numbered:
    """Samples by number, none replaced by another."""

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        found = self.dataset.prepare_data(number)
        if found is None:
            raise ValueError(f'the transforms leave out sample {number}')
        return found


def difference(one: Rows, other: Rows) -> float:
    """The largest difference of two sets of rows; infinite where shapes differ."""
    if len(one) != len(other):
        return float('inf')
    most = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float('inf')
        if not torch.equal(a, b):
            found = (a.double() - b.double()).abs().max().item()
            # NaN beside NaN is no feature to store either.
            most = max(most, found) if found == found else float('inf')
    return most
