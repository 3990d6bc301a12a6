"""Which samples a run left out or took as they were, in a file that all workers write.

One line of JSON per event in ``bad_samples.jsonl`` of the run's folder, so that it
outlives a kill and is the same for any number of loaders and processes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import msgspec
from mmengine.hooks import Hook

from mmpetl.core import PETLError, suggest
from mmpetl.core.boundary import read_json_lines

POLICIES = ('stop', 'skip and count')
"""``on_bad_sample`` of a config: what becomes of a training sample that is no good."""
LENIENCE = ('stop', 'take and count')
"""``on_damaged_jpeg``: of a JPEG that decodes, but whose decoder complains."""

FILE = 'bad_samples.jsonl'


class Event(msgspec.Struct):
    """A line of the file."""

    what: Literal['skipped', 'taken']
    sample: str
    why: str


class Ledger:
    """Appends to, and reads, the file of a run.

    Args:
        folder: The run's.
        skips: Whether bad training samples are left out.
        takes: Whether a JPEG that its decoder complains of is taken as it is.
    """

    def __init__(
        self, folder: str | os.PathLike[str], skips: bool = False, takes: bool = False
    ) -> None:
        self.path = Path(folder) / FILE
        self.skips = skips
        self.takes = takes

    def add(self, what: str, sample: str, why: str) -> None:
        """One event; one write, which the system appends as a whole."""
        line = json.dumps({'what': what, 'sample': sample, 'why': why}) + '\n'
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        except OSError as error:
            raise PETLError(f'cannot write {self.path}: {error.strerror}') from None

    def told(self) -> list[str]:
        """A line per kind of event: how many samples, how often, and one of them."""
        try:
            events = list(read_json_lines(self.path, Event))
        except FileNotFoundError:
            return []
        lines = []
        for what in ('skipped', 'taken'):
            of_kind = [e for e in events if isinstance(e, Event) and e.what == what]
            files = Counter(event.sample for event in of_kind)
            if files:
                how = {
                    'skipped': 'were skipped, others drawn in their place',
                    'taken': 'were taken though their decoder complains',
                }[what]
                lines.append(
                    f'{len(files)} bad samples {how} ({len(of_kind)} times in all; '
                    f'{of_kind[0].why}); all are in {self.path}'
                )
        return lines


class TellBadSamples(Hook):
    """Logs what the ledger has more of than before, after epochs and at the end."""

    priority = 'LOW'

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.size = 0

    def _tell(self, runner: Any) -> None:
        if runner.rank != 0:
            return
        try:
            size = self.ledger.path.stat().st_size
        except OSError:
            return
        if size != self.size:
            self.size = size
            for line in self.ledger.told():
                runner.logger.warning(line)

    def after_train_epoch(self, runner: Any) -> None:
        """Tell of what an epoch met."""
        self._tell(runner)

    def after_train(self, runner: Any) -> None:
        """Tell of what a run by iterations met."""
        self._tell(runner)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Tell of what a validation met."""
        self._tell(runner)

    def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Tell of what a test met."""
        self._tell(runner)


def _letters(text: str) -> str:
    return text.replace(' ', '').replace('_', '')


def ledger_of(config: Any, folder: str | os.PathLike[str]) -> Ledger:
    """The ledger that a config asks for.

    Raises:
        PETLError: ``on_bad_sample`` or ``on_damaged_jpeg`` is none of its values.
    """
    given = {}
    for key, known in (('on_bad_sample', POLICIES), ('on_damaged_jpeg', LENIENCE)):
        said = str(config.get(key, 'stop'))
        # --cfg-options drops blanks.
        plain = {_letters(name): name for name in known}
        given[key] = plain.get(_letters(said), said)
        if given[key] not in known:
            raise PETLError(
                f'{key} is {given[key]!r}, expected {" or ".join(map(repr, known))}.'
                f'{suggest(str(given[key]), known)}'
            )
    return Ledger(
        folder,
        skips=given['on_bad_sample'] == 'skip and count',
        takes=given['on_damaged_jpeg'] == 'take and count',
    )
