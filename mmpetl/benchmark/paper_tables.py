"""The tables of ``docs/cost.md``."""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.benchmark.paper import Assumptions, Cost, Flops, Work, cost_of, sum_of

Pair = tuple[Work, Flops]


def tables(pairs: Sequence[Pair], seeds: int, given: Assumptions) -> dict[str, str]:
    """Texts by the names of their marks: ``assumptions``, ``recipes``, ``methods``.

    Args:
        pairs: Work and operations of every pair of a plan.
        seeds: Runs of each pair.
        given: From operations to days.
    """
    return {
        'assumptions': assumptions(given, seeds),
        'recipes': recipes(pairs, seeds, given),
        'methods': methods(pairs),
    }


def assumptions(given: Assumptions, seeds: int) -> str:
    """What the days rest on, in a list."""
    return '\n'.join(
        [
            f'- Device: {given.device}, peak {given.peak_tflops:g} TFLOP/s '
            f'({given.precision}).',
            f'- A job alone on it reaches {given.alone:.0%} of that peak; small jobs '
            f'that share it reach {given.packed:.0%} together. Small is a step whose '
            f'forward pass takes less than {given.small:,.0f} GFLOPs.',
            f'- {given.overhead:.0%} of the time goes to data, start and the rest.',
            f'- {seeds} seed{"s" if seeds > 1 else ""}, settings known beforehand: no '
            'search.',
        ]
    )


def recipes(pairs: Sequence[Pair], seeds: int, given: Assumptions) -> str:
    """A line for each suite or recipe, and the sum."""
    rows: dict[str, list[Pair]] = {}
    for work, flops in pairs:
        suite, slash, _ = work.recipe.partition('/')
        rows.setdefault(f'{suite} (all)' if slash else suite, []).append((work, flops))
    head = ('recipe', 'runs', 'steps of a run', 'million steps', 'EFLOPs')
    head += ('days', 'packed', 'and features kept')
    lines = [_line(head), _line([':---', *['---:'] * (len(head) - 1)])]
    every = []
    for name, some in rows.items():
        costs = [cost_of(work, flops, seeds, given) for work, flops in some]
        every += costs
        steps = {work.steps for work, _ in some}
        few = f'{min(steps):,}'
        text = few if len(steps) == 1 else f'{few} to {max(steps):,}'
        lines.append(_line([name, *_numbers(sum_of(costs), text)]))
    lines.append(_line(['**all**', *_numbers(sum_of(every), '')]))
    return '\n'.join(lines)


def _numbers(cost: Cost, steps: str) -> list[str]:
    days = (cost.days, cost.packed_days, cost.kept_days)
    return [
        f'{cost.runs:,}',
        steps,
        f'{cost.steps / 1e6:.2f}',
        f'{cost.flops / 1e18:,.1f}',
        *(f'{value:,.1f}' for value in days),
    ]


def methods(pairs: Sequence[Pair]) -> str:
    """GFLOPs of a training sample: methods in lines, backbones in columns."""
    known = {(f.group, f.method): f for _, f in pairs}
    groups = list(dict.fromkeys(f.group for _, f in pairs))
    names = sorted({method for _, method in known}, key=str.lower)
    plain = [f'{known[g, "LinearProbe"].forward / 1e9:,.1f}' for g in groups
             if (g, 'LinearProbe') in known]  # fmt: skip
    lines = [
        _line(['method', *groups]),
        _line([':---', *['---:'] * len(groups)]),
    ]
    if len(plain) == len(groups):
        lines.append(_line(['*one forward pass*', *plain]))
    for name in names:
        cells = [known.get((group, name)) for group in groups]
        texts = ['–' if c is None else f'{c.step / 1e9:,.1f}' for c in cells]
        lines.append(_line([name, *texts]))
    return '\n'.join(lines)


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
