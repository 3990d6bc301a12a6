"""Train a model.

Example: python tools/train.py configs/mini/digits.py \
    --cfg-options model.backbone.method.type=LoRA

Any config of upstream: python tools/train.py \
    mmdet::mask_rcnn/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py --petl LoRA
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmpetl.apis.run import choose_device, cli_errors, train
from mmpetl.config.add_petl import add_petl
from mmpetl.config.cli import DictAction
from mmpetl.config.load import finish_config, read_config
from mmpetl.core import PETLError


def parse_args() -> argparse.Namespace:
    """Flags as upstream has them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config',
        help='config file, configs/lora/vtab/svhn.py, or mmdet::mask_rcnn/...py',
    )
    parser.add_argument(
        '--petl', help='method to put into the model of any config; LoRA+VPTDeep is two'
    )
    parser.add_argument(
        '--petl-options',
        nargs='+',
        action=DictAction,
        help='arguments of that method, as in rank=16; of several 0.rank=16',
    )
    parser.add_argument(
        '--base', help='base weights, of a trunk or a whole model; needs --petl'
    )
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
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not validate')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale lr by the batch size'
    )
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    """Merge the flags into the config and train."""
    args = parse_args()
    with cli_errors(of_run=True):
        choose_device(args.device)
        config = read_config(args.config)
        if args.petl:
            config = add_petl(config, args.petl, args.petl_options, base=args.base)
        elif args.base or args.petl_options:
            raise PETLError('--base and --petl-options need --petl METHOD')
        config = finish_config(
            config,
            args.cfg_options,
            args.work_dir,
            path=Path(args.config),
            protocol=args.protocol,
            stage=args.stage,
        )
        if args.no_validate:
            config.val_cfg = config.val_dataloader = config.val_evaluator = None
        if args.amp:
            import torch

            if not torch.cuda.is_available():
                raise PETLError('--amp needs a GPU; leave it out on a CPU')
            config.optim_wrapper.type = 'AmpOptimWrapper'
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
        train(config, launcher=args.launcher)


if __name__ == '__main__':
    main()
