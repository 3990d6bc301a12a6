"""What a record says in a table: which row and column it belongs to, and its score."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpetl.benchmark.records import Job, Record, setting_key


@dataclass(frozen=True)
class Metric:
    """A metric as evaluators name it.

    Attributes:
        key: Its name in the published tables.
        label: Its name in ours.
        scale: What turns the evaluator's number into percent.
    """

    key: str
    label: str
    scale: float


METRICS: Mapping[str, Metric] = {
    'accuracy/top1': Metric('top1', 'top-1 accuracy', 1),
    'acc/top1': Metric('top1', 'top-1 accuracy', 100),
    'coco/bbox_mAP': Metric('ap_box', 'box AP', 100),
    'coco/segm_mAP': Metric('ap_mask', 'mask AP', 100),
    'pascal_voc/mAP': Metric('ap_box', 'box AP at IoU 0.5', 100),
    'pascal_voc/AP50': Metric('ap_box', 'box AP at IoU 0.5', 100),
    'mIoU': Metric('miou', 'mIoU', 1),
}
"""MMPretrain and MMSegmentation report percent, the others parts of one."""


def metric_of(name: str) -> Metric:
    """What a metric's name means; unknown ones are taken as percent, under their name.

    ``segmentation/mIoU``, with a prefix of the config, is ``mIoU``.
    """
    from mmpetl.evaluation.metric_names import meant

    return METRICS.get(meant(name)) or Metric(name, name, 1)


def percent(record: Record) -> float | None:
    """The score of a record in percent; None of a failed run."""
    if record.status != 'done' or record.score is None:
        return None
    if not math.isfinite(record.score):
        return None
    return record.score * metric_of(record.primary).scale


def search_budget(record: Record) -> int:
    """Different settings that were tried for a run; 0 without a search.

    A trial of a setting that was tried before tells nothing new. A record that lists no
    trials counts by its budget.
    """
    search = record.search or {}
    trials = search.get('trials')
    if not trials:
        return int(search.get('budget', 0))
    return len({setting_key(trial.get('options', {})) for trial in trials})


def search_spaces(records: Iterable[Record]) -> list[str]:
    """What a reader must know of the spaces behind searched settings.

    Returns:
        A sentence on the rows whose space was tried out whole, where others had more
        to try, and one on the sizes of spaces, where they differ.
    """
    sizes: dict[str, int | None] = {}
    spent: dict[str, int] = {}
    for record in records:
        if record.search and 'settings' in record.search:
            method, size = record.job.method, record.search['settings']
            # Spaces and budgets may differ from task to task.
            known = [n for n in (sizes.get(method), size) if n is not None]
            sizes[method] = min(known, default=None)
            spent[method] = max(spent.get(method, 0), search_budget(record))
    most = max(spent.values(), default=0)
    small = {m: n for m, n in sizes.items() if n is not None and n < most}
    lines = []
    if small:
        names = ', '.join(f'{method} ({size})' for method, size in small.items())
        lines.append(
            f'Not like for like: the search spaces of {names} hold fewer settings than '
            f'the {most} that others tried.'
        )
    ends = {m: n for m, n in sizes.items() if n is not None}
    if ends and len(set(sizes.values())) > 1:
        names = ', '.join(f'{m} {n:,}' for m, n in sorted(ends.items()))
        rest = '; the others have no end' if len(ends) < len(sizes) else ''
        lines.append(f'Settings in the search spaces: {names}{rest}.')
    return lines


def suite_of(record: Record) -> str:
    """The set of tasks a record belongs to: ``vtab`` of ``vtab/cifar100``.

    Recipes without a folder belong to the benchmark of their data set.
    """
    return suite_named(record.job.recipe, record.task, record.group)


def suite_named(recipe: str, task: str, group: str) -> str:
    """:func:`suite_of` a run of a recipe on a task of a group."""
    from mmpetl.datasets.catalog import CATALOG

    suite, slash, _ = recipe.partition('/')
    if slash:
        return suite
    facts = CATALOG.get(task)
    return facts.benchmark if facts else group or suite


def with_facts(records: Iterable[Record]) -> list[Record]:
    """Records of failed runs, which may know nothing but their job, with its facts.

    Task, group and backbone come from other runs of the recipe, first of those with the
    same options; the family from other runs of the method. What no run knows stays the
    recipe's own name, or empty.
    """
    records = list(records)
    known: dict[tuple[str, ...], Record] = {}
    families = {r.job.method: r.family for r in records if r.family}
    for record in records:
        if record.task and record.backbone:
            known.setdefault((record.job.recipe, _options(record.job)), record)
            known.setdefault((record.job.recipe,), record)
    result = []
    for record in records:
        if not (record.task and record.backbone and record.family):
            recipe = record.job.recipe
            like = known.get((recipe, _options(record.job))) or known.get((recipe,))
            record = replace(
                record,
                task=record.task or (like.task if like else recipe.rpartition('/')[2]),
                group=record.group or (like.group if like else ''),
                backbone=record.backbone or (like.backbone if like else ''),
                family=record.family or families.get(record.job.method, ''),
            )
        result.append(record)
    return result


def _options(job: Job) -> str:
    return json.dumps(dict(job.options), sort_keys=True, default=str)


def labels_of(records: Iterable[Record]) -> dict[str, str]:
    """Names of rows, by the id of the job.

    A row is a method and a variant. Its options may differ from task to task, as after
    a search. Where one task was run with several options, each is a row, and the
    options that differ are in its name: ``LoRA (rank=4)``.
    """
    groups: dict[tuple[str, ...], dict[str, list[Job]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        job = record.job
        key = job.protocol, suite_of(record), record.backbone, job.method, job.variant
        groups[key][record.task].append(job)
    labels = {}
    for (*_, method, variant), tasks in groups.items():
        differ = sorted(set().union(*map(_differing, tasks.values())))
        for job in (job for jobs in tasks.values() for job in jobs):
            parts = [variant] if variant else []
            parts += [
                f'{key.rpartition(".")[2]}={options[key]}'
                for options in (_options_of(job),)
                for key in differ
                if key in options
            ]
            labels[job.id] = f'{method} ({", ".join(parts)})' if parts else method
    return labels


def _options_of(job: Job) -> dict[str, Any]:
    return {**job.options, 'leaf': True} if job.leaf else dict(job.options)


def _differing(jobs: Sequence[Job]) -> set[str]:
    """Options that are not the same in all jobs."""
    texts = [
        {k: json.dumps(v, default=str) for k, v in _options_of(job).items()}
        for job in jobs
    ]
    keys = set().union(*texts)
    return {key for key in keys if len({text.get(key) for text in texts}) > 1}
