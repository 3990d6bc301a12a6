"""Entries of the zoo, made of a release of the benchmark.

A release says what a delta is and how good: its records, and every file's SHA-256. What
goes into the zoo is held against that, and opened once as a user would open it.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mmpetl.apis.runs import open_entry
from mmpetl.apis.zoo import (
    FORMAT,
    INDEX,
    Artifact,
    Base,
    Entry,
    Index,
    Score,
    Trainable,
    read_zoo,
)
from mmpetl.benchmark.job_config import PROCESSES, split_options
from mmpetl.benchmark.records import Record, RecordStore, read_record, write_json
from mmpetl.benchmark.release import faults, read_index
from mmpetl.benchmark.scores import metric_of, percent
from mmpetl.benchmark.verdicts import digest_of
from mmpetl.config.names import method_class
from mmpetl.core import PETLError, suggest, with_arguments
from mmpetl.core.boundary import read_json
from mmpetl.core.delta_file import delta_paths, read_delta_file
from mmpetl.models.weights.address import weights_folder
from mmpetl.models.weights.registry import known_file
from mmpetl.shipped import shipped


class About(msgspec.Struct, forbid_unknown_fields=True):
    """What no record says of a recipe.

    Attributes:
        input: What its deltas are to be shown.
        example: Name of a picture or video beside the file that says so.
    """

    input: str = ''
    example: str = ''


ABOUT = 'recipes.json'
"""Beside the index: :class:`About` by recipe, written by hand."""


@dataclass(frozen=True)
class Wanted:
    """An entry that is asked for: ``mini/digits:LoRA``."""

    recipe: str
    method: str

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Read ``RECIPE:METHOD``, the method by name or stem.

        Raises:
            PETLError: It is written otherwise, or a method is unknown.
        """
        recipe, colon, methods = text.partition(':')
        names = [name.strip() for name in methods.split('+')]
        if not recipe or not colon or not all(names):
            raise PETLError(
                f'an entry is RECIPE:METHOD, mini/digits:LoRA; got {text!r}'
            )
        return cls(recipe, ' + '.join(method_class(n).__name__ for n in names))

    @property
    def name(self) -> str:
        """``digits_lora``, ``cifar100_lora``, ``ade20k_mona``."""
        task = self.recipe.removeprefix('mini/').replace('/', '_')
        return '_'.join((task, *map(_stem, self.method.split(' + '))))


def _stem(method: str) -> str:
    """``vpt_deep`` of VPTDeep; the name where the stem is that of a family of them."""
    stem, plain = method_class(method).stem(), method.lower()
    return stem if stem.replace('_', '') == plain else plain


def build_zoo(
    release: str | os.PathLike,
    wanted: Sequence[Wanted],
    out: str | os.PathLike,
    *,
    seed: int = 42,
    licence: str = 'Apache-2.0',
    url: str | None = None,
    keep: bool = False,
) -> list[Entry]:
    """Copy deltas of a release into a folder of the zoo and write its index.

    Args:
        release: What :func:`mmpetl.benchmark.release.release` has written.
        wanted: Which; of several settings of a pair the best by validation.
        out: Folder of the zoo, with ``recipes.json`` where it has one. Files of entries
            that are not in the new index are removed.
        seed: Which of the runs is taken.
        licence: Of the deltas.
        url: Address of a folder that the files will be published in; None where they
            travel with the index.
        keep: Whether entries of the index that is there stay, but those made anew.

    Raises:
        PETLError: The release is not as its index says, has no such run, or a delta
            cannot be opened. The folder is then as it was.
    """
    release, out = Path(release), Path(out)
    wrong = faults(release)
    if wrong:
        raise PETLError(f'{release} is not what was released: {wrong[0]}')
    about = _about(out)
    name = read_index(release).name
    store = RecordStore(release)
    records = [r for r in store.all() if r.status == 'done' and r.job.stage == 'final']
    store.check_all_read()
    entries = {}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix='.part') as made:
        part = Path(made)
        for one in wanted:
            runs = _best_setting(one, records, release)
            entry = _entry(one, runs, store, part, out, about, seed)
            entry.licence, entry.release = licence, name
            entries[entry.name] = entry
        for entry in entries.values() if url else ():
            for artifact in filter(None, (entry.delta, entry.facts, entry.example)):
                artifact.url = f'{url.rstrip("/")}/{artifact.file}'
        kept = dict(read_zoo(out).entries) if keep and (out / INDEX).is_file() else {}
        index = Index(FORMAT, [e for _, e in sorted({**kept, **entries}.items())])
        for file in _files(kept.values()) - _files(entries.values()):
            if (out / file).is_file():
                shutil.copyfile(out / file, part / file)
        write_json(part / INDEX, msgspec.to_builtins(index))
        _open_all(part, list(entries))
        _replace(part, out, _files(index.entries))
    return index.entries


def _about(out: Path) -> dict[str, About]:
    path = out / ABOUT
    if not path.is_file():
        return {}
    return read_json(path, dict[str, About], 'words on recipes')


def _best_setting(
    one: Wanted, records: Sequence[Record], release: Path
) -> list[Record]:
    """All seeds of one setting of a pair.

    Of several the one that its search has found best on validation data; where no
    search says so, it is not this function that chooses by the test set.
    """
    of_pair = [
        r for r in records if (r.job.recipe, r.job.method) == (one.recipe, one.method)
    ]
    if not of_pair:
        known = sorted({f'{r.job.recipe}:{r.job.method}' for r in records})
        asked = f'{one.recipe}:{one.method}'
        raise PETLError(
            f'{release} has no finished run of {asked}.{suggest(asked, known)} There '
            f'are: {", ".join(known)}'
        )
    settings: dict[str, list[Record]] = {}
    for record in of_pair:
        settings.setdefault(re.sub(r's\d+$', '', record.job.id), []).append(record)
    if len(settings) == 1:
        return of_pair
    searched = {k: _validated(v) for k, v in settings.items()}
    found = {k: value for k, value in searched.items() if value is not None}
    if not found:
        raise PETLError(
            f'{release} has {len(settings)} settings of {one.recipe}:{one.method} and '
            'none that a search has chosen; release the one that is meant'
        )
    return settings[max(found, key=lambda k: found[k])]


def _validated(runs: Sequence[Record]) -> float | None:
    values = [(r.search or {}).get('best_value') for r in runs]
    return next((v for v in values if isinstance(v, int | float)), None)


def _entry(
    one: Wanted,
    runs: Sequence[Record],
    store: RecordStore,
    part: Path,
    out: Path,
    about: Mapping[str, About],
    seed: int,
) -> Entry:
    chosen = next((r for r in runs if r.job.seed == seed), None)
    if chosen is None:
        seeds = ', '.join(str(r.job.seed) for r in runs)
        raise PETLError(f'{one.recipe}:{one.method} has no seed {seed}; it has {seeds}')
    folder = store.folder(chosen.job)
    chosen = read_record(folder / 'record.json')
    _, facts = read_delta_file(folder / 'delta.safetensors')
    delta, record = delta_paths(part / one.name)
    # Byte for byte, so that they are those of the release's index.
    shutil.copyfile(folder / 'delta.safetensors', delta)
    shutil.copyfile(folder / 'delta.json', record)
    told = about.get(one.recipe, About())
    example = _artifact(_example(out, told.example)) if told.example else None
    args, options = split_options(chosen.job.options)
    options.pop(PROCESSES, None)
    scores = [value for value in map(percent, runs) if value is not None]
    value, metric = percent(chosen), metric_of(chosen.primary)
    if value is None:
        raise PETLError(f'{folder} has no score')
    read = chosen.data.get('train')
    return Entry(
        name=one.name,
        recipe=one.recipe,
        task=chosen.task or one.recipe,
        method=with_arguments(chosen.job.method, args),
        options=options,
        protocol=chosen.job.protocol,
        leaf=chosen.job.leaf,
        backbone=chosen.backbone,
        base=Base(_base(facts), facts['fingerprint']),
        delta=_artifact(delta),
        facts=_artifact(record),
        score=Score(
            chosen.primary,
            metric.label,
            value,
            seed,
            statistics.fmean(scores),
            statistics.stdev(scores) if len(scores) > 1 else None,
            len(scores),
            read.count if read else None,
        ),
        trainable=Trainable(**{k: chosen.counts.get(k, 0) for k in OWNERS}),
        licence='',
        release='',
        run=chosen.job.id,
        config_hash=chosen.config_hash,
        input=told.input,
        example=example,
    )


OWNERS = ('delta', 'selected', 'head')


def _example(out: Path, name: str) -> Path:
    path = out / name
    if Path(name).name != name or not path.is_file():
        raise PETLError(f'{out / ABOUT} names the example {name!r}, which is not there')
    return path


def _artifact(path: Path) -> Artifact:
    return Artifact(path.name, path.stat().st_size, digest_of(path))


def _base(facts: Mapping[str, Any]) -> Artifact:
    """The base's file, of which there must be one here, or in the package."""
    name = facts.get('base')
    if not name:
        raise PETLError('a delta on random weights has no base that others could have')
    inside = shipped('demo/weights') / name
    if inside.is_file():
        return _artifact(inside)
    path, known = weights_folder() / name, known_file(name)
    if not path.is_file() or known is None or known.url is None:
        raise PETLError(
            f'the base {name} needs a file and an address: put it into '
            f'{weights_folder()}, and say its address in '
            'mmpetl/models/weights/registry.py'
        )
    artifact = _artifact(path)
    artifact.url = known.url
    return artifact


def _files(entries: Any) -> set[str]:
    """The two files of each delta."""
    return {a.file for entry in entries for a in (entry.delta, entry.facts)}


def _open_all(folder: Path, names: Sequence[str]) -> None:
    """Load each delta into the model of its config, from the new folder."""
    from mmpetl.apis.model import init_model

    zoo = read_zoo(folder)
    for name in names:
        run = open_entry(zoo, zoo.find(name))
        init_model(run.config, run.weights, 'cpu')


def _replace(part: Path, out: Path, files: set[str]) -> None:
    """Move the new files into their place, the index last, and remove old ones."""
    old = set()
    if (out / INDEX).is_file():
        old = _files(read_json(out / INDEX, Index, 'index of the zoo').entries)
    for file in sorted(files):
        if (part / file).is_file():
            os.replace(part / file, out / file)
    os.replace(part / INDEX, out / INDEX)
    for file in old - files:
        (out / file).unlink(missing_ok=True)


def markdown(entries: Sequence[Entry]) -> str:
    """A table of entries for a page."""
    head = ('name', 'task', 'method', 'backbone', 'test', 'seeds', 'labels', 'trained')
    head += ('file', 'licence', 'release')
    lines = [f'| {" | ".join(head)} |']
    lines += [f'|{" :--- |" * 4}{" ---: |" * 5}{" :--- |" * 2}']
    for e in entries:
        score, kib = e.score, e.delta.bytes / 1024
        spread = '' if score.std is None else f' ± {score.std:.1f}'
        row = (
            f'`zoo/{e.name}`',
            e.recipe,
            e.methods,
            e.backbone,
            f'{score.value:.1f} % {score.label}',
            f'{score.mean:.1f}{spread}, {score.seeds}',
            '-' if score.labels is None else f'{score.labels:,}',
            f'{e.trainable.delta + e.trainable.selected:,}',
            f'{kib:,.0f} KiB',
            e.licence,
            e.release,
        )
        lines.append(f'| {" | ".join(row)} |')
    return '\n'.join(lines)
