"""Plant falsifications in copies of a benchmark's runs, and see that each is found.

Example: python tools/misc/plant_falsifications.py mini-1.0

Every kind is planted in a run of another method, drawn by a seed, after the copy as it
is was verified. What the verifier names is printed beside what was changed. The exit
code is 1 where one was not found.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmpetl.apis.run import cli_errors

Plant = Callable[[Path, Path], None]
"""Changes the first folder; the second is of a run of another method."""


def of_record(change: Callable[[dict[str, Any]], Any], *files: str) -> Plant:
    """Edit a run's record, and other JSON files of it alike."""

    def plant(folder: Path, other: Path) -> None:
        for name in files or ('record.json',):
            path = folder / name
            data = json.loads(path.read_text(encoding='utf-8'))
            change(data)
            path.write_text(json.dumps(data), encoding='utf-8')

    return plant


def better_metric(record: dict[str, Any]) -> None:
    """The metric that tables show rises by a tenth of itself."""
    record['metrics'][record['primary']] *= 1.1
    record['ppt'] = None


def borrowed_delta(folder: Path, other: Path) -> None:
    """The delta of another method lies in the place of a run's own."""
    for end in ('json', 'safetensors'):
        shutil.copy(other / f'delta.{end}', folder / f'delta.{end}')


def zeroed_delta(folder: Path, other: Path) -> None:
    """The last numbers of a delta are others."""
    path = folder / 'delta.safetensors'
    path.write_bytes(path.read_bytes()[:-8] + b'\0\0\0\x3f' * 2)


def other_config(folder: Path, other: Path) -> None:
    """The config says another weight decay than the run had."""
    path = folder / 'config.py'
    text = path.read_text(encoding='utf-8')
    path.write_text(text.replace('weight_decay=', 'weight_decay=1+'), encoding='utf-8')


def cut_log(folder: Path, other: Path) -> None:
    """The last line of the log, which holds the test, is missing."""
    path = folder / 'log.jsonl'
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
    path.write_text(''.join(lines[:-1]), encoding='utf-8')


PLANTS: dict[str, tuple[Plant, str]] = {
    'a better metric': (of_record(better_metric), 'metrics.'),
    'fewer trained parameters': (
        of_record(lambda r: r['counts'].update(delta=12)),
        'counts.delta',
    ),
    'the delta of another method': (borrowed_delta, 'delta'),
    'other numbers in the delta': (zeroed_delta, 'delta'),
    'another config': (other_config, 'config'),
    'a cut log': (cut_log, ''),
    'another seed': (of_record(lambda r: r['job'].update(seed=7)), 'id'),
    'other training data': (
        of_record(lambda r: r['data']['train'].update(digest='0' * 64)),
        'data.train.digest',
    ),
    'another base': (
        of_record(lambda r: r['base'].update(fingerprint='f' * 16)),
        'base.fingerprint',
    ),
    'fewer readings of the test set': (
        of_record(lambda r: r.update(test_reads=0)),
        'test_reads',
    ),
    'a shorter training': (of_record(lambda r: r.update(steps=1)), 'steps'),
    'a smaller file': (of_record(lambda r: r.update(delta_bytes=1)), 'delta_bytes'),
}
"""What is done, and how the field begins that must be named; '' for any."""


def runs_of(out: Path) -> dict[str, list[Path]]:
    """Finished final runs by method."""
    found: dict[str, list[Path]] = {}
    for path in sorted(out.glob('runs/*/record.json')):
        record = json.loads(path.read_text(encoding='utf-8'))
        if record['status'] == 'done' and record['job'].get('stage') != 'tune':
            found.setdefault(record['job']['method'], []).append(path.parent)
    return found


def main() -> None:
    """Plant them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='benchmark folder, or release')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of runs')
    args = parser.parse_args()
    with cli_errors():
        missed = plant_all(args.out, args.seed)
    sys.exit(bool(missed))


def plant_all(out: Path, seed: int) -> int:
    """Number of plants that were not found."""
    from mmengine.logging import MMLogger

    from mmpetl.benchmark.verify import verify_run
    from mmpetl.core import PETLError

    MMLogger.get_current_instance().setLevel('ERROR')
    runs = runs_of(out)
    if len(runs) < 2:
        raise PETLError(f'{out} has final runs of {len(runs)} methods; 2 are needed')
    rng = random.Random(seed)
    order = rng.sample(sorted(runs), len(runs))
    missed = 0
    for number, (name, (plant, field)) in enumerate(PLANTS.items()):
        method, next_one = (order[(number + i) % len(order)] for i in (0, 1))
        run, other = rng.choice(runs[method]), rng.choice(runs[next_one])
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / 'runs' / run.name
            shutil.copytree(run, copy)
            before = verify_run(copy)
            if before.status == 'falsified':
                raise PETLError(f'{run} is falsified before anything is planted')
            plant(copy, other)
            after = verify_run(copy)
        named = [check.field for check in after.falsified]
        found = any(seen.startswith(field) for seen in named)
        missed += not found
        said = ', '.join(named[:3]) or after.status
        print(f'{"found " if found else "MISSED"}  {name} in {run.name}: {said}')
    print(f'{len(PLANTS) - missed} of {len(PLANTS)} found')
    return missed


if __name__ == '__main__':
    main()
