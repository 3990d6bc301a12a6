"""Where a run's method acts: relative effect by block and site.

Example: mmpetl analyse effect \
    work_dirs/lora/mini/digits --out work_dirs/pictures/effect.png

An effect is |after - before| / |before| of a token, mean over tokens and points; what
`before` is for deltas, added tokens and trained base weights says docs/pictures.md.
Writes the picture, its caption (.json) and every number (.numbers.json).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmpetl import analysis
from mmpetl.analysis.pictures import Caption, draw_effects, picture_stem, save_picture
from mmpetl.analysis.sources import add_run_arguments, open_run, prepare
from mmpetl.apis import cli_errors
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_run_arguments(parser, out='work_dirs/pictures/effect.png', points=128)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        picture_stem(args.out)
        pair, data = open_run(args)
        points = analysis.load_points(pair.config, args.points, args.split, args.seed)
        batches = (
            prepare(pair.tuned, samples)[0]
            for samples in points.batches(args.batch_size)
        )
        effects = analysis.method_effects(
            pair.tuned.backbone, batches, pair.base.backbone
        )
        n = len(points)
        title = f'{pair.name} on {data}: relative effect ({n} points, {args.split})'
        figure = draw_effects(effects, title)
        told = []
        for row, values in zip(effects.rows, effects.values, strict=True):
            top = int(np.nanargmax(values))
            told.append(
                f'{row}: mean {np.nanmean(values):.3f}, largest {values[top]:.3f} at '
                f'{effects.columns[top]}'
            )
        caption = Caption(
            title=f'Where {pair.name} acts on {data}',
            caption=(
                '|after - before| / |before| of a token, mean over tokens and '
                f'{n} points of the {args.split} set; {pair.method}. Empty: the method '
                'does nothing there. The last row compares each whole block with the '
                "base's block on the same input."
            ),
            alt=f'Heat map of sites by blocks. {"; ".join(told)}.',
            section='Where methods act',
        )
        numbers = {
            'method': pair.method,
            'split': args.split,
            'indices': list(points.indices),
            'rows': effects.rows,
            'columns': effects.columns,
            'values': effects.values,
        }
        written = save_picture(figure, args.out, caption, numbers)
    print(*told, *written, sep='\n')
