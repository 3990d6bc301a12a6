"""Adapt the shipped mini ViT to handwritten digits with several methods, and compare.

Example: python tools/digits.py --methods LoRA SSF BitFit --shots 200

scikit-learn's digits (8 x 8 scans, drawn at 32 px) are written as a VTAB-1k task. Each
method trains on the first SHOTS labelled images with the same recipe
(configs/mini/digits.py) and is tested once, after the last epoch, on 797 held-out
digits, for each number of images and each seed. Every run takes about as many steps.

Rate, decay and sizes of a method are those that the project's own search found on
validation data, the same budget for each: configs/mini/digits_settings.json holds them
with the command. `--take FOLDER` writes that file from such a search; `--lr` gives all
methods one rate and their default sizes instead.
What is finished is kept: run again to continue an interrupted comparison.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'mini' / 'digits.py'
SETTINGS = ROOT / 'configs' / 'mini' / 'digits_settings.json'
PLAN = 'digits'
"""The plan of the search: what its runs share with those here."""

LEARNING_RATE = 3e-3
"""Of methods that were not searched."""

BATCH = 16
STEPS = 52
"""About, of every run: epochs follow from the number of images."""

METHODS = (
    'LinearProbe',
    'Full',
    'BitFit',
    'SSF',
    'LoRA',
    'AdaptFormer',
    'VPTDeep',
    'LST',
)


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--methods', nargs='+', default=list(METHODS), help='names, or all'
    )
    parser.add_argument(
        '--shots', type=int, nargs='+', default=[100, 200, 400], help='labelled images'
    )
    parser.add_argument('--epochs', type=int, help=f'default: {STEPS} steps')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    parser.add_argument('--lr', type=float, help='one rate for all, default sizes')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/digits'), help='table and picture'
    )
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument('--fresh', action='store_true', help='forget what is finished')
    parser.add_argument(
        '--take',
        type=Path,
        metavar='FOLDER',
        help='write what a search (tools/benchmark/search.py) found, and leave',
    )
    return parser.parse_args()


@dataclass(frozen=True)
class Run:
    """One of the runs of a comparison.

    Attributes:
        method: Its name.
        shots: Labelled images.
        seed: Of the training.
        epochs: How often it sees them.
        lr: Rate of all methods; None for what was found.
    """

    method: str
    shots: int
    seed: int
    epochs: int
    lr: float | None

    @property
    def found(self) -> dict[str, Any]:
        """What the search found for the method, or nothing."""
        return {} if self.lr else read_settings().get(self.method, {})

    def config(self) -> Any:
        """The config of the run."""
        from mmengine.logging import MMLogger

        from mmpetl.benchmark.sizes import sizes
        from mmpetl.config.load import load_config

        MMLogger.get_current_instance().setLevel('WARNING')
        name, rate = self.method, self.lr or LEARNING_RATE
        options = {
            'model.backbone.method': {'type': name, **sizes('mini').get(name, {})},
            'randomness.seed': self.seed,
            'optim_wrapper.optimizer.lr': rate,
            'train_cfg.max_epochs': self.epochs,
            'train_dataloader.dataset.indices': self.shots,
            'train_dataloader.batch_size': BATCH,
            'default_hooks.checkpoint.interval': self.epochs,
        }
        for key, value in self.found.get('options', {}).items():
            parent, _, key_in = key.rpartition('.')
            if parent == 'model.backbone.method':
                options[parent][key_in] = value
            else:
                options[key] = value
        kind = f'lr{self.lr:g}' if self.lr else 'searched'
        folder = Path('work_dirs/digits') / f'{kind}-{self.shots}-seed{self.seed}'
        return load_config(CONFIG, options, folder / name.lower())


def runs_of(args: argparse.Namespace) -> list[Run]:
    """All runs, one seed after the other, so that the table fills evenly."""
    return [
        Run(
            name,
            shots,
            seed,
            args.epochs or max(2, round(STEPS * BATCH / shots)),
            args.lr,
        )
        for seed in args.seeds
        for shots in args.shots
        for name in args.methods
    ]


def serving(names: list[str], args: argparse.Namespace) -> list[str]:
    """Methods that the mini ViT can serve; of all methods the others are told.

    Raises:
        PETLError: One that was named cannot be served.
    """
    from mmpetl.apis.counting import count_config
    from mmpetl.core import PETLError

    found = []
    for name in names:
        try:
            count_config(Run(name, args.shots[0], args.seeds[0], 2, args.lr).config())
        except PETLError as error:
            if args.methods != ['all']:
                raise
            print(f'left out: {name}: {error}', file=sys.stderr)
        else:
            found.append(name)
    return found


def read_settings() -> dict[str, Any]:
    """What the search found, by method."""
    if not SETTINGS.is_file():
        return {}
    return json.loads(SETTINGS.read_text(encoding='utf-8'))['methods']


def take(folder: Path) -> None:
    """Write the settings that a search of plan ``digits`` found, with what it was."""
    from mmpetl.benchmark.records import RecordStore
    from mmpetl.core import PETLError

    found: dict[str, Any] = {}
    facts: set[tuple[Any, ...]] = set()
    for record in RecordStore(folder).all(curves=False):
        search = record.search
        if not search or record.job.recipe != 'mini/digits':
            continue
        best = next(t for t in search['trials'] if t['number'] == search['best'])
        found[record.job.method] = {
            'options': best['options'],
            'validation_accuracy': search['best_value'],
            'default_accuracy': search['default_value'],
            'trials': search['tried'],
            'space': search['space_from'],
        }
        facts.add((search['budget'], search['seed'], search['split']))
    if len(facts) != 1:
        raise PETLError(
            f'{folder} holds {len(facts)} kinds of finished searches on mini/digits, '
            'one is needed: tools/benchmark/search.py --recipe mini/digits '
            f'--plan {PLAN} --seeds 42 --methods ... --out {folder}'
        )
    ((budget, seed, validation),) = facts
    names = sorted(found, key=str.lower)
    content = {
        'command': f'python tools/benchmark/search.py --plan {PLAN} --recipe '
        f'mini/digits --trials {budget} --seeds 42 --methods {" ".join(names)}',
        'scored_on': validation,
        'seed': seed,
        'methods': {name: found[name] for name in names},
    }
    SETTINGS.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    print(f'{len(found)} methods: {SETTINGS.relative_to(ROOT)}')


def fingerprint_of(config: Any) -> str:
    """Digest of what decides a run's result."""
    skip = ('work_dir', 'log_level', 'default_hooks')
    kept = {k: v for k, v in config.to_dict().items() if k not in skip}
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:16]


def resident_bytes() -> int:
    """Resident memory of this process now."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def run_one(run: Run, jobs: int) -> dict[str, Any]:
    """Train and test one method in this (forked) process; returns its record."""
    import torch
    from mmengine.logging import MMLogger

    from mmpetl.apis.run import build_runner
    from mmpetl.engine.hooks.efficiency import peak_memory_bytes

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    before = 0 if torch.cuda.is_available() else resident_bytes()
    config = run.config()
    config.log_level = 'INFO'
    config.experiment_name = f'digits-{run.method}-{os.getpid()}'
    folder = Path(config.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # The console belongs to the table; each run keeps its own log.
    with open(folder / 'console.log', 'w', encoding='utf-8') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        started = time.perf_counter()
        runner = build_runner(config)
        runner.train()
        metrics = runner.test()
    MMLogger._instance_dict.clear()
    record = json.loads((folder / 'efficiency.json').read_text())
    counts = record['counts']
    found = run.found
    return {
        'method': run.method,
        'config': fingerprint_of(run.config()),
        'settings': config.model.backbone.method.to_dict(),
        'lr': config.optim_wrapper.optimizer.lr,
        'trials': found.get('trials', 0),
        'validation_accuracy': found.get('validation_accuracy'),
        'shots': run.shots,
        'seed': run.seed,
        'epochs': run.epochs,
        'backbone_params': counts['delta'] + counts['selected'],
        'head_params': counts['head'],
        'accuracy': metrics['accuracy/top1'],
        'ppt': metrics['PPT/accuracy/top1'],
        'seconds': time.perf_counter() - started,
        'peak_memory_bytes': max(0, peak_memory_bytes() - before),
        'device': record['device'],
    }


def run_guarded(task: tuple[Run, int]) -> tuple[Run, dict[str, Any] | str]:
    """The record of a run, or what went wrong; the others go on."""
    import traceback

    try:
        return task[0], run_one(*task)
    except Exception as error:
        traceback.print_exc()
        return task[0], f'{type(error).__name__}: {error}'


def finished(run: Run) -> dict[str, Any] | None:
    """The record of an earlier, equal run."""
    config = run.config()
    path = Path(config.work_dir) / 'record.json'
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record['config'] == fingerprint_of(config) else None


def keep(run: Run, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    path = Path(run.config().work_dir) / 'record.json'
    part = path.with_suffix('.part')
    part.write_text(json.dumps(record, indent=2) + '\n')
    part.replace(path)


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is not finished, several at a time, with a live table."""
    from rich.console import Console
    from rich.live import Live

    runs = runs_of(args)
    records: dict[Run, dict[str, Any]] = {}
    for run in runs:
        record = None if args.fresh else finished(run)
        if record:
            records[run] = record
    waiting = [run for run in runs if run not in records]
    # Forked before torch has started threads: children share the loaded libraries, and
    # peak memory is counted from what they begin with; hence a process per run.
    context = multiprocessing.get_context('fork')
    console = Console()
    failures = {}

    def shown() -> Any:
        return make_table(list(records.values()), args, len(runs))

    with (
        context.Pool(args.jobs, maxtasksperchild=1) as pool,
        Live(shown(), console=console, refresh_per_second=2) as live,
    ):
        tasks = [(run, args.jobs) for run in waiting]
        for run, result in pool.imap_unordered(run_guarded, tasks, chunksize=1):
            if isinstance(result, str):
                failures[run] = result
                console.print(f'{run} failed: {result}')
            else:
                records[run] = result
                keep(run, result)
            live.update(shown())
    if failures:
        from mmpetl.core import PETLError

        methods = dict.fromkeys(run.method for run in failures)
        raise PETLError(
            f'{len(failures)} of {len(runs)} runs failed ({", ".join(methods)}); '
            'console.log below work_dirs/digits says why'
        )
    return [records[run] for run in runs]


def headers(args: argparse.Namespace) -> list[str]:
    """Names of the columns."""
    shots = [f'accuracy %, {n} labels' for n in args.shots]
    return [
        'method',
        'trainable parameters',
        *shots,
        'trials of the search',
        'seconds',
        'peak memory MB',
    ]


def rows_of(
    records: list[dict[str, Any]], args: argparse.Namespace
) -> Iterator[list[str]]:
    """Methods as cells; trainable parameters are those of the backbone."""
    for name in args.methods:
        mine = [record for record in records if record['method'] == name]
        if not mine:
            yield [name, *['...'] * (len(args.shots) + 4)]
            continue
        scores = (accuracies(mine, shots) for shots in args.shots)
        trials, found = mine[0]['trials'], mine[0]['validation_accuracy']
        yield [
            name,
            f'{mine[0]["backbone_params"]:,}',
            *(text_of(values) for values in scores),
            f'{trials}, best {found:.1f}' if trials else 'none',
            f'{mean(record["seconds"] for record in mine):.0f}',
            f'{max(record["peak_memory_bytes"] for record in mine) / 2**20:.0f}',
        ]


def accuracies(records: list[dict[str, Any]], shots: int) -> list[float]:
    """Of the seeds with so many images, in percent."""
    return [record['accuracy'] for record in records if record['shots'] == shots]


def text_of(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return '...'
    spread = f' ± {stdev(values):.1f}' if len(values) > 1 else ''
    return f'{mean(values):.1f}{spread}'


def make_table(
    records: list[dict[str, Any]], args: argparse.Namespace, runs: int
) -> Any:
    """The table as it stands, of no more than 80 columns."""
    from rich import box
    from rich.table import Table

    names = ['method', 'trained', *(f'{n} labels' for n in args.shots)]
    names += ['trials', 's', 'MB']
    table = Table(
        title=(
            f'Digits, accuracy in %: mean and deviation of {len(args.seeds)} seeds\n'
            f'({len(records)} of {runs} runs done)'
        ),
        caption=(
            'trained: parameters of the backbone; trials: of the search that chose '
            'the settings (configs/mini/digits_settings.json); s: of a run; '
            'MB: peak memory'
        ),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for i, name in enumerate(names):
        justify = 'left' if i == 0 else 'right'
        table.add_column(name, justify=justify, no_wrap=True)
    for row in rows_of(records, args):
        row[-3] = row[-3].partition(',')[0]
        table.add_row(*row)
    return table


def write_results(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Table as Markdown and CSV, records as JSON, and the picture."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'records.json').write_text(json.dumps(records, indent=2) + '\n')
    head, rows = headers(args), list(rows_of(records, args))
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    text = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    (args.out / 'table.md').write_text(text + '\n')
    with open(args.out / 'table.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([head, *rows])
    draw(records, args)


def draw(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Accuracy by method, one row for each number of labels, a bar for the spread."""
    from mmpetl.analysis.charts import colour_of, family_legend, new_figure
    from mmpetl.core import registered_methods

    known = registered_methods()
    families = {name: known[name].family for name in args.methods}
    height = 1.6 + 0.3 * len(args.methods)
    figure, grid = new_figure(3 + 3 * len(args.shots), height, 1, len(args.shots))
    order = list(reversed(args.methods))
    for axes, shots in zip(grid[0], args.shots, strict=True):
        for place, name in enumerate(order):
            mine = [record for record in records if record['method'] == name]
            values = accuracies(mine, shots)
            axes.errorbar(
                mean(values),
                place,
                xerr=stdev(values) if len(values) > 1 else None,
                fmt='o',
                color=colour_of(families[name]),
                capsize=3,
            )
        axes.set_title(f'{shots} labels')
        axes.set_xlabel('accuracy, %')
        axes.set_yticks(range(len(order)), order if axes is grid[0, 0] else [])
        axes.grid(alpha=0.3)
    figure.suptitle(
        f'Held-out digits, mini ViT: mean and deviation, n = {len(args.seeds)} seeds'
    )
    family_legend(
        figure, families.values(), loc='outside lower center', ncols=len(args.methods)
    )
    figure.savefig(args.out / 'accuracy.png', dpi=130)


def main() -> None:
    """Make the data, run, show and write."""
    args = parse_args()
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        if args.take:
            take(args.take)
            return
        started = time.perf_counter()
        os.environ.setdefault('MMPETL_DATA', str(ROOT / 'data' / 'mini'))
        from mmpetl.core import check_range, registered_methods

        names = args.methods
        if names == ['all']:
            names = sorted(registered_methods(), key=str.lower)
        for shots in args.shots:
            check_range('digits', '--shots', shots, 10, 1000)
        if args.epochs is not None:
            check_range('digits', '--epochs', args.epochs, 2)
        args.methods = serving(names, args)
        prepare()
        records = run_all(args)
        write_results(records, args)
        print(f'table and picture: {args.out}/ ({time.perf_counter() - started:.0f} s)')


def prepare() -> None:
    """Write the task, and load what every child needs before they are forked."""
    from mmpetl.benchmark.executors.base import PRELOAD
    from mmpetl.datasets.mini import make

    make(Path(os.environ['MMPETL_DATA']), names=['vtab-1k/digits'])
    os.environ[PRELOAD] = 'mmpretrain'
    import mmpetl.benchmark.preload  # noqa: F401


if __name__ == '__main__':
    sys.exit(main())
