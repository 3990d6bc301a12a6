"""From pictures and the name of a method to a delta, a config and a record.

A work folder holds::

    splits.json               which picture is where (:mod:`mmpetl.datasets.own.splits`)
    data/<division>/          of boxes and masks: what mmdet and mmseg read
    runs/<id>/                the runs, as those of the benchmark
    search/                   what --method auto has tried
    <method>.safetensors      the delta, with <method>.json: it names the classes
    <method>.py               the config of the run
    <method>.csv              what was said of each test picture
    <method>.html             the page

The same call goes on with a run that was stopped, and does nothing where all is done.
"""

from __future__ import annotations

import copy
import filecmp
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmpetl.apis.building import without_memory
from mmpetl.benchmark.job import run_job
from mmpetl.benchmark.job_config import METHOD, PROCESSES
from mmpetl.benchmark.records import Record
from mmpetl.benchmark.worker import tidy
from mmpetl.config.batch import check_processes
from mmpetl.config.names import method_class, methods_stem
from mmpetl.core import PETLError, build_entries, inject, with_arguments
from mmpetl.core.several import PLUS, written_out
from mmpetl.datasets.own import (
    find_boxes,
    find_masks,
    find_pictures,
    keep_splits,
    kind_of,
)
from mmpetl.datasets.own.kinds import BOXES, MASKS, PICTURES
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.models.petl_backbone import build_foreign
from mmpetl.own.boxes import BoxResults, BoxTask
from mmpetl.own.defaults import settings_for
from mmpetl.own.follow import shown
from mmpetl.own.maps import MapTrunk, map_trunk_of
from mmpetl.own.masks import MaskResults, MaskTask
from mmpetl.own.results import Results
from mmpetl.own.task import Task
from mmpetl.own.trunks import PRETRAINED, Trunk, trunk_of

BACKBONE = 'timm/vit_base_patch14_dinov2'
MIXED = {
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.loss_scale': 'dynamic',
}
"""Options of mixed precision."""
FEW = 500
"""Below so many pictures, processes that load them cost more than they save."""
WEIGHT_FILES = ('safetensors', 'json')


@dataclass(frozen=True)
class OwnRun:
    """A method that was trained on a task.

    Attributes:
        task: The task.
        record: What the run's record says.
        folder: Where the run lives.
        delta: The ``.safetensors`` file in the work folder.
        config: The config beside it.
        results: What the test pictures say.
    """

    task: Task
    record: Record
    folder: Path
    delta: Path
    config: Path
    results: Results | BoxResults | MaskResults

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.record.job.method

    @property
    def rate(self) -> float:
        """Peak rate of the training."""
        return float(self.record.job.options['optim_wrapper.optimizer.lr'])

    @property
    def page(self) -> Path:
        """Where its page lies."""
        return self.config.with_suffix('.html')


def prepare(
    data: str | Path,
    *,
    backbone: str = BACKBONE,
    weights: str = PRETRAINED,
    size: int | None = None,
    work_dir: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    augmentation: str | None = None,
    amp: bool = False,
    seed: int = 42,
    split_seed: int | None = None,
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Task:
    """Read and divide the pictures, and settle everything but the method.

    What lies in the folder says whether a classifier, a detector or a segmentor is
    trained.

    Args:
        data: A folder or CSV, see :func:`mmpetl.datasets.own.find_pictures`; a folder
            or file with boxes, see :func:`mmpetl.datasets.own.find_boxes`; or a folder
            with masks, see :func:`mmpetl.datasets.own.find_masks`.
        backbone: ``timm/NAME`` or a config, see :func:`mmpetl.own.trunk_of` and, for
            boxes and masks, :func:`mmpetl.own.map_trunk_of`.
        weights: ``pretrained``, ``random`` or a file.
        size: Side of the input in px, where it is not the model's own.
        work_dir: The work folder; ``work_dirs/own/<name of the data>`` by default.
        epochs: These four are as :func:`mmpetl.own.settings_for` has them.
        batch_size: Pictures of a step.
        lr: Peak rate.
        augmentation: ``none``, ``crop`` or ``strong``.
        amp: Whether to train in mixed precision.
        seed: Of initialisation and data order.
        split_seed: Of the draw of splits, see :func:`mmpetl.datasets.own.keep_splits`.
        workers: Processes that load pictures; None takes none for few pictures, and
            for more what cores there are, 4 at most.
        options: Dotted keys of the recipe that all methods share.

    Raises:
        PETLError: Something is wrong with pictures, names or numbers, the work folder
            is that of the pictures, or mixed precision is asked for without a GPU.
    """
    if amp and not torch.cuda.is_available():
        raise PETLError('mixed precision (amp) needs a GPU; leave it out on a CPU')
    data = Path(data).expanduser()
    name = re.sub(
        r'[^\w.-]', '_', data.resolve().stem if data.is_file() else data.resolve().name
    )
    folder = Path(work_dir) if work_dir else Path('work_dirs') / 'own' / name
    work = folder.resolve()
    if data.is_dir() and work == data.resolve():
        raise PETLError(
            f'the work folder {folder} is that of the pictures; name another, which '
            'may lie below'
        )
    kind = kind_of(data, work)
    own = {BOXES: BoxTask, MASKS: MaskTask}.get(kind, Task)
    trunk: Trunk | MapTrunk
    if kind == PICTURES:
        trunk, read = trunk_of(backbone, weights, size), None
        found = find_pictures(data, work)
    else:
        trunk = map_trunk_of(backbone, weights, size)
        read = find_boxes(data, work) if kind == BOXES else find_masks(data, work)
        found = read.found
    splits = keep_splits(found, folder / 'splits.json', split_seed)
    trained = len(splits.parts['train']) + len(splits.parts['val'])
    settings = settings_for(
        trained,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        augmentation=augmentation,
        kind=kind,
    )
    if workers is None:
        cores = os.cpu_count() or 1
        workers = 0 if trained < FEW else min(4, max(0, cores - 1))
    task = own(
        data,
        found.root,
        folder,
        splits,
        trunk,
        settings,
        seed,
        {**(MIXED if amp else {}), **(options or {})},
        workers,
    )
    if read is not None:
        task.write_data(read)
    return task


def train_own(
    task: Task,
    method: str,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> OwnRun:
    """Train a method on all training pictures, and score it once on the test pictures.

    Args:
        task: Of :func:`prepare`.
        method: Name or stem, ``lora``; or several, ``lora+vpt_deep``.
        options: Dotted config keys on top of the task's.
        say: Called with a line where one is due.

    Raises:
        PETLError: The method is unknown or cannot act in the trunk, the run cannot
            begin, another process is at work on it, or its predictions are of other
            pictures.
    """
    name = method_name(method)
    options = dict(options or {})
    check_supported(task, name, options)
    job = task.job(name, options=options)
    store = task.store
    folder = store.folder(job)
    with store.claim(job) as mine:
        if not mine:
            raise PETLError(f'another process works in {folder}; wait for it')
        record = store.read(job)
        if record is None or record.status != 'done':
            processes = check_processes(job.options.get(PROCESSES, 1))
            # Several write to a file, for this one to show.
            aside = shown(folder / 'console.log') if processes > 1 else nullcontext()
            with aside:
                record = run_job(job, folder)
            store.write(record)
            tidy(folder)
        else:
            say(f'{folder} is trained and scored already; nothing is run again')
    results = task.results_of_run(folder)
    delta, config = _published(task, name, folder, say)
    AtomicLocalBackend().put_text(results.as_csv(), delta.with_suffix('.csv'))
    return OwnRun(task, record, folder, delta, config, results)


def method_name(method: str) -> str:
    """The name of a method in the registry, of its name or stem; also of several.

    Raises:
        PETLError: There is none.
    """
    return PLUS.join(method_class(str(part)).__name__ for part in written_out(method))


def check_supported(task: Task, method: str, options: Mapping[str, Any]) -> None:
    """Raise PETLError where the trunk cannot serve a method, with the reason."""
    reason = why_not(task, [method], options)[method]
    if reason:
        raise PETLError(f'{method} cannot be trained on {task.trunk.name}: {reason}')


def why_not(
    task: Task, methods: list[str], options: Mapping[str, Any] | None = None
) -> dict[str, str | None]:
    """Why the trunk cannot serve a method, by method; None where it can.

    Each is injected into a trunk without numbers, so that models which no file
    describes are served by their layers, as a run serves them.
    """
    trunk = dict(task.trunk.backbone)
    for key in ('init_cfg', 'pretrained'):
        trunk.pop(key, None)  # sites do not hang on values
    given = {**task.options, **(options or {})}
    args = {
        key.removeprefix(METHOD): value
        for key, value in given.items()
        if key.startswith(METHOD)
    }
    with without_memory(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the run itself says them
        plain = build_foreign(trunk)
        return {
            method: _refusal(copy.deepcopy(plain), with_arguments(method, args))
            for method in methods
        }


def _refusal(trunk: nn.Module, method: Any) -> str | None:
    for entry in build_entries(method):
        if entry.method.family == 'multi_task':
            return 'it is for several tasks at once'
    try:
        inject(trunk, method)
    except PETLError as error:
        return ' '.join(str(error).split())
    return None


def _published(
    task: Task, method: str, folder: Path, say: Callable[[str], None]
) -> tuple[Path, Path]:
    """Delta and config of a run, copied to where a person finds them.

    What another run has left there goes, its page too.
    """
    out = task.folder / methods_stem(method)
    files = {f'{out}.{suffix}': folder / f'delta.{suffix}' for suffix in WEIGHT_FILES}
    files[f'{out}.py'] = folder / 'config.py'
    there = [name for name in files if Path(name).is_file()]
    if any(not filecmp.cmp(name, files[name], shallow=False) for name in there):
        page = Path(f'{out}.html')
        also = ' and its page removed' if page.is_file() else ''
        page.unlink(missing_ok=True)  # its figures are not those of this delta
        say(f'{out}.safetensors of another run is replaced{also}')
    for name, source in files.items():
        shutil.copyfile(source, name)
    return Path(f'{out}.safetensors'), Path(f'{out}.py')
