"""Write a run as an adapter of peft: adapter_config.json and its tensors.

Examples:
    mmpetl peft export work_dirs/lora/mini/digits adapters/digits
    mmpetl peft export deltas/birds.safetensors adapters/birds --module backbone

Paths in the files are those of the model of the run, or with --module of a part of it:
of what peft.PeftModel.from_pretrained is to be given. Heads outside of that part stay
behind. A run is its folder, a checkpoint or a published delta; docs/peft.md says which
methods an adapter can hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_options
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('run', help='folder of a run, checkpoint or published delta')
    parser.add_argument('out', help='folder of the adapter')
    parser.add_argument('--config', help='config of the run, where it has another')
    parser.add_argument('--module', default='', help='part of the model that is meant')
    parser.add_argument('--slot', help='which method, where the run has several')
    parser.add_argument('--base-model', help='name of the base model, for the record')
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors, init_model, open_run, save_peft
    from mmpetl.apis.model import part_of

    with cli_errors():
        run = open_run(args.run, args.config, args.cfg_options)
        model = init_model(run.config, run.weights, 'cpu')
        part = part_of(model, args.module)
        folder = save_peft(part, args.out, args.slot, args.base_model)
    name = type(part).__name__.removeprefix('PETL')
    print(f'{folder}: an adapter for {name}, paths as in it')
