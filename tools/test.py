"""Evaluate a run checkpoint (.pth) or a published delta (.safetensors).

Example: python tools/test.py configs/mini/digits.py \
    work_dirs/lora/mini/digits/epoch_40.pth \
    --cfg-options model.backbone.method.type=LoRA
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from mmpetl.apis.run import choose_device, cli_errors, test
from mmpetl.apis.testing import set_test_options
from mmpetl.config.cli import DictAction
from mmpetl.config.load import load_config
from mmpetl.core import PETLError


def parse_args() -> argparse.Namespace:
    """Flags as upstream has them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint or delta')
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


def plain(value: Any) -> Any:
    """A metric as JSON has it: a number, None, or a list, one number for each class."""
    value = value.tolist() if hasattr(value, 'tolist') else value
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, str) else float(value)


def main() -> None:
    """Evaluate and, where asked, write the metrics."""
    args = parse_args()
    with cli_errors(of_run=True):
        choose_device(args.device)
        config = load_config(
            args.config, args.cfg_options, args.work_dir, protocol=args.protocol
        )
        if args.out_item == 'pred':
            if not args.out or args.dump:
                raise PETLError('--out-item pred needs --out FILE.pkl, and no --dump')
            args.dump, args.out = args.out, None
        set_test_options(
            config,
            tta=args.tta,
            dump=args.dump,
            show_dir=args.show_dir,
            show=args.show,
            interval=args.interval,
            wait_time=args.wait_time,
        )
        metrics = test(config, args.checkpoint, launcher=args.launcher)
        if args.out and int(os.environ.get('RANK', 0)) == 0:
            with open(args.out, 'w', encoding='utf-8') as file:
                json.dump({k: plain(v) for k, v in metrics.items()}, file, indent=2)


if __name__ == '__main__':
    main()
