"""Fold a delta into its base: a plain checkpoint and config for stock upstream code.

Example:
    python tools/model_converters/fold_delta.py configs/mini/digits.py \
        deltas/digits_lora.safetensors folded/digits.pth \
        --cfg-options model.backbone.method.type=LoRA

Without building the model, from the base weights as they are called in the backbone:
    python tools/model_converters/fold_delta.py deltas/digits_lora.safetensors \
        folded/digits.pth --base demo/weights/mini_vit.safetensors

Which methods fold: python tools/model_converters/fold_delta.py --list
"""

from __future__ import annotations

import argparse

from mmpetl import apis
from mmpetl.config.cli import DictAction
from mmpetl.core import Method, build_method, registered_methods


def where_it_folds(cls: type[Method]) -> tuple[bool, str]:
    """Whether a method folds at its defaults, and where or why not, in one line."""
    method = build_method(cls)
    sites = ', '.join((*method.targets, *method.optional))
    if not sites:
        return True, 'trains base weights in place'
    if method.folds:
        return True, f'folds at {sites}'
    if cls.folds is not Method.folds:
        return False, (
            f'does not fold at its defaults ({sites}), with other arguments it does: '
            f'docs/methods/{cls.stem()}.md'
        )
    return False, f'does not fold: no base weight computes what it adds at {sites}'


class ListMethods(argparse.Action):
    """Print a line per registered method and leave, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        found = {n: where_it_folds(cls) for n, cls in registered_methods().items()}
        width = max(map(len, found))
        # Those that fold come first.
        order = sorted(found, key=lambda n: (not found[n][0], n.lower()))
        print('\n'.join(f'{name:{width}}  {found[name][1]}' for name in order))
        parser.exit()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--list', action=ListMethods, nargs=0, help='print which methods fold, and exit'
    )
    parser.add_argument(
        'config', nargs='?', help='config of the run; may be left out with --base'
    )
    parser.add_argument('delta', help='published delta or checkpoint of the run')
    parser.add_argument('out', help='checkpoint to write (.pth)')
    parser.add_argument(
        '--base', help='fold into these weights; only the backbone is built, in outline'
    )
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
        config = args.config and apis.load_config(args.config, args.cfg_options)
        checkpoint, plain = apis.fold_checkpoint(
            config, args.delta, args.out, args.safetensors, args.base
        )
    print(f'{checkpoint}: weights that need no mmpetl')
    if plain:
        print(f'{plain}: their config')


if __name__ == '__main__':
    main()
