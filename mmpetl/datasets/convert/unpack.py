"""Archives into a folder: what a rule wants, where it wants it, each looked into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmpetl.core import PETLError
from mmpetl.datasets.convert.files import look_into, write_whole
from mmpetl.datasets.convert.jobs import run_all
from mmpetl.datasets.convert.members import Member, members

Rule = Callable[[PurePosixPath], PurePosixPath | None]
"""A member's path to its place below the target, None where it is not wanted."""


@dataclass(frozen=True)
class Unpacked:
    """What became of the members.

    Attributes:
        written: Files written by this call.
        skipped: Files that were there, whole.
        ignored: Members that the rule does not want.
        late: Content of members that were held back, by place.
    """

    written: int
    skipped: int
    ignored: int
    late: dict[PurePosixPath, bytes]


def unpack(
    sources: Iterable[Path],
    target: Path,
    rule: Rule,
    *,
    is_late: Callable[[PurePosixPath], bool] = lambda _: False,
    workers: int = 1,
    title: str = 'unpacking',
) -> Unpacked:
    """Write the members of archives that a rule wants.

    Args:
        sources: Archives or folders.
        target: Folder to write below.
        rule: See ``Rule``.
        is_late: Small files, such as lists, that are handed back instead of written.
        workers: Threads that look into files and write them; one reads.
        title: In front of the bar.

    Raises:
        PETLError: A damaged archive or member, or a rule's place outside the target.
    """
    counts = {'skipped': 0, 'ignored': 0}
    late: dict[PurePosixPath, bytes] = {}

    def wanted() -> Iterator[tuple[Member, PurePosixPath, bytes]]:
        for source in sources:
            for member in members(source):
                place = rule(member.path)
                if place is None:
                    counts['ignored'] += 1
                    continue
                if place.is_absolute() or '..' in place.parts:
                    raise PETLError(f'{member.path} of {source} belongs to no place')
                path = target / place
                if not is_late(place) and _is_whole(path, member.size):
                    counts['skipped'] += 1
                    continue
                content = member.read()
                if is_late(place):
                    _look(member, content)
                    late[place] = content
                else:
                    yield member, place, content

    def work(item: tuple[Member, PurePosixPath, bytes]) -> None:
        member, place, content = item
        _look(member, content)
        write_whole(target / place, content)

    written = len(run_all(wanted(), work, workers, title))
    return Unpacked(written, counts['skipped'], counts['ignored'], late)


def write_late(unpacked: Unpacked, target: Path) -> None:
    """Write the files that were held back: the set is usable from now on."""
    for place, content in unpacked.late.items():
        write_whole(target / place, content, durable=True)


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _look(member: Member, content: bytes) -> None:
    why = look_into(member.path, content)
    if why:
        raise PETLError(
            f'{member.path} of {member.source} is damaged ({why}); download the '
            'archive again'
        )
