"""Predict pictures or videos with a run, and write them with what was found.

Examples:
    mmpetl predict zoo/digits_lora
    mmpetl predict work_dirs/lora/vtab/cifar100 picture.jpg
    mmpetl predict deltas/ade20k_mona.safetensors scene.jpg --opacity 0.5

A run is its folder, a checkpoint (.pth), a published delta (.safetensors), or a delta
of the zoo (zoo/NAME) or of the hub (hub://USER/NAME); they know their config, which
says whether pictures are classified, segmented or searched for things, or videos
classified. A delta of the zoo may bring an example, for where no file is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.arguments import add_config_options, runs
from mmpetl.cli.parsing import CommandParser, suggests

NO_FILE = 'name a picture or a video behind the run'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    run = parser.add_argument(
        'run', help='folder of a run, checkpoint, published delta, or zoo/NAME'
    )
    suggests(run, runs)
    parser.add_argument('inputs', nargs='*', metavar='FILE', help='picture or video')
    parser.add_argument('--config', help='config of the run, where it has another')
    parser.add_argument('--out', help='file to write, for one input')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--topk', type=int, help='classes to show (5)')
    parser.add_argument(
        '--threshold', type=float, help='lowest score of a detected thing (0.3)'
    )
    parser.add_argument('--opacity', type=float, help='of segments, 0 to 1 (0.6)')
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.out and len(args.inputs) > 1:
        parser.error('--out names one file; leave it out for several inputs')
    if not args.inputs and not args.run.startswith('zoo'):
        parser.error(NO_FILE)
    from mmpetl.apis import cli_errors, init_model, open_run, show_file
    from mmpetl.apis.names import find_in_zoo
    from mmpetl.apis.zoo import bring_example

    with cli_errors():
        in_zoo = find_in_zoo(args.run)
        if in_zoo is not None:
            entry = in_zoo[1]
            told = [f'reads: {entry.input}'] if entry.input else []
            print(entry.summary(), *told, sep='\n')
        if not args.inputs and in_zoo is None:
            parser.error(NO_FILE)
        if not args.inputs:
            args.inputs = [bring_example(*in_zoo)]
            print(f'example: {args.inputs[0]}')
        run = open_run(args.run, args.config, args.cfg_options)
        model = init_model(run.config, run.weights, args.device)
        for file in args.inputs:
            out, lines = show_file(
                model,
                file,
                args.out,
                topk=args.topk,
                threshold=args.threshold,
                opacity=args.opacity,
            )
            print(*lines, f'written to {out}', sep='\n')
