"""How a benchmark folder stands: done, running, failed, left.

Example: python tools/benchmark/status.py work_dirs/bench/mini
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder that a plan was run in')
    parser.add_argument('--retries', type=int, default=1, help='as run.py was told')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        from mmpetl.benchmark.plan import read_jobs
        from mmpetl.benchmark.progress import print_standing, standing

        jobs, _ = read_jobs(args.out)
        print_standing(standing(jobs, args.out, args.retries))


if __name__ == '__main__':
    main()
