"""Fold a delta into its base: a plain checkpoint and config for stock upstream code.

Example:
    python tools/model_converters/fold_delta.py configs/mini/digits.py \
        deltas/digits_lora.safetensors folded/digits.pth \
        --cfg-options model.backbone.method.type=LoRA
"""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

from mmpetl import apis


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the run')
    parser.add_argument('delta', help='published delta or checkpoint of the run')
    parser.add_argument('out', help='checkpoint to write (.pth)')
    parser.add_argument(
        '--safetensors', action='store_true', help='write the weights in that form too'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with apis.cli_errors():
        config = apis.load_config(args.config, args.cfg_options)
        checkpoint, plain = apis.fold_checkpoint(
            config, args.delta, args.out, args.safetensors
        )
    print(f'{checkpoint}: weights that need no mmpetl\n{plain}: their config')


if __name__ == '__main__':
    main()
