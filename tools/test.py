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
from mmpetl.config.cli import DictAction
from mmpetl.config.load import load_config


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
        metrics = test(config, args.checkpoint, launcher=args.launcher)
        if args.out and int(os.environ.get('RANK', 0)) == 0:
            with open(args.out, 'w', encoding='utf-8') as file:
                json.dump({k: plain(v) for k, v in metrics.items()}, file, indent=2)


if __name__ == '__main__':
    main()
