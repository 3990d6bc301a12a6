"""What stored features save of an epoch of a linear probe.

Example: OMP_NUM_THREADS=1 python speed/features.py --rounds 5

The recipe ``mini/digits`` (mini ViT, 1,000 pictures of 32 px). In each round a run
trains that sends pictures through the trunk, and one that reads features; the medians
of their epochs are compared within the round. Both runs end with the same parameters,
bit for bit, which is looked at. Pictures are decoded in the first epoch alone
(``LoadOnce``), so first epochs are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from timing import device_name, markdown, ratio

from mmpetl.apis.run import train
from mmpetl.config.compose import compose
from mmpetl.datasets import mini


class EpochTimes(Hook):
    """Seconds of each epoch."""

    priority = 'LOWEST'

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    def before_train_epoch(self, runner: Any) -> None:
        self.started = self.clock()

    def after_train_epoch(self, runner: Any) -> None:
        self.seconds.append(self.clock() - self.started)


def epochs_of(folder: Path, count: int, stored: bool, clock: Any) -> tuple[float, Any]:
    """Median seconds of an epoch, and the trained head."""
    options = {'train_cfg.max_epochs': count, 'log_level': 'ERROR'}
    if stored:
        options['cache_features'] = True
    config = compose('mini/digits', 'LinearProbe', options, work_dir=folder)
    times = EpochTimes(clock)
    config.custom_hooks.append(times)
    runner = train(config)
    return statistics.median(times.seconds[1:]), runner.model.head.state_dict()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--wall', action='store_true', help='time by the clock')
    args = parser.parse_args()
    clock = time.perf_counter if args.wall else time.process_time
    times: dict[str, list[float]] = {'pictures': [], 'features': []}
    with tempfile.TemporaryDirectory() as place:
        os.environ['MMPETL_DATA'] = f'{place}/data'
        os.environ['MMPETL_FEATURES'] = f'{place}/features'
        mini.make(Path(place) / 'data', ['vtab-1k/digits'])
        for number in range(args.rounds):
            heads = []
            for name in times:
                folder = Path(place) / f'{name}_{number}'
                stored = name == 'features'
                seconds, head = epochs_of(folder, args.epochs, stored, clock)
                times[name].append(seconds)
                heads.append(head)
            equal = [torch.equal(heads[0][key], heads[1][key]) for key in heads[0]]
            assert all(equal), 'the two runs end with different heads'
    found = ratio(times, 'features', 'pictures')
    plain = statistics.median(times['pictures'])
    rows = [
        ['epoch, features / pictures', 's with pictures', 's with features'],
        [str(found), f'{plain:.3f}', f'{found.seconds:.3f}'],
    ]
    kind = 'wall' if args.wall else 'processor'
    print(
        f'torch {torch.__version__}, {device_name()}, {torch.get_num_threads()} '
        f'threads, {kind} time, {args.rounds} rounds of {args.epochs} epochs; heads '
        'bit-equal'
    )
    print(markdown(rows))


if __name__ == '__main__':
    main()
