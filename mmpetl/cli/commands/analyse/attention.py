"""Attention of a run's base and its tuned model on one sample, side by side.

Examples:
    mmpetl analyse attention work_dirs/vpt_deep/mini/digits --sample 7
    mmpetl analyse attention SWIN_RUN --query 0.3 0.6
    mmpetl analyse attention VIDEO_RUN --blocks 0 4

Shown are, per block and for the heads of one, where the class token looks; without a
class token the mean over queries; in windowed attention what one cell sees in its
window. Then the rollout over all blocks, and, where the method brings tokens of its
own, the share of attention they get. Video becomes a filmstrip. Writes the picture, its
caption (.json) and every number (.numbers.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmpetl import analysis
from mmpetl.analysis.attention import BlockAttention, check_blocks
from mmpetl.analysis.pictures import (
    Caption,
    Column,
    draw_attention,
    draw_filmstrip,
    picture_stem,
    save_picture,
)
from mmpetl.analysis.sources import (
    Pair,
    add_run_arguments,
    as_pictures,
    label_of,
    open_run,
    prepare,
)
from mmpetl.apis import cli_errors
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError

SHOWN = 12
"""Blocks that fit into a picture."""


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_run_arguments(parser, out='work_dirs/pictures/attention.png')
    parser.add_argument('--sample', type=int, default=0, help='number in the data set')
    parser.add_argument(
        '--show',
        choices=('auto', 'class', 'mean', 'query'),
        default='auto',
        help='whose attention: of the class token, of all cells, of one cell',
    )
    parser.add_argument(
        '--query',
        type=float,
        nargs='+',
        metavar='SHARE',
        help='place of the cell as shares of the height and width in [0, 1), of video '
        'frame, height and width (the middle)',
    )
    parser.add_argument('--blocks', type=int, nargs='+', help='which blocks to show')
    parser.add_argument(
        '--heads-of',
        type=int,
        help='block whose heads are shown (images: the last; video: none, and with it '
        'heads instead of blocks)',
    )
    return parser


def look_at(
    args: argparse.Namespace, first: BlockAttention
) -> tuple[str, Callable[[BlockAttention], np.ndarray], Callable]:
    """What is shown, the map of a block, and the cell of a block that asks."""
    show = args.show
    if show == 'auto':
        by_cell = first.window is not None or args.query
        show = 'query' if by_cell else 'class' if first.num_class else 'mean'
    axes = len(first.grid)
    shares = args.query or [0.5] * axes
    if len(shares) != axes or any(not 0 <= s < 1 for s in shares):
        raise PETLError(
            f'--query needs {axes} shares in [0, 1) here, got '
            f'{" ".join(map(str, shares))}'
        )

    def cell(a: BlockAttention) -> tuple[int, ...] | None:
        place = tuple(int(s * g) for s, g in zip(shares, a.grid, strict=True))
        return place if show == 'query' else None

    maps = {
        'class': analysis.class_map,
        'mean': analysis.mean_map,
        'query': lambda a: analysis.query_map(a, cell(a)),
    }
    return show, maps[show], cell


def record(pair: Pair, x: Any) -> dict[str, list[BlockAttention]]:
    """The attention of both models on one input."""
    found = {}
    for name, model in (('base', pair.base), (pair.name, pair.tuned)):
        with analysis.watch_attention(model.backbone) as attentions:
            model.backbone(x)
        found[name] = attentions
    return found


def spread(count: int) -> list[int]:
    """At most ``SHOWN`` blocks, evenly from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, SHOWN))})


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        picture_stem(args.out)
        pair, data = open_run(args)
        every = analysis.load_points(pair.config, 10**9, args.split)
        if not 0 <= args.sample < len(every):
            raise PETLError(
                f'there is no sample {args.sample}; the {args.split} set has samples 0 '
                f'to {len(every) - 1}'
            )
        sample = every.dataset[args.sample]
        x = prepare(pair.tuned, [sample])[0][:1]
        found = record(pair, x)
        first = found['base'][0]
        count = len(found['base'])
        show, map_of, cell_of = look_at(args, first)
        video = len(first.grid) == 3
        few = [0, count // 2, count - 1] if video else spread(count)
        chosen = check_blocks(args.blocks or few, count)
        head_block = check_blocks(
            [-1 if args.heads_of is None else args.heads_of], count
        )[0]
        rolled = {name: analysis.rollout(a) for name, a in found.items()}
        shares = own_tokens(found)
        columns = [
            Column(
                f'block {i}{shift_mark(found["base"][i])}',
                {n: map_of(a[i])[0].mean(0) for n, a in found.items()},
                cell_of(found['base'][i]),
            )
            for i in chosen
        ]
        by_head = heads(found, head_block, map_of, cell_of)
        if video and args.heads_of is not None:
            columns = by_head
        columns.append(Column('rollout', {n: r.map()[0] for n, r in rolled.items()}))
        label = label_of(sample)
        truth = '' if label is None else f', class {class_name(every.classes, label)}'
        title = f'{pair.name} on {data}: {args.split} sample {args.sample}{truth}'
        picture = as_pictures(pair.tuned, x)[0].numpy()
        if video:
            told = f'{WHOSE[show]}; rollout over all blocks'
            figure = draw_filmstrip(picture, columns, shares, f'{title}\n{told}')
        else:
            figure = draw_attention(
                picture,
                columns,
                by_head,
                shares,
                f'{title}\n{WHOSE[show]}, mean over heads; rollout over all blocks',
                f'heads of block {head_block}',
            )
        caption = describe(pair, data, args, show, found, shares)
        numbers = gather(pair, args, show, found, rolled, map_of, cell_of)
        written = save_picture(figure, args.out, caption, numbers)
        worst = max(a.mismatch for part in found.values() for a in part)
    print(f"weights @ v is off the blocks' own attention by {worst:.1e} at most")
    print(*written, sep='\n')


WHOSE = {
    'class': 'where the class token looks',
    'mean': 'what cells look at, mean over them',
    'query': 'what the framed cell looks at',
}


def class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)


def shift_mark(a: BlockAttention) -> str:
    return ' (shifted)' if a.shift is not None and any(a.shift) else ''


def heads(found, block, map_of, cell_of) -> list[Column]:
    """A column per head of one block."""
    maps = {name: map_of(a[block])[0] for name, a in found.items()}
    cell = cell_of(found['base'][block])
    return [
        Column(f'head {h}', {name: m[h] for name, m in maps.items()}, cell)
        for h in range(found['base'][block].num_heads)
    ]


def own_tokens(found: dict[str, list[BlockAttention]]) -> dict[str, np.ndarray]:
    """Share of attention on own tokens, (blocks, heads), of models that have some."""
    result = {}
    for name, attentions in found.items():
        if any(a.num_extra or a.num_added for a in attentions):
            most = max(a.num_heads for a in attentions)
            values = np.zeros((len(attentions), most))
            for i, a in enumerate(attentions):
                values[i, : a.num_heads] = analysis.own_share(a)[0]
            result[name] = values
    return result


def describe(pair, data, args, show, found, shares) -> Caption:
    mean = {
        n: [float(analysis.entropy(a)[0].mean()) for a in part]
        for n, part in found.items()
    }
    told = '; '.join(
        f'{n} {", ".join(f"{e:.2f}" for e in part)}' for n, part in mean.items()
    )
    own = ''
    if shares:
        values = ', '.join(f'{100 * v.mean():.0f} %' for v in shares[pair.name])
        own = f" The method's own tokens get, block by block, {values} of attention."
    return Caption(
        title=f'Attention of base and {pair.name} on {data}',
        caption=(
            f'{WHOSE[show].capitalize()}, on sample {args.sample} of the {args.split} '
            f'set; {pair.method}. Base and tuned share the scale of a column. Rollout '
            'is the product over blocks of half attention, half identity.' + own
        ),
        alt=(
            'Attention maps over the input for every block shown. Entropy of attention '
            f'by block, 1 is even: {told}.{own}'
        ),
        section='Attention',
    )


def gather(pair, args, show, found, rolled, map_of, cell_of) -> dict[str, Any]:
    """All that the picture shows, and the blocks that it leaves out."""
    models = {}
    for name, attentions in found.items():
        models[name] = {
            'rollout': rolled[name].map()[0],
            'rollout_own_share': float(rolled[name].own()[0]),
            'blocks': [
                {
                    'block': a.block,
                    'grid': a.grid,
                    'window': a.window,
                    'shift': a.shift,
                    'query_cell': cell_of(a),
                    'tokens': {
                        'class': a.num_class,
                        'extra': a.num_extra,
                        'added_keys': a.num_added,
                    },
                    'map_by_head': map_of(a)[0],
                    'own_share_by_head': analysis.own_share(a)[0],
                    'entropy_by_head': analysis.entropy(a)[0],
                    'mismatch': a.mismatch,
                }
                for a in attentions
            ],
        }
    return {
        'method': pair.method,
        'split': args.split,
        'sample': args.sample,
        'show': show,
        'models': models,
    }
