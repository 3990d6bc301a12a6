"""The five fine-grained sets: split files of VPT and the official picture archives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.datasets.annotations import parse_classes
from mmpetl.datasets.catalog import DatasetFacts, facts_of
from mmpetl.datasets.convert.cars import NEEDED, pooled_names, pooled_place
from mmpetl.datasets.convert.dense import Counts
from mmpetl.datasets.convert.files import need_in, staged, write_whole
from mmpetl.datasets.convert.members import members
from mmpetl.datasets.convert.unpack import unpack
from mmpetl.datasets.folders import find_folder, is_called

SPLIT_FILES = ('train.json', 'val.json', 'test.json')


def convert_fgvc(
    name: str,
    splits: Path,
    sources: Iterable[Path],
    root: Path,
    workers: int = 1,
) -> Counts:
    """One set: the pictures that its split files name, then the split files.

    Args:
        name: Id in the catalogue.
        splits: A folder or archive with the three JSON files, those of several sets
            if each lies in a folder of its own.
        sources: Archives or folders with the pictures, in whatever folder; for copies
            of Stanford Cars also its annotation files (:mod:`.cars`).
        root: Data root.
        workers: Threads.

    Raises:
        PETLError: Split files that are missing, unclear or malformed, damaged
            archives, or a picture that a split names and no archive holds.
    """
    facts = facts_of(name)
    if facts.layout != 'fgvc':
        raise PETLError(f'{facts.id} is none of the fine-grained sets')
    files = read_splits(facts, splits)
    keys = {PurePosixPath(key) for entries in files.values() for key in entries}
    images = facts.splits[0].images
    folder = find_folder(root / facts.base, facts) or root / facts.path
    sources = list(sources)
    with staged(folder) as partial:
        if partial is not None:
            names = pooled_names(sources) if facts.id == 'stanford_cars' else {}

            def rule(path: PurePosixPath) -> PurePosixPath | None:
                for start in range(len(path.parts)):
                    tail = PurePosixPath(*path.parts[start:])
                    if tail in keys:
                        return images / tail
                place = pooled_place(path, names)
                return images / place if place in keys else None

            archives = [source for source in sources if source.suffix != '.mat']
            unpack(archives, partial, rule, workers=workers, title=facts.id)
            _need_all(facts, partial / images, keys)
            for file, entries in files.items():
                content = json.dumps(entries).encode()
                write_whole(partial / file, content, durable=True)
    need_in(folder, *SPLIT_FILES)
    sizes = {split.file: split.size for split in facts.splits}
    return [
        (file, len(read_json(folder / file, dict[str, Any], 'list')), sizes[file])
        for file in SPLIT_FILES
    ]


def read_splits(facts: DatasetFacts, source: Path) -> dict[str, dict[str, int]]:
    """File name to ``{picture: class id}``.

    Raises:
        PETLError: See ``convert_fgvc``.
    """
    found: dict[str, list[tuple[PurePosixPath, bytes]]] = {}
    for member in members(source):
        if member.path.name in SPLIT_FILES:
            found.setdefault(member.path.name, []).append((member.path, member.read()))
    result = {}
    for file in SPLIT_FILES:
        candidates = found.get(file, [])
        if len(candidates) > 1:
            candidates = [
                (path, content)
                for path, content in candidates
                if any(is_called(facts, part) for part in path.parts)
            ]
        if len(candidates) != 1:
            raise PETLError(
                f'{source} has {len(candidates)} files {file} for {facts.id}; give the '
                f'folder that holds its {", ".join(SPLIT_FILES)}'
            )
        path, content = candidates[0]
        result[file] = parse_classes(content, f'{path} of {source}')
        for key in result[file]:
            if PurePosixPath(key).is_absolute() or '..' in PurePosixPath(key).parts:
                raise PETLError(f'{path} of {source} names {key!r}, outside of the set')
    return result


def _need_all(facts: DatasetFacts, images: Path, keys: set[PurePosixPath]) -> None:
    missing = sorted(str(key) for key in keys if not (images / key).is_file())
    if not missing:
        return
    hint = ''
    if facts.id == 'stanford_cars':
        hint = f'; the splits name the pooled release with six digits: {NEEDED}'
    raise PETLError(
        f'{len(missing):,} of {len(keys):,} pictures of {facts.id} are in none of the '
        f'archives, {missing[0]} for one{hint}'
    )
