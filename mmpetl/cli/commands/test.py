"""Evaluate a run: by its folder, its checkpoint (.pth) or its delta (.safetensors).

Examples:
    mmpetl test work_dirs/lora/mini/digits
    mmpetl test work_dirs/lora/mini/digits/epoch_40.pth --out metrics.json
    mmpetl test configs/lora/vtab/cifar100.py deltas/cifar100_lora.safetensors
    mmpetl test work_dirs/lora/mini/digits --show-dir work_dirs/pictures --tta flip
    mmpetl test zoo/digits_lora

A folder, a checkpoint and a delta of the zoo know their config; another published delta
says nothing of data, and needs one in front of it. Of a folder the best checkpoint is
taken, else the newest.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from mmpetl.cli.arguments import (
    add_config_options,
    add_launching,
    check_out,
    runs,
    set_local_rank,
)
from mmpetl.cli.launch import in_processes
from mmpetl.cli.parsing import CommandParser, suggests


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('config', nargs='?', help='config, where the run has another')
    run = parser.add_argument(
        'checkpoint', help='folder of a run, checkpoint, delta, or zoo/NAME'
    )
    suggests(run, runs)
    parser.add_argument(
        '--protocol',
        choices=('honest', 'published'),
        help='that of the run; not needed with the config in its work folder',
    )
    parser.add_argument('--work-dir', help='folder of the log')
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument(
        '--out-item',
        choices=('metrics', 'pred'),
        default='metrics',
        help='what --out is: metrics (JSON), or predictions (.pkl, as of --dump)',
    )
    parser.add_argument('--dump', help='write the predictions to this .pkl file')
    parser.add_argument(
        '--tta',
        nargs='?',
        const='config',
        choices=('config', 'flip'),
        help="test with the config's tta_model and tta_pipeline, or with mirror images",
    )
    parser.add_argument('--show-dir', help='folder of pictures with predictions')
    parser.add_argument('--show', action='store_true', help='show them in windows')
    parser.add_argument(
        '--interval', type=int, default=1, help='draw every so many samples'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2.0, help='seconds that a window stays'
    )
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    add_config_options(parser)
    add_launching(parser)
    return parser


def plain(value: Any) -> Any:
    """A metric as JSON has it: a number, None, or a list, one number for each class.

    What is not finite is None, as a class that no picture shows has no IoU.
    """
    value = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str):
        return value
    return float(value) if math.isfinite(value) else None


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and, where asked, write the metrics."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    set_local_rank(args)
    from mmpetl.apis.run import choose_device, cli_errors, test
    from mmpetl.apis.runs import open_run
    from mmpetl.apis.testing import set_test_options
    from mmpetl.core import PETLError
    from mmpetl.core.part_files import whole_file

    with cli_errors(of_run=True):
        choose_device(args.device)
        check_out(args.out)
        run = open_run(
            args.checkpoint, args.config, args.cfg_options, args.work_dir, args.protocol
        )
        if args.out_item == 'pred':
            if not args.out or args.dump:
                raise PETLError('--out-item pred needs --out FILE.pkl, and no --dump')
            args.dump, args.out = args.out, None
        set_test_options(
            run.config,
            tta=args.tta,
            dump=args.dump,
            show_dir=args.show_dir,
            show=args.show,
            interval=args.interval,
            wait_time=args.wait_time,
        )
        if args.gpus and args.launcher == 'none':
            # Behind the run, so that what is wrong with it is said once.
            in_processes(args.gpus, 'test', argv)
        metrics = test(run.config, run.weights, launcher=args.launcher)
        if args.out and int(os.environ.get('RANK', 0)) == 0:
            text = json.dumps({k: plain(v) for k, v in metrics.items()}, indent=2)
            with whole_file(args.out) as part:
                part.write_text(text, encoding='utf-8')
