"""Archives into a folder: what a rule wants, where it wants it, each looked into."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmpetl.core import PETLError
from mmpetl.datasets.convert.files import holds, look_into, write_whole
from mmpetl.datasets.convert.jobs import run_all
from mmpetl.datasets.convert.members import Member, members

Rule = Callable[[PurePosixPath], PurePosixPath | None]
"""A member's path to its place below the target, None where it is not wanted."""


@dataclass(frozen=True)
class Unpacked:
    """What became of the members.

    Attributes:
        written: Files written by this call.
        skipped: Files that were there with the same content.
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
        PETLError: A damaged archive or member, a rule's place outside the target, or
            two members of different content with one place.
    """
    ignored = 0
    late: dict[PurePosixPath, bytes] = {}
    seen: dict[str, tuple[int, int]] = {}

    def comes_again(member: Member, place: PurePosixPath, content: bytes) -> bool:
        """Whether a place has come before; two threads must not write one file."""
        facts = len(content), zlib.crc32(content)
        if str(place) not in seen:
            seen[str(place)] = facts
            return False
        if seen[str(place)] != facts:
            raise PETLError(
                f'{member.path} of {member.source} belongs at {place}, where another '
                'member of other content belongs, too; give one copy of the set'
            )
        return True

    def wanted() -> Iterator[tuple[Member, PurePosixPath, bytes]]:
        nonlocal ignored
        for source in sources:
            for member in members(source):
                place = rule(member.path)
                if place is None:
                    ignored += 1
                    continue
                if place.is_absolute() or '..' in place.parts:
                    raise PETLError(f'{member.path} of {source} belongs to no place')
                content = member.read()
                if comes_again(member, place, content):
                    continue
                if is_late(place):
                    _look(member, content)
                    late[place] = content
                else:
                    yield member, place, content

    def work(item: tuple[Member, PurePosixPath, bytes]) -> bool:
        member, place, content = item
        if holds(target / place, content):
            return False
        _look(member, content)
        write_whole(target / place, content)
        return True

    fresh = run_all(wanted(), work, workers, title)
    return Unpacked(sum(fresh), len(fresh) - sum(fresh), ignored, late)


def write_late(unpacked: Unpacked, target: Path) -> None:
    """Write the files that were held back: the set is usable from now on."""
    for place, content in unpacked.late.items():
        write_whole(target / place, content, durable=True)


def _look(member: Member, content: bytes) -> None:
    why = look_into(member.path, content)
    if why:
        raise PETLError(
            f'{member.path} of {member.source} is damaged ({why}); download the '
            'archive again'
        )
