"""The division of pictures into training, validation and test, kept in a file.

What the layout gives is respected. What it lacks is drawn: of every class the same
share, by a generator with a seed, from the pictures in the order of their paths. The
file says what is where and of what content, and a later run on the same pictures reads
it again; on others it is refused, for scores of two divisions cannot be compared.

A layout of ``train`` and ``val`` alone has no test set: its ``val`` is one, since all
that it is there for is to be scored on, and validation pictures are drawn from
``train``.

Of pictures with boxes or masks a test set alone is drawn, for nothing is chosen on
validation pictures there: a fifth of all, spread evenly over the rarest classes that
pictures show, and none without which a class would no longer be trained.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import Count, read_json
from mmpetl.datasets.own.boxes import LAYOUT as BOXES
from mmpetl.datasets.own.find import PARTS, SHOWN, Found, Picture
from mmpetl.datasets.own.masks import LAYOUT as MASKS
from mmpetl.engine.files import AtomicLocalBackend

FORMAT = 1
SHARE = 0.2
"""Share of a class that the test set gets, and of what is left the validation set."""

SCENES = (BOXES, MASKS)
"""Layouts whose pictures show several classes, or none."""

LEAST_TRAINED = 3
"""Pictures of a class that must be left to train on, where parts are drawn."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A picture of a part: path below the data's folder, label, SHA-256 of the file.

    With boxes or a mask the label is the rarest class that it shows, or the number of
    classes where it shows none, and the digest is over boxes and mask too.
    """

    path: str
    label: Count
    digest: str


class Splits(msgspec.Struct, frozen=True):
    """What ``splits.json`` holds.

    Attributes:
        format: Of this file.
        layout: Of the data, see :class:`mmpetl.datasets.own.Found`.
        classes: Names by label.
        seed: Of the draw.
        drawn: Parts that were drawn, and not given by the layout.
        parts: ``train``, ``val`` and ``test``.
        notes: What was left aside when the data were read.
        digest: SHA-256 over all of the above.
    """

    format: int
    layout: str
    classes: list[str]
    seed: int
    drawn: list[str]
    parts: dict[str, list[Entry]]
    notes: list[str]
    digest: str = ''

    def counts(self) -> dict[str, list[int]]:
        """Pictures by part and label."""
        found = {}
        for part in PARTS:
            counted = Counter(entry.label for entry in self.parts[part])
            found[part] = [counted[label] for label in range(len(self.classes))]
        return found


def keep_splits(found: Found, path: Path, seed: int | None = None) -> Splits:
    """The division that a file holds, or a new one, which is written there.

    Args:
        found: The pictures.
        path: The file.
        seed: Of the draw. None takes what the file was drawn with, and 0 where there
            is none; a file that was drawn with another one is refused.

    Raises:
        PETLError: A class has too few pictures to be divided; the file is damaged or
            was edited; or it is of other pictures or another seed.
    """
    if not path.is_file():
        splits = divide(found, seed or 0)
        AtomicLocalBackend().put_text(_text(splits), path)
        return splits
    splits = read_splits(path)
    if splits.drawn and seed not in (None, splits.seed):
        raise PETLError(
            f'{path} was drawn with seed {splits.seed}, and {seed} is asked for; take '
            'that seed, or another work folder.'
        )
    change = _change(splits, found)
    if change:
        raise PETLError(
            f"the pictures in '{found.root}' are not those that {path} divides: "
            f'{change}. Scores on two divisions cannot be compared; take another work '
            'folder, or bring the pictures back.'
        )
    return splits


def read_splits(path: str | Path) -> Splits:
    """A division from its file.

    Raises:
        PETLError: There is none, it is of another format, or it was edited.
    """
    try:
        splits = read_json(path, Splits, 'division of pictures')
    except FileNotFoundError:
        raise PETLError(f'there is no division of pictures {path}') from None
    if splits.format != FORMAT:
        raise PETLError(f'{path} has format {splits.format}; {FORMAT} is read here')
    most = len(splits.classes) - (splits.layout not in SCENES)
    whole = set(splits.parts) == set(PARTS) and all(
        entry.label <= most for entries in splits.parts.values() for entry in entries
    )
    if not whole or splits.digest != _digest(splits):
        raise PETLError(
            f'{path} was edited: its digest is not that of its lists; remove it to '
            'draw anew, after which earlier scores can no longer be compared'
        )
    return splits


def divide(found: Found, seed: int) -> Splits:
    """Divide pictures as :func:`keep_splits` does, without a file."""
    parts = _given(found)
    if found.layout in SCENES:
        drawn = [] if parts['test'] else ['test']
        for part in drawn:
            parts['train'], parts[part] = _draw_scenes(found, f'{seed} {part}')
    else:
        drawn = [part for part in ('test', 'val') if not parts[part]]
        _check_enough(found, parts['train'], drawn)
        for part in drawn:
            parts['train'], parts[part] = _draw(parts['train'], f'{seed} {part}')
    labels = {name: label for label, name in enumerate([*found.classes, ''])}
    splits = Splits(
        FORMAT,
        found.layout,
        list(found.classes),
        seed,
        drawn,
        {
            part: [Entry(p.path, labels[p.label], p.digest) for p in parts[part]]
            for part in PARTS
        },
        [*found.notes, *_remarks(found)],
    )
    return msgspec.structs.replace(splits, digest=_digest(splits))


def _given(found: Found) -> dict[str, list[Picture]]:
    """Pictures by the part that the layout puts them in."""
    parts: dict[str, list[Picture]] = {part: [] for part in PARTS}
    for picture in found.pictures:
        parts[picture.part or 'train'].append(picture)
    if parts['val'] and not parts['test']:
        parts['test'], parts['val'] = parts['val'], []
    return parts


def _remarks(found: Found) -> list[str]:
    said = []
    if 'val' in found.parts and 'test' not in found.parts:
        said.append(
            'there is no test split, so the given val is what is scored in the end'
        )
    spelt = defaultdict(list)
    for name in found.classes:
        spelt[name.strip().casefold()].append(name)
    said += [
        f'the classes {" and ".join(names)} differ in capitals alone, and are two'
        for names in spelt.values()
        if len(names) > 1
    ]
    return said


def _check_enough(found: Found, train: list[Picture], drawn: list[str]) -> None:
    least = LEAST_TRAINED + len(drawn) if drawn else 1
    counts = Counter(picture.label for picture in train)
    few = [f'{name} ({counts[name]})' for name in found.classes if counts[name] < least]
    if few:
        more = f' and {len(few) - SHOWN} more' if len(few) > SHOWN else ''
        raise PETLError(
            f"'{found.root}' has classes with fewer than {least} pictures to train on: "
            f'{", ".join(few[:SHOWN])}{more}; '
            + f'{LEAST_TRAINED} are trained on and one each is kept for '
            f'{" and ".join(drawn)}. '
            * bool(drawn)
            + 'Add pictures, or remove the class.'
        )


def _draw(pictures: list[Picture], seed: str) -> tuple[list[Picture], list[Picture]]:
    """What stays, and the share of every class that is drawn, at least one of each."""
    classes = defaultdict(list)
    for picture in pictures:
        classes[picture.label].append(picture)
    drawn: set[Picture] = set()
    for name, members in classes.items():
        generator = random.Random(f'{seed} {name}')
        drawn.update(generator.sample(members, max(1, round(SHARE * len(members)))))
    return [p for p in pictures if p not in drawn], [p for p in pictures if p in drawn]


def _draw_scenes(found: Found, seed: str) -> tuple[list[Picture], list[Picture]]:
    """What stays, and what is drawn: every fifth of all, sorted by their rarest class.

    A picture that shows a class which no picture that stays would show is left.
    """
    generator = random.Random(seed)
    order = {name: place for place, name in enumerate(found.classes)}
    pictures = [p for p in found.pictures if p.part in ('', 'train')]
    generator.shuffle(pictures)
    pictures.sort(key=lambda p: order.get(p.label, len(order)))
    left = Counter(name for p in pictures for name in found.shows[p.path])
    drawn: set[Picture] = set()
    wanted = max(1, round(SHARE * len(pictures)))
    step, start = len(pictures) / wanted, generator.random()
    at = [int(step * (start + i)) for i in range(wanted)]
    # Those that cannot be spared are made up for by their nearest that can.
    for place in at:
        for picture in _nearest(pictures, place):
            there = found.shows[picture.path]
            if picture not in drawn and all(left[name] > 1 for name in there):
                drawn.add(picture)
                left.subtract(there)
                break
    if not drawn:
        raise PETLError(
            f"'{found.root}' has no picture that can be kept for the test: each is the "
            'only one of a class. Annotate more, or give splits.'
        )
    return (
        [p for p in found.pictures if p.part in ('', 'train') and p not in drawn],
        [p for p in found.pictures if p in drawn],
    )


def _nearest(pictures: list[Picture], place: int) -> Iterator[Picture]:
    """The picture of a place, then its neighbours, ever farther."""
    yield pictures[place]
    for far in range(1, len(pictures)):
        for i in (place - far, place + far):
            if 0 <= i < len(pictures):
                yield pictures[i]


def _change(splits: Splits, found: Found) -> str:
    """How pictures differ from those that were divided; empty where they do not."""
    names = [*splits.classes, '']
    was = {
        entry.path: (names[entry.label], entry.digest)
        for entries in splits.parts.values()
        for entry in entries
    }
    now = {picture.path: (picture.label, picture.digest) for picture in found.pictures}
    changes = {
        'are new': sorted(now.keys() - was.keys()),
        'are gone': sorted(was.keys() - now.keys()),
        'have another content or class': sorted(
            path for path in was.keys() & now.keys() if was[path] != now[path]
        ),
    }
    said = [f'{len(v)} {k} ({v[0]} for one)' for k, v in changes.items() if v]
    if not said and _moved(splits, found):
        said = ['some lie in another split']
    return ', '.join(said)


def _moved(splits: Splits, found: Found) -> bool:
    """Whether the layout gives other parts than it gave."""
    given = _given(found)
    now = {part: {p.path for p in given[part]} for part in PARTS}
    was = {part: {e.path for e in splits.parts[part]} for part in PARTS}
    for part in splits.drawn:
        was['train'] |= was.pop(part)
        now['train'] |= now.pop(part)
    return was != now


def _digest(splits: Splits) -> str:
    data = _plain(splits)
    data.pop('digest')
    text = json.dumps(data, sort_keys=True, separators=(',', ':'), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(splits: Splits) -> dict[str, object]:
    return msgspec.to_builtins(splits)


def _text(splits: Splits) -> str:
    """JSON with a picture in each line, so that two divisions can be compared."""
    data = _plain(splits)
    parts: Mapping[str, Iterable[object]] = data.pop('parts')  # type: ignore[assignment]
    lists = ',\n'.join(
        f'  {json.dumps(part)}: [\n   '
        + ',\n   '.join(json.dumps(entry) for entry in entries)
        + '\n  ]'
        for part, entries in parts.items()
    )
    head = json.dumps(data, indent=1)[:-2]
    return f'{head},\n "parts": {{\n{lists}\n }}\n}}\n'
