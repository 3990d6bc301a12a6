"""How alike the methods of a benchmark predict: matrices, heat maps, Venn regions.

Example:
    mmpetl analyse agreement work_dirs/bench/mini

Reads the records and predictions of a benchmark folder and writes, per task, a heat map
of similarity and Cohen's kappa, one of the agreement on shared errors, the overlap at
high and low confidence, and all numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpetl.analysis import agreement, charts, selection
from mmpetl.apis.run import cli_errors
from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError

THREE = ('LoRA', 'Adapter', 'SSF')
"""The study's choice: three methods of different families."""

SECTION = 'Agreement of predictions'


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--to', type=Path, help='default: OUT/analysis/agreement')
    parser.add_argument('--tasks', nargs='+', help='default: all with predictions')
    parser.add_argument('--methods', nargs='+', help='default: all')
    parser.add_argument('--seed', type=int, help='default: the one most methods have')
    parser.add_argument(
        '--three',
        nargs=3,
        default=list(THREE),
        metavar='METHOD',
        help='methods whose confidence is compared',
    )
    parser.add_argument('--k', type=int, help='confident samples; default: half')
    return parser


def measure(runs: list[selection.Run]) -> dict[str, Any]:
    """Every matrix of a task, by name."""
    labels = selection.same_labels(runs)
    predicted = agreement.predictions_of([run.logits for run in runs])
    return {
        'methods': [run.name for run in runs],
        'families': [run.record.family for run in runs],
        'seed': runs[0].record.job.seed,
        'samples': len(labels),
        'accuracy': [run.accuracy for run in runs],
        'similarity': agreement.similarity(predicted),
        'kappa': agreement.kappa(predicted, runs[0].logits.shape[1]),
        'agreement_on_errors': agreement.agreement_on_errors(predicted, labels),
        'error_overlap': agreement.error_overlap(predicted, labels),
    }


def draw_matrices(task: str, found: dict[str, Any], to: Path) -> None:
    """Similarity beside kappa, and the agreement on shared errors."""
    names, families = found['methods'], found['families']
    side = max(4.2, 0.21 * len(names) + 2.6)
    shown = (
        ('similarity', 'same class predicted, S'),
        ('kappa', "Cohen's kappa"),
    )
    figure, axes = charts.new_figure(2 * side, side, columns=2)
    for axis, (key, title) in zip(axes[0], shown, strict=True):
        charts.heat_map(axis, found[key], names, families, title)
    pairs = agreement.off_diagonal(found['similarity'])
    low, high = closest(found['similarity'], names)
    charts.save_figure(
        figure,
        to / f'{task}.png',
        title=f'Prediction agreement on {task}',
        caption=(
            f'Share of {found["samples"]:,} test samples on which two methods predict '
            f"the same class (left), and Cohen's kappa, which takes the agreement of "
            f'chance out (right). Seed {found["seed"]}; methods ordered by family, '
            f'names coloured by it; the diagonal is left out.'
        ),
        alt=(
            f'Two heat maps of {len(names)} methods. Similarity runs from '
            f'{pairs.min():.2f} ({low}) to {pairs.max():.2f} ({high}), mean '
            f'{pairs.mean():.2f}.'
        ),
        section=SECTION,
    )
    figure, axes = charts.new_figure(side, side)
    errors = found['agreement_on_errors']
    charts.heat_map(
        axes[0, 0], errors, names, families, 'same wrong class where both are wrong'
    )
    known = agreement.off_diagonal(errors)
    charts.save_figure(
        figure,
        to / f'{task}-errors.png',
        title=f'Agreement on shared errors on {task}',
        caption=(
            'Of the samples that both methods get wrong, the share on which they name '
            'the same class.'
        ),
        alt=(
            f'A heat map of {len(names)} methods; the mean over pairs is '
            f'{np.nanmean(known) if np.isfinite(known).any() else float("nan"):.2f}.'
        ),
        section=SECTION,
    )


def closest(matrix: np.ndarray, names: list[str]) -> tuple[str, str]:
    """The least and the most alike pair, by name."""
    rows, columns = np.triu_indices(len(names), 1)
    values = matrix[rows, columns]
    pairs = [
        f'{names[rows[i]]} and {names[columns[i]]}'
        for i in (int(values.argmin()), int(values.argmax()))
    ]
    return pairs[0], pairs[1]


def draw_confidence(
    task: str, runs: list[selection.Run], k: int | None, to: Path
) -> dict[str, Any]:
    """Venn regions of three runs, drawn and returned."""
    labels = runs[0].labels
    k = len(labels) // 2 if k is None else k
    found = agreement.confidence_overlap([r.logits for r in runs], labels, k)
    figure, axes = charts.new_figure(9, 4.6, columns=2)
    names = [run.name for run in runs]
    titles = {
        'right': f'right among the {k:,} most confident',
        'wrong': f'wrong among the {k:,} least confident',
    }
    for axis, (key, title) in zip(axes[0], titles.items(), strict=True):
        charts.venn(axis, found[key], names, title)
    shared = {key: counts['111'] for key, counts in found.items()}
    total = {key: max(1, sum(counts.values())) for key, counts in found.items()}
    charts.save_figure(
        figure,
        to / f'{task}-confidence.png',
        title=f'Overlap at high and low confidence on {task}',
        caption=(
            f"Each method's {k:,} most confident of {len(labels):,} test samples that "
            f'it gets right (left), and its {k:,} least confident that it gets wrong '
            f'(right). Circles are of one size; the counts are what is measured.'
        ),
        alt=(
            f'Two Venn diagrams of {", ".join(names)}. All three share '
            f'{shared["right"]} of {total["right"]} right and {shared["wrong"]} of '
            f'{total["wrong"]} wrong samples.'
        ),
        section=SECTION,
    )
    return {'methods': names, 'k': k, 'regions': found}


def write_pairs(task: str, found: dict[str, Any], to: Path) -> None:
    """One row per pair of methods."""
    names = found['methods']
    keys = ('similarity', 'kappa', 'agreement_on_errors', 'error_overlap')
    charts.save_rows(
        to / f'{task}.csv',
        ('task', 'method_a', 'method_b', *keys),
        [
            (task, names[i], names[j], *(found[key][i, j] for key in keys))
            for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
        ],
    )


def compare(args: argparse.Namespace, to: Path) -> list[str]:
    """Measure and draw every task; returns the lines to print."""
    records = selection.choose(
        selection.plain(selection.finished(args.out)),
        tasks=args.tasks,
        methods=args.methods,
    )
    if args.seed is not None:
        # Known, and no choice: seeds of a method are compared with one another too.
        selection.choose(records, seeds=[args.seed])
    lines = []
    for task, rows in selection.by_task(records).items():
        there = selection.has_predictions(args.out, rows, args.seed)
        if args.tasks is None and not there:
            continue
        runs = selection.load_task(args.out, rows, args.seed)
        found = measure(runs)
        draw_matrices(task, found, to)
        write_pairs(task, found, to)
        found['by_family'] = {
            key: agreement.block_means(found[key], found['families'])
            for key in ('similarity', 'kappa')
        }
        found['between_seeds'] = {
            name: agreement.seed_similarity(
                agreement.predictions_of([run.logits for run in group])
            )
            for name, group in selection.load_seeds(args.out, rows).items()
        }
        by_name = {run.name: run for run in runs}
        if all(name in by_name for name in args.three):
            three = [by_name[name] for name in args.three]
            found['confidence'] = draw_confidence(task, three, args.k, to)
        elif tuple(args.three) != THREE:
            raise PETLError(
                f'--three names {", ".join(args.three)}; {task} has '
                f'{", ".join(by_name)}'
            )
        charts.save_numbers(to / f'{task}.numbers.json', found)
        pairs = agreement.off_diagonal(found['similarity'])
        lines.append(
            f'{task}: {len(runs)} methods, similarity {pairs.min():.3f} to '
            f'{pairs.max():.3f} (mean {pairs.mean():.3f})'
        )
    if not lines:
        raise PETLError(
            f'{args.out} holds no two runs of one task with predictions to compare'
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        to = args.to or args.out / 'analysis' / 'agreement'
        print('\n'.join(compare(args, to)))
        print(f'pictures and numbers: {to}')
