"""Make a delta of an adapter of peft, with the config of the model that it tunes.

Examples:
    mmpetl peft import adapters/digits configs/plain.py deltas/digits
    mmpetl peft import adapters/birds plain.py deltas/birds --module backbone.timm_model

The config is that of the model without a method, with the weights that the adapter was
trained on. Written are OUT.safetensors and OUT.json, the delta, and OUT.py, the config
with the method in it: mmpetl test OUT.py OUT.safetensors evaluates them. With --module
paths in the adapter are those of a part of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_options
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('adapter', help='folder of the adapter')
    parser.add_argument('config', help='of the model on its base, without a method')
    parser.add_argument('out', help='path of delta and config, without a suffix')
    parser.add_argument('--module', default='', help='part of the model that is meant')
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors, import_peft, load_config, read_delta
    from mmpetl.core.delta_file import method_name

    with cli_errors():
        config = load_config(args.config, args.cfg_options)
        delta, written = import_peft(args.adapter, config, args.out, args.module)
        facts = read_delta(delta).meta
    count = facts['tensors']['values']
    print(f'{delta}: {count:,} values of {method_name(facts)}')
    print(f'{written}: the config that holds them')
