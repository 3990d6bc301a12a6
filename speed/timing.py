"""Ratios of run times within one run, for machines that are noisy.

Every round times every case once, in an order drawn anew; a ratio is taken within its
round, and the median over the rounds is reported with its quartiles.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Ratio:
    """How long a case takes relative to another, over rounds."""

    median: float
    low: float
    high: float
    seconds: float
    """Median time of the case itself."""

    def __str__(self) -> str:
        return f'{self.median:.3f} ({self.low:.3f} to {self.high:.3f})'


def sync() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_rounds(
    cases: Mapping[Any, Callable[[], None]],
    rounds: int,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
    """Seconds of each case in each round, after one warm-up round.

    Args:
        cases: What is timed, by name.
        rounds: How often.
        seed: Of the order within a round.
        clock: ``time.process_time`` where a CPU is shared with other work.
    """
    rng = random.Random(seed)
    times: dict[Any, list[float]] = {name: [] for name in cases}
    for i in range(rounds + 1):
        for name in rng.sample(list(cases), len(cases)):
            sync()
            started = clock()
            cases[name]()
            sync()
            if i:
                times[name].append(clock() - started)
    return times


def ratio(times: Mapping[Any, list[float]], case: Any, reference: Any) -> Ratio:
    """``case`` relative to ``reference``."""
    pairs = zip(times[case], times[reference], strict=True)
    ratios = sorted(a / b for a, b in pairs)
    low, _, high = (
        statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    )
    return Ratio(statistics.median(ratios), low, high, statistics.median(times[case]))


def markdown(rows: list[list[str]]) -> str:
    """Rows as a Markdown table, the first being the header."""
    width = len(rows[0])
    lines = [rows[0], [':---', *['---:'] * (width - 1)], *rows[1:]]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def device_name() -> str:
    """The GPU, or that there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'


def header(rounds: int) -> str:
    """Where and how a table was measured."""
    return (
        f'torch {torch.__version__}, {device_name()}, '
        f'{torch.get_num_threads()} threads, '
        f'median of {rounds} interleaved rounds (quartiles in brackets)'
    )
