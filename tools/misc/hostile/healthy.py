"""The healthy things that rows spoil, and the healthy calls."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from hostile.case import ROOT, Base, Bench, Call
from hostile.run import PATIENCE, apart, command

BACKBONE = """    backbone=dict(
        backbone=dict(
            arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                      feedforward_channels=32),
            patch_size=8,
        ),
        checkpoint='{{ fileDirname }}/base.pth',
        method=dict(type='LoRA', rank=2),
    ),
"""
"""A ViT of one block with LoRA, of 16 channels."""

CONFIG = f"""
_base_ = {str(ROOT / 'configs' / 'mini' / 'digits.py')!r}
model = dict(
{BACKBONE}    head=dict(in_channels=16),
)
train_dataloader = dict(batch_size=16)
train_cfg = dict(max_epochs=2)
test_evaluator = [
    dict(type='Accuracy'),
    dict(type='AveragePrecision'),  # differs where scores differ
]
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=2, eta_min=1e-5, begin=0, end=2,
         convert_to_iter_based=True),
]
log_level = 'WARNING'
"""
"""A one-block ViT on the mini digits, two epochs of two steps."""

FEW_BITS = """
_base_ = './digits.py'
model = dict(backbone=dict(method=dict(_delete_=True, type='BiLoRA', rank=2)))
"""
"""The same, whose delta can be packed."""

FGVC = f"""
_base_ = {str(ROOT / 'configs' / 'mini' / 'cub.py')!r}
model = dict(
{BACKBONE}    head=dict(in_channels=16, num_classes=2),
)
train_dataloader = dict(batch_size=4, dataset=dict(num_classes=2))
val_dataloader = dict(dataset=dict(num_classes=2))
test_dataloader = dict(dataset=dict(num_classes=2))
train_cfg = dict(max_epochs=1)
param_scheduler = []
log_level = 'WARNING'
"""

DENSE = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        backbone=dict(arch=dict(embed_dims=8, depths=[1, 1, 1, 1],
                                num_heads=[1, 1, 2, 2])),
        checkpoint=None,
        method=dict(type='LoRA', rank=2),
    ),
    {model}
)
train_dataloader = dict(batch_size={batch})
train_cfg = dict({loop}, val_interval=9)
param_scheduler = []
log_level = 'WARNING'
"""
"""A recipe at a tenth of its mini size, one step."""

SMALL = {
    'coco': dict(
        loop='max_epochs=1',
        batch=4,
        model="""neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=[dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8,
                        roi_feat_size=7, num_classes=80,
                        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                        reg_class_agnostic=True)] * 3,
        mask_roi_extractor=dict(out_channels=8),
        mask_head=dict(num_convs=1, in_channels=8, conv_out_channels=8),
    ),
    train_cfg=dict(rpn=dict(allowed_border=-1), rpn_proposal=dict(max_per_img=10)),""",
    ),
    'voc': dict(
        loop='max_epochs=1',
        batch=64,
        model="""neck=dict(in_channels=[16, 32, 64], out_channels=8),
    bbox_head=dict(in_channels=8, stacked_convs=1, feat_channels=8),""",
    ),
    'ade20k': dict(
        loop='max_iters=1',
        batch=2,
        model="""data_preprocessor=dict(size=(32, 32)),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=8),
    auxiliary_head=dict(in_channels=32, channels=8),""",
    ),
}

PLAN = """
methods: [LoRA, SSF]
recipes: [mini/digits]
seeds: [42]
options:
  train_cfg.max_epochs: 1
settings:
  LoRA: {rank: 2}
"""


def make_store(store: Path, scopes: tuple[str, ...]) -> None:
    """Make the healthy things; what commands write is written by the commands.

    Args:
        store: The folder.
        scopes: Packages whose data sets and configs are wanted.
    """
    store.mkdir(parents=True, exist_ok=True)
    for work in (_files, *(_dense if s != 'mmpretrain' else _runs for s in scopes)):
        ended = apart(lambda work=work: work(store), store, seconds=PATIENCE)
        if ended.code:
            said = (store / 'err.txt').read_text()[-3000:]
            raise RuntimeError(f'{work.__name__} ends with {ended.code}:\n{said}')


def _files(store: Path) -> None:
    """Data, base weights and configs of image classification."""
    import torch
    from mmengine.config import Config

    from mmpetl.config.scope import build_backbone
    from mmpetl.datasets.mini import make

    make(store / 'data', names=['vtab-1k/digits'], size='tiny')
    _birds(store / 'data' / 'fgvc' / 'CUB_200_2011')
    os.environ['MMPETL_DATA'] = str(store / 'data')
    (store / 'digits.py').write_text(CONFIG)
    (store / 'birds.py').write_text(FGVC)
    (store / 'plan.yaml').write_text(PLAN)
    config = Config.fromfile(store / 'digits.py')
    torch.manual_seed(0)
    base = build_backbone(dict(config.model.backbone.backbone), 'mmpretrain')
    state = {k: torch.randn_like(v) * 0.1 for k, v in base.state_dict().items()}
    torch.save(state, store / 'base.pth')


def _birds(folder: Path) -> None:
    """Two classes in the layout of CUB-200-2011."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    number = 0
    for part, count in (('train', 4), ('val', 2), ('test', 2)):
        entries = {}
        for i in range(count):
            number += 1
            name = f'00{i % 2 + 1}.Bird/{number}.jpg'
            path = folder / 'images' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            entries[name] = i % 2 + 1
        (folder / f'{part}.json').write_text(json.dumps(entries))


def _runs(store: Path) -> None:
    """A finished run, the same run after its first epoch, and a published delta."""
    import shutil

    import numpy as np
    from PIL import Image

    environ = {'MMPETL_DATA': str(store / 'data')}
    config = str(store / 'digits.py')
    run, few = store / 'run', store / 'few'
    (store / 'few_bits.py').write_text(FEW_BITS)
    for call in (
        Call(
            'tools/train.py',
            [str(store / 'few_bits.py'), '--work-dir', str(few)],
            environ,
        ),
        Call(
            'tools/model_converters/publish_delta.py',
            [str(store / 'few_bits.py'), str(few / 'epoch_2.pth')]
            + [str(store / 'packed'), '--packed'],
            environ,
        ),
        Call('tools/train.py', [config, '--work-dir', str(run)], environ),
        Call(
            'tools/model_converters/publish_delta.py',
            [config, str(run / 'epoch_2.pth'), str(store / 'delta')]
            + ['--metrics', 'accuracy/top1=10'],
            environ,
        ),
    ):
        ended = apart(command(call, store), store, seconds=PATIENCE)
        if ended.code:
            raise RuntimeError(f'{call.tool} ends with {ended.code}')
    half = store / 'half'
    shutil.copytree(run, half)
    (half / 'epoch_2.pth').unlink()
    _records(store / 'bench')
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(store / 'picture.png')


def _records(folder: Path) -> None:
    """A benchmark folder: records of two methods and two seeds."""
    from mmpetl.benchmark.records import Job, Record, RecordStore

    store = RecordStore(folder)
    for method in ('LoRA', 'SSF'):
        for seed in (1, 2):
            store.write(
                Record(
                    Job('mini/digits', method, seed),
                    'done',
                    family='low_rank',
                    task='digits',
                    group='natural',
                    backbone='mini ViT',
                    metrics={'accuracy/top1': 50.0 + seed},
                    primary='accuracy/top1',
                    ppt=0.5,
                    counts={'delta': 100, 'selected': 0, 'head': 50},
                    curves={'loss': [[1, 2.0], [2, 1.0]], 'lr': [[1, 0.1], [2, 0.1]]},
                    config_hash='0123456789abcdef',
                    base={'file': 'base.pth', 'fingerprint': '0123456789abcdef'},
                    preprocessing={'normalisation': 'half'},
                    test_reads=1,
                    seconds=1.0,
                    step_seconds=0.1,
                    device='cpu',
                    versions={'mmpetl': '0.1.0'},
                    started='2026-01-01T00:00:00+00:00',
                    finished='2026-01-01T00:00:01+00:00',
                )
            )


def _dense(store: Path) -> None:
    """Data and configs of detection and segmentation."""
    from mmpetl.datasets.mini import make

    sets = ['coco', 'VOCdevkit/VOC2007', 'VOCdevkit/VOC2012', 'ADEChallengeData2016']
    make(store / 'data', names=sets, size='tiny')
    for name, facts in SMALL.items():
        base = str(ROOT / 'configs' / 'mini' / f'{name}.py')
        (store / f'{name}.py').write_text(DENSE.format(base=base, **facts))


# ------------------------------------------------------------------------- outcomes


def tensors_of(path: Path) -> str:
    """Digest of a checkpoint's tensors."""
    import torch

    content = torch.load(path, map_location='cpu', weights_only=False)
    state = content.get('state_dict', content)
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trained(name: str) -> Any:
    """Outcome of a run: the tensors of a checkpoint."""
    return lambda bench, out: tensors_of(bench / 'run' / name)


def text_of(name: str) -> Any:
    """Outcome: a file's text, without the row's folder."""
    return lambda bench, out: _neutral((bench / name).read_text(), bench)


def printed(bench: Bench, out: str) -> str:
    """Outcome: what was printed."""
    return _neutral(out, bench)


def tree(bench: Bench, out: str) -> str:
    """Outcome: the files below ``out``."""
    lines = [
        f'{path.relative_to(bench / "out")} '
        f'{hashlib.sha256(path.read_bytes()).hexdigest()}'
        for path in sorted((bench / 'out').rglob('*'))
        if path.is_file()
    ]
    return '\n'.join(lines)


def folded(bench: Bench, out: str) -> str:
    """Outcome of folding: tensors and config."""
    text = (bench / 'folded.py').read_text()
    return tensors_of(bench / 'folded.pth') + _neutral(text, bench)


def _neutral(text: str, bench: Bench) -> str:
    text = text.replace(str(bench.path), '.')
    text = re.sub(r'\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?\S*', 'TIME', text)
    return re.sub(r'\d\d/\d\d \d\d:\d\d:\d\d', 'TIME', text)


# ---------------------------------------------------------------------------- calls


def environ(bench: Bench) -> dict[str, str]:
    """What commands of a row find their data by."""
    return {'MMPETL_DATA': str(bench / 'data')}


def train(config: str, *more: str) -> Any:
    """A training run of a config of the store."""

    def prepare(bench: Bench) -> Call:
        bench.take(config, 'base.pth', 'data')
        argv = [str(bench / config), '--work-dir', str(bench / 'run'), *more]
        return Call('tools/train.py', argv, environ(bench))

    return prepare


SCALES = {
    'coco.py': ['train_dataloader.dataset.pipeline.2.scale=(48,32)'],
    'voc.py': [
        f'train_dataloader.dataset.dataset.datasets.{i}.pipeline.2.scale=(48,32)'
        for i in (0, 1)
    ],
    'ade20k.py': [
        'train_dataloader.dataset.pipeline.2.scale=(48,32)',
        'train_dataloader.dataset.pipeline.3.crop_size=(32,32)',
    ],
}
"""Options that make the pictures of a recipe small."""


def _dense_call(config: str, data: str) -> Any:
    def prepare(bench: Bench) -> Call:
        bench.take(config, f'data/{data}')
        argv = [str(bench / config), '--work-dir', str(bench / 'run')]
        argv += ['--no-validate', '--cfg-options', *SCALES[config]]
        return Call('tools/train.py', argv, environ(bench))

    return prepare


def _resume(bench: Bench) -> Call:
    bench.take('digits.py', 'base.pth', 'data', 'half')
    (bench / 'half').rename(bench / 'run')
    (bench / 'run' / 'last_checkpoint').write_text(str(bench / 'run' / 'epoch_1.pth'))
    argv = [str(bench / 'digits.py'), '--work-dir', str(bench / 'run'), '--resume']
    return Call('tools/train.py', argv, environ(bench))


def _test(bench: Bench) -> Call:
    bench.take('digits.py', 'base.pth', 'data', 'run/epoch_2.pth')
    argv = [str(bench / 'digits.py'), str(bench / 'run' / 'epoch_2.pth')]
    argv += ['--work-dir', str(bench / 'test'), '--out', str(bench / 'metrics.json')]
    return Call('tools/test.py', argv, environ(bench))


def _test_delta(bench: Bench) -> Call:
    call = _test(bench)
    bench.take('delta.safetensors', 'delta.json')
    call.argv[1] = str(bench / 'delta.safetensors')
    return call


def _test_packed(bench: Bench) -> Call:
    call = _test(bench)
    bench.take('few_bits.py', 'packed.safetensors', 'packed.json')
    call.argv[:2] = [str(bench / 'few_bits.py'), str(bench / 'packed.safetensors')]
    return call


def _fold(bench: Bench) -> Call:
    bench.take('digits.py', 'base.pth', 'delta.safetensors', 'delta.json')
    argv = [str(bench / 'digits.py'), str(bench / 'delta.safetensors')]
    argv.append(str(bench / 'folded.pth'))

    def read() -> None:
        from mmengine.config import Config

        Config.fromfile(bench / 'folded.py')

    return Call(
        'tools/model_converters/fold_delta.py', argv, environ(bench), after=read
    )


def _fold_base(bench: Bench) -> Call:
    bench.take('base.pth', 'delta.safetensors', 'delta.json')
    argv = [str(bench / 'delta.safetensors'), str(bench / 'folded.pth')]
    argv += ['--base', str(bench / 'base.pth')]
    return Call('tools/model_converters/fold_delta.py', argv, environ(bench))


def _demo(bench: Bench) -> Call:
    bench.take(
        'digits.py', 'base.pth', 'delta.safetensors', 'delta.json', 'picture.png'
    )
    argv = [str(bench / 'picture.png'), str(bench / 'digits.py')]
    argv += ['--delta', str(bench / 'delta.safetensors'), '--out']
    argv.append(str(bench / 'shown.png'))
    return Call('demo/image_demo.py', argv, environ(bench))


def _plan(bench: Bench) -> Call:
    bench.take('plan.yaml', 'data')
    argv = [str(bench / 'plan.yaml'), '--out', str(bench / 'out'), '--dry-run']
    argv.append('--no-calibration')
    return Call('tools/benchmark/run.py', argv, environ(bench))


def _bench(tool: str, *more: str) -> Any:
    def prepare(bench: Bench) -> Call:
        bench.take('bench')
        argv = ['--out', str(bench / 'bench'), *more]
        return Call(f'tools/benchmark/{tool}', argv, environ(bench))

    return prepare


def page(bench: Bench, out: str) -> str:
    """Outcome of a report: its page."""
    text = (bench / 'bench' / 'report.html').read_text()
    if re.search(r'<script>\s*(alert|canary)', text):
        raise ValueError('a script of the input stands in the page')
    return _neutral(text, bench)


def bases() -> dict[str, Base]:
    """The healthy calls by name."""
    found = [
        Base('train', train('digits.py'), trained('epoch_2.pth')),
        Base('train birds', train('birds.py', '--no-validate'), trained('epoch_1.pth')),
        Base('resume', _resume, trained('epoch_2.pth')),
        Base('test', _test, text_of('metrics.json')),
        Base('test delta', _test_delta, text_of('metrics.json')),
        Base('test packed', _test_packed, text_of('metrics.json')),
        Base('fold', _fold, folded),
        Base('fold base', _fold_base, lambda b, out: tensors_of(b / 'folded.pth')),
        Base('demo', _demo, printed),
        Base('plan', _plan, printed),
        Base('table', _bench('table.py'), printed),
        Base('report', _bench('report.py'), page),
        Base(
            'coco', _dense_call('coco.py', 'coco'), trained('epoch_1.pth'), ('mmdet',)
        ),
        Base(
            'voc',
            _dense_call('voc.py', 'VOCdevkit'),
            trained('epoch_1.pth'),
            ('mmdet',),
        ),
        Base(
            'ade',
            _dense_call('ade20k.py', 'ADEChallengeData2016'),
            trained('iter_1.pth'),
            ('mmseg',),
        ),
    ]
    return {base.name: base for base in found}
