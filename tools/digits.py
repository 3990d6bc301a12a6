"""Adapt the shipped mini ViT to handwritten digits with several methods, and compare.

Example: python tools/digits.py --methods LoRA SSF BitFit --shots 200

scikit-learn's digits (8 x 8 scans, drawn at 32 px) are written as a VTAB-1k task. Each
method trains on the first SHOTS labelled images with the same recipe
(configs/mini/digits.py) and is tested once, after the last epoch, on 797 held-out
digits. With --split val it trains on the first SHOTS of train800 and is scored on
val200 instead: choose settings there, never on the test set.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'mini' / 'digits.py'

# One rate for all methods; how it does on val200 is seen with `--split val --lr`.
LEARNING_RATE = 3e-3

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
    parser.add_argument('--shots', type=int, default=200, help='labelled images')
    parser.add_argument('--epochs', type=int, default=25)
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--lr', type=float, default=LEARNING_RATE)
    parser.add_argument('--split', choices=('test', 'val'), default='test')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/digits'), help='table and picture'
    )
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument('--fresh', action='store_true', help='forget what is finished')
    return parser.parse_args()


def make_config(name: str, args: argparse.Namespace) -> Any:
    """The config of one run."""
    from mmengine.logging import MMLogger

    from mmpetl.benchmark.sizes import sizes
    from mmpetl.config.load import load_config

    MMLogger.get_current_instance().setLevel('WARNING')

    epochs, warm_up = args.epochs, max(1, args.epochs // 10)
    options = {
        'model.backbone.method': {'type': name, **sizes('mini').get(name, {})},
        'randomness.seed': args.seed,
        'optim_wrapper.optimizer.lr': args.lr,
        'train_cfg.max_epochs': epochs,
        'param_scheduler.0.end': warm_up,
        'param_scheduler.1.begin': warm_up,
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.T_max': epochs - warm_up,
        'train_dataloader.dataset.indices': args.shots,
        'train_dataloader.batch_size': 32,
        'default_hooks.checkpoint.interval': epochs,
    }
    if args.split == 'val':
        options |= {
            'train_dataloader.dataset.split': 'train800',
            'test_dataloader.dataset.split': 'val200',
        }
    group = f'{args.split}-{args.shots}-seed{args.seed}'
    folder = Path('work_dirs/digits') / group / name.lower()
    return load_config(CONFIG, options, folder)


def fingerprint_of(config: Any) -> str:
    """Digest of what decides a run's result."""
    skip = ('work_dir', 'log_level', 'default_hooks')
    kept = {k: v for k, v in config.to_dict().items() if k not in skip}
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:16]


def resident_bytes() -> int:
    """Resident memory of this process now."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def run_one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and test one method in this (forked) process; returns its record."""
    import torch
    from mmengine.logging import MMLogger

    from mmpetl.apis.run import build_runner
    from mmpetl.engine.hooks.efficiency import peak_memory_bytes

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.jobs))
    before = 0 if torch.cuda.is_available() else resident_bytes()
    config = make_config(name, args)
    config.log_level = 'INFO'
    config.experiment_name = f'digits-{name}-{os.getpid()}'
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
    return {
        'method': name,
        'config': fingerprint_of(make_config(name, args)),
        'settings': config.model.backbone.method.to_dict(),
        'lr': config.optim_wrapper.optimizer.lr,
        'shots': args.shots,
        'split': args.split,
        'seed': args.seed,
        'backbone_params': counts['delta'] + counts['selected'],
        'head_params': counts['head'],
        'accuracy': metrics['accuracy/top1'],
        'ppt': metrics['PPT/accuracy/top1'],
        'seconds': time.perf_counter() - started,
        'peak_memory_bytes': max(0, peak_memory_bytes() - before),
        'device': record['device'],
    }


def run_guarded(
    task: tuple[str, argparse.Namespace],
) -> tuple[str, dict[str, Any] | str]:
    """The record of a method, or what went wrong; the other methods go on."""
    import traceback

    try:
        return task[0], run_one(*task)
    except Exception as error:
        traceback.print_exc()
        return task[0], f'{type(error).__name__}: {error}'


def finished(name: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """The record of an earlier, equal run."""
    config = make_config(name, args)
    path = Path(config.work_dir) / 'record.json'
    if args.fresh or not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record['config'] == fingerprint_of(config) else None


def keep(record: dict[str, Any], args: argparse.Namespace) -> None:
    """Write a record, whole or not at all."""
    path = Path(make_config(record['method'], args).work_dir) / 'record.json'
    part = path.with_suffix('.part')
    part.write_text(json.dumps(record, indent=2) + '\n')
    part.replace(path)


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is not finished, several at a time, with a live table."""
    from rich.console import Console
    from rich.live import Live

    records: dict[str, dict[str, Any]] = {}
    for name in args.methods:
        record = finished(name, args)
        if record:
            records[name] = record
    waiting = [name for name in args.methods if name not in records]
    # Forked before torch has started threads: children share the loaded libraries, and
    # peak memory is counted from what they begin with; hence a process per method.
    context = multiprocessing.get_context('fork')
    console = Console()
    failures = {}
    with (
        context.Pool(args.jobs, maxtasksperchild=1) as pool,
        Live(make_table(args, records), console=console, refresh_per_second=2) as live,
    ):
        tasks = [(name, args) for name in waiting]
        for name, result in pool.imap_unordered(run_guarded, tasks, chunksize=1):
            if isinstance(result, str):
                failures[name] = result
                console.print(f'{name} failed: {result}')
            else:
                records[name] = result
                keep(result, args)
            live.update(make_table(args, records))
    if failures:
        from mmpetl.core import PETLError

        raise PETLError(
            f'{len(failures)} of {len(args.methods)} methods failed '
            f'({", ".join(failures)}); console.log below work_dirs/digits says why'
        )
    return [records[name] for name in args.methods]


HEADERS = (
    'method',
    'trainable parameters',
    'accuracy %',
    'PPT',
    'seconds',
    'peak memory MB',
)


def row_of(record: dict[str, Any]) -> tuple[str, ...]:
    """A record as table cells. Trainable parameters are those of the backbone."""
    return (
        record['method'],
        f'{record["backbone_params"]:,}',
        f'{record["accuracy"]:.1f}',
        f'{record["ppt"]:.3f}',
        f'{record["seconds"]:.0f}',
        f'{record["peak_memory_bytes"] / 2**20:.0f}',
    )


def make_table(args: argparse.Namespace, records: dict[str, dict[str, Any]]) -> Any:
    """The table as it stands."""
    from rich.table import Table

    done = f'{len(records)} of {len(args.methods)} done'
    table = Table(title=f'Digits from {args.shots} labelled images ({done})')
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify='left' if i == 0 else 'right')
    for name in args.methods:
        record = records.get(name)
        table.add_row(*(row_of(record) if record else (name, *('...',) * 5)))
    return table


def write_results(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Table as Markdown and CSV, records as JSON, and the picture."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'records.json').write_text(json.dumps(records, indent=2) + '\n')
    rows = [row_of(record) for record in records]
    lines = [HEADERS, ('---', *('---:',) * 5), *rows]
    text = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    (args.out / 'table.md').write_text(text + '\n')
    with open(args.out / 'table.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([HEADERS, *rows])
    draw(records, args)


def draw(records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Accuracy against trainable parameters of the backbone."""
    from mmpetl.analysis.charts import family_legend, new_figure
    from mmpetl.analysis.scatter import log_with_zero, named_points
    from mmpetl.core import registered_methods

    height = max(5.0, 0.24 * len(records))
    figure, grid = new_figure(8, height)
    axes = grid[0, 0]
    known = registered_methods()
    families = [known[record['method']].family for record in records]
    counts = log_with_zero(axes, [record['backbone_params'] for record in records])
    accuracy = [record['accuracy'] for record in records]
    names = [record['method'] for record in records]
    named_points(axes, counts, accuracy, names, families, fontsize=9)
    axes.set_xlabel('trainable parameters of the backbone')
    axes.set_ylabel(f'accuracy on held-out digits ({args.split}), %')
    figure.suptitle(f'mini ViT, {args.shots} labelled digits, seed {args.seed}, n = 1')
    family_legend(axes, families, loc='lower left', bbox_to_anchor=(0, 1.01), ncols=4)
    axes.grid(alpha=0.3, which='both')
    figure.savefig(args.out / 'accuracy_vs_parameters.png', dpi=130)


def main() -> None:
    """Make the data, run, show and write."""
    args = parse_args()
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        started = time.perf_counter()
        os.environ.setdefault('MMPETL_DATA', str(ROOT / 'data' / 'mini'))
        from mmpetl.core import check_range, registered_methods

        if args.methods == ['all']:
            args.methods = sorted(registered_methods(), key=str.lower)
        for name in args.methods:
            make_config(name, args)

        check_range('digits', '--shots', args.shots, 10, 1000)
        check_range('digits', '--epochs', args.epochs, 2)
        prepare(args)
        records = run_all(args)
        write_results(records, args)
        print(f'table and picture: {args.out}/ ({time.perf_counter() - started:.0f} s)')


def prepare(args: argparse.Namespace) -> None:
    """Write the task, and load what every child needs before they are forked."""
    from mmpetl.datasets.mini import make

    make(Path(os.environ['MMPETL_DATA']), names=['vtab-1k/digits'])
    import mmpretrain.apis
    import mmpretrain.datasets
    import mmpretrain.evaluation
    import mmpretrain.models  # noqa: F401


if __name__ == '__main__':
    sys.exit(main())
