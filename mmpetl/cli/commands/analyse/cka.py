"""Linear CKA between the blocks of a run's base and those of its tuned model.

Example: mmpetl analyse cka \
    work_dirs/lora/mini/digits --out work_dirs/pictures/cka.png

Features behind every block are pooled as the head pools them. The base against itself
stands beside it, as what no change looks like. Writes the picture, its caption (.json)
and every number (.numbers.json).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmpetl import analysis
from mmpetl.analysis.cka import ESTIMATORS
from mmpetl.analysis.pictures import Caption, draw_cka, picture_stem, save_picture
from mmpetl.analysis.sources import add_run_arguments, open_run
from mmpetl.apis import cli_errors
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_run_arguments(parser, out='work_dirs/pictures/cka.png', points=500)
    parser.add_argument(
        '--estimator',
        choices=ESTIMATORS,
        default='unbiased',
        help='of HSIC; biased is near 1 where points are few (unbiased)',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        picture_stem(args.out)
        pair, data = open_run(args)
        points = analysis.load_points(pair.config, args.points, args.split, args.seed)
        (base, tuned), _ = analysis.features_of_points(
            (pair.base, pair.tuned), points, args.batch_size
        )
        before, after = (*base.blocks, base.final), (*tuned.blocks, tuned.final)
        panels = {
            'no change': analysis.linear_cka(before, before, args.estimator),
            'what tuning changed': analysis.linear_cka(before, after, args.estimator),
        }
        layers = [*map(str, range(len(base.blocks))), 'out']
        n = len(points)
        figure = draw_cka(
            panels,
            (('base', 'base'), ('base', pair.name)),
            layers,
            f'{data}, {n} points ({args.split}), {args.estimator} estimate',
        )
        same = np.diag(panels['what tuning changed'])
        told = ', '.join(f'{x} {v:.3f}' for x, v in zip(layers, same, strict=True))
        caption = Caption(
            title=f'Linear CKA by block: base and {pair.name} on {data}',
            caption=(
                f'1 means that two blocks represent {n} points of the {args.split} set '
                'alike up to rotation and scale, 0 that they have nothing in common. '
                f'Left the base against itself, right against {pair.method}; '
                f'{args.estimator} estimate over all points.'
            ),
            alt=(
                'Two heat maps of blocks by blocks. Base against tuned at the same '
                f'block: {told}.'
            ),
            section='Features',
        )
        numbers = {
            'method': pair.method,
            'split': args.split,
            'indices': list(points.indices),
            'estimator': args.estimator,
            'layers': layers,
            'base_base': panels['no change'],
            'base_tuned': panels['what tuning changed'],
            'tuned_tuned': analysis.linear_cka(after, after, args.estimator),
        }
        written = save_picture(figure, args.out, caption, numbers)
    print(f'base and {pair.name} at the same block: {told}', *written, sep='\n')
