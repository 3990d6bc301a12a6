"""The zoo: deltas by name, with what is known of each.

One index, ``index.json``, says all of it, as data. It lies in ``demo/zoo`` and travels
in the wheel; ``MMPETL_ZOO`` names another folder with one. A file of an entry lies
beside the index, or has an address, from which it is fetched once into the folder of
weights. No delta is taken whose size or SHA-256 is another than the index says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mmpetl.core import PETLError, suggest
from mmpetl.core.boundary import Count, read_json
from mmpetl.core.delta_file import Digest
from mmpetl.models.weights import KnownFile, WeightsError, fetch
from mmpetl.models.weights.address import weights_folder
from mmpetl.models.weights.download import Progress, check_sums
from mmpetl.models.weights.errors import WeightsBusyError
from mmpetl.models.weights.registry import known_file
from mmpetl.shipped import shipped, zoo_folder

FORMAT = 1
INDEX = 'index.json'
PREFIX = 'zoo/'
"""What an entry's name begins with where runs and deltas are named."""

PAUSE_S = 0.5
"""How often is looked whether another process has done with a file."""

Name = Annotated[str, msgspec.Meta(pattern=r'^[a-z0-9][a-z0-9_.-]{0,99}\Z')]
FileName = Annotated[str, msgspec.Meta(pattern=r'^[A-Za-z0-9][\w.+-]{0,199}\Z')]
Sha256 = Annotated[str, msgspec.Meta(pattern=r'^[0-9a-f]{64}\Z')]
Url = Annotated[str, msgspec.Meta(pattern=r'^https?://[^\s\x00-\x1f\x7f]+\Z')]
Recipe = Annotated[str, msgspec.Meta(pattern=r'^[a-z0-9_]+(/[a-z0-9_]+)*\Z')]
Line = Annotated[str, msgspec.Meta(max_length=500, pattern=r'^[^\x00-\x1f\x7f]*\Z')]
"""Text that can be printed."""


class Artifact(msgspec.Struct, forbid_unknown_fields=True):
    """A file of an entry.

    Attributes:
        file: Its name, without a folder.
        bytes: Its size.
        sha256: Its digest, in hexadecimal digits.
        url: Where it is published; None where it lies beside the index, or, of a base,
            among the weights that travel with the package.
    """

    file: FileName
    bytes: Count
    sha256: Sha256
    url: Url | None = None


class Base(msgspec.Struct, forbid_unknown_fields=True):
    """What a delta was trained on.

    Attributes:
        weights: File of the base weights.
        fingerprint: Digest of the weights as the backbone holds them.
    """

    weights: Artifact
    fingerprint: Digest


class Score(msgspec.Struct, forbid_unknown_fields=True):
    """How good it is.

    Attributes:
        metric: By its evaluator's name; higher is better.
        label: Its name for people: ``top-1 accuracy``.
        value: Of this delta, on the test set, in percent.
        seed: With which it was trained.
        mean: Over all seeds of the release.
        std: Their sample standard deviation; None of one.
        seeds: How many there are.
        labels: Labelled samples that it was trained on; None where nobody knows.
    """

    metric: Line
    label: Line
    value: float
    seed: Count
    mean: float
    std: float | None
    seeds: Count
    labels: Count | None = None


class Trainable(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters that were trained, by owner: the method, of the base, the head."""

    delta: Count
    selected: Count
    head: Count


class Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A delta of the zoo.

    Recipe, method, options, protocol and ``leaf`` are its config: what a job of the
    benchmark says (:class:`mmpetl.benchmark.records.Job`).

    Attributes:
        name: ``digits_lora``; users write ``zoo/digits_lora``.
        recipe: ``mini/digits``.
        task: Id of the data set.
        method: Config of the method, or a list of several.
        options: Dotted keys of the config that depart from recipe and method.
        protocol: How it was trained and tested.
        leaf: Whether recipe and method mean the pair's published settings.
        backbone: Name of the backbone: ``mini ViT``.
        base: What it was trained on.
        delta: The file of its numbers.
        facts: The JSON beside it.
        score: How good it is.
        trainable: Parameters that were trained.
        licence: Identifier of the licence of the delta.
        release: Name of the release of the benchmark that it is from.
        run: Its run in that release, ``record.json`` lies in ``runs/<run>``.
        config_hash: Digest of the config of the run.
        input: What it is to be shown.
        example: A picture or video to try it on.
    """

    name: Name
    recipe: Recipe
    task: Line
    method: dict[str, Any] | list[dict[str, Any]]
    options: dict[str, Any]
    protocol: Literal['honest', 'published']
    leaf: bool = False
    backbone: Line
    base: Base
    delta: Artifact
    facts: Artifact
    score: Score
    trainable: Trainable
    licence: Line
    release: Line
    run: Line
    config_hash: Digest
    input: Line = ''
    example: Artifact | None = None

    @property
    def methods(self) -> str:
        """Names of the methods: ``LoRA``, ``LoRA + VPTDeep``."""
        return ' + '.join(_words(self, 'method'))

    def summary(self) -> str:
        """What it is and how good, in a line."""
        labels = '' if self.score.labels is None else f'{self.score.labels:,} labels, '
        return (
            f'{PREFIX}{self.name}: {self.methods} on {self.backbone} for {self.task}, '
            f'{self.score.value:.1f} % {self.score.label} on its test set '
            f'({labels}{self.protocol} protocol)'
        )


class Index(msgspec.Struct, forbid_unknown_fields=True):
    """What ``index.json`` holds."""

    format: int
    entries: list[Entry]


@dataclass(frozen=True)
class Zoo:
    """An index and where it lies.

    Attributes:
        folder: Of the index, and of files that have no address.
        entries: By name.
    """

    folder: Path
    entries: Mapping[str, Entry]

    def find(self, name: str) -> Entry:
        """The entry of a name, with or without ``zoo/`` in front.

        Raises:
            PETLError: There is none; the nearest is named.
        """
        name = name.removeprefix(PREFIX)
        if name not in self.entries:
            raise PETLError(
                f'the zoo has no {name!r}.{suggest(name, self.entries)} '
                f'mmpetl zoo lists its {len(self.entries)} deltas'
            )
        return self.entries[name]

    def select(
        self,
        task: str | None = None,
        method: str | None = None,
        base: str | None = None,
    ) -> list[Entry]:
        """Entries by name, of those that fit.

        Args:
            task: Its id, or that of the recipe, in any case.
            method: Name of a method.
            base: Part of the backbone's name or of the base file's.

        Raises:
            PETLError: No entry has it; the nearest is named.
        """
        found = [self.entries[name] for name in sorted(self.entries)]
        asked = {'task': task, 'method': method, 'base': base}
        for what, wanted in asked.items():
            if wanted is None:
                continue
            known = {w for entry in found for w in _words(entry, what)}
            found = [e for e in found if _fits(e, what, wanted.lower())]
            if not found:
                raise PETLError(
                    f'no delta of the zoo has the {what} {wanted!r}.'
                    f'{suggest(wanted, known)} There are: {", ".join(sorted(known))}'
                )
        return found


def _words(entry: Entry, what: str) -> list[str]:
    if what == 'task':
        return [entry.task, entry.recipe]
    if what == 'method':
        several = entry.method if isinstance(entry.method, list) else [entry.method]
        return [str(method.get('type')) for method in several]
    return [entry.backbone, entry.base.weights.file]


def _fits(entry: Entry, what: str, wanted: str) -> bool:
    words = [word.lower() for word in _words(entry, what)]
    return any(wanted in w for w in words) if what == 'base' else wanted in words


def read_zoo(folder: str | os.PathLike | None = None) -> Zoo:
    """The zoo.

    Args:
        folder: Of its index; by default that of ``MMPETL_ZOO``, else the one that
            travels with the package.

    Raises:
        FileNotFoundError: There is no index.
        PETLError: It is damaged, of another format, or has a name twice.
    """
    folder = zoo_folder() if folder is None else Path(folder)
    path = folder / INDEX
    index = read_json(path, Index, 'index of the zoo')
    if index.format != FORMAT:
        raise PETLError(
            f'{path} has format {index.format}; this mmpetl reads format {FORMAT}'
        )
    entries = {entry.name: entry for entry in index.entries}
    if len(entries) < len(index.entries):
        names = [entry.name for entry in index.entries]
        twice = next(name for name in entries if names.count(name) > 1)
        raise PETLError(f'{path} has the entry {twice!r} twice')
    for entry in index.entries:
        if (entry.delta.file, entry.facts.file) != (
            f'{entry.name}.safetensors',
            f'{entry.name}.json',
        ):
            raise PETLError(
                f'{path}: the files of {entry.name!r} are not called after it'
            )
    return Zoo(folder, entries)


# ----------------------------------------------------------------------- files


def bring_delta(
    zoo: Zoo,
    entry: Entry,
    mirror: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Path:
    """Both files of a delta, fetched where they are not here.

    Args:
        zoo: The zoo.
        entry: Its entry.
        mirror: See :func:`mmpetl.models.weights.fetch`.
        progress: Likewise.

    Returns:
        The ``.safetensors`` file, beside its JSON.

    Raises:
        PETLError: A file cannot be fetched, or is another one than the index says; the
            message says from where to fetch it and where to put it.
    """
    _bring(zoo, entry, entry.facts, mirror, progress)
    return _bring(zoo, entry, entry.delta, mirror, progress)


def bring_base(
    entry: Entry,
    mirror: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Path:
    """The file of the base weights, fetched where it is not here; see `bring_delta`.

    A file that is here is taken as it is: the delta's fingerprint is held against what
    the backbone has read of it. ``mmpetl zoo check`` holds the file to its SHA-256.
    """
    wanted = entry.base.weights
    here = base_here(entry)
    if here is not None:
        return here
    known = known_file(wanted.file) or KnownFile(wanted.file, '', None)
    known = replace(
        known,
        title=f'the base of {PREFIX}{entry.name}',
        url=wanted.url or known.url,
        size_bytes=wanted.bytes,
        sha256=wanted.sha256,
    )
    return _fetched(entry, known, weights_folder(), mirror, progress, None)


def base_here(entry: Entry) -> Path | None:
    """Where the base weights of an entry lie; None where they are not here."""
    places = (weights_folder(), shipped('demo/weights'))
    files = [folder / entry.base.weights.file for folder in places]
    return next((file for file in files if file.is_file()), None)


def bring_example(zoo: Zoo, entry: Entry) -> Path:
    """The picture or video to try a delta on.

    Raises:
        PETLError: There is none, or as of :func:`bring_delta`.
    """
    if entry.example is None:
        raise PETLError(
            f'{PREFIX}{entry.name} has no example; name a picture or a video'
        )
    return _bring(zoo, entry, entry.example, None, None)


def cache_folder() -> Path:
    """Where fetched deltas lie: ``zoo`` in the folder of weights."""
    return weights_folder() / 'zoo'


def files_here(zoo: Zoo, entry: Entry) -> Iterator[tuple[Artifact, Path | None]]:
    """Files of an entry, and where they lie; None where one is not here."""
    for artifact in filter(None, (entry.delta, entry.facts, entry.example)):
        there = (zoo.folder / artifact.file, cache_folder() / artifact.file)
        yield artifact, next((path for path in there if path.is_file()), None)
    yield entry.base.weights, base_here(entry)


def faults(path: Path, artifact: Artifact) -> list[str]:
    """What of a file is not as the index says; empty where all is."""
    return check_sums(path, _known(artifact, ''))


def _bring(
    zoo: Zoo,
    entry: Entry,
    artifact: Artifact,
    mirror: str | os.PathLike | None,
    progress: Progress | None,
) -> Path:
    beside = zoo.folder / artifact.file
    if not beside.is_file():
        known = _known(artifact, f'a file of {PREFIX}{entry.name}')
        return _fetched(entry, known, cache_folder(), mirror, progress, check_sums)
    wrong = faults(beside, artifact)
    if wrong:
        raise PETLError(
            f'{beside} is not the file of {PREFIX}{entry.name}: {"; ".join(wrong)}; '
            'install mmpetl anew, or mend the zoo with the index that belongs to it'
        )
    return beside


def _known(artifact: Artifact, title: str) -> KnownFile:
    return KnownFile(
        artifact.file,
        title,
        artifact.url,
        size_bytes=artifact.bytes,
        sha256=artifact.sha256,
    )


def _fetched(
    entry: Entry,
    known: KnownFile,
    folder: Path,
    mirror: str | os.PathLike | None,
    progress: Progress | None,
    check: Any,
) -> Path:
    try:
        while True:
            try:
                return fetch(known, folder, mirror, progress, check)[0]
            except WeightsBusyError:  # a process of the same run, as a rule
                time.sleep(PAUSE_S)
    except WeightsError as error:
        source, place = known.url or 'a person who has it', folder / known.name
        raise PETLError(
            f'{PREFIX}{entry.name}: {error} (from {source} to {place}, or '
            f'mmpetl zoo fetch {entry.name} --mirror FOLDER)'
        ) from None
