"""List the layers of a model, grouped: what layers= of mmpetl.inject can name.

Examples:
    mmpetl layers timm:convnext_tiny
    mmpetl layers configs/mona/ade20k.py --path backbone
    mmpetl layers zoo/digits_lora
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('model', help='a config, SCOPE::CONFIG, a run, or timm:NAME')
    parser.add_argument(
        '--path', default='', help='a part of the model, as in model.backbone: backbone'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors
    from mmpetl.layers import build, table

    with cli_errors():
        print(table(build(args.model), args.path))
