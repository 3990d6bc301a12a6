"""Detect things in an image and write it with boxes and masks.

Example:
    python demo/det_demo.py scene.jpg configs/mini/voc.py \
        --delta work_dirs/lora/mini/voc/epoch_12.pth \
        --cfg-options model.backbone.method.type=LoRA
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmpetl import apis
from mmpetl.config.cli import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('input', help='an image')
    parser.add_argument('config', help='config of the run, or zoo/NAME')
    parser.add_argument('--delta', help='delta (.safetensors, zoo/NAME) or run (.pth)')
    parser.add_argument('--out', help='picture to write')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--threshold', type=float, default=0.3, help='lowest score')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = args.out or f'{Path(args.input).stem}_det.png'
    with apis.cli_errors():
        model = apis.open_model(args.config, args.delta, args.cfg_options, args.device)
        lines = apis.show_detection(model, args.input, out, args.threshold)
    print(*lines, f'written to {out}', sep='\n')


if __name__ == '__main__':
    main()
