"""Which checkpoint of a run is the best, by the record and by no pattern of names.

``best.json`` in the work folder says it::

    {"format": 1, "best": [{"file": "best_accuracy_top1_epoch_10.pth",
     "metric": "accuracy/top1", "score": 71.5, "epoch": 10, "iter": 100}]}

It repeats what the message hub of the run's newest checkpoint has on record, and is
made anew from it when a run is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.engine.files import AtomicLocalBackend

NAME = 'best.json'
FORMAT = 1


class Best(msgspec.Struct, forbid_unknown_fields=True):
    """One best checkpoint.

    Attributes:
        file: Its name in the folder of checkpoints.
        metric: What it is the best of.
        score: The metric; None where it was not finite.
        epoch: Epochs that it has been trained.
        iter: Iterations that it has been trained.
    """

    file: str
    metric: str
    score: float | None
    epoch: int | None = None
    iter: int | None = None


class BestFile(msgspec.Struct, forbid_unknown_fields=True):
    """All that ``best.json`` holds; ``best`` is in the order of ``save_best``."""

    format: int
    best: list[Best]


def write_best(folder: str | os.PathLike, best: Sequence[Best]) -> None:
    """Write the record, whole or not at all; without a best there is none."""
    path = Path(folder) / NAME
    if not best:
        path.unlink(missing_ok=True)
        return
    facts: Any = msgspec.to_builtins(BestFile(FORMAT, list(best)))
    AtomicLocalBackend().put_text(json.dumps(facts, allow_nan=False) + '\n', path)


def read_best(folder: str | os.PathLike) -> list[Best]:
    """The record of a work folder; empty where there is none.

    Raises:
        PETLError: It is damaged, or names a file that lies elsewhere.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return []
    record = read_json(path, BestFile, 'record of the best checkpoint', 1 << 20)
    if record.format != FORMAT:
        raise PETLError(f'{path} has format {record.format}, this mmpetl reads 1')
    for best in record.best:
        if best.file != os.path.basename(best.file) or best.file in ('', '.', '..'):
            raise PETLError(f'{path} names {best.file!r}, wanted a name in the folder')
    return record.best


def best_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The best checkpoint of a work folder by its first metric; None where none is.

    A folder that an earlier mmpetl wrote has no record. Its one ``best_*`` file is the
    best then; of several none can be told.

    Raises:
        PETLError: The record is damaged or names a file that is gone, or there are
            several files and no record.
    """
    folder = Path(folder)
    record = read_best(folder)
    if record:
        path = folder / record[0].file
        if not path.is_file():
            raise PETLError(
                f'{folder / NAME} names {path.name} as the best, which is not there; '
                'train again with --resume, or name another checkpoint'
            )
        return path
    found = sorted(folder.glob('best_*.pth'))
    if len(found) > 1:
        raise PETLError(
            f'{folder} has {len(found)} checkpoints best_*.pth and no {NAME} that says '
            'which is the best; keep that one alone'
        )
    return found[0] if found else None
