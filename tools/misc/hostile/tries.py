"""One try of a reader, what is a good end of it, and what the ends were."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError

from .edits import LONGEST, as_text
from .targets import Target

GOOD = (PETLError, FileNotFoundError)
WAIT = 30
"""How much longer a try may take by the clock than of the processor."""
MEMORY_FOLDER = Path('/dev/shm')
"""A folder that is no disk, where the system has one."""


class TooSlow(BaseException):
    """A try that has taken longer than it may."""


@dataclass
class Report:
    """What has become of the tries of one reader.

    Attributes:
        target: Its name.
        engine: What made the inputs.
        kind: ``parser`` or ``container``.
        tries: How many.
        refused: How many of them ended in a PETLError.
        findings: Place and exception, to how often and the first message.
        seconds: Time spent.
    """

    target: str
    engine: str
    kind: str = 'parser'
    tries: int = 0
    refused: int = 0
    findings: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        """Count the tries of another report, too."""
        self.tries += other.tries
        self.refused += other.refused
        self.seconds += other.seconds
        for kind, (count, message) in other.findings.items():
            self.findings.setdefault(kind, [0, message])[0] += count


def scratch_folder(prefix: str) -> Path:
    """A new folder in memory, or where temporary files go."""
    usable = MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY_FOLDER if usable else None))


class Try:
    """Calls a reader, and notes what is no good end.

    Args:
        target: The reader.
        engine: What makes the inputs.
        limit: Seconds of the processor of a try.
        keep: Folder for inputs of findings, or None.
        last: Gets each input before it is tried, for a process that dies.
        tell: Called about once a second with the report.
    """

    def __init__(
        self,
        target: Target,
        engine: str,
        limit: float,
        keep: Path | None,
        last: mmap.mmap | None = None,
        tell: Callable[[Report], None] | None = None,
    ) -> None:
        self.target = target
        self.report = Report(target.name, engine, target.kind)
        self.limit = max(limit, target.seconds)
        self.keep = keep
        self.last = last
        self.tell = tell
        self.folder = scratch_folder('fuzz-')
        self.path = self.folder / target.file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for name, data in target.beside.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)
        self.before = {
            number: signal.signal(number, _too_slow)
            for number in (signal.SIGPROF, signal.SIGALRM)
        }
        self.start = self.told = time.monotonic()

    def bytes(self, data: bytes) -> None:
        """Try a file of these bytes."""
        # A new file each time: an old one may still be mapped.
        if os.path.lexists(self.path):
            os.unlink(self.path)
        with open(self.path, 'wb') as file:
            file.write(data)
        self._call(lambda: self.target.read(self.path), data)

    def value(self, value: Any) -> None:
        """Try data."""
        if self.target.call is None:
            self.bytes(as_text(value))
        else:
            call = self.target.call
            self._call(lambda: call(value), repr(value).encode('utf-8', 'replace'))

    def _call(self, work: Callable[[], Any], data: bytes) -> None:
        if self.last is not None:
            self.last.seek(0)
            self.last.write(struct.pack('<Q', len(data)) + data[:LONGEST])
        self.report.tries += 1
        try:
            # A busy machine takes its time from the clock, not from the processor.
            signal.setitimer(signal.ITIMER_PROF, self.limit)
            signal.setitimer(signal.ITIMER_REAL, self.limit * WAIT)
            try:
                work()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
        except GOOD:
            self.report.refused += 1
        except TooSlow:
            self._note('TooSlow', f'more than {self.limit} s', data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = _place(error)
            self._note(f'{type(error).__name__} at {place}', str(error), data)
        if self.tell is not None and time.monotonic() > self.told + 1:
            self.tell_now()

    def tell_now(self) -> None:
        """Hand on what is known so far."""
        self.told = time.monotonic()
        self.report.seconds = self.told - self.start
        if self.tell is not None:
            self.tell(self.report)

    def _note(self, kind: str, message: str, data: bytes) -> None:
        first = ' '.join(message.split())[:160]
        self.report.findings.setdefault(kind, [0, first])[0] += 1
        if self.keep is not None and self.report.findings[kind][0] == 1:
            self.keep.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(data).hexdigest()[:12]
            name = f'{self.target.name.replace(" ", "_")}-{digest}'
            (self.keep / name).write_bytes(data)

    def close(self) -> None:
        """Forget the scratch folder, and give the alarms back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        shutil.rmtree(self.folder, ignore_errors=True)


def _place(error: BaseException) -> str:
    """The innermost line of ours, or where there is none the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f'{os.sep}mmpetl{os.sep}' in f.filename]
    where = (ours or frames)[-1]
    return f'{Path(where.filename).name}:{where.lineno}'


def _too_slow(*_: Any) -> None:
    raise TooSlow
