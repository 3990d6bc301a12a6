"""What thousands of small files say, kept in one SQLite file beside them.

The files stay the source. An entry counts while its file has the size, the time and the
inode that it had when it was read; else the file is read again. Each entry is signed
with a key of this user on this machine, so that a database which was edited, or came
with a folder from elsewhere, is told by its first entry: it is left, said, and made
anew. It is written whole and renamed, and opened without locks, so that it serves on
any file system and for any number of readers.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LEAST = 200
"""Files below which reading them is as fast."""

_TABLES = """
create table about (kind text not null, count integer not null);
create table entries (
    name text primary key, stamp text not null, head blob not null, tail blob not null,
    mark blob not null
) without rowid;
"""


@dataclass(frozen=True)
class Entry:
    """What is kept of a file.

    Attributes:
        stamp: Size, time and inode of the file when it was read.
        head: What is asked for often.
        tail: What is asked for seldom.
    """

    stamp: str
    head: bytes
    tail: bytes


class Index:
    """Entries of the files of a folder.

    Args:
        path: The database; it may be missing.
        kind: What the entries are; one of another kind is made anew.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.read_files = 0
        """How many files the last call of :meth:`entries` has opened."""

    def entries(
        self,
        files: Iterable[tuple[str, Path]],
        read: Callable[[Path], tuple[bytes, bytes]],
        tails: bool = True,
    ) -> Iterator[tuple[str, Entry | Exception]]:
        """What each file says, in order.

        Args:
            files: Names and paths.
            read: Gives head and tail of a file; called where no entry counts.
            tails: Whether to hand out tails, too; else those that are kept are empty.

        Yields:
            Names with entries, or with the OSError or ValueError that ``read`` raised.
        """
        files = list(files)
        key = _key() if len(files) >= LEAST else None
        known = self._load(key, tails) if key else {}
        fresh: dict[str, Entry] = {}
        for name, path in files:
            stamp = stamp_of(path)
            entry = known.get(name)
            if entry is None or stamp is None or entry.stamp != stamp:
                try:
                    entry = Entry(stamp or '', *read(path))
                except (OSError, ValueError) as error:
                    yield name, error
                    continue
                if stamp is not None and stamp == stamp_of(path):
                    fresh[name] = entry
            yield name, entry
        self.read_files = len(fresh)
        # Reading a few again costs less than writing all.
        if key and len(fresh) > max(LEAST // 2, len(files) // 50):
            self._save(key, {name for name, _ in files}, fresh)

    def _load(self, key: bytes, tails: bool) -> dict[str, Entry]:
        """The entries of the database; none, said, where one is not ours."""
        if not self.path.is_file():
            return {}
        try:
            with _opened(self.path) as base:
                if base.execute('select kind from about').fetchone() != (self.kind,):
                    return {}
                found = {}
                columns = 'name, stamp, head, tail, mark'
                for name, stamp, head, tail, mark in base.execute(
                    f'select {columns} from entries'
                ):
                    if not hmac.compare_digest(
                        mark, _mark(key, self.kind, name, stamp, head, tail)
                    ):
                        return self._leave('it was not written here, or was edited')
                    found[name] = Entry(stamp, head, tail if tails else b'')
                return found
        except (sqlite3.Error, TypeError, ValueError, MemoryError) as error:
            return self._leave(f'it is damaged ({" ".join(str(error).split())[:80]})')

    def _leave(self, why: str) -> dict[str, Entry]:
        print(f'{self.path} is made anew: {why}', file=sys.stderr)
        return {}

    def _save(self, key: bytes, names: set[str], fresh: dict[str, Entry]) -> None:
        """Write all anew: entries that count, and those of what was read."""
        old = self._load(key, True) if len(fresh) < len(names) else {}
        kept = {name: entry for name, entry in old.items() if name in names} | fresh
        part = self.path.with_name(f'{self.path.name}.{os.getpid()}.part')
        try:
            part.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(part)) as base:
                base.executescript('pragma journal_mode=off; pragma synchronous=off;')
                base.executescript(_TABLES)
                base.execute('insert into about values (?, ?)', (self.kind, len(kept)))
                base.executemany(
                    'insert into entries values (?, ?, ?, ?, ?)',
                    (
                        (n, e.stamp, e.head, e.tail, _mark(key, self.kind, n, *_of(e)))
                        for n, e in kept.items()
                    ),
                )
                base.commit()
            part.replace(self.path)
        except (OSError, sqlite3.Error):
            # A folder that cannot be written to is read file by file.
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def stamp_of(path: Path) -> str | None:
    """Size, time and inode of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return f'{found.st_size}:{found.st_mtime_ns}:{found.st_ino}'


def _of(entry: Entry) -> tuple[str, bytes, bytes]:
    return entry.stamp, entry.head, entry.tail


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    # Nothing writes to a database that has its name, so it needs no locks.
    place = f'{path.absolute().as_uri()}?mode=ro&immutable=1'
    with contextlib.closing(sqlite3.connect(place, uri=True)) as base:
        base.execute('pragma trusted_schema=off')
        yield base


def _mark(
    key: bytes, kind: str, name: str, stamp: str, head: bytes, tail: bytes
) -> bytes:
    lengths = f'{kind}\0{name}\0{stamp}\0{len(head)}\0{len(tail)}\0'
    return hmac.digest(key, lengths.encode() + head + tail, 'sha256')


def _key() -> bytes | None:
    """The key of this user, made at its first use; None where none can be kept."""
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    path = Path(base) / 'mmpetl' / 'index.key'
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f'{path.name}.{secrets.token_hex(4)}')
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        with open(path, 'rb') as file:
            key = file.read(64)
    except OSError:
        return None
    return key if len(key) == 32 else None
