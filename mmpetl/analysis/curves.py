"""What runs have logged, and curves of it."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpetl.analysis import charts
from mmpetl.core import PETLError, suggest

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""

WARMUP = 5
"""Steps of a run that its mean time leaves out."""


def read_log(run: str | os.PathLike) -> dict[str, Curve]:
    """What MMEngine has logged of a run, by key: ``loss``, ``accuracy/top1``.

    A run that was resumed has a log for each part. They are put together; of steps that
    were taken twice, the later ones count. A run that began anew in the folder of
    another stands for itself.

    Args:
        run: Work folder, or a ``scalars.json``, which is read alone.

    Raises:
        PETLError: There is no log, or a line of it cannot be read.
    """
    path = Path(run)
    logs = [path]
    if path.is_dir():
        # Folders are named by the time at which they were made.
        logs = sorted(path.glob('*/vis_data/scalars.json'))
        if not logs:
            raise PETLError(f'{run} holds no <time>/vis_data/scalars.json of a run')
    elif not path.is_file():
        raise PETLError(f'there is no folder of a run, and no log, at {run}')
    found: dict[str, Curve] = {}
    for log in logs:
        new = _read(log)
        found = _joined(found, new) if _goes_on(log, found, new) else new or found
    if not found:
        raise PETLError(f'{logs[-1]} has logged nothing yet')
    return found


def _goes_on(log: Path, old: dict[str, Curve], new: dict[str, Curve]) -> bool:
    """Whether a log is of the same run as the logs before it.

    The config beside it says whether to resume, which a run that finds no checkpoint
    does not; so its first steps are looked at, too.
    """
    config = log.with_name('config.py')
    resumes = None
    if config.is_file():
        resumes = re.search('^resume = (?!False)', config.read_text('utf-8'), re.M)
        if not resumes:
            return False
    shared = old.keys() & new.keys()
    later = any(new[key][0][0] > old[key][0][0] for key in shared)
    return later or bool(resumes and not shared)


def _joined(old: dict[str, Curve], new: dict[str, Curve]) -> dict[str, Curve]:
    """The curves of a log behind those of the logs before it."""
    found = dict(old)
    for key, (steps, values) in new.items():
        before = zip(*old.get(key, ((), ())), strict=True)
        kept = [(step, value) for step, value in before if step < steps[0]]
        found[key] = (
            [*(step for step, _ in kept), *steps],
            [*(value for _, value in kept), *values],
        )
    return found


def _read(path: Path) -> dict[str, Curve]:
    """The curves of one log; a last line that was cut off is left out."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    text = path.read_text('utf-8')
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step = row['step']
            numbers = {
                k: float(v)
                for k, v in row.items()
                if isinstance(v, int | float) and k not in ('step', 'iter', 'epoch')
            }
        except (AttributeError, KeyError, TypeError, ValueError):
            if 1 < number == len(lines) and not text.endswith('\n'):
                break
            raise PETLError(f'line {number} of {path} is no line of a log') from None
        for key, value in numbers.items():
            steps, values = found.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)
    return found


def choose(log: Mapping[str, Curve], keys: Sequence[str], run: Any) -> dict[str, Curve]:
    """The curves of some keys.

    Raises:
        PETLError: The run has logged no such key.
    """
    for key in keys:
        if key not in log:
            raise PETLError(
                f'{run} has logged no {key!r}.{suggest(key, log)} '
                f'There are: {", ".join(sorted(log))}'
            )
    return {key: log[key] for key in keys}


def summary(log: Mapping[str, Curve]) -> list[str]:
    """A line for each key: values logged, first, least, greatest, last."""
    lines = [
        f'{"key":28}{"values":>8}{"first":>12}{"least":>12}{"most":>12}{"last":>12}'
    ]
    for key, (_, values) in sorted(log.items()):
        known = [value for value in values if not math.isnan(value)] or values
        numbers = (values[0], min(known), max(known), values[-1])
        row = ''.join(f'{number:>12.5g}' for number in numbers)
        lines.append(f'{key:28}{len(values):>8}{row}')
    if 'time' in log:
        times = log['time'][1]
        settled = times[WARMUP:] or times
        lines.append(f'mean time of a step: {statistics.fmean(settled):.4g} s')
    return lines


def draw_curves(
    panels: Mapping[str, Mapping[str, Curve]],
    out: str | os.PathLike,
    title: str,
    section: str = 'Logs',
) -> Path:
    """A panel for each key with a curve for each run, and words beside the picture."""
    if Path(out).suffix != '.png':
        raise PETLError(f'curves are drawn as .png, and {out} is none')
    figure, axes = charts.new_figure(8, 3.2 * len(panels), rows=len(panels))
    said = []
    for axis, (key, curves) in zip(axes[:, 0], panels.items(), strict=True):
        styles = charts.distinct(len(curves))
        for (name, (steps, values)), (colour, marker) in zip(
            curves.items(), styles, strict=True
        ):
            few = marker if len(values) < 40 else None
            axis.plot(steps, values, color=colour, marker=few, ms=4, label=name)
            said.append(
                f'{key} of {name} goes from {values[0]:.4g} to {values[-1]:.4g}'
            )
        axis.set_ylabel(key)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[-1, 0].set_xlabel('step')
    return charts.save_figure(
        figure,
        out,
        title=title,
        caption=f'{", ".join(panels)} by step, as logged or set.',
        alt=f'{"; ".join(said)}.',
        section=section,
    )
