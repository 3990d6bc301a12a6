"""Fold a delta into its base: a plain checkpoint and config for stock upstream code.

Examples:
    mmpetl fold work_dirs/lora/mini/digits folded/digits.pth
    mmpetl fold zoo/digits_lora folded/digits.pth
    mmpetl fold configs/lora/vtab/svhn.py deltas/svhn_lora.safetensors folded/svhn.pth

Without building the model, from the base weights as they are called in the backbone:
    mmpetl fold deltas/svhn_lora.safetensors folded/svhn.pth --base ViT-B_16.pth

A folder, a checkpoint and a delta know their config. A classifier on a trunk of timm
becomes a checkpoint of timm's own model, and the line that loads it is printed. Which
methods fold:
    mmpetl fold --list
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmpetl.cli.arguments import add_config_options, runs
from mmpetl.cli.parsing import CommandParser, suggests


def where_it_folds(cls: Any) -> tuple[bool, str]:
    """Whether a method folds at its defaults, and where or why not, in one line.

    Args:
        cls: A registered method.
    """
    from mmpetl.core import Method, build_method

    method = build_method(cls)
    sites = ', '.join((*method.targets, *method.optional))
    if not sites:
        return True, 'trains base weights in place'
    if method.folds:
        return True, f'folds at {sites}'
    if cls.folds is not Method.folds:
        return False, (
            f'does not fold at its defaults ({sites}), with other arguments it does: '
            f'docs/methods/{cls.stem()}.md'
        )
    return False, f'does not fold: no base weight computes what it adds at {sites}'


class ListMethods(argparse.Action):
    """Print a line per registered method and leave, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        from mmpetl.core import registered_methods

        found = {n: where_it_folds(cls) for n, cls in registered_methods().items()}
        width = max(map(len, found))
        # Those that fold come first.
        order = sorted(found, key=lambda n: (not found[n][0], n.lower()))
        print('\n'.join(f'{name:{width}}  {found[name][1]}' for name in order))
        parser.exit()


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument(
        '--list', action=ListMethods, nargs=0, help='print which methods fold, and exit'
    )
    parser.add_argument(
        'config', nargs='?', help='config of the run, where it has another'
    )
    run = parser.add_argument(
        'delta', help='folder of a run, checkpoint, published delta, or zoo/NAME'
    )
    suggests(run, runs)
    parser.add_argument('out', help='checkpoint to write (.pth)')
    parser.add_argument(
        '--base', help='fold into these weights; only the backbone is built, in outline'
    )
    parser.add_argument(
        '--safetensors', action='store_true', help='write the weights in that form too'
    )
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import (
        cli_errors,
        fold_checkpoint,
        load_line,
        open_run,
        read_delta,
    )

    with cli_errors():
        config, delta = None, args.delta
        if args.config or not args.base:
            run = open_run(delta, args.config, args.cfg_options)
            config, delta = run.config, run.weights
        checkpoint, plain = fold_checkpoint(
            config, delta, args.out, args.safetensors, args.base
        )
        model = config.model if config else read_delta(delta).meta.get('model')
        line = load_line(model or {}, checkpoint)
    print(f'{checkpoint}: weights that need no mmpetl')
    if line:
        print(line)
    if plain:
        print(f'{plain}: their config')
