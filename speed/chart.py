"""Time and memory of every method against their bounds, as a picture.

Example: PYTHONPATH=. python speed/chart.py

Reads what ``speed/methods.py --write`` left in docs/speed/methods.json, and writes
docs/speed/<backbone>.png with its words beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from methods import COSTS

from mmpetl.analysis.charts import COLOURS, colour_of, new_figure, save_figure
from mmpetl.core import registered_methods

FEWEST = 5
"""Methods of a chart; fewer are read from their table."""

MOST_TIME, MOST_KEPT = 1.10, 0.85
"""What no method should lie above: of its bound, and of full fine-tuning."""


def draw(backbone: str, case: Mapping[str, Any], rows: Sequence[Mapping]) -> None:
    """One row a method, its time on the left and what it keeps on the right."""
    kinds = registered_methods()
    order = list(COLOURS)
    known = [row for row in rows if row['method'] in kinds]
    families = {row['method']: kinds[row['method']].family for row in known}
    known.sort(
        key=lambda row: (order.index(families[row['method']]), row['method'].lower()),
        reverse=True,
    )
    figure, axes = new_figure(7.5, 1.2 + 0.21 * len(known), columns=2)
    left, right = axes[0]
    for y, row in enumerate(known):
        colour = colour_of(families[row['method']])
        median, low, high = row['step_bound'][:3]
        left.plot([low, high], [y, y], color=colour, linewidth=1.2)
        left.plot(median, y, 'o', color=colour, markersize=4.5)
        right.plot([0, row['kept']], [y, y], color=colour, linewidth=1.2)
        right.plot(row['kept'], y, 's', color=colour, markersize=4.5)
    names = [row['method'] for row in known]
    left.set_yticks(range(len(names)), names, fontsize=8)
    for tick, name in zip(left.get_yticklabels(), names, strict=True):
        tick.set_color(colour_of(families[name]))
    right.set_yticks(range(len(names)), [])
    left.axvline(1, color='black', linewidth=0.8)
    left.axvline(MOST_TIME, color='black', linewidth=0.8, linestyle=':')
    right.axvline(1, color='black', linewidth=0.8)
    right.axvline(MOST_KEPT, color='black', linewidth=0.8, linestyle=':')
    right.set_xlim(left=0)
    left.set_xlabel('time of a step / its bound')
    right.set_xlabel('bytes kept for backward / full fine-tuning')
    for axis in (left, right):
        axis.set_ylim(-0.7, len(known) - 0.3)
        axis.grid(axis='x', color='#dddddd', linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right', 'left']].set_visible(False)
        axis.tick_params(axis='y', length=0)
        axis.tick_params(axis='x', top=True, labeltop=True, labelsize=8)
    slow = [r['method'] for r in known[::-1] if r['step_bound'][0] > MOST_TIME]
    wide = [r['method'] for r in known[::-1] if r['kept'] > MOST_KEPT]
    where = f'{case["blocks"]} blocks, batch {case["batch"]}, {case["device"]}'
    save_figure(
        figure,
        COSTS.with_name(f'{backbone}.png'),
        title=f'Time and memory of {len(known)} methods on {backbone}',
        caption=(
            f'{where}; medians of {case["rounds"]} rounds, lines from the first to the '
            'third quartile. Full lines: the bound, and full fine-tuning. Dotted: '
            f'{MOST_TIME:.2f} and {MOST_KEPT:.2f}. Colours are families.'
        ),
        alt=(
            f'{len(known) - len(slow)} of {len(known)} methods take at most '
            f'{MOST_TIME:.2f} of their bound; above are {", ".join(slow) or "none"}. '
            f'{len(known) - len(wide)} keep at most {MOST_KEPT:.2f} of what full '
            f'fine-tuning keeps; above are {", ".join(wide) or "none"}.'
        ),
        section='speed',
    )


def main() -> None:
    """Draw what was measured."""
    found = json.loads(COSTS.read_text(encoding='utf-8'))
    for backbone, measured in found.items():
        if len(measured['rows']) < FEWEST:
            continue
        draw(backbone, measured['case'], measured['rows'])
        print(COSTS.with_name(f'{backbone}.png'))


if __name__ == '__main__':
    main()
