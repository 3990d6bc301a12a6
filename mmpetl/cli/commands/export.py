"""Export the model of a run as an ONNX file, for a batch of any size.

Examples:
    mmpetl export work_dirs/lora/mini/digits --onnx digits.onnx
    mmpetl export deltas/digits_lora.safetensors --onnx digits.onnx --size 32 32 --fold

The file takes pictures as the data preprocessor of the model leaves them, normalised,
and gives what the model does in its mode 'tensor' (scores of classes, of a classifier).
A run is its folder, a checkpoint or a published delta. It needs the packages that
docs/export.md names; where onnxruntime is there, the file runs once beside the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_options
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument('run', help='folder of a run, checkpoint or published delta')
    parser.add_argument('--onnx', required=True, metavar='FILE', help='file to write')
    parser.add_argument('--config', help='config of the run, where it has another')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the pictures (those of the test pipeline)',
    )
    parser.add_argument(
        '--fold', action='store_true', help='fold the delta into the base first'
    )
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors, export_onnx, init_model, open_run

    with cli_errors():
        run = open_run(args.run, args.config, args.cfg_options)
        model = init_model(run.config, run.weights, 'cpu')
        found = export_onnx(model, args.onnx, args.size, fold=args.fold)
    for name, shape in (*found.inputs.items(), *found.outputs.items()):
        print(f'{name}: {" x ".join(map(str, shape))}')
    gap = 'not run, for onnxruntime is not installed'
    if found.gap is not None:
        gap = f'differs from the model by at most {found.gap:.1e} of its largest value'
    print(f'{found.path}: {gap}')
