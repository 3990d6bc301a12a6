"""Predict pictures or videos with a run, and write them with what was found, or a CSV.

Examples:
    mmpetl predict zoo/digits_lora
    mmpetl predict work_dirs/lora/vtab/cifar100 picture.jpg
    mmpetl predict deltas/ade20k_mona.safetensors scene.jpg --opacity 0.5
    mmpetl predict work_dirs/own/flowers holiday/ --out found/
    mmpetl predict work_dirs/own/flowers holiday/ --out found.csv

A run is its folder, a checkpoint (.pth), a published delta (.safetensors), or a delta
of the zoo (zoo/NAME) or of the hub (hub://USER/NAME); they know their config, which
says whether pictures are classified, segmented or searched for things, or videos
classified. A folder stands for the pictures at any depth in it. A delta of the zoo may
bring an example, for where no file is named.

A CSV has a line for each picture, and with --topk as many; its columns are file, class
and score. Of boxes it has a line for each, with left, top, right and bottom in pixels;
of segments one for each class that is there, with its pixels and its share of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmpetl.cli.arguments import add_config_options, runs
from mmpetl.cli.parsing import CommandParser, suggests

NO_FILE = 'name a picture or a video behind the run'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    run = parser.add_argument(
        'run', help='folder of a run, checkpoint, published delta, or zoo/NAME'
    )
    suggests(run, runs)
    parser.add_argument(
        'inputs', nargs='*', metavar='FILE', help='picture, video or folder'
    )
    parser.add_argument('--config', help='config of the run, where it has another')
    parser.add_argument(
        '--out',
        help='file to write; of several, a folder; or .csv, and no picture is written',
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--topk', type=int, help='classes to show (5, in a CSV 1)')
    parser.add_argument(
        '--threshold', type=float, help='lowest score of a detected thing (0.3)'
    )
    parser.add_argument('--opacity', type=float, help='of segments, 0 to 1 (0.6)')
    add_config_options(parser)
    return parser


def files_of(inputs: Sequence[str], run: str = '') -> list[Path]:
    """The files that are named, and the pictures at any depth in folders.

    Args:
        inputs: Files and folders.
        run: What predicts. What it keeps in its work folder is no picture to predict.

    Raises:
        PETLError: A folder holds no picture.
    """
    from mmpetl.core import PETLError
    from mmpetl.datasets.walk import SUFFIXES, files_below, is_picture

    work = Path(run) if Path(run).is_dir() else Path(run).parent
    leave = work.resolve() if (work / 'splits.json').is_file() else None
    found = []
    for named in map(Path, inputs):
        if not named.is_dir():
            found.append(named)
            continue
        pictures = [path for path in files_below(named, leave) if is_picture(path)]
        if not pictures:
            raise PETLError(f'{named} holds no picture ({", ".join(SUFFIXES)})')
        found += pictures
    return found


def stems_of(files: Sequence[Path]) -> list[str]:
    """A name for each file: its stem, with folders in front where stems are equal."""
    counts = Counter(file.stem for file in files)
    whole = ['_'.join(p for p in file.parts if p.strip('./\\')) for file in files]
    return [
        file.stem if counts[file.stem] == 1 else name.replace('.', '_')
        for file, name in zip(files, whole, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.inputs and not args.run.startswith('zoo'):
        parser.error(NO_FILE)
    out = Path(args.out) if args.out else None
    of_several = len(args.inputs) > 1 or any(Path(p).is_dir() for p in args.inputs)
    as_table = out is not None and out.suffix.lower() == '.csv' and not out.is_dir()
    if out and of_several and out.suffix and not out.is_dir() and not as_table:
        parser.error(
            f'--out names one file, {out}; of several it is a folder, or a .csv'
        )
    if as_table and args.opacity is not None:
        parser.error(f'--opacity is of pictures, and {out} is a table')
    from mmpetl.apis import (
        cli_errors,
        init_model,
        open_run,
        show_file,
        shown_name,
        write_table,
    )
    from mmpetl.apis.found import check_names
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
        files = files_of(args.inputs, args.run)
        check_names(files)
        if out and of_several and not as_table:
            out.mkdir(parents=True, exist_ok=True)
        run = open_run(args.run, args.config, args.cfg_options)
        model = init_model(run.config, run.weights, args.device)
        if as_table:
            lines = write_table(
                model, files, out, topk=args.topk, threshold=args.threshold
            )
            print(f'{lines} lines on {len(files)} files: {out}')
            return
        for file, stem in zip(files, stems_of(files), strict=True):
            name = shown_name(model, stem)
            written, lines = show_file(
                model,
                file,
                name if out is None else out / name if out.is_dir() else out,
                topk=args.topk,
                threshold=args.threshold,
                opacity=args.opacity,
            )
            heading = [f'{file}:'] if len(files) > 1 else []
            print(*heading, *lines, f'written to {written}', sep='\n', flush=True)
