"""Whether rows of a table differ in nothing but the method, and where they do, in what.

Everything is told from records. There are two kinds of answers:

- A **mark** stands at a row whose result is not to be compared with the others: it was
  tested on other samples, a part of the test data trained it, it trained longer or on
  other samples than the rest under one recipe, its record contradicts itself or the
  search that it names, or it scored the test set more than once under the honest
  protocol. Such a row has neither rank nor PPT and takes part in no
  statistics.
- A **difference** is a sentence below the table that names what differs and which rows
  have which value: batch, preprocessing, resolution, options, published settings,
  commit, device, versions, ... The comparison may still be fair; the reader decides.

What most rows of a task have is the rule, and the others are measured against it; of
several that are as frequent, the one with more test samples, then fewer training steps.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmpetl.benchmark.job_config import METHOD, passes_of_job
from mmpetl.benchmark.records import DataRead, Record, reads_by_seed
from mmpetl.benchmark.scores import search_budget, search_spaces

COPIES = 0.01
"""Share of the test samples that may have the content of one that trained.

Public sets hold some twins of their own; a table tells of them from the first on, and
marks the row from this share on.
"""

NAMED = 3
"""Rows that a sentence names one by one."""


NOUNS = {'test': 'test', 'train': 'training', 'val': 'validation'}


@dataclass(frozen=True)
class Comparison:
    """What stands between the rows of a table and a fair comparison.

    Attributes:
        marks: Reasons by the row's label why it is not to be compared.
        differences: Sentences on what differs, most severe first.
        unknown: Sentences on what cannot be told.
    """

    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What casts doubt on the comparison: marked rows, then differences."""
        marked = []
        for label, reasons in self.marks.items():
            more = len(reasons) - NAMED
            tail = f'; and {more} more' if more > 0 else ''
            text = '; '.join(reasons[:NAMED])
            marked.append(f'{label} ‡ is not to be compared: {text}{tail}.')
        return (*marked, *self.differences)


def compare(records: Sequence[Record], labels: Mapping[str, str]) -> Comparison:
    """Hold the rows of one table against each other.

    Args:
        records: Final runs of one protocol, backbone and metric.
        labels: Names of rows, by the id of the job.
    """
    done = [r for r in records if r.status == 'done']
    marks = _marks(done, labels)
    said = [*_of_data(done, labels), *_of_training(done, labels)]
    said += [*_of_searches(done), *_of_runs(done, labels)]
    found = {label: tuple(dict.fromkeys(reasons)) for label, reasons in marks.items()}
    return Comparison(found, tuple(dict.fromkeys(said)), tuple(_of_knowledge(done)))


def _by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    tasks: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        tasks[record.task].append(record)
    return tasks


def _marks(
    records: Sequence[Record], labels: Mapping[str, str]
) -> dict[str, list[str]]:
    """Why rows are not to be compared, by label."""
    marks: dict[str, list[str]] = defaultdict(list)
    for task, runs in _by_task(records).items():
        rule = _usual(runs, _test_of, _by_test)
        of_recipe = [r for r in runs if not r.job.leaf]
        length = _usual(of_recipe, _length_of, _by_length)
        taught = _usual(of_recipe, _train_of, lambda key: 0)
        stale = _stale(runs)
        for record in runs:
            reasons = marks[labels[record.job.id]]
            if record.job.id in stale:
                reasons.append(f'{task}: {stale[record.job.id]}')
            test = record.data.get('test', DataRead())
            if rule and _test_of(record) not in (None, rule):
                reasons.append(f'{task}: tested on {_told(test)}, not {_of(rule)}')
            reasons += [f'{task}: {text}' for text in leaks(record)]
            if record.job.leaf:
                continue
            own = _length_of(record)
            if length and own is not None and own != length:
                more = 'longer' if own > length else 'shorter'
                reasons.append(
                    f'{task}: trained {more}, on {own:,} samples in all and not '
                    f'{length:,}'
                )
            train = record.data.get('train', DataRead())
            if taught and _train_of(record) not in (None, taught):
                reasons.append(f'{task}: trained on {_told(train)}, not {_of(taught)}')
    return {label: reasons for label, reasons in marks.items() if reasons}


def leaks(record: Record) -> list[str]:
    """How test data came into a run's training or choice, by its record alone."""
    found = []
    test, train = record.data.get('test'), record.data.get('train')
    if test and train and test.digest and test.digest == train.digest:
        found.append('trained on the test data')
    elif test and test.copies and test.copies > COPIES * test.count:
        found.append(
            f'{test.copies:,} of {test.count:,} test samples are copies of training '
            'samples'
        )
    last = max((p[0] or 0 for p in record.curves.get('loss', ())), default=None)
    if not (None in (last, record.steps) or _ends_at(record, last)):
        found.append(
            f'its record contradicts itself: {record.steps:,} steps, and a curve that '
            f'ends at {last:,.0f}'
        )
    found += _of_own_search(record)
    if record.job.protocol != 'honest':
        return found
    val = record.data.get('val')
    if test and val and test.digest and test.digest == val.digest:
        found.append('validated on the test data')
    if record.test_reads > 1:
        found.append(f'scored the test set {record.test_reads} times')
    elif earlier := sum(reads_by_seed(record.search).values()):
        # Whoever went on may have done so because of them, also with another seed.
        found.append(
            f'its search went on after final runs had scored the test set {earlier} '
            f'time{"" if earlier == 1 else "s"}'
        )
    return found


def _ends_at(record: Record, last: float) -> bool:
    """Whether a curve ends where the training did, in steps or, as once, in passes."""
    return (
        last == record.steps
        or math.ceil(last / passes_of_job(record.job)) == record.steps
    )


def _of_own_search(record: Record) -> list[str]:
    """Where a run has other settings than the search in its record has chosen."""
    search = record.search or {}
    trials = {t['number']: t for t in search.get('trials', ())}
    best = trials.get(search.get('best'))
    if best is None:
        return []
    # The first trial is the default, which the run's options need not repeat.
    asked = best.get('options', {}) if best['number'] else {}
    other = [k for k, v in asked.items() if record.job.options.get(k) != v]
    if other:
        return [f'has another {other[0]} than its search chose']
    values = [t['value'] for t in trials.values() if t.get('value') is not None]
    if best.get('value') is not None and max(values) > best['value']:
        return ['its search has a better trial than the one that was taken']
    return []


def _stale(runs: Iterable[Record]) -> dict[str, str]:
    """Runs of a search that has gone on since, by the id of their job."""
    groups: dict[Any, list[Record]] = defaultdict(list)
    for r in runs:
        if r.search:
            groups[r.job.method, r.job.variant, r.job.seed, r.job.leaf].append(r)
    stale = {}
    for group in groups.values():
        most = max(_trials(r) for r in group)
        for r in group:
            if _trials(r) < most:
                stale[r.job.id] = (
                    f'stale: of a search of {_trials(r)} trials that now has {most}'
                )
    return stale


def _trials(record: Record) -> int:
    search = record.search or {}
    return max(len(search.get('trials', ())), search_budget(record))


def _test_of(record: Record) -> tuple[str, int] | None:
    read = record.data.get('test')
    return (read.digest, read.count) if read else None


def _train_of(record: Record) -> tuple[str, int] | None:
    read = record.data.get('train')
    return (read.digest, read.count) if read else None


def _length_of(record: Record) -> int | None:
    """Samples that a run was trained on, each as often as it was seen."""
    if record.steps is None or record.batch is None:
        return None
    if record.epochs is not None and 'train' in record.data:
        return record.epochs * record.data['train'].count  # the last batch is smaller
    return record.steps * record.batch


def _by_test(key: tuple[str, int]) -> int:
    return key[1]


def _by_length(key: int) -> int:
    return -key


def _usual(
    records: Iterable[Record], value: Callable[[Record], Any], order: Any
) -> Any | None:
    """What most methods have; None where nothing is known."""
    seen = {
        (r.job.method, r.job.variant, json.dumps(v)): v
        for r in records
        if (v := value(r)) is not None
    }
    counts = Counter(seen.values())
    if not counts:
        return None
    return max(counts, key=lambda key: (counts[key], order(key), str(key)))


def _told(read: DataRead) -> str:
    return _of((read.digest, read.count))


def _of(key: tuple[str, int]) -> str:
    digest = f' ({key[0][:8]})' if key[0] else ' of unknown identity'
    return f'{key[1]:,} samples{digest}'


def _of_data(records: Sequence[Record], labels: Mapping[str, str]) -> list[str]:
    """Sentences on what was read, a task for each."""
    said = []
    for task, runs in _by_task(records).items():
        for phase, noun in NOUNS.items():

            def value(record: Record, phase: str = phase) -> str | None:
                read = record.data.get(phase)
                return _told(read) if read else None

            said += _sentence(f'{noun} data of {task}', runs, labels, value)
        twins = {r.data['test'].copies for r in runs if 'test' in r.data}
        for number in sorted(n for n in twins if n):
            said.append(
                f'{number:,} test samples of {task} have the content of a training '
                'sample.'
            )
    return said


def _of_training(records: Sequence[Record], labels: Mapping[str, str]) -> list[str]:
    """Sentences on how rows were trained."""
    said = []
    leaf = {r.job.leaf for r in records}
    if len(leaf) > 1:
        said += _sentence(
            'settings',
            records,
            labels,
            lambda r: "a published leaf's" if r.job.leaf else "the recipe's",
        )
    told: set[str] = set()
    for task, runs in _by_task(records).items():
        for what, value in _TRAINING.items():
            found = _sentence(f'{what} of {task}', runs, labels, value)
            if found:
                told.add(task)
            said += found
        for key in sorted({k for r in runs for k in r.job.options if _counts(k, r)}):
            found = _sentence(
                f'option {key} of {task}',
                runs,
                labels,
                lambda r, key=key: _short(r.job.options.get(key, 'as in the recipe')),
            )
            if found:
                told.add(task)
            said += found
        tests = sorted({k for r in runs for k in r.job.options if _of_test(k)})
        if tests:
            said.append(
                f'The test of {task} is changed by options: {", ".join(tests)}.'
            )
        digests = {r.recipe_digest for r in runs if r.recipe_digest and not r.search}
        if len(digests) > 1 and task not in told and len(leaf) == 1:
            said += _sentence(
                f'resolved config of {task}, the method left out',
                runs,
                labels,
                lambda r: r.recipe_digest[:8] or None,
            )
    return said


def _counts(key: str, record: Record) -> bool:
    """Whether an option is one of the training, that no search has chosen."""
    return not key.startswith((METHOD, 'phases')) and not record.search


def _of_test(key: str) -> bool:
    return key.startswith(('test_', 'val_evaluator', 'model.test_cfg'))


def _seeds_of(records: Sequence[Record], labels: Mapping[str, str]) -> list[str]:
    """Where rows have other seeds; a row with fewer shows so in its cells."""
    by_row: dict[str, set[int]] = defaultdict(set)
    for record in records:
        by_row[labels[record.job.id]].add(record.job.seed)
    return _spread(
        'seeds', {k: (', '.join(map(str, sorted(v))),) for k, v in by_row.items()}
    )


_TRAINING: Mapping[str, Callable[[Record], Any]] = {
    'epochs': lambda r: r.epochs,
    'steps': lambda r: r.steps,
    'batch': lambda r: r.batch,
    'resolution': lambda r: r.resolution and '{} x {}'.format(*r.resolution),
    'preprocessing': lambda r: _pairs(r.preprocessing),
    'validation': lambda r: None if not r.data else bool(r.data.get('val')),
}
"""What is compared between the runs of one task."""

_RUNS: Mapping[str, Callable[[Record], Any]] = {
    'commit': lambda r: r.commit and _commit(r.commit),
    'device': lambda r: r.device or None,
    'versions': lambda r: _pairs(r.versions),
    'CUDA': lambda r: r.cuda,
    'driver': lambda r: r.driver,
    'processes': lambda r: r.processes,
    'threads': lambda r: r.threads,
    'jobs at a time on a device (its times)': lambda r: r.shared,
    'features read from disk (its times)': lambda r: ', '.join(r.features) or 'none',
}
"""What is compared between all runs of a table."""


def _of_runs(records: Sequence[Record], labels: Mapping[str, str]) -> list[str]:
    """Sentences on base, machine and software."""
    said = []
    bases = {str(r.base.get('file') or '') for r in records} - {''}
    prints = {str(r.base.get('fingerprint') or '') for r in records} - {''}
    if len(prints) > 1 or len(bases) > 1:
        said.append(
            'Not like for like: the rows start from different base weights '
            f'({", ".join(sorted(bases) or sorted(prints))}).'
        )
        said += _sentence(
            'base weights',
            records,
            labels,
            lambda r: _pairs({k: v for k, v in r.base.items() if v}),
        )
    said += _seeds_of(records, labels)
    for what, value in _RUNS.items():
        said += _sentence(what, records, labels, value)
    return said


def _of_searches(records: Sequence[Record]) -> list[str]:
    budgets = sorted({search_budget(record) for record in records})
    spaces = search_spaces(records)
    if len(budgets) < 2:
        return spaces
    spent = [f'{n} trial{"" if n == 1 else "s"}' if n else 'none' for n in budgets]
    return [
        'Not like for like: settings were searched with different budgets '
        f'({", ".join(spent)}).',
        *spaces,
    ]


def _of_knowledge(records: Sequence[Record]) -> list[str]:
    """What cannot be held against each other, since records do not say it."""
    silent = sum('test' not in r.data or 'train' not in r.data for r in records)
    if not silent:
        return []
    return [
        f'{silent:,} of {len(records):,} runs do not say what they trained and were '
        'tested on, as records of format 1 do not: whether it was the same is unknown.'
    ]


def _sentence(
    what: str,
    records: Iterable[Record],
    labels: Mapping[str, str],
    value: Callable[[Record], Any],
) -> list[str]:
    """A sentence that says which rows have which value, where there are several."""
    rows: dict[str, set[str]] = defaultdict(set)
    for record in records:
        found = value(record)
        if found is not None and found != '':
            rows[labels[record.job.id]].add(str(found))
    return _spread(what, {k: tuple(sorted(v)) for k, v in rows.items()})


def _spread(what: str, values: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The sentence for the values of each row; none where all rows have one, the same.

    Runs of a row may differ too: then the row has several values.
    """
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label, texts in values.items():
        rows[texts].append(label)
    if len(rows) < 2:
        return [
            f'All rows mix {what}: {" and ".join(texts)}.'
            for texts in rows
            if len(texts) > 1
        ]
    order = sorted(rows, key=lambda texts: (-len(rows[texts]), texts))
    parts = [
        f'{" and ".join(texts)}: {_names(rows[texts])}' for texts in order[: NAMED + 1]
    ]
    more = len(order) - len(parts)
    if more > 0:
        parts.append(f'{more} more values')
    return [f'Rows differ in {what}. {"; ".join(parts)}.']


def _names(labels: Sequence[str]) -> str:
    named = sorted(labels, key=str.lower)
    if len(named) <= NAMED + 1:
        return ', '.join(named)
    return f'{", ".join(named[:NAMED])} and {len(named) - NAMED} more'


def _pairs(values: Mapping[str, Any]) -> str | None:
    """A mapping in a line; None of an empty one."""
    return ', '.join(f'{k} {_short(v)}' for k, v in sorted(values.items())) or None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _commit(name: str) -> str:
    dirty = '-dirty' if name.endswith('-dirty') else ''
    return name.removesuffix('-dirty')[:10] + dirty
