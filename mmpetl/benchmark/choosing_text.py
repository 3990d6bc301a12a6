"""The answer to which method to take, in words."""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.benchmark.choosing import (
    AROUND,
    LIMITS,
    Candidate,
    Choice,
    Limits,
    show_bytes,
    show_seconds,
)
from mmpetl.benchmark.designs import ALPHA, counted, least_p, num_needed
from mmpetl.benchmark.render import markdown
from mmpetl.benchmark.resampling import RUN_RESAMPLES, SEED, Interval

HEAD = ('place', 'method', 'mean', '95 %', 'mean rank', '95 %', 'best in', 'p')
HEAD += ('trainable', 'memory', 'step', 'folds')


def choice_text(choice: Choice, limits: Limits) -> str:
    """An answer in Markdown: a table, and what may be said of it."""
    lines = [f'**{markdown(choice.title)}**', '', f'Asked: {limits_text(limits)}.', '']
    # What is known of nobody marks nobody.
    common = set.intersection(*[set(c.unknown) for c in choice.candidates] or [set()])
    if choice.candidates:
        lines += [
            _line(HEAD),
            _line([':---', ':---', *['---:'] * (len(HEAD) - 2)]),
            *(
                _line([_place(choice, place), *_cells(c, common)])
                for place, c in enumerate(choice.candidates)
            ),
            '',
        ]
    lines += [f'- {markdown(line)}' for line in verdict(choice)]
    if len(choice.candidates) > 1:
        if choice.candidates[0].rank_interval is None:
            why = 'too few tasks and seeds are shared to draw others'
            lines.append(f'- No intervals: {why}.')
        else:
            lines.append(f'- {resampling_note()}')
        lines.append(
            '- p: signed-rank test over tasks against the first, corrected by Holm. '
            'Places with = are shared.'
        )
    lines += [f'- {markdown(line)}' for line in _left_out(choice)]
    lines += [f'- Not known: {markdown(line)}.' for line in choice.unknown]
    lines += [f'- {markdown(line)}' for line in choice.warnings]
    return '\n'.join(lines) + '\n'


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _place(choice: Choice, place: int) -> str:
    shared = len(choice.tied) > 1 and choice.candidates[place].tied
    return '1=' if shared else str(place + 1)


def _cells(one: Candidate, common: set[str]) -> list[str]:
    facts = one.facts
    return [
        markdown(one.label) + (' ?' if set(one.unknown) - common else ''),
        f'{one.mean:.2f}',
        _ends(one.mean_interval),
        f'{one.rank:.2f}',
        _ends(one.rank_interval),
        '–' if one.best is None else f'{100 * one.best:.0f} %',
        '–' if one.p is None else f'{one.p:.3g}',
        '?' if facts.trainable is None else f'{facts.trainable:,}',
        '?' if facts.memory_bytes is None else show_bytes(facts.memory_bytes),
        '?' if facts.step_seconds is None else show_seconds(facts.step_seconds),
        {True: 'yes', False: 'no', None: '?'}[facts.folds],
    ]


def _ends(interval: Interval | None) -> str:
    return '–' if interval is None else f'{interval.low:.2f} to {interval.high:.2f}'


def _left_out(choice: Choice) -> list[str]:
    """Who does not fit, by reason, and who lacks tasks."""
    lines = []
    if choice.excluded:
        parts = [
            f'{label} ({", ".join(reasons)})'
            for label, reasons in choice.excluded.items()
        ]
        lines.append(f'{len(parts)} do not fit: {", ".join(parts)}.')
    if choice.incomplete:
        parts = [
            f'{label} ({len(tasks)})' for label, tasks in choice.incomplete.items()
        ]
        lines.append(f'Not ranked, tasks are missing: {", ".join(parts)}.')
    return lines


def limits_text(limits: Limits) -> str:
    """What was asked, in a line."""
    parts = [
        f'{name} at most {show(getattr(limits, key))}'
        for name, key, show in LIMITS
        if getattr(limits, key) is not None
    ]
    if limits.folds:
        parts.append('folds')
    if limits.kind:
        parts.append(f'tasks of {limits.kind}')
    if limits.pictures:
        parts.append(
            f'tasks with {limits.pictures / AROUND:,.0f} to '
            f'{limits.pictures * AROUND:,.0f} training pictures'
        )
    if limits.backbone:
        parts.append(f'backbone {limits.backbone}')
    return '; '.join(parts) or 'nothing but the best'


def verdict(choice: Choice) -> list[str]:
    """What may be said, in sentences."""
    tied = choice.tied
    if not tied:
        return ['No method fits.']
    num, others = choice.design.num_tasks, len(choice.candidates) - 1
    if len(choice.candidates) == 1:
        return [f'Only {tied[0].label} fits; there is nothing to rank.']
    how = (
        f'signed-rank test over {counted(num, "task")}, Holm over '
        f'{counted(others, "comparison")} with the first'
    )
    if len(tied) == 1:
        return [
            f'{tied[0].label} is first, and all others are shown to differ ({how}).'
        ]
    lines = [
        f'The first place is shared by {len(tied)} of {len(choice.candidates)}: '
        f'{", ".join(c.label for c in tied)}. They are not shown to differ from '
        f'{tied[0].label} ({how}).'
    ]
    least = min(1.0, others * least_p(num))
    if least >= ALPHA:
        lines.append(
            f'With {counted(num, "task")} no difference can be shown: the '
            f'least p is {least:.3g}; {num_needed(ALPHA, others)} tasks can.'
        )
    return [*lines, *_cheapest(tied)]


def _cheapest(tied: Sequence[Candidate]) -> list[str]:
    """Which of those that tie costs least, where it is known of all."""
    parts = []
    for name, key, show in LIMITS[:3]:
        values = {c.label: getattr(c.facts, key) for c in tied}
        if None in values.values():
            continue
        low = min(values.values())
        labels = [label for label, value in values.items() if value == low]
        parts.append(f'{name} {", ".join(labels)} ({show(low)})')
    return [f'Of these, least in {"; in ".join(parts)}.'] if parts else []


def resampling_note() -> str:
    """How the intervals were made."""
    return (
        f'Intervals: 95 % percentile bootstrap over tasks and seeds, '
        f'{RUN_RESAMPLES:,} resamples, seed {SEED}; from few tasks they are too narrow.'
    )
