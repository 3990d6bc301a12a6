r"""Write docs/mini_release: what the released mini benchmark found.

Example: python tools/benchmark/mini_release_page.py work_dirs/releases/mini-1.0

The release is what tools/benchmark/mini_release.sh packs. Copied from it are the scores
of its runs; the page is made of them, and names the digest of its index.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmpetl.apis.run import cli_errors
from mmpetl.benchmark.designs import Place, designs_of
from mmpetl.benchmark.records import Record, RecordStore
from mmpetl.benchmark.scores import metric_of, percent, suite_of
from mmpetl.benchmark.verdicts import standing_of
from mmpetl.core import PETLError, registered_methods

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'docs' / 'mini_release'

TASKS = {
    'mini/digits': 'digits, accuracy %',
    'mini/hmdb51': 'clips, accuracy %',
    'mini/ade20k': 'scenes, mIoU %',
}
"""Recipes in the order of the columns."""


def rows_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row a run: what the page and its file of scores hold."""
    return [
        {
            'recipe': record.job.recipe,
            'method': record.job.method,
            'family': record.family,
            'seed': record.job.seed,
            'score': round(percent(record), 4),
            'trained': record.trainable,
            'searched': bool(record.search),
            'seconds': record.seconds,
            'run': record.job.id,
        }
        for record in records
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Methods by family: mean and deviation over seeds, trained parameters."""
    known = registered_methods()
    names = {row['method']: row['family'] for row in rows}
    seeds = len({row['seed'] for row in rows})
    head = ['method', 'family', *TASKS.values(), 'trained, digits']
    lines = [head, [':---', ':---', *['---:'] * (len(head) - 2)]]
    for name in sorted(names, key=lambda n: (names[n], n.lower())):
        mine = [row for row in rows if row['method'] == name]
        cells = []
        for recipe in TASKS:
            scores = [row['score'] for row in mine if row['recipe'] == recipe]
            cells.append(_cell(scores, seeds))
        trained = {r['trained'] for r in mine if r['recipe'] == 'mini/digits'}
        count = f'{trained.pop():,}' if len(trained) == 1 else '-'
        link = f'[{name}](../methods/{known[name].stem()}.md)'
        lines.append([link, names[name].replace('_', '-'), *cells, count])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _cell(scores: Sequence[float], seeds: int) -> str:
    """Mean and deviation, with their number where it is not that of the page."""
    if not scores:
        return '-'
    text = f'{statistics.mean(scores):.1f}'
    if len(scores) > 1:
        text += f' ± {statistics.stdev(scores):.1f}'
    return text if len(scores) == seeds else f'{text} (n={len(scores)})'


def page(out: Path, records: Sequence[Record]) -> str:
    """The whole page."""
    text = (out / 'index.json').read_bytes()
    index = json.loads(text)
    standings = [standing_of(out / 'runs' / record.job.id)[0] for record in records]
    verified = sum(standing == 'verified' for standing in standings)
    size = sum(entry['bytes'] for entry in index['files'].values())
    hours = sum(record.total_seconds or record.seconds for record in records) / 3600
    seeds = sorted({record.job.seed for record in records})
    # A method is one, whatever settings it has on each recipe.
    jobs = [dataclasses.replace(r.job, options={}, variant='') for r in records]
    places = {
        r.job.recipe: Place(suite_of(r), r.backbone, metric_of(r.primary).key)
        for r in records
    }
    designs = [s for d in designs_of(jobs, places=places) for s in d.sentences()]
    rows = rows_of(records)
    tried = sorted({r.search['tried'] for r in records if r.search})
    return TEMPLATE.format(
        name=index['name'],
        runs=len(records),
        methods=len({row['method'] for row in rows}),
        seeds=', '.join(map(str, seeds)),
        verified=verified,
        files=len(index['files']),
        digest=hashlib.sha256(text).hexdigest(),
        size=size / 2**20,
        hours=hours,
        commits=', '.join(sorted({str(r.commit)[:12] for r in records})),
        torch=', '.join(sorted({r.versions['torch'] for r in records})),
        device=', '.join(sorted({r.device for r in records})),
        n=len(seeds),
        tried=' or '.join(map(str, tried)),
        table=table(rows),
        designs=' '.join(designs),
    )


TEMPLATE = """# The released mini benchmark

`{name}`: {runs} runs of {methods} methods on drawn pictures, clips and scenes with
masks, seeds {seeds}, on two cores. {verified} of {runs} are verified
([how](../verification.md)). The release has {files} files of {size:.0f} MiB; its index
holds the size and SHA-256 of each and has itself the SHA-256 `{digest}`.
[The scores of every run](scores.csv) are here.

```
tools/benchmark/mini_release.sh work_dirs/bench/mini-release work_dirs/releases/{name}
python tools/benchmark/verify.py work_dirs/releases/{name}
python tools/misc/plant_falsifications.py work_dirs/releases/{name}
python tools/benchmark/mini_release_page.py work_dirs/releases/{name}
```

The first makes it from nothing. Its final runs were {hours:.1f} hours of one core each,
two at a time beside other work; searches come on top. The third plants twelve
falsifications in copies of its runs and prints what the verifier says of each.

- **What was trained on**: 100 labelled digits for 10 epochs on a mini ViT; drawn clips
  for 5 epochs on a mini VideoMAE ViT; 40 steps of 2 scenes on a mini Swin with a narrow
  UPerNet. [The plan](../../configs/plans/mini-release.yaml) says all.
- **Settings**: on digits each method's are the best of {tried} that a search tried on
  validation data ([how](../benchmark.md)); on clips and scenes all have the plan's, and
  `Full` and `PartialK` a tenth of its rate.
- **Figures**: mean and standard deviation, n = {n} seeds where no n is given, each read
  once from the test set. A dash: the backbone cannot serve the method, or its runs
  failed: NOAH's on clips and scenes, whose search was not told what is reported there,
  and GPS's on scenes, which have no one label. The plan says both by now. Methods of
  several tasks, and AIM, are not in it; the plan has had a recipe for each since.
- **What this can show**: {designs}

These are toys: trunks of half a million parameters that have seen drawn letters. What
holds for them need not hold for a ViT-B/16.

{table}

Made with torch {torch} on {device}, at {commits}.
"""


def main() -> None:
    """Write the page and its scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('release', type=Path)
    args = parser.parse_args()
    with cli_errors():
        if not (args.release / 'index.json').is_file():
            raise PETLError(f'{args.release} is no release: it has no index.json')
        store = RecordStore(args.release)
        records = sorted(store.all(), key=lambda record: record.job.id)
        store.check_all_read()
        FOLDER.mkdir(exist_ok=True)
        rows = rows_of(records)
        text = io.StringIO(newline='')
        writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        (FOLDER / 'scores.csv').write_text(text.getvalue(), encoding='utf-8')
        (FOLDER / 'README.md').write_text(page(args.release, records), 'utf-8')
        print(f'written: {FOLDER}')


if __name__ == '__main__':
    main()
