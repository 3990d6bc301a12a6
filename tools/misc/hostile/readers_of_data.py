"""Readers of texts and data, for the fuzzers."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import samples
from .targets import Target


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def parsers() -> list[Target]:
    """Readers of texts and data."""
    return [*_of_deltas(), *_of_benchmarks(), *_of_runs(), *_of_sets(), *_of_texts()]


def _of_json(
    name: str, read: Callable[[Path], Any], file: str, *healthy: Any, **more: Any
) -> Target:
    return Target(name, 'parser', _json(*healthy), read, file, healthy, **more)


def _of_deltas() -> list[Target]:
    from mmpetl.core.delta_file import read_delta_file
    from mmpetl.models.weights.containers import read_tensors

    facts, packed = samples.delta()
    shards = {
        'metadata': {'total_size': 24},
        'weight_map': {'a.weight': 'a-00001-of-00002.safetensors'},
    }
    beside = {'a-00001-of-00002.safetensors': samples.safetensors()}
    return [
        _of_json(
            'delta record',
            read_delta_file,
            'delta.json',
            facts,
            beside={'delta.safetensors': packed},
        ),
        _of_json(
            'index of shards', read_tensors, 'a.index.json', shards, beside=beside
        ),
    ]


def _of_benchmarks() -> list[Target]:
    from mmpetl.benchmark.optuna_study import load_study
    from mmpetl.benchmark.plan import parse_plan, read_jobs, read_plan
    from mmpetl.benchmark.records import Job, Record, read_record
    from mmpetl.benchmark.report.pictures import read_pictures
    from mmpetl.benchmark.spaces import check_in_space, decode

    record = Record(
        Job('mini/digits', 'LoRA', 1),
        'done',
        metrics={'accuracy/top1': 50.0},
        primary='accuracy/top1',
        counts={'delta': 1},
        curves={'loss': [[1, 2.0]]},
    ).to_json()
    searched = {
        **record,
        'search': {
            'budget': 2,
            'split': 'val',
            'best': 1,
            'trials': [{'number': 1, 'status': 'done', 'options': {'a': 1}}],
        },
    }
    job = {'recipe': 'mini/digits', 'method': 'LoRA', 'seed': 42, 'id': 'x'}
    jobs = {'plan': {}, 'jobs': [job], 'refused': [], 'toolboxes': ['mmpretrain']}
    plan = {
        'name': 'x',
        'methods': ['LoRA'],
        'recipes': ['mini/digits'],
        'seeds': [1, 2],
        'protocol': 'honest',
        'sizes': 'mini',
        'leaves': False,
        'options': {'train_cfg.max_epochs': 1},
        'settings': {'LoRA': {'rank': 2}},
        'method_options': {'LoRA': {'optim_wrapper.optimizer.lr': 0.1}},
        'recipe_options': {'mini/*': {'a': [1, 2]}},
        'include': ['LoRA@mini/*'],
        'exclude': ['@mini/cub'],
        'data': ['digits'],
    }
    plan_text = b'methods: [LoRA]\nrecipes: [mini/digits]\nseeds: [1, 2]\n'
    more_text = (
        b'name: x\nmethods:\n  - LoRA\nrecipes: ["mini/*"]\n'
        b'settings: {LoRA: &a {rank: 4, x: 1e-3}}\noptions: {b: *a, c: "d"}\n'
    )
    words = {'title': 'a', 'caption': 'b', 'alt': 'c', 'section': 'd'}
    space = {'a': {'low': 1, 'high': 9}, 'b': [1, None, 'x', [1, 2]]}

    def options(value: Any) -> None:
        if isinstance(value, dict):
            found = {str(k): decode(v) for k, v in value.items()}
            check_in_space(found, space, 'a journal')

    return [
        _of_json('record', read_record, 'record.json', record, searched),
        Target('plan', 'parser', [], read_plan, 'plan.yaml', [plan], parse_plan),
        Target('plan file', 'parser', [plan_text, more_text], read_plan, 'plan.yaml'),
        _of_json('plan.json', lambda path: read_jobs(path.parent), 'plan.json', jobs),
        Target(
            'journal',
            'parser',
            [samples.journal()],
            lambda path: load_study(path, 4, 0, 1).get_trials(),
            'journal.log',
        ),
        Target(
            'options of a trial',
            'parser',
            [],
            options,
            data=[{'a': 2, 'b': 1}, {'b': 'json:[1, 2]'}],
            call=options,
        ),
        _of_json(
            'words of a picture',
            lambda path: read_pictures(path.parents[1]),
            'pictures/a.json',
            words,
            beside={'pictures/a.png': samples.picture('PNG')},
        ),
    ]


def _of_runs() -> list[Target]:
    from mmpetl.benchmark.collect import (
        _step_seconds,
        curves_of,
        last_test,
        with_times,
    )
    from mmpetl.benchmark.progress import running_of
    from mmpetl.benchmark.records import Job, Record
    from mmpetl.core.boundary import read_json_lines
    from mmpetl.datasets.ledger import Ledger
    from mmpetl.engine.best import read_best
    from mmpetl.engine.hooks.run_log import read_run_log
    from mmpetl.engine.latest import newest_checkpoint
    from mmpetl.engine.loops.search import read_search
    from mmpetl.methods.noah import SearchSpace, read_found

    widths = {'num_tokens': [1, 2], 'rank': [1, 2], 'hidden_dims': [1, 2]}
    scored = {'generation': 0, 'origin': 'random', **widths, 'params': 9, 'score': 0.5}
    search = [{'settings': {'seed': 1}}, scored, {'done': 0, 'new': 1}]
    best = {'file': 'best_epoch_1.pth', 'metric': 'a', 'score': 1.0, 'epoch': 1}
    log = [
        {'attempt': 1, 'begun': '2025-01-01T00:00:00+00:00', 't': 0.0},
        {'step': 1, 'of': 4, 'loss': 2.0, 'lr': 0.1, 't': 1.0},
        {'step': 2, 'of': 4, 'loss': 1.5, 'lr': 0.1, 't': 2.0},
        {'step': 2, 'val': {'accuracy/top1': 50.0}, 'reads_test': False, 't': 3.0},
        {'test': {'accuracy/top1': 50.0}, 't': 4.0},
        {'peak_memory_bytes': 5, 't': 4.0},
    ]

    def lines(*values: Any) -> bytes:
        return b''.join(text + b'\n' for text in _json(*values))

    def whole_log(path: Path) -> Any:
        found = list(read_run_log(path))
        record = Record(Job('mini/digits', 'LoRA'), 'done')
        return (
            last_test(path.parent),
            curves_of(found),
            with_times(record, found).to_json(),
            _step_seconds(found),
            running_of('x', path.parent),
        )

    def as_lines(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        """A reader of lines that is given a list of them."""

        def of_list(path: Path) -> Any:
            data = path.read_bytes()
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(data)
                if isinstance(values, list):
                    path.write_bytes(lines(*values))
            return read(path)

        return of_list

    def searched(path: Path) -> Any:
        return read_search(path, {'seed': 1}, SearchSpace((1, 2), (1, 2), 2))

    ledger = lines({'what': 'skipped', 'sample': 'a.jpg', 'why': 'it is cut'})
    return [
        _of_json('found subnet', read_found, 'f.json', widths),
        Target(
            'search of NOAH',
            'parser',
            [lines(*search)],
            as_lines(searched),
            'search.jsonl',
            [search],
        ),
        Target(
            'run log', 'parser', [lines(*log)], as_lines(whole_log), 'log.jsonl', [log]
        ),
        Target(
            'JSON lines',
            'parser',
            [b'{"a": 1}\n[1, 2]\n'],
            lambda path: list(read_json_lines(path)),
            'a.jsonl',
        ),
        Target(
            'bad samples',
            'parser',
            [ledger],
            lambda path: Ledger(path.parent).told(),
            'bad_samples.jsonl',
        ),
        _of_json(
            'best checkpoint',
            lambda path: read_best(path.parent),
            'best.json',
            {'format': 1, 'best': [best]},
        ),
        Target(
            'last checkpoint',
            'parser',
            [b'epoch_1.pth', b'/a/b/epoch_1.pth\n'],
            lambda path: newest_checkpoint(path.parent),
            'last_checkpoint',
            beside={'epoch_1.pth': samples.checkpoint()},
        ),
    ]


def _of_sets() -> list[Target]:
    from mmpetl.datasets.catalog import facts_of
    from mmpetl.datasets.checks import _lines
    from mmpetl.datasets.convert.videos import (
        _hmdb51_tables,
        _kinetics_table,
        _ssv2_labels,
    )
    from mmpetl.datasets.items import read_items
    from mmpetl.datasets.lines import read_labelled
    from mmpetl.datasets.mini.storage import read_stamp
    from mmpetl.datasets.video_list import read_video_list

    coco = {
        'images': [{'id': 1, 'file_name': '1.jpg', 'height': 8, 'width': 8}],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 5, 5]}
            | {'area': 25, 'iscrowd': 0, 'segmentation': [[1, 1, 6, 1, 6, 6]]},
            {'id': 2, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 5, 5]}
            | {'area': 25.5, 'segmentation': {'size': [8, 8], 'counts': [1, 63]}},
        ],
        'categories': [{'id': 1, 'name': 'person'}],
    }
    birds = {'001.Bird/1.jpg': 1, '002.Bird/2.jpg': '2'}
    voc = (
        b'<annotation><size><width>9</width><height>9</height><depth>3</depth></size>'
        b'<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin>'
        b'<ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>'
    )
    listed = b'images/a.jpg 1\nimages/b c.jpg 2\n'
    frames = b'a/b 10 1\nb c, 20, 2\n'
    table = b'label,youtube_id,time_start,time_end\nabseiling,abc,1,11\n'
    parts = b'a b.avi 1 \nc.avi 2 \n'.replace(b'a b', b'a_b')
    stamp = {'name': 'x', 'manifest': {'a': {'count': 1, 'labels': [1]}}}

    def split(name: str) -> tuple[Any, Any, str]:
        facts = facts_of(name)
        return facts, facts.splits[0], f'{facts.path}/{facts.splits[0].file}'

    def of_split(name: str, label: str, *healthy: Any) -> Target:
        facts, part, file = split(name)
        up = file.count('/')

        def read(path: Path) -> Any:
            return read_items(facts, part, path.parents[up])

        return _of_json(label, read, file, *healthy)

    facts, part, file = split('voc')
    notes = f'{facts.path}/VOC2007/Annotations/1.xml'

    def voc_split(path: Path) -> Any:
        return read_items(facts, part, path.parents[notes.count('/')])

    return [
        Target('list', 'parser', [listed], read_labelled, 'list.txt'),
        Target('list of upstream', 'parser', [listed], _lines, 'list.txt'),
        Target('video list', 'parser', [listed], read_video_list, 'list.txt'),
        Target(
            'list of frames',
            'parser',
            [frames],
            functools.partial(read_video_list, frames=True),
            'list.txt',
        ),
        of_split('cub_200_2011', 'FGVC json', birds),
        of_split('coco', 'COCO json', coco),
        Target('VOC xml', 'parser', [voc], voc_split, notes, beside={file: b'1\n'}),
        Target(
            'Kinetics table',
            'parser',
            [table],
            lambda path: _kinetics_table(path),
            'train.csv',
        ),
        _of_json(
            'SSv2 labels',
            lambda path: _ssv2_labels(path.parent, 3),
            'labels.json',
            {'a': '0', 'b': 1},
        ),
        Target(
            'HMDB51 split',
            'parser',
            [parts],
            lambda path: _hmdb51_tables(path.parent),
            'brush_hair_test_split1.txt',
        ),
        _of_json(
            'stamp of a mini set',
            lambda path: read_stamp(path.parent),
            '.mmpetl-mini.json',
            stamp,
        ),
    ]


def _of_texts() -> list[Target]:
    from mmpetl.config.text import is_data, read_text
    from mmpetl.core.boundary import parse_json
    from mmpetl.core.patterns import as_blocks, as_patterns, in_short, matches
    from mmpetl.datasets.annotations import coco_names

    nested = {'a': [1, {'b': [None, 2.5, 'x']}], 'annotations': []}
    nested['images'] = [{'id': 1, 'file_name': 'x', 'width': 1, 'height': 1}]

    def pattern(value: Any) -> Any:
        found = as_patterns(value)
        if found:
            matches(found, ['blocks.0.attn.qkv', 'attn.qkv'])
        return found

    def text(path: Path) -> Any:
        said = path.read_text(encoding='utf-8', errors='replace')
        return read_text(said), is_data(said)

    def json_of(path: Path) -> Any:
        return parse_json(path.read_bytes(), dict[str, Any], 'a file')

    def names(path: Path) -> Any:
        return in_short(path.read_text('utf-8', 'replace').split('\n'))

    config = (
        b"a = dict(b=[1, 2.5, 'x'], c=dict(d=None), e={'f': (1, -2)})\n"
        b'g = (1, -2)\nh = float("inf")\ni = [dict(j=inf), {1, 2}]\n'
    )
    return [
        _of_json('JSON', json_of, 'a.json', nested),
        _of_json(
            'names in COCO',
            lambda path: coco_names(path.read_bytes(), 'a file'),
            'a.json',
            nested,
        ),
        Target('config text', 'parser', [config], text, 'config.txt'),
        Target(
            'patterns',
            'parser',
            [],
            pattern,
            data=['*.attn.qkv', ['blocks.*', '!*.mlp.*'], None],
            call=pattern,
        ),
        Target(
            'blocks',
            'parser',
            [],
            pattern,
            data=[[0, 1], '6:', -1, ['0:3', 5], None],
            call=lambda value: as_blocks(value, 12),
        ),
        Target(
            'names in short',
            'parser',
            [b'blocks.0.attn\nblocks.1.attn\nblocks.10.mlp'],
            names,
            'names.txt',
        ),
    ]
