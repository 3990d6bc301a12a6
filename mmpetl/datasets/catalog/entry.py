"""What is known of a data set: one row of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmpetl.core import PETLError

Family = Literal['image', 'video', 'detection', 'segmentation']
Benchmark = Literal['vtab', 'fgvc', 'video', 'dense', 'study']
Layout = Literal[
    'vtab', 'fgvc', 'list', 'classes', 'video', 'coco', 'ade20k', 'voc', 'voc_seg'
]


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Args:
        name: As dataset classes take it.
        size: Samples of the official split; None where copies differ by much.
        file: Its list below the data set's folder; empty where a folder is the list.
        images: Folder that the list's paths are relative to, below the data set's.
        optional: The data set is whole without it.
    """

    name: str
    size: int | None
    file: str = ''
    images: str = ''
    optional: bool = False


@dataclass(frozen=True)
class DatasetFacts:
    """One data set.

    Args:
        id: Name in the published tables.
        title: What people call it.
        benchmark: The collection that it belongs to.
        family: Kind of task, which decides the toolbox that trains it.
        group: ``natural``, ``specialised`` or ``structured`` for VTAB-1k; otherwise a
            word for a table's heading.
        num_classes: Outputs of the head. Background counts where it is predicted.
        splits: What there is to read.
        base: Folder below the data root that several sets share.
        folder: Folder below ``base``.
        layout: How lists and files are laid out.
        metrics: Main metric first.
        licence: Terms, in a few words. Check them at the source.
        source: Where the data come from.
        aliases: Other names of the set and of its folder.
        folders: Other names that releases give its folder; capitals, blanks, hyphens
            and underscores make no difference.
        traps: What goes wrong with it, a sentence each.
        pool: The list that drawn splits come from, for sets of several sizes.
        folds: Pairs ``train_fold<k>``, ``val_fold<k>`` that are drawn besides.
        subset: How many of ``num_classes`` the set holds, if not all.
        part_of: Pattern of what the name of a sample adds to that of what it was cut
            from, such as a film: samples of one are no evidence for each other.
    """

    id: str
    title: str
    benchmark: Benchmark
    family: Family
    group: str
    num_classes: int
    splits: tuple[Split, ...]
    base: str
    folder: str
    layout: Layout
    metrics: tuple[str, ...]
    licence: str
    source: str
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    traps: tuple[str, ...] = ()
    pool: Split | None = None
    folds: int = 0
    subset: int | None = None
    part_of: str = ''

    @property
    def path(self) -> str:
        """The data set's folder below the data root."""
        return '/'.join(part for part in (self.base, self.folder) if part)

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def num_present(self) -> int:
        """Classes that occur in the set's labels."""
        return self.subset or self.num_classes

    @property
    def num_test(self) -> int | None:
        """Samples that the published figure is measured on: the last split's."""
        return [split for split in self.splits if not split.optional][-1].size

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            PETLError: There is none.
        """
        for split in self.splits:
            if split.name == name:
                return split
        names = ', '.join(split.name for split in self.splits)
        raise PETLError(f"{self.id} has no split '{name}'; there are {names}.")


UNSTATED = 'see the source'
"""The licence where its holder states none in a few words."""
