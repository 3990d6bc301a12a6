"""The pools of CIFAR-100, RESISC45 and CLEVR that sets of several sizes are drawn from.

Examples:
    mmpetl data convert many-shot cifar100 cifar-100-binary.tar.gz
    mmpetl data convert many-shot resisc45 --tfds ~/tensorflow_datasets
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.converting import one_line_errors, parser_for, tell
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError
from mmpetl.datasets.convert import study


def make_parser() -> CommandParser:
    parser = parser_for(__name__)
    parser.add_argument('name', choices=study.POOLS)
    parser.add_argument(
        'archive', nargs='?', type=Path, help='CIFAR-100, binary version'
    )
    parser.add_argument('--tfds', type=Path, help='data folder of TensorFlow Datasets')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.tfds and args.archive:
        parser.error('an archive does not go with --tfds: which of them is meant?')
    with one_line_errors():
        if args.tfds:
            parts = study.read_tfds_pool(args.name, args.tfds)
        elif args.name == 'cifar100' and args.archive:
            parts = study.read_cifar100(args.archive)
        else:
            raise PETLError(
                f'give --tfds for {args.name}, or for cifar100 its binary archive'
            )
        counts = study.convert_pool(args.name, parts, args.root, args.workers)
        tell(args.root / 'many_shot' / args.name, counts)
