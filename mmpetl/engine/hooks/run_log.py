"""What happened in a run, line by line, while it happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpetl.core import PETLError
from mmpetl.core.boundary import Count, checked, read_bytes
from mmpetl.datasets.identity import same_reading
from mmpetl.engine.hooks.common import as_number, finite
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class RunLogHook(Hook):
    """Appends curves, validations and test readings to a file of JSON lines.

    A line is one of these; ``t`` is seconds since the hook was made::

        {"step": 40, "of": 150, "loss": 0.8, "lr": 0.001, "t": 3.1}
        {"step": 50, "val": {"accuracy/top1": 71.5}, "reads_test": false, "t": 4.0}
        {"test": {"accuracy/top1": 70.2}, "t": 9.7}

    The loss is the mean since the line before. A resumed run appends; of two lines of a
    step the later one counts.

    Args:
        path: The file.
        points: About how many lines of a loss curve to write.
    """

    # Metrics are whole when this hook sees them, and no checkpoint says yet that the
    # validation is done: a kill in between would lose the line.
    priority = 'LOW'

    def __init__(self, path: str, points: int = 50) -> None:
        self.path = Path(path)
        self.points = points
        self.started = time.perf_counter()
        self._sum: Any = 0.0
        self._count = 0

    def before_train(self, runner: Runner) -> None:
        self.every = max(1, runner.max_iters // self.points)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        # Schedulers have moved on by the end of the step.
        self._rate = float(runner.optim_wrapper.param_groups[0]['lr'])

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        loss = (outputs or {}).get('loss')
        if loss is not None:
            # Tensors are added where they are: reading one would wait for the device.
            self._sum = self._sum + (loss.detach() if hasattr(loss, 'detach') else loss)
            self._count += 1
        step = runner.iter + 1
        if step % self.every == 0 or step == runner.max_iters:
            line = {'step': step, 'of': runner.max_iters}
            if self._count:
                line['loss'] = float(self._sum) / self._count
            line['lr'] = self._rate
            self.write(line)
            self._sum, self._count = 0.0, 0

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        self.write(
            {
                'step': runner.iter,
                'val': plain_metrics(metrics or {}),
                'reads_test': same_data(runner.cfg, 'val', 'test'),
            }
        )

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        self.write({'test': plain_metrics(metrics or {})})

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line with the time."""
        if is_main_process():
            append_line(self.path, {**line, 't': self.seconds})

    @property
    def seconds(self) -> float:
        """Since the hook was made."""
        return round(time.perf_counter() - self.started, 3)


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers, as floats.

    PPT follows from a metric and a count, and is left out.
    """
    numbers = {k: as_number(v) for k, v in metrics.items() if not k.startswith('PPT/')}
    return {k: v for k, v in numbers.items() if v is not None}


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line of JSON; numbers that are not finite become null."""
    text = json.dumps(finite(line), allow_nan=False) + '\n'
    with open(path, 'ab+') as file:
        size = file.seek(0, 2)
        if size:
            # A process that was killed may have left half a line.
            file.seek(size - 1)
            if file.read(1) != b'\n':
                text = '\n' + text
        file.write(text.encode())


class Line(msgspec.Struct):
    """What a line of a run's log may hold; see :class:`RunLogHook`.

    Attributes:
        step: Steps that were trained.
        of: Steps that there are.
        loss: Mean since the line before.
        lr: Rate of the first group.
        val: A validation.
        reads_test: Whether it was one on the test set.
        last: Whether it was the one that a trial is judged by.
        test: A reading of the test set.
        t: Seconds since the attempt began.
        attempt: Number of the attempt that begins here.
        begun: When it did.
        config: Digest of its config.
        restarted: Why the files of an attempt before it were removed.
        peak_memory_bytes: The most that the run took.
        failed: What ended it.
    """

    step: Count | msgspec.UnsetType = msgspec.UNSET
    of: Count | msgspec.UnsetType = msgspec.UNSET
    loss: float | None = None
    lr: float | None = None
    val: dict[str, float | None] = {}
    reads_test: bool = False
    last: bool = False
    test: dict[str, float | None] = {}
    t: float = 0.0
    attempt: Count | msgspec.UnsetType = msgspec.UNSET
    begun: str = ''
    config: str = ''
    restarted: str = ''
    peak_memory_bytes: Count | None = None
    failed: str = ''


def read_run_log(path: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log that are whole; none where there is no file.

    Half a line is what a kill leaves, and is passed over; a line that holds something
    else than :class:`Line` is named on stderr.
    """
    path = Path(path)
    if not path.exists():
        return
    lines = read_bytes(path, 'log of a run').decode(errors='replace').split('\n')
    for number, text in enumerate(lines, 1):
        try:
            line = read_line(text, f'{path}, line {number}')
        except PETLError as error:
            print(f'left out: {error}', file=sys.stderr)
            continue
        if line is not None:
            yield line


def read_line(text: str, place: str) -> dict[str, Any] | None:
    """A line of a run's log; None for an empty one or the half that a kill left.

    Args:
        text: The line.
        place: Where it stands, for messages.

    Raises:
        PETLError: It holds something else than :class:`Line`.
    """
    try:
        line = json.loads(text, parse_constant=_none)
    except (ValueError, RecursionError):
        return None
    checked(line, Line, place)
    for first, others in TOGETHER.items():
        for other in others:
            if first in line and other not in line:
                raise PETLError(f'{place} has {first!r} and no {other!r}')
    return line


TOGETHER = {
    **dict.fromkeys(('of', 'loss', 'lr', 'val', 'reads_test', 'last'), ('step',)),
    'attempt': ('begun', 'config'),
}
"""What a line needs that has the first."""


def _none(name: str) -> None:
    raise ValueError(f'{name} is written by no run')


def same_data(config: Any, one: str, other: str) -> bool:
    """Whether two phases of a config read the same samples, however transformed."""
    nodes = [
        (config.get(f'{phase}_dataloader') or {}).get('dataset')
        for phase in (one, other)
    ]
    return same_reading(*nodes)
