"""Train: a method on a recipe, a config, or any config of upstream.

Examples:
    mmpetl train lora vtab/cifar100
    mmpetl train mona ade20k --gpus 8
    mmpetl train configs/mini/digits.py --method LoRA rank=16 --lr 1e-3
    mmpetl train mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py --method LoRA

A recipe is the same for all methods, with the method's own defaults; mmpetl recipes
lists them. Where settings of the pair are published, --published-settings starts from
those. The run goes to work_dirs/<method>/<recipe>. With a folder of pictures, a
CSV or a COCO file in place of a recipe it is mmpetl train-own, and takes its flags.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import (
    add_config_options,
    add_launching,
    add_memory,
    add_method_options,
    memory_options,
    method_names,
    recipes,
    set_local_rank,
)
from mmpetl.cli.commands import train_own
from mmpetl.cli.launch import in_processes
from mmpetl.cli.parsing import CommandParser, suggests


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    what = parser.add_argument(
        'what',
        nargs='+',
        metavar='WHAT',
        help='lora vtab/cifar100; or a config file, configs/lora/vtab/svhn.py; or one '
        'that a package ships, mmdet::mask_rcnn/...py',
    )
    suggests(what, lambda: [*method_names(), *recipes()])
    add_method_options(parser)
    parser.add_argument(
        '--published-settings',
        action='store_true',
        help='start from the settings that are published for METHOD on RECIPE',
    )
    parser.add_argument('--lr', type=float, help='learning rate of the optimizer')
    parser.add_argument(
        '--protocol',
        choices=('honest', 'published'),
        help='published scores the test set while training and keeps the best epoch',
    )
    parser.add_argument(
        '--stage',
        choices=('final', 'tune'),
        help='tune trains on a part and scores on validation data, to choose settings',
    )
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from a checkpoint, by default the last of the work folder',
    )
    add_memory(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not validate')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale lr by the batch size'
    )
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    add_config_options(parser)
    add_launching(parser)
    return parser


def names_pictures(argv: Sequence[str]) -> bool:
    """Whether METHOD and a folder of pictures or a list of them are what is asked for.

    A recipe of that name comes first.
    """
    if len(argv) < 2 or argv[0].startswith('-'):
        return False
    path = Path(argv[1])
    if argv[1] in recipes():
        return False
    return path.is_dir() or (
        path.suffix.lower() in ('.csv', '.json') and path.is_file()
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Merge the flags into the config and train."""
    argv = sys.argv[1:] if argv is None else argv
    if names_pictures(argv):
        return train_own.main(argv)
    args = make_parser().parse_args(argv)
    set_local_rank(args)
    from mmpetl.apis.run import choose_device, cli_errors, train
    from mmpetl.config.asked import asked_config, set_base_bits
    from mmpetl.core import PETLError
    from mmpetl.engine.zero import check_zero

    with cli_errors(of_run=True):
        choose_device(args.device)
        options = dict(args.cfg_options or {})
        if args.lr is not None:
            options['optim_wrapper.optimizer.lr'] = args.lr
        options |= memory_options(args)
        if args.amp:
            import torch

            if not torch.cuda.is_available():
                raise PETLError('--amp needs a GPU; leave it out on a CPU')
            # Among the options, so that those of mixed precision fit beside it.
            options['optim_wrapper.type'] = 'AmpOptimWrapper'
        config = asked_config(
            args.what,
            args.method,
            args.method_options,
            base=args.base,
            options=options,
            work_dir=args.work_dir,
            protocol=args.protocol,
            stage=args.stage,
            leaf=args.published_settings,
        )
        if args.base_bits is not None:
            set_base_bits(config, args.base_bits)
        if args.no_validate:
            config.val_cfg = config.val_dataloader = config.val_evaluator = None
        if args.amp:
            config.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if args.auto_scale_lr:
            if 'base_batch_size' not in config.get('auto_scale_lr', {}):
                raise PETLError(
                    '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config'
                )
            config.auto_scale_lr.enable = True
        if args.resume:
            config.resume = True
            config.load_from = None if args.resume == 'auto' else args.resume
            if config.load_from and not os.path.isfile(config.load_from):
                raise PETLError(f'there is no checkpoint {config.load_from}')
        if args.gpus and args.launcher == 'none':
            # Behind the config, so that what is wrong with it is said once.
            check_zero(config)
            in_processes(args.gpus, 'train', argv)
        train(config, launcher=args.launcher)
