"""Classify a video and write it with its classes and scores.

Example:
    python demo/video_demo.py clip.mp4 configs/mini/hmdb51.py \
        --delta work_dirs/lora/mini/hmdb51/epoch_20.pth \
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
    parser.add_argument('input', help='a video')
    parser.add_argument('config', help='config of the run, or zoo/NAME')
    parser.add_argument('--delta', help='delta (.safetensors, zoo/NAME) or run (.pth)')
    parser.add_argument('--out', help='.mp4 to write')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--topk', type=int, default=5, help='classes to show')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = args.out or f'{Path(args.input).stem}_video.mp4'
    with apis.cli_errors():
        model = apis.open_model(args.config, args.delta, args.cfg_options, args.device)
        lines = apis.show_video(model, args.input, out, args.topk)
    print(*lines, f'written to {out}', sep='\n')


if __name__ == '__main__':
    main()
