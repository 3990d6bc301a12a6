"""Segment an image and write it with colours and a legend.

Example:
    python demo/seg_demo.py scene.jpg configs/mini/ade20k.py \
        --delta work_dirs/lora/mini/ade20k/iter_600.pth \
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
    parser.add_argument('--opacity', type=float, default=0.6, help='0 to 1')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = args.out or f'{Path(args.input).stem}_seg.png'
    with apis.cli_errors():
        model = apis.open_model(args.config, args.delta, args.cfg_options, args.device)
        lines = apis.show_segmentation(model, args.input, out, args.opacity)
    print(*lines, f'written to {out}', sep='\n')


if __name__ == '__main__':
    main()
