"""Tell what memory a training takes, by part, before it is run.

Examples:
    mmpetl estimate configs/mona/ade20k.py --batch 4 --memory-gb 80
    mmpetl estimate work_dirs/lora/mini/digits --batch 256
    mmpetl estimate configs/mona/ade20k.py --gpus 8 --shard-base

Nothing is downloaded and no data is needed: the base is random, two small batches run,
and the line through both is the estimate (docs/memory.md says how near it comes).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_or_run, config_of, positive
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_config_or_run(parser)
    parser.add_argument('--batch', type=int, help="samples of a step (the config's)")
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help='of the pictures'
    )
    parser.add_argument(
        '--memory-gb', type=float, help='of the device, to learn what batch fits'
    )
    parser.add_argument(
        '--gpus', type=positive, default=1, help='processes that train together (1)'
    )
    parser.add_argument(
        '--shard-base',
        action='store_true',
        help='each of them keeps its share of the frozen trunk, as in mmpetl train',
    )
    parser.add_argument(
        '--offload-activations',
        action='store_true',
        help='activations wait in the memory of the machine, as in mmpetl train',
    )
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--json', action='store_true', help='bytes, for a program')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Build, try two batches, and print."""
    args = make_parser().parse_args(argv)
    from mmpetl import apis
    from mmpetl.apis.estimate import estimate_memory, lines_of

    with apis.cli_errors(of_run=True):
        config = config_of(args)
        if args.shard_base:
            config.shard_base = True
        if args.offload_activations:
            config.offload_activations = True
        found = estimate_memory(config, args.batch, args.size, args.device, args.gpus)
        if args.json:
            print(json.dumps({**dataclasses.asdict(found), 'peak': found.peak}))
        else:
            print('\n'.join(lines_of(found, args.memory_gb)))
