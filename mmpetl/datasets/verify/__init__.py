"""Whether the data on disk are the right ones: found, expected, what to do.

:func:`verify` reads every list of a data set, looks up every file it names, opens a
sample of them (or all), and holds what it found against the catalogue. A mini set is
held against its own stamp instead, and never passes for the official data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpetl.core import PETLError
from mmpetl.datasets.catalog import DatasetFacts
from mmpetl.datasets.items import Item, folder_of
from mmpetl.datasets.verify.findings import Finding, Report
from mmpetl.datasets.verify.labels import check_classes, check_folders
from mmpetl.datasets.verify.lists import expected_size, read, stamps_of, wrong_kind
from mmpetl.datasets.verify.opening import Progress, check_files, fault_of
from mmpetl.datasets.verify.parts import (
    TWINS,
    check_content,
    check_draw,
    check_overlap,
    disjoint_splits,
)

__all__ = [
    'TWINS',
    'Finding',
    'Progress',
    'Report',
    'disjoint_splits',
    'fault_of',
    'verify',
]


def verify(
    facts: DatasetFacts,
    root: str | Path,
    sample: int | None = 64,
    mini: bool = False,
    workers: int = 4,
    progress: Progress | None = None,
) -> Report:
    """Look at one data set.

    Args:
        facts: Which, a row of the catalogue.
        root: The data root.
        sample: Files to open in each split; None opens all.
        mini: Expect a mini set, and hold it against its own stamp.
        workers: Threads that open files.
        progress: Told of every file opened.

    Returns:
        What was found; nothing is raised for faulty data.
    """
    root = Path(root).expanduser()
    report = Report(facts.id, str(root / facts.path), classes=(None, facts.num_present))
    try:
        folder = folder_of(facts, root)
    except PETLError as error:  # which of several it is
        report.findings.append(Finding('', str(error), 'see there'))
        return report
    report.folder = str(folder)
    if not folder.is_dir():
        report.present = False
        report.findings.append(
            Finding('', f"there is no folder '{folder}'", f'get it: {facts.source}')
        )
        return report
    if folder.name != facts.folder:
        what = f"it is called '{folder.name}' here"
        report.findings.append(
            Finding('', what, 'nothing, the name is known', fault=False)
        )
    stamps = stamps_of(facts, root)
    report.mini = bool(stamps)
    if report.mini != mini:
        report.findings.append(wrong_kind(report.mini, folder))
    manifest: dict[str, Any] = {}
    for stamp in stamps:
        manifest |= stamp.get('manifest', {})
    stamped = manifest if report.mini else None
    items: dict[str, list[Item]] = {}
    for split in facts.splits:
        found, findings = read(facts, split, root, stamped)
        report.findings += findings
        if found is not None:
            items[split.name] = found
            wanted = expected_size(facts, split, stamped)
            report.counts[split.name] = (len(found), wanted)
    report.listed = sum(map(len, items.values()))
    report.findings += check_classes(facts, items, report, manifest)
    report.findings += check_folders(facts, items)
    report.findings += check_overlap(facts, items)
    if facts.layout == 'vtab':
        report.findings += check_content(items, sample)
    if facts.pool is not None:
        report.findings += check_draw(facts, folder)
    report.findings += check_files(facts, items, sample, workers, progress, report)
    return report
