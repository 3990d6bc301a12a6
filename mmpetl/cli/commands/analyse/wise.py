"""WiSE: models between base and tuned, on the test set and on shifted sets.

Example:
    mmpetl analyse wise work_dirs/bench/mini --task digits \
        --methods Full LoRA SSF Adapter BitFit

The base (alpha 0) is the frozen backbone with a head that was trained on it, a run of
LinearProbe; with --base config it is the model as its config builds it, for a config
whose head is a zero-shot classifier. Alpha is chosen on validation data that no model
has seen: unless a run held it out, the tool trains base and methods once more on the
part that the stage "tune" trains on, in OUT/analysis/wise/bench. Curves are read
on the test set and never chosen by it. What is finished is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmpetl.analysis import charts, further_runs, robustness, selection, wise
from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.job_config import split_options
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError, check_range
from mmpetl.datasets.corruptions import CORRUPTIONS, check_corruption

METHODS = ('Full', 'BitFit', 'LoRA', 'Adapter', 'SSF')
PROBE = 'LinearProbe'
SECTION = 'Between base and tuned (WiSE)'
VALIDATION = 'validation'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', type=Path, help='default: OUT/analysis/wise')
    parser.add_argument('--task', help='default: the first of the benchmark')
    parser.add_argument('--methods', nargs='+', default=list(METHODS))
    parser.add_argument('--seed', type=int, help='default: the commonest')
    parser.add_argument('--alphas', nargs='+', type=float, default=list(wise.ALPHAS))
    parser.add_argument(
        '--base',
        choices=('probe', 'config'),
        default='probe',
        help='head of the base: a run of LinearProbe, or what the config builds',
    )
    parser.add_argument('--kinds', nargs='+', default=list(CORRUPTIONS))
    parser.add_argument('--severities', nargs='+', type=int, default=[3])
    parser.add_argument(
        '--sets', nargs='+', type=Path, metavar='CONFIG', help='shifted sets, by config'
    )
    parser.add_argument('--limit', type=int, help='most test samples per set')
    parser.add_argument(
        '--no-control',
        action='store_true',
        help='leave out the control, which interpolates the head alone',
    )
    parser.add_argument('--executor', choices=('local', 'inline'), default='local')
    parser.add_argument('--workers', type=int, help='jobs at a time')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise PETLError on arguments out of range, before anything runs."""
    for alpha in args.alphas:
        check_range('wise', '--alphas', alpha, 0, 1)
    args.alphas = sorted(set(args.alphas) | {0.0, 1.0})
    for kind in args.kinds:
        check_corruption(kind, 1)
    for severity in args.severities:
        check_corruption(args.kinds[0], severity)
    robustness.named_sets(args.sets, (robustness.CLEAN, VALIDATION))
    if args.limit is not None:
        check_range('wise', '--limit', args.limit, 1)
    further_runs.parse_variants(args.methods)
    if PROBE in args.methods:
        raise PETLError(f'{PROBE} is the base itself; choose methods that tune')


def held_out_jobs(
    args: argparse.Namespace, records: list[Record], task: str
) -> tuple[dict[str, further_runs.Job], Any]:
    """A job per method whose validation data are not trained on, and their config."""
    seed = args.seed
    if seed is None:
        seed = selection.common_seed(selection.choose(records, tasks=[task]))
    methods = [*([PROBE] if args.base == 'probe' else []), *args.methods]
    planned = {}
    for method in dict.fromkeys(methods):
        job = further_runs.template(records, task, method)
        job = dataclasses.replace(job, seed=seed)
        planned[method] = job
    # The stage that chooses settings says what is held out, for recipes of any kind.
    tune = further_runs.config_of(next(iter(planned.values())), 'tune')
    final = further_runs.config_of(next(iter(planned.values())))
    data = tune.train_dataloader.dataset
    options = {}
    if data != final.train_dataloader.dataset:
        if (
            data.get('split') is None
            or data.type != final.train_dataloader.dataset.type
        ):
            raise PETLError(
                f'{planned[methods[0]].recipe} holds its validation data out by '
                f'{data.type}; interpolation needs a recipe whose training set names '
                'its split'
            )
        options = {'train_dataloader.dataset.split': data.split}
    name = options.get('train_dataloader.dataset.split', '')
    planned = {
        method: further_runs.varied(job, further_runs.Variant(method), options, name)
        for method, job in planned.items()
    }
    return planned, tune


def sets_of(
    args: argparse.Namespace, test: Any, tune: Any
) -> dict[str, robustness.Samples]:
    """Validation, test and shifted samples, by name."""
    found = {
        VALIDATION: robustness.samples_of(tune, 'val', name=VALIDATION),
        robustness.CLEAN: robustness.samples_of(test, limit=args.limit),
    }
    if args.sets:
        for name, path in robustness.named_sets(args.sets).items():
            found[name] = robustness.samples_of(path, name=name, limit=args.limit)
        return found
    for kind in args.kinds:
        for severity in args.severities:
            name = robustness.condition(kind, severity)
            found[name] = robustness.samples_of(
                test, name=name, corruption=(kind, severity), limit=args.limit
            )
    return found


def trace(
    args: argparse.Namespace,
    model: Any,
    base: dict[str, Any],
    sets: dict[str, robustness.Samples],
    head_only: bool,
    bar: tqdm,
) -> dict[str, Any]:
    """Scores at every alpha, and the one that validation chooses."""
    scores: dict[str, list[float]] = {name: [] for name in sets}
    for alpha in args.alphas:
        with wise.interpolated(model, base, alpha, head_only) as between:
            for name, samples in sets.items():
                scores[name].append(robustness.score(between, samples))
                bar.update()
    best = wise.best_alpha(args.alphas, scores[VALIDATION])
    shifted = [
        robustness.shifted_mean(
            {name: rows[i] for name, rows in scores.items() if name != VALIDATION}
        )
        for i in range(len(args.alphas))
    ]
    return {
        'scores': scores,
        'clean': scores[robustness.CLEAN],
        'shifted': shifted,
        'chosen': best,
        'chosen_alpha': args.alphas[best],
    }


def base_state(
    args: argparse.Namespace, store: RecordStore, planned: dict[str, further_runs.Job]
) -> dict[str, Any]:
    """State of the base with its head."""
    if args.base == 'probe':
        model = robustness.load_classifier(store.folder(planned[PROBE]), args.device)
    else:
        from mmpetl.apis.model import init_model

        job = next(iter(planned.values()))
        _, rest = split_options(job.options)
        config = further_runs.config_of(
            dataclasses.replace(job, method=PROBE, options=rest)
        )
        model = init_model(config, device=args.device)
        robustness.check_classifier(model)
    return {key: value.clone() for key, value in model.state_dict().items()}


def draw(
    task: str,
    found: dict[str, dict[str, Any]],
    alphas: list[float],
    words: str,
    to: Path,
) -> None:
    """The plane of clean and shifted accuracy, and both against alpha."""
    figure, axes = charts.new_figure(14, 4.6, columns=3)
    plane, clean, shifted = axes[0]
    methods = {n: row for n, row in found.items() if not row['head_only']}
    looks = dict(zip(methods, charts.distinct(len(methods)), strict=True))
    for name, row in found.items():
        colour, marker = looks[name.removesuffix(' (head only)')]
        style = {'color': colour, 'lw': 1.3, 'marker': marker, 'ms': 4}
        if row['head_only']:
            style |= {'ls': ':', 'marker': '', 'lw': 1.1, 'alpha': 0.8}
        label = None if row['head_only'] else name
        plane.plot(row['clean'], row['shifted'], label=label, **style)
        clean.plot(alphas, row['clean'], **style)
        shifted.plot(alphas, row['shifted'], **style)
        if row['head_only']:
            continue
        i = row['chosen']
        star = {'marker': '*', 'ms': 14, 'color': colour, 'mec': 'black', 'mew': 0.7}
        plane.plot(row['clean'][i], row['shifted'][i], zorder=5, **star)
        clean.plot(alphas[i], row['clean'][i], zorder=5, **star)
        shifted.plot(alphas[i], row['shifted'][i], zorder=5, **star)
    first = next(iter(methods.values()))
    plane.plot(
        first['clean'][0],
        first['shifted'][0],
        's',
        ms=9,
        mfc='none',
        color='black',
        label='base (alpha 0)',
    )
    plane.plot([], [], '*', ms=11, color='white', mec='black', label='chosen alpha')
    if len(found) > len(methods):
        plane.plot([], [], ':', color='black', label='head only (control)')
    plane.set_xlabel('accuracy on the test set, %')
    plane.set_ylabel('mean accuracy on the shifted sets, %')
    plane.set_title('both, alpha along the curve', fontsize=11)
    for axis, title in ((clean, 'test set'), (shifted, 'mean of the shifted sets')):
        axis.set_xlabel('interpolation weight alpha (0 base, 1 tuned)')
        axis.set_ylabel('accuracy, %')
        axis.set_title(title, fontsize=11)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    figure.legend(loc='outside right center', fontsize=8)
    parts = []
    for name, row in methods.items():
        at = row['chosen']
        parts.append(
            f'{name}: alpha {row["chosen_alpha"]:g}, test {row["clean"][at]:.1f} % '
            f'({row["clean"][-1]:.1f} at 1), shifted {row["shifted"][at]:.1f} % '
            f'({row["shifted"][-1]:.1f} at 1)'
        )
    charts.save_figure(
        figure,
        to / f'{task}.png',
        title=f'Between base and tuned on {task}',
        caption=(
            f'{words} Tensors that both models have are interpolated, inserted modules '
            f'scaled by alpha. Stars: the alpha with the best validation accuracy; '
            f'validation data were not trained on.'
        ),
        alt='Three panels of curves over alpha. ' + '; '.join(parts) + '.',
        section=SECTION,
    )


def compare(args: argparse.Namespace, to: Path) -> list[str]:
    """Train what is left, trace, draw; returns the lines to print."""
    check(args)
    records = selection.plain(selection.finished(args.out))
    task = args.task or next(iter(selection.by_task(records)))
    planned, tune = held_out_jobs(args, records, task)
    lines = []
    runs = RecordStore(args.out)
    there = [runs.read(job) for job in planned.values()]
    if any(record is None or record.status != 'done' for record in there):
        runs = RecordStore(args.out / 'analysis' / 'wise' / 'bench')
        further_runs.run_jobs(
            list(planned.values()), runs.out, 'held out', args.executor, args.workers
        )
    test = further_runs.config_of(planned[args.methods[0]])
    sets = sets_of(args, test, tune)
    base = base_state(args, runs, planned)
    found: dict[str, dict[str, Any]] = {}
    passes = 1 if args.no_control else 2
    total = len(args.methods) * passes * len(args.alphas) * len(sets)
    with tqdm(total=total, unit='set') as bar:
        for method in args.methods:
            bar.set_description(method)
            folder = runs.folder(planned[method])
            model = robustness.load_classifier(folder, args.device)
            reason = wise.obstacle(model)
            if reason is not None:
                lines.append(f'{method} is left out: {reason}')
                bar.update(passes * len(args.alphas) * len(sets))
                continue
            for head_only in (False, True)[:passes]:
                name = f'{method} (head only)' if head_only else method
                row = trace(args, model, base, sets, head_only, bar)
                found[name] = {**row, 'head_only': head_only}
    if not found:
        raise PETLError('; '.join(lines))
    words = (
        f'Shifted sets: {", ".join(p.stem for p in args.sets)}.'
        if args.sets
        else f'Shifted sets: {", ".join(k.replace("_", " ") for k in args.kinds)} at '
        f'severity {", ".join(map(str, args.severities))}.'
    )
    if args.limit:
        words += f' {args.limit:,} samples of each.'
    draw(task, found, args.alphas, words, to)
    write(task, found, args, words, to)
    for name, row in found.items():
        i = row['chosen']
        lines.append(
            f'{name}: chosen alpha {row["chosen_alpha"]:g}, test '
            f'{row["clean"][i]:.2f} % (tuned {row["clean"][-1]:.2f}), shifted '
            f'{row["shifted"][i]:.2f} % (tuned {row["shifted"][-1]:.2f}, base '
            f'{row["shifted"][0]:.2f})'
        )
    return lines


def write(
    task: str,
    found: dict[str, dict[str, Any]],
    args: argparse.Namespace,
    words: str,
    to: Path,
) -> None:
    """Numbers behind the picture."""
    charts.save_rows(
        to / f'{task}.csv',
        ('task', 'method', 'alpha', 'chosen', 'shifted_mean', 'set', 'accuracy'),
        [
            (
                task,
                name,
                alpha,
                int(i == row['chosen']),
                row['shifted'][i],
                s,
                values[i],
            )
            for name, row in found.items()
            for s, values in row['scores'].items()
            for i, alpha in enumerate(args.alphas)
        ],
    )
    charts.save_numbers(
        to / f'{task}.numbers.json',
        {
            'task': task,
            'words': words,
            'alphas': args.alphas,
            'base': args.base,
            'methods': found,
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        to = args.to or args.out / 'analysis' / 'wise'
        print('\n'.join(compare(args, to)))
        print(f'pictures and numbers: {to}')
