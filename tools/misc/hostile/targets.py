"""What the fuzzers call: readers of files and data, each with healthy examples."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: Its name.
        kind: ``parser`` for texts and data, ``container`` for files of bytes.
        seeds: Healthy inputs as bytes.
        read: Reads a file. May raise PETLError and FileNotFoundError; a result of it
            is a healthy one, whatever it is.
        file: Name of the file in its folder.
        data: Healthy inputs as data, for edits that know their structure.
        call: Takes data; by default they are written to the file as JSON.
    """

    name: str
    kind: str
    seeds: Sequence[bytes]
    read: Callable[[Path], Any]
    file: str = 'input'
    data: Sequence[Any] = ()
    call: Callable[[Any], Any] | None = None


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def parsers(folder: Path) -> list[Target]:
    """Readers of texts and data.

    Args:
        folder: Scratch for what the healthy inputs name.
    """
    from mmpetl.benchmark.optuna_study import load_study
    from mmpetl.benchmark.plan import parse_plan, read_jobs, read_plan
    from mmpetl.benchmark.records import Job, Record, read_record
    from mmpetl.config.text import read_text
    from mmpetl.core.boundary import parse_json, read_json_lines
    from mmpetl.core.delta_file import read_delta_file
    from mmpetl.core.patterns import as_blocks, as_patterns, in_short, matches
    from mmpetl.datasets.catalog import facts_of
    from mmpetl.datasets.image_list import read_list
    from mmpetl.datasets.items import read_items
    from mmpetl.datasets.video_list import read_video_list
    from mmpetl.engine.hooks.run_log import read_run_log
    from mmpetl.methods.noah import read_found

    record = Record(
        Job('mini/digits', 'LoRA', 1),
        'done',
        metrics={'accuracy/top1': 50.0},
        primary='accuracy/top1',
        counts={'delta': 1},
        curves={'loss': [[1, 2.0]]},
    ).to_json()
    job = {'recipe': 'mini/digits', 'method': 'LoRA', 'seed': 42, 'id': 'x'}
    jobs = {'plan': {}, 'jobs': [job], 'refused': [], 'toolboxes': ['mmpretrain']}
    plan = {
        'name': 'x',
        'methods': ['LoRA'],
        'recipes': ['mini/digits'],
        'seeds': [1, 2],
        'options': {'train_cfg.max_epochs': 1},
        'settings': {'LoRA': {'rank': 2}},
        'include': ['LoRA@mini/*'],
    }
    plan_text = b'methods: [LoRA]\nrecipes: [mini/digits]\nseeds: [1, 2]\n'
    facts, packed = _delta(folder)
    coco = {
        'images': [{'id': 1, 'file_name': '1.jpg', 'height': 8, 'width': 8}],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 5, 5]}
            | {'area': 25, 'iscrowd': 0, 'segmentation': [[1, 1, 6, 1, 6, 6]]}
        ],
        'categories': [{'id': 1, 'name': 'person'}],
    }
    birds = {'001.Bird/1.jpg': 1, '002.Bird/2.jpg': 2}
    voc = (
        b'<annotation><size><width>9</width><height>9</height><depth>3</depth></size>'
        b'<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin>'
        b'<ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>'
    )
    widths = {'num_tokens': [1, 2], 'rank': [1, 2], 'hidden_dims': [1, 2]}
    journal = (
        b'{"op_code": 0, "worker_id": "a", "study_name": "search", "directions": [2]}\n'
    )

    def delta(path: Path) -> Any:
        path.with_name('delta.safetensors').write_bytes(packed)
        return read_delta_file(path)

    def split_of(name: str, file: str) -> Callable[[Path], Any]:
        about = facts_of(name)
        split = about.splits[0]

        def read(path: Path) -> Any:
            place = path.parent / about.path / (file or split.file)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
            return read_items(about, split, path.parent)

        return read

    def voc_split(path: Path) -> Any:
        about = facts_of('voc')
        split = about.splits[0]
        listed = path.parent / about.path / split.file
        notes = listed.parents[2] / 'Annotations'
        for place in (listed.parent, notes):
            place.mkdir(parents=True, exist_ok=True)
        listed.write_text('1\n')
        (notes / '1.xml').write_bytes(path.read_bytes())
        return read_items(about, split, path.parent)

    def a_journal(path: Path) -> Any:
        return load_study(path, 4, 0, 1)

    def pattern(value: Any) -> Any:
        found = as_patterns(value)
        if found:
            matches(found, ['blocks.0.attn.qkv', 'attn.qkv'])
        return found

    def text(path: Path) -> Any:
        return read_text(path.read_text(encoding='utf-8', errors='replace'))

    listed = b'images/a.jpg 1\nimages/b c.jpg 2\n'
    return [
        Target('delta record', 'parser', _json(facts), delta, 'delta.json', [facts]),
        Target('record', 'parser', _json(record), read_record, 'record.json', [record]),
        Target('plan', 'parser', [], read_plan, 'plan.yaml', [plan], parse_plan),
        Target('plan file', 'parser', [plan_text], read_plan, 'plan.yaml'),
        Target(
            'plan.json',
            'parser',
            _json(jobs),
            lambda path: read_jobs(path.parent),
            'plan.json',
            [jobs],
        ),
        Target('list', 'parser', [listed], read_list, 'list.txt'),
        Target('video list', 'parser', [listed], read_video_list, 'list.txt'),
        Target(
            'FGVC json',
            'parser',
            _json(birds),
            split_of('cub_200_2011', ''),
            'input.json',
            [birds],
        ),
        Target(
            'COCO json', 'parser', _json(coco), split_of('coco', ''), 'in.json', [coco]
        ),
        Target('VOC xml', 'parser', [voc], voc_split, 'input.xml'),
        Target('found subnet', 'parser', _json(widths), read_found, 'f.json', [widths]),
        Target('journal', 'parser', [journal], a_journal, 'journal.log'),
        Target(
            'run log',
            'parser',
            [b'{"step": 1, "loss": 2.0}\n{"step": 2}\n'],
            lambda path: list(read_run_log(path)),
            'log.jsonl',
        ),
        Target(
            'JSON lines',
            'parser',
            [b'{"a": 1}\n[1, 2]\n'],
            lambda path: list(read_json_lines(path)),
            'a.jsonl',
        ),
        Target(
            'JSON',
            'parser',
            _json(record, coco),
            lambda path: parse_json(path.read_bytes(), dict[str, Any], 'a file'),
            'a.json',
            [record, coco],
        ),
        Target(
            'config text',
            'parser',
            [b"a = dict(b=[1, 2.5, 'x'], c=dict(d=None))\ne = (1, -2)\n"],
            text,
            'config.txt',
        ),
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
            lambda path: in_short(path.read_text('utf-8', 'replace').split('\n')),
            'names.txt',
        ),
    ]


def _delta(folder: Path) -> tuple[dict, bytes]:
    """The record and the tensors of a small delta."""
    import torch

    from mmpetl.core.delta_file import write_delta_file

    path = write_delta_file(
        folder / 'delta',
        {'layers.0.petl.attn_q.0.down.weight': torch.ones(2, 3)},
        {
            'method': {'type': 'LoRA', 'rank': 2},
            'backbone': None,
            'num_blocks': 1,
            'base': 'base.pth',
            'fingerprint': '0123456789abcdef',
            'scope': 'mmpretrain',
            'classes': ['a', 'b'],
            'palette': [[0, 0, 0], [1, 2, 3]],
            'metrics': {'accuracy/top1': 10.0},
        },
    )
    return json.loads(path.with_suffix('.json').read_text()), path.read_bytes()


def containers(folder: Path) -> list[Target]:
    """Readers of files of bytes."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save

    from mmpetl.apis.delta import load_tensors
    from mmpetl.datasets.convert.unpack import unpack
    from mmpetl.engine.hooks.predictions import read_predictions
    from mmpetl.models.weights.containers import read_tensors

    state = {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2)}

    def torch_bytes(value: Any, new: bool = True) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=new)
        return buffer.getvalue()

    arrays, scored, scripted, packed = (io.BytesIO() for _ in range(4))
    np.savez(arrays, **{k: v.numpy() for k, v in state.items()})
    np.savez(scored, logits=np.ones((3, 2), np.float32), labels=np.zeros(3, np.int64))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), scripted)
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/1.jpg', b'x' * 100)
        archive.writestr('a/train.json', b'{"a": 1}')
    delta = read_of_delta(folder)
    checkpoint = {'meta': {'epoch': 1, 'cfg': 'a = 1'}, 'state_dict': state}

    def unpacked(path: Path) -> Any:
        target = path.parent / 'out'
        shutil.rmtree(target, ignore_errors=True)
        return unpack([path], target, lambda place: place)

    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    pictures = []
    for kind in ('JPEG', 'PNG', 'BMP', 'TIFF', 'GIF', 'WEBP'):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, kind)
        pictures.append(buffer.getvalue())
    every = [
        ('torch zip', [torch_bytes(state)], read_tensors, 'a.pth'),
        ('legacy torch', [torch_bytes(state, False)], read_tensors, 'a.pth'),
        ('safetensors', [save(state)], read_tensors, 'a.safetensors'),
        ('npz', [arrays.getvalue()], read_tensors, 'a.npz'),
        ('TorchScript', [scripted.getvalue()], read_tensors, 'a.pt'),
        ('run checkpoint', [torch_bytes(checkpoint)], load_tensors, 'epoch_1.pth'),
        ('delta', [delta[1]], delta[0], 'delta.safetensors'),
        ('predictions', [scored.getvalue()], read_predictions, 'predictions.npz'),
        ('picture', pictures, read_picture, 'picture.jpg'),
        ('zip', [packed.getvalue()], unpacked, 'a.zip'),
        ('tar', [_tar()], unpacked, 'a.tar'),
    ]
    return [Target(n, 'container', seeds, read, file) for n, seeds, read, file in every]


def read_of_delta(folder: Path) -> tuple[Callable[[Path], Any], bytes]:
    """A reader of a delta whose record has the digest of its tensors."""
    import hashlib

    from mmpetl.core.delta_file import read_delta_file

    facts, packed = _delta(folder)

    def read(path: Path) -> Any:
        data = path.read_bytes()
        facts['tensors']['sha256'] = hashlib.sha256(data).hexdigest()
        facts['tensors']['bytes'] = len(data)
        path.with_suffix('.json').write_text(json.dumps(facts))
        return read_delta_file(path)

    return read, packed


def read_picture(path: Path) -> Any:
    """A picture as a run reads it."""
    import mmpretrain.datasets  # noqa: F401
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    from mmpetl.datasets.reading import GuardedPipeline

    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('fuzz', scope_name='mmpretrain')
    load = {'type': 'LoadImageFromFile', 'imdecode_backend': 'pillow'}
    return GuardedPipeline(Compose([load]))({'img_path': str(path)})


def _tar() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, data in (('a/1.jpg', b'x' * 100), ('a/train.json', b'{}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def all_targets() -> list[Target]:
    """Every reader; what they need lies in a folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix=f'fuzz-{os.getpid()}-'))
    return [*parsers(folder), *containers(folder)]
