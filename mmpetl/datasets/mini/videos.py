"""Kinetics-400, Something-Something V2 and HMDB51 in MMAction2's layouts, drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np

from .glyphs import DIGITS, LETTERS, SHAPES
from .motion import MOTIONS, Actor, draw_clip, save_clip, then
from .storage import save_lines, save_picture

Cast = Callable[[np.random.Generator], list[Actor]]
"""Draws who is in a clip of one class."""

_WAYS = ('right', 'left', 'up', 'down')


def _pick(rng: np.random.Generator, glyphs: str | tuple[str, ...]) -> str:
    return glyphs[rng.integers(len(glyphs))]


def _solo(name: str, glyphs: str) -> Cast:
    return lambda rng: [Actor(_pick(rng, glyphs), MOTIONS[name])]


def _sequel(first: str, second: str) -> Cast:
    motion = then(MOTIONS[first], MOTIONS[second])
    return lambda rng: [Actor(_pick(rng, SHAPES), motion)]


def _pair(left: str, right: str) -> Cast:
    return lambda rng: [
        Actor(_pick(rng, DIGITS), MOTIONS[left]),
        Actor(_pick(rng, SHAPES), MOTIONS[right]),
    ]


@dataclass(frozen=True)
class VideoTask:
    """A video task's classes and the names its lists and folders have.

    Args:
        casts: What class ``k`` shows. Fewer than the official classes are used; the
            labels in use are ``0 .. len(casts) - 1``.
        lists: Split to list file.
        folders: Split to video folder.
        path: Class and running number to a path below the video folder.
        frames: Length of a clip.
        partitions: How many ways the clips are split into training and test.
    """

    casts: tuple[Cast, ...]
    lists: dict[str, str]
    folders: dict[str, str]
    path: Callable[[int, int], str]
    frames: int = 40
    partitions: int = 1


def _split_lists(pattern: str) -> dict[str, str]:
    return {split: pattern.format(split) for split in ('train', 'val')}


VIDEO_TASKS = {
    # upstream: letters, which of the 24 motions
    'moving_letters': VideoTask(
        tuple(_solo(name, LETTERS) for name in MOTIONS),
        _split_lists('{}_list_videos.txt'),
        _split_lists('videos_{}'),
        lambda label, number: f'{label:02d}/{number:05d}.mp4',
        frames=16,
    ),
    # one digit, which motion
    'kinetics400': VideoTask(
        tuple(_solo(name, DIGITS) for name in MOTIONS),
        _split_lists('kinetics400_{}_list_videos.txt'),
        _split_lists('videos_{}'),
        lambda label, number: f'mini_motion_{label:03d}/{number:06d}_000000_000010.mp4',
    ),
    # one figure, one way and then another: the order is the class
    'ssv2': VideoTask(
        tuple(_sequel(first, second) for first, second in product(_WAYS, _WAYS)),
        _split_lists('sthv2_{}_list_videos.txt'),
        {'train': 'videos', 'val': 'videos'},
        lambda label, number: f'{number + 1}.mp4',
    ),
    # a digit on the left and a figure on the right, each going its own way
    'hmdb51': VideoTask(
        tuple(_pair(left, right) for left, right in permutations(_WAYS, 2)),
        _split_lists('hmdb51_{}_split_1_videos.txt'),
        {'train': 'videos', 'val': 'videos'},
        lambda label, number: f'mini_{label:02d}/mini_{number:05d}.mp4',
        partitions=3,
    ),
}


def write_videos(
    folder: Path, task: str, train: int, val: int, side: int, seed: int
) -> None:
    """Lists of ``path label`` and the clips they name."""
    facts = VIDEO_TASKS[task]
    rng = np.random.default_rng(seed)
    lines = []
    for split, count in (('train', train), ('val', val)):
        start = len(lines)
        for index in range(count):
            label = index % len(facts.casts)
            clip = draw_clip(rng, facts.casts[label](rng), facts.frames, side)
            name = facts.path(label, len(lines))
            save_clip(folder / facts.folders[split] / name, clip)
            lines.append(f'{name} {label}')
        save_lines(folder / facts.lists[split], lines[start:])
    for number in range(2, facts.partitions + 1):
        # The other splits part the same clips elsewhere, as the official ones do.
        turned = lines[val * (number - 1) :] + lines[: val * (number - 1)]
        for split, part in (('train', turned[:train]), ('val', turned[train:])):
            name = facts.lists[split].replace('split_1', f'split_{number}')
            save_lines(folder / name, part)


def write_frames(
    folder: Path, task: str, train: int, val: int, side: int, seed: int
) -> None:
    """The same clips as folders of frames; a list line is ``folder frames label``."""
    facts = VIDEO_TASKS[task]
    rng = np.random.default_rng(seed)
    number = 0
    for split, count in (('train', train), ('val', val)):
        lines = []
        for index in range(count):
            label = index % len(facts.casts)
            clip = draw_clip(rng, facts.casts[label](rng), facts.frames, side)
            name = str(Path(facts.path(label, number)).with_suffix(''))
            for frame, picture in enumerate(clip, start=1):
                file = folder / 'rawframes' / name / f'img_{frame:05d}.jpg'
                save_picture(file, picture)
            lines.append(f'{name} {len(clip)} {label}')
            number += 1
        save_lines(folder / facts.lists[split].replace('videos', 'rawframes'), lines)
