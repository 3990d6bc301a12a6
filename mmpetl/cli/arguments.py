"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmpetl.cli.parsing import CommandParser, suggests
from mmpetl.config.cli import DictAction
from mmpetl.shipped import shipped, zoo_folder


class MethodAction(DictAction):
    """``--method LoRA rank=16``: a name into ``method``, the rest into its options."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        name, *pairs = values or ('',)
        if '=' in name:
            parser.error(
                f'{option_string} takes a name first: {option_string} LoRA {name}'
            )
        namespace.method = name
        super().__call__(parser, namespace, pairs, option_string)


def add_folder(parser: CommandParser, what: str = 'benchmark folder') -> None:
    """A benchmark folder to read, as ``FOLDER`` or, as ``run`` calls it, ``--out``."""
    parser.add_argument('out', nargs='?', type=Path, metavar='folder', help=what)
    parser.add_argument('--out', dest='named', type=Path, help='the same, by name')

    def settle(args: argparse.Namespace) -> None:
        if (args.out is None) == (args.named is None):
            said = 'is missing' if args.out is None else 'is given twice'
            parser.error(f'the {what} {said}: {parser.prog} FOLDER')
        args.out = args.out or args.named

    parser.after.append(settle)


def positive(text: str) -> int:
    """A count of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError('at least 1')
    return number


def check_out(file: str | None) -> None:
    """Make the folder of a file that is written last, before anything is computed.

    Raises:
        OSError: It cannot be made, or the file cannot be written.
        PETLError: It is a folder.
    """
    from mmpetl.core import PETLError

    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        raise PETLError(f'--out {file} is a folder; name a file in it')
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PETLError(f'--out {file} cannot be written; name another file')


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='dotted keys of the config, and what they become',
    )


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """``--method``, its arguments, and the base that it is put on."""
    method = parser.add_argument(
        '--method',
        dest='method_options',
        nargs='+',
        action=MethodAction,
        metavar=('NAME', 'KEY=VALUE'),
        help='method to put into the model of a config, and arguments: LoRA rank=16',
    )
    suggests(method, method_names)
    suggests(
        parser.add_argument(
            '--petl',
            dest='method',
            help='name of that method alone; LoRA+VPTDeep is two',
        ),
        method_names,
    )
    add_method_arguments(parser)
    parser.add_argument(
        '--base', help='base weights, of a trunk or a whole model; needs a method'
    )


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """``--method-options``, the arguments of a method that is named elsewhere."""
    parser.add_argument(
        '--method-options',
        '--petl-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='arguments of the method, as in rank=16; of several 0.rank=16',
    )


def add_config_or_run(parser: CommandParser, name: str = 'config', **more: Any) -> None:
    """A config, a recipe or a run, and flags: what :func:`config_of` reads.

    Args:
        parser: Of the command.
        name: Of the argument.
        more: Further arguments of ``add_argument``.
    """
    suggests(
        parser.add_argument(
            name,
            help='config, recipe, folder of a run, checkpoint, delta, or zoo/NAME',
            **more,
        ),
        lambda: [*recipes(), *runs()],
    )
    add_method_options(parser)
    add_config_options(parser)


def config_of(args: argparse.Namespace, **more: Any) -> Any:
    """The config that flags ask for: of a run; or a file or a recipe, with a method.

    Args:
        args: What :func:`add_config_or_run` adds, or ``config`` and the flags of
            :func:`add_method_options` and :func:`add_config_options`.
        more: Further arguments of :func:`mmpetl.config.asked.asked_config`.

    Raises:
        PETLError: As of that function or of :func:`mmpetl.apis.open_run`, or a method
            is named for a run, which has its own.
    """
    from mmpetl.apis.runs import is_run, open_run
    from mmpetl.config.asked import asked_config
    from mmpetl.core import PETLError

    if is_run(args.config):
        if args.method or args.method_options or args.base:
            raise PETLError(
                f'{args.config} is a run, which has its method and its base; a method '
                'is named for a config'
            )
        unread = sorted(key for key, value in more.items() if value is not None)
        if unread:
            raise PETLError(
                f'{args.config} is a run, whose config is written out; '
                f'--{unread[0]} is for another config'
            )
        return open_run(args.config, options=args.cfg_options).config
    return asked_config(
        [args.config],
        args.method,
        args.method_options,
        base=args.base,
        options=args.cfg_options,
        **more,
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """``--metrics``, which :func:`as_metrics` reads."""
    parser.add_argument(
        '--metrics', nargs='+', default=[], metavar='NAME=VALUE', help='for the record'
    )


def as_metrics(pairs: list[str]) -> dict[str, float] | None:
    """``['accuracy/top1=96.2']`` as a dict; None where there are none."""
    from mmpetl.core import PETLError

    metrics = {}
    for pair in pairs:
        name, _, value = pair.partition('=')
        try:
            metrics[name] = float(value)
        except ValueError:
            raise PETLError(f'--metrics takes NAME=NUMBER, got {pair!r}') from None
    return metrics or None


def add_launching(parser: argparse.ArgumentParser) -> None:
    """In how many processes, and who starts them."""
    parser.add_argument(
        '--gpus',
        type=positive,
        metavar='N',
        help='in N processes of this machine, one for each GPU; on CPUs through gloo',
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='who has started this process as one of several',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def add_memory(parser: argparse.ArgumentParser) -> None:
    """What a training holds, and where: :func:`memory_options`, and ``--base-bits``."""
    parser.add_argument(
        '--cache-features',
        nargs='?',
        const=True,
        type=float,
        metavar='GIB',
        help='compute what a frozen trunk gives of each picture once and keep it on '
        'disk, in GIB GiB at most, by default 10; where nothing is drawn at random',
    )
    parser.add_argument(
        '--base-bits',
        type=int,
        choices=(8, 4),
        help="hold the frozen trunk's Linear layers in so few bits",
    )
    parser.add_argument(
        '--shard-base',
        action='store_true',
        help='of several processes each keeps its share of the frozen trunk',
    )
    parser.add_argument(
        '--deepspeed',
        type=int,
        choices=(1, 2, 3),
        metavar='STAGE',
        help='let DeepSpeed shard over several processes: 1 the state of the '
        'optimizer, 2 gradients too, 3 weights too',
    )
    parser.add_argument(
        '--offload-activations',
        action='store_true',
        help='what the forward pass keeps waits for the backward pass in the memory of '
        'the machine, not of the GPU',
    )


def memory_options(args: argparse.Namespace) -> dict[str, Any]:
    """What flags of :func:`add_memory` say, as keys of a config, without the bits."""
    options: dict[str, Any] = {}
    if args.cache_features is not None:
        said = args.cache_features
        options['cache_features'] = said is True or {'limit_gib': said}
    if args.shard_base:
        options['shard_base'] = True
    if args.deepspeed:
        options['deepspeed'] = args.deepspeed
    if args.offload_activations:
        options['offload_activations'] = True
    return options


def set_local_rank(args: argparse.Namespace) -> None:
    """What older launchers pass as a flag, where libraries look for it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def method_names() -> Iterable[str]:
    """Stems of methods, read off their files."""
    folder = Path(__file__).resolve().parents[1] / 'methods'
    return sorted(p.stem for p in folder.glob('*.py') if not p.stem.startswith('_'))


def recipes() -> Iterable[str]:
    """Recipes, read off their files."""
    root = shipped('configs')
    folders = {root / 'recipes': '', root / 'mini': 'mini/'}
    return sorted(
        front + path.relative_to(folder).with_suffix('').as_posix()
        for folder, front in folders.items()
        for path in folder.rglob('*.py')
        if 'pretrain' not in path.parts
    )


def zoo_names() -> Iterable[str]:
    """Entries of the zoo, for a shell: of an index that cannot be read, none."""
    try:
        index = json.loads((zoo_folder() / 'index.json').read_bytes())
        return sorted(str(entry['name']) for entry in index['entries'])
    except (OSError, ValueError, LookupError, TypeError):
        return ()


def runs() -> Iterable[str]:
    """Runs that have a name: the deltas of the zoo."""
    return [f'zoo/{name}' for name in zoo_names()]
