"""List the deltas of the zoo, tell of one, fetch its files, or check them.

Examples:
    mmpetl zoo
    mmpetl zoo --task digits --method LoRA
    mmpetl zoo show digits_lora
    mmpetl zoo fetch digits_lora
    mmpetl zoo check

zoo/NAME stands for a delta wherever a run or a delta is named:
    mmpetl predict zoo/digits_lora picture.png

Some travel with the package; others have an address, from which delta and base are
fetched once into the folder of weights (MMPETL_WEIGHTS, else checkpoints). MMPETL_ZOO
names a folder with another index.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmpetl.cli.arguments import zoo_names
from mmpetl.cli.parsing import CommandParser, suggests

ACTIONS = ('list', 'show', 'fetch', 'check')


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    parser.add_argument(
        'action', nargs='?', choices=ACTIONS, default='list', help='list if none'
    )
    names = parser.add_argument('names', nargs='*', metavar='NAME', help='entries')
    suggests(names, zoo_names)
    parser.add_argument('--task', help='list those of a data set or recipe')
    parser.add_argument('--method', help='list those of a method')
    parser.add_argument('--base', help='list those of a backbone or a base file')
    parser.add_argument(
        '--mirror', help='fetch: a folder that has the files, or its address'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    filters = (args.task, args.method, args.base)
    if args.action != 'list' and any(filters):
        parser.error('--task, --method and --base are of the list')
    if args.action != 'fetch' and args.mirror:
        parser.error('--mirror is of fetch')
    if args.action == 'list' and args.names:
        parser.error(f'the list takes no names; mmpetl zoo show {args.names[0]}')
    if args.action in ('show', 'fetch') and not args.names:
        parser.error(f'name what to {args.action}; mmpetl zoo lists the names')
    from mmpetl.apis import cli_errors
    from mmpetl.apis.zoo import read_zoo

    with cli_errors():
        zoo = read_zoo()
        if args.action == 'list':
            print('\n'.join(table(zoo.select(*filters))))
            return 0
        entries = [zoo.find(name) for name in args.names]
        if args.action == 'check':
            return check(zoo, entries or zoo.select())
        for entry in entries:
            if args.action == 'show':
                print('\n'.join(page(zoo, entry)))
            else:
                fetch(zoo, entry, args.mirror)
    return 0


def table(entries: Sequence[Any]) -> list[str]:
    """A line for each entry, in columns."""
    rows = [('name', 'task', 'method', 'backbone', 'test', 'trained', 'bytes')]
    rows += [
        (
            f'zoo/{e.name}',
            e.task,
            e.methods,
            e.backbone,
            f'{e.score.value:.1f} % {e.score.label}',
            f'{trained(e):,}',
            f'{e.delta.bytes:,}',
        )
        for e in entries
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = len(widths) - 2  # the last two are numbers
    return [
        '  '.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def trained(entry: Any) -> int:
    """Parameters of the backbone that were trained, without those of the head."""
    return entry.trainable.delta + entry.trainable.selected


def page(zoo: Any, entry: Any) -> list[str]:
    """What is known of an entry."""
    from mmpetl.apis.zoo import files_here

    score, counts = entry.score, entry.trainable
    spread = '' if score.std is None else f' ± {score.std:.2f}'
    labels = 'unknown' if score.labels is None else f'{score.labels:,}'
    methods = entry.method if isinstance(entry.method, list) else [entry.method]
    options = ', '.join(f'{k}={_short(v)}' for k, v in entry.options.items())
    rows = {
        'recipe': entry.recipe + (' with published settings' if entry.leaf else ''),
        'task': entry.task,
        'method': ' + '.join(_call(method) for method in methods),
        'options': options or 'none',
        'backbone': entry.backbone,
        'base': f'{entry.base.weights.file}, fingerprint {entry.base.fingerprint}',
        'test': f'{score.value:.2f} % {score.label} (seed {score.seed}, '
        f'{entry.protocol} protocol)',
        'seeds': f'{score.mean:.2f}{spread} % over {score.seeds}',
        'labels': labels,
        'trained': f'{counts.delta:,} added, {counts.selected:,} of the base, '
        f'{counts.head:,} in the head',
        'licence': entry.licence,
        'from': f'{entry.release}, runs/{entry.run}',
        'reads': entry.input or 'what its task is about',
    }
    lines = [f'zoo/{entry.name}', *(f'  {k:9} {v}' for k, v in rows.items())]
    for artifact, place in files_here(zoo, entry):
        where = place or f'not here: {artifact.url or "no address is known"}'
        lines.append(f'  {"file":9} {artifact.file} ({artifact.bytes:,} bytes) {where}')
        lines.append(f'  {"":9} sha256 {artifact.sha256}')
    file = '' if entry.example else ' FILE'
    return [*lines, f'  {"use":9} mmpetl predict zoo/{entry.name}{file}']


def _short(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else f'{value}'


def _call(method: dict[str, Any]) -> str:
    args = ', '.join(f'{k}={_short(v)}' for k, v in method.items() if k != 'type')
    return f'{method.get("type")}({args})'


def fetch(zoo: Any, entry: Any, mirror: str | None) -> None:
    """Bring the files of an entry, each behind a bar."""
    from mmpetl.apis.zoo import bring_base, bring_delta

    with bar(f'zoo/{entry.name}') as move:
        path = bring_delta(zoo, entry, mirror, move)
    print(f'{path}: here and checked')
    with bar(entry.base.weights.file) as move:
        path = bring_base(entry, mirror, move)
    print(f'{path}: its base')


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Silent where nobody watches, and where nothing is fetched."""
    from tqdm import tqdm

    shown: list[Any] = []

    def move(done: int, total: int | None) -> None:
        if not shown:
            shown.append(tqdm(unit='B', unit_scale=True, desc=name, disable=None))
        shown[0].total = total
        shown[0].update(done - shown[0].n)

    try:
        yield move
    finally:
        for one in shown:
            one.close()


def check(zoo: Any, entries: Sequence[Any]) -> int:
    """A line for each file; 1 if one that is here is another than the index says."""
    from mmpetl.apis.zoo import faults, files_here

    seen: dict[Path, str] = {}
    wrong = 0
    for entry in entries:
        for artifact, place in files_here(zoo, entry):
            if place is None:
                url = artifact.url or 'no address is known'
                print(f'{"not here":8} {artifact.file} of zoo/{entry.name} ({url})')
                wrong += artifact.url is None
            elif seen.get(place) != artifact.sha256:
                seen[place] = artifact.sha256
                found = faults(place, artifact)
                print(f'{"WRONG" if found else "right":8} {place}', *found)
                wrong += bool(found)
    return int(wrong > 0)
