"""Train on your own pictures, and write a page about it.

Examples:
    mmpetl train-own lora my_folder/ --backbone timm/vit_base_patch14_dinov2 --report
    mmpetl train-own auto my_folder/ --budget 20m --report

DATA is a folder with a folder of pictures for each class, such folders in train/, val/
and test/, or a CSV with the columns path, label and maybe split: a classifier. It may
be a folder with boxes in files of COCO (or such a file): a detector; or one with masks
beside its pictures: a segmentor. Splits that are not there are drawn and kept. METHOD
auto tries several on validation pictures first, of classifiers. The same command goes
on with what was stopped; mmpetl train METHOD DATA is the same too. docs/own_pictures.md
says the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import (
    add_config_options,
    add_memory,
    add_method_arguments,
    memory_options,
    method_names,
    positive,
)
from mmpetl.cli.parsing import CommandParser, suggests


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    suggests(
        parser.add_argument('method', help='lora, ssf, lora+vpt_deep, ..., or auto'),
        lambda: ['auto', *method_names()],
    )
    parser.add_argument(
        'data', type=Path, help='a folder of pictures, a CSV or a COCO file'
    )
    add_method_arguments(parser)
    parser.add_argument(
        '--backbone',
        default='timm/vit_base_patch14_dinov2',
        help='timm/NAME, or the config of a model of the same task',
    )
    parser.add_argument(
        '--weights',
        default='pretrained',
        help='pretrained (what the model comes with), random, or a file',
    )
    parser.add_argument('--size', type=int, help='side of the input, px')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/own/<data>')
    parser.add_argument('--report', action='store_true', help='write the page')
    auto = parser.add_argument_group('auto')
    auto.add_argument('--budget', default='20m', help='of all trials: 90s, 20m, 1.5h')
    auto.add_argument('--methods', nargs='+', default=[], help='what auto tries')
    how = parser.add_argument_group('what follows from the number of pictures')
    how.add_argument('--epochs', type=int)
    how.add_argument('--batch-size', type=int)
    how.add_argument('--lr', type=float, help='peak rate')
    how.add_argument('--augmentation', choices=('none', 'crop', 'strong'))
    parser.add_argument('--seed', type=int, default=42, help='of the training')
    parser.add_argument('--split-seed', type=int, help='of splits that are drawn')
    parser.add_argument('--workers', type=int, help='processes that load pictures')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--gpus',
        type=positive,
        default=1,
        metavar='N',
        help='train in N processes, one for each GPU; on CPUs through gloo',
    )
    add_memory(parser)
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    add_config_options(parser)
    return parser


def say(line: str) -> None:
    """Print at once: a search of minutes is followed from a file too."""
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Divide, choose, train, and write the page."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if Path(args.method).exists() and not Path(args.data).exists():
        parser.error(f'the method comes first: {args.data} {args.method}')
    from mmpetl.apis.run import choose_device, cli_errors

    with cli_errors(of_run=True):
        choose_device(args.device)
        from mmpetl.own import check_line, prepare, run_line

        line = {
            'method': args.method,
            'petl_options': args.method_options,
            'budget': args.budget,
            'methods': args.methods,
        }
        check_line(**line)
        options = memory_options(args)
        if args.base_bits is not None:
            options['model.backbone.base_bits'] = args.base_bits
        if args.gpus > 1:
            options['processes'] = args.gpus
        task = prepare(
            args.data,
            backbone=args.backbone,
            weights=args.weights,
            size=args.size,
            work_dir=args.work_dir,
            epochs=args.epochs,
            batch_size=args.batch_size,
            lr=args.lr,
            augmentation=args.augmentation,
            amp=args.amp,
            seed=args.seed,
            split_seed=args.split_seed,
            workers=args.workers,
            options=(args.cfg_options or {}) | options,
        )
        run_line(task, **line, report=args.report, say=say)
