"""Publish the delta of a run: NAME.safetensors and NAME.json, without pickle.

Example:
    python tools/model_converters/publish_delta.py configs/mini/digits.py \
        work_dirs/lora/mini/digits/epoch_40.pth deltas/digits_lora \
        --cfg-options model.backbone.method.type=LoRA --metrics accuracy/top1=96.2
"""

from __future__ import annotations

import argparse

from mmpetl import apis
from mmpetl.config.cli import DictAction
from mmpetl.core import PETLError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the run')
    parser.add_argument('checkpoint', help='checkpoint of the run (.pth)')
    parser.add_argument('out', help='path without a suffix')
    parser.add_argument(
        '--metrics', nargs='+', default=[], metavar='NAME=VALUE', help='for the record'
    )
    parser.add_argument(
        '--packed',
        action='store_true',
        help='hold weights that take few values in few bits; such a delta computes '
        'the same and cannot be trained further',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='key=value overrides'
    )
    return parser.parse_args()


def as_metrics(pairs: list[str]) -> dict[str, float] | None:
    """``['accuracy/top1=96.2']`` as a dict; None where there are none."""
    metrics = {}
    for pair in pairs:
        name, _, value = pair.partition('=')
        try:
            metrics[name] = float(value)
        except ValueError:
            raise PETLError(f'--metrics takes NAME=NUMBER, got {pair!r}') from None
    return metrics or None


def main() -> None:
    args = parse_args()
    with apis.cli_errors():
        metrics = as_metrics(args.metrics)
        config = apis.load_config(args.config, args.cfg_options)
        path = apis.export_delta(
            args.checkpoint, config, args.out, metrics, packed=args.packed
        )
        delta = apis.read_delta(path)
    size = delta.meta['tensors']
    print(f'{path}: {size["values"]:,} values, {size["bytes"]:,} bytes')
    print(
        f'{path.with_suffix(".json")}: {delta.meta["method"]} on {delta.meta["base"]}'
    )


if __name__ == '__main__':
    main()
