"""What a verification found, kept beside the record that it is of.

``runs/<id>/verified.json`` is bound to the bytes of ``record.json``: a record that is
edited later is not verified any more. Whoever can write the folder can write this file
too, so a verdict of somebody else is worth what running the verifier again says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmpetl.benchmark.records import Job, RecordStore, write_json
from mmpetl.core import PETLError
from mmpetl.core.boundary import read_bytes, read_json
from mmpetl.core.errors import shorten

FORMAT = 1
FILE = 'verified.json'

Found = Literal['holds', 'falsified', 'unchecked']
Status = Literal['verified', 'not verified', 'falsified']
Level = Literal['files', 'delta', 'retrained']

LEVELS: Mapping[Level, str] = {
    'files': 'from the files of the run',
    'delta': 'from delta, base and data',
    'retrained': 'by training again',
}
"""How far a verification went; each goes farther than the one before."""


@dataclass(frozen=True)
class Check:
    """One thing that a record says, and what became of it.

    Attributes:
        field: What was looked at, as the record names it: ``counts.delta``, or the
            file: ``predictions.labels``.
        found: Whether it holds.
        recorded: What the record says, where it differs or could not be checked.
        recomputed: What came out instead.
        note: Why it could not be checked, or what it was held against.
    """

    field: str
    found: Found
    recorded: Any = None
    recomputed: Any = None
    note: str = ''

    @property
    def line(self) -> str:
        """A line for the screen."""
        if self.found == 'falsified':
            text = f'{self.field}: recorded {short(self.recorded)}, '
            text += f'found {short(self.recomputed)}'
            return f'{text} ({self.note})' if self.note else text
        return f'{self.field}: {self.note or self.found}'


@dataclass(frozen=True)
class Verdict:
    """What is known of one record.

    Attributes:
        id: Name of the run's folder.
        level: How far the verification went.
        checks: Every check, in order.
        record: SHA-256 of ``record.json``.
        files: SHA-256 of the other files that were read, by name.
        by: Versions that the verification ran with.
        when: ISO 8601 time, UTC.
    """

    id: str
    level: Level
    checks: tuple[Check, ...]
    record: str
    files: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[str, str] = field(default_factory=dict)
    when: str = ''
    format: int = FORMAT

    @property
    def falsified(self) -> tuple[Check, ...]:
        """Checks that came out otherwise than the record says."""
        return tuple(c for c in self.checks if c.found == 'falsified')

    @property
    def unchecked(self) -> tuple[Check, ...]:
        """What could not be looked at."""
        return tuple(c for c in self.checks if c.found == 'unchecked')

    @property
    def status(self) -> Status:
        """Verified is what has every metric recomputed and nothing left unchecked."""
        if self.falsified:
            return 'falsified'
        scored = any(c.field.startswith('metrics.') for c in self.checks)
        return 'verified' if scored and not self.unchecked else 'not verified'


def digest_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_verdict(folder: Path, verdict: Verdict) -> Path:
    """Keep a verdict beside its record, whole or not at all."""
    data = {
        'format': verdict.format,
        'id': verdict.id,
        'status': verdict.status,
        'level': verdict.level,
        'record': verdict.record,
        'files': dict(verdict.files),
        'by': dict(verdict.by),
        'when': verdict.when,
        'checks': [
            {k: v for k, v in vars(check).items() if v not in (None, '')}
            for check in verdict.checks
        ],
    }
    path = folder / FILE
    write_json(path, data)
    return path


@dataclass(frozen=True)
class _Kept:
    """What is read of a ``verified.json``."""

    format: int
    id: str
    status: Status
    level: Level
    record: str
    checks: tuple[Check, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    by: Mapping[str, str] = field(default_factory=dict)
    when: str = ''


def read_verdict(folder: str | os.PathLike) -> Verdict | None:
    """The verdict of a run's folder, None where there is none.

    Raises:
        PETLError: The file is damaged, or says another status than its checks.
    """
    path = Path(folder) / FILE
    if not os.path.lexists(path):
        return None
    kept = read_json(path, _Kept, 'verdict')
    if kept.format != FORMAT:
        raise PETLError(
            f'{path} has format {kept.format}; this mmpetl reads format {FORMAT}'
        )
    verdict = Verdict(
        kept.id, kept.level, kept.checks, kept.record, kept.files, kept.by, kept.when
    )
    if verdict.status != kept.status:
        raise PETLError(f'{path} says {kept.status}, its checks say {verdict.status}')
    return verdict


def standing_of(folder: str | os.PathLike) -> tuple[str, Verdict | None]:
    """What a table says of a run: its status, or why it has none.

    Returns:
        ``verified``, ``not verified`` or ``falsified``; ``stale`` where the record was
        edited since; ``not looked at`` where nobody has verified it.
    """
    verdict = read_verdict(folder)
    if verdict is None:
        return 'not looked at', None
    digest = hashlib.sha256(
        read_bytes(Path(folder) / 'record.json', 'record')
    ).hexdigest()
    return ('stale' if digest != verdict.record else verdict.status), verdict


def standings(out: str | os.PathLike, jobs: Iterable[Job]) -> dict[str, str]:
    """The standing of runs by their ids, with the level of what is verified.

    ``verified (files)``; a verdict that cannot be read is ``stale``.
    """
    store = RecordStore(out)
    found = {}
    for job in jobs:
        try:
            status, verdict = standing_of(store.folder(job))
        except (PETLError, OSError):
            status, verdict = 'stale', None
        if status == 'verified' and verdict is not None:
            status = f'verified ({verdict.level})'
        found[job.id] = status
    return found


def note_of(found: Mapping[str, str], ids: Sequence[str]) -> str:
    """What a table says of the verification of its runs, in a line."""
    states = [found.get(name, 'not looked at') for name in ids]
    good = [s for s in states if s.startswith('verified')]
    text = f'Verified: {len(good)} of {len(states)} runs'
    levels = [level for level in LEVELS if any(f'({level})' in s for s in good)]
    if levels:
        text += f' ({", ".join(LEVELS[level] for level in levels)})'
    for status, words in (
        ('falsified', 'falsified'),
        ('stale', 'edited since they were verified'),
        ('not verified', 'not to be verified in full'),
        ('not looked at', 'not looked at'),
    ):
        names = [name for name in ids if found.get(name, 'not looked at') == status]
        if names:
            text += f'; {len(names)} {words}'
            if status in ('falsified', 'stale'):
                text += f': {shorten(names, 3)}'
    return f'{text}.'


def short(value: Any, limit: int = 80) -> str:
    """A value as a message has it."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= limit else f'{text[: limit - 3]}...'
