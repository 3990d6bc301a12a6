"""Rows of options and configs, and of what the system refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hostile.case import Area, Bench

OPTIONS = Area('options', 'train')
SYSTEM = Area('system', 'train')


def option(*pairs: str) -> Callable:
    return lambda bench: bench.options(*pairs)


OPTIONS.add(
    'option of an unknown top key: train_cgf.max_epochs=1 (a typo)',
    option('train_cgf.max_epochs=1'),
    want='refuse',
)
OPTIONS.add(
    'option with an index beyond the list: param_scheduler.7.end=1',
    option('param_scheduler.7.end=1'),
    want='refuse',
)
LOOSE = (
    'param_scheduler.0.T_max=0',
    'model.backbone.backbone.drop_path_rate=2',
    'default_hooks.checkpoint.interval=0',
    'default_hooks.checkpoint.interval=-2',
    'default_hooks.checkpoint.save_best=accurracy',
    'custom_imports.imports=[no_such_module_of_anyone]',
    'log_level=7',
)
"""Odd values that change nothing of this run, or of which MMEngine warns."""

for pair in (
    'train_cfg.max_epochs=abc',
    'train_dataloader.batch_size=0',
    'train_dataloader.batch_size=-3',
    'optim_wrapper.optimizer.lr=-1',
    'optim_wrapper.optimizer.type=Adamm',
    'randomness.seed=-1',
    'randomness.seed=4294967296',
    'train_dataloader.num_workers=-1',
    # And beside these:
    'train_cfg.max_epochs=-1',
    'train_cfg.max_epochs=0',
    'train_cfg.max_epochs=1.5',
    'train_cfg.max_epochs=None',
    'train_cfg.max_epochs=True',
    'train_cfg.type=EpochBasedTrainLop',
    'train_cfg=7',
    'train_dataloader.batch_size=abc',
    'train_dataloader.batch_size=1.5',
    'train_dataloader.batch_size=None',
    'train_dataloader.num_workers=abc',
    'train_dataloader.num_workers=100000',
    'train_dataloader=7',
    'train_dataloader.sampler.type=DefaultSamplr',
    'train_dataloader.dataset=7',
    'train_dataloader.dataset.type=VTABB',
    'train_dataloader.dataset.task=digit',
    'train_dataloader.dataset.task=7',
    'train_dataloader.dataset.split=trian',
    'train_dataloader.dataset.num_classes=0',
    'train_dataloader.dataset.num_classes=-1',
    'train_dataloader.dataset.num_classes=abc',
    'train_dataloader.dataset.indices=abc',
    'train_dataloader.dataset.pipeline=7',
    'train_dataloader.dataset.strange=7',
    'train_dataloader.colate_fn.type=x',
    'optim_wrapper.optimizer.lr=abc',
    'optim_wrapper.optimizer.lr=nan',
    'optim_wrapper.optimizer.lr=None',
    'optim_wrapper.optimizer.weight_decay=-1',
    'optim_wrapper.optimizer.betas=7',
    'optim_wrapper.optimizer.betas=[2,3]',
    'optim_wrapper.optimizer.momentums=1',
    'optim_wrapper.optimizer=7',
    'optim_wrapper.type=OptimWraper',
    'optim_wrapper.accumulative_counts=0',
    'optim_wrapper.accumulative_counts=-1',
    'optim_wrapper.accumulative_counts=abc',
    'optim_wrapper.clip_grad.max_norm=-1',
    'optim_wrapper.clip_grad.max_norm=abc',
    'optim_wrapper=None',
    'param_scheduler.0.T_max=0',
    'param_scheduler.0.T_max=abc',
    'param_scheduler.0.end=-1',
    'param_scheduler.0.begin=9',
    'param_scheduler.0.type=CosineLR',
    'param_scheduler.x.end=1',
    'param_scheduler=7',
    'randomness.seed=abc',
    'randomness.seed=1.5',
    'randomness=7',
    'model.head.num_classes=0',
    'model.head.num_classes=-1',
    'model.head.num_classes=abc',
    'model.head.num_classes=3',
    'model.head.in_channels=17',
    'model.head.type=os.system',
    'model.head.loss.type=CrossEntropi',
    'model.head=None',
    'model.type=ImageClasifier',
    'model.backbone=None',
    'model.backbone.backbone=None',
    'model.backbone.backbone.arch=hugee',
    'model.backbone.backbone.arch.embed_dims=0',
    'model.backbone.backbone.arch.num_heads=3',
    'model.backbone.backbone.arch.num_layers=-1',
    'model.backbone.backbone.patch_size=0',
    'model.backbone.backbone.img_size=-1',
    'model.backbone.backbone.out_type=clss',
    'model.backbone.backbone.drop_path_rate=2',
    'model.backbone.method=7',
    'model.backbone.method.rank=0',
    'model.backbone.method.rank=-1',
    'model.backbone.method.rank=abc',
    'model.backbone.method.rank=1.5',
    'model.backbone.method.rank=None',
    'model.backbone.method.targets=7',
    'model.backbone.method.targets=[attn.x]',
    'model.backbone.method.targets=[]',
    'model.backbone.method.alpha=abc',
    'model.backbone.method.alpha=nan',
    'model.backbone.method.drop_rate=2',
    'model.backbone.layers=7',
    'model.backbone.blocks=[99]',
    'model.backbone.checkpoint=7',
    'model.backbone.checkpoint=',
    'model.backbone.checkpoint=ftp://x/y.pth',
    'model.backbone.checkpoint=file:///nowhere.pth',
    'model.backbone.strange=7',
    'model=None',
    'model=7',
    'preprocessing.size=0',
    'preprocessing.size=-1',
    'preprocessing.size=abc',
    'preprocessing.normalisation=x',
    'preprocessing.strange=7',
    'preprocessing=7',
    'default_hooks.checkpoint.interval=0',
    'default_hooks.checkpoint.interval=-2',
    'default_hooks.checkpoint.interval=abc',
    'default_hooks.checkpoint.max_keep_ckpts=abc',
    'default_hooks.checkpoint.save_best=accurracy',
    'default_hooks.checkpoint.type=DeltaCheckpoint',
    'default_hooks.logger.interval=0',
    'default_hooks.logger.interval=abc',
    'default_hooks=7',
    'custom_hooks=7',
    'custom_hooks.0.type=NoSuchHook',
    'custom_imports.imports=[no_such_module_of_anyone]',
    'default_scope=nowhere',
    'default_scope=7',
    'log_level=LOUD',
    'log_level=7',
    'log_processor.window_size=abc',
    'env_cfg=7',
    'env_cfg.mp_cfg.mp_start_method=fokr',
    'launcher=pytorch2',
    'load_from=/nowhere.pth',
    'load_from=7',
    'resume=maybe',
    'visualizer.type=NoVisualizer',
    'work_dir=7',
    'stage=final2',
    'protocol=honset',
):
    loose = pair in LOOSE or pair.split('=')[0] in (
        'default_hooks.logger.interval',
        'launcher',
        'work_dir',
    )
    OPTIONS.add(pair, option(pair), want='either' if loose else 'refuse')

for pair in ('train_dataloader.sampler=None', 'train_dataloader.dataset.indices=-1'):
    # In order; and the last picture alone.
    OPTIONS.add(pair, option(pair), want='take', differs=True)


def config(text: str) -> Callable:
    """Another config file."""

    def spoil(bench: Bench) -> None:
        (bench / 'digits.py').write_text(text)

    return spoil


OPTIONS.add('config with a syntax error', config('model = ('), want='refuse')
OPTIONS.add('config that is empty', config(''), want='refuse')
OPTIONS.add('config that raises', config('raise ValueError("no")'), want='refuse')
for label, text in {
    'that divides by zero': 'x = 1 / 0',
    'that exits': 'import sys\nsys.exit(0)',
    'that imports what is not there': 'import no_such_module_of_anyone',
    'that is its own base': "_base_ = 'digits.py'",
    'of a base that is missing': "_base_ = 'nowhere.py'",
    'of a base that is a number': '_base_ = 7',
    'of a base that is a list of numbers': '_base_ = [7]',
    'whose model is a list': 'model = []',
    'whose model is a text': "model = 'x'",
    'without a model': 'train_cfg = dict(max_epochs=1)',
    'of a model alone': "model = dict(type='ImageClassifier')",
    'of 1 MiB of brackets': '(' * 2**20,
    'of 100,000 nested lists': 'x = ' + '[' * 100_000 + ']' * 100_000,
    'with a NUL': 'x = 1\0',
    'with an unknown name': 'x = y',
    'of a recursion': 'def f(): return f()\nx = f()',
}.items():
    OPTIONS.add(f'config {label}', config(text), want='refuse')


@OPTIONS.row('config that is not UTF-8', want='refuse')
def _encoded(bench: Bench) -> None:
    (bench / 'digits.py').write_bytes(b'x = "\xff"')


@OPTIONS.row('config that is a folder', want='refuse')
def _folder(bench: Bench) -> None:
    (bench / 'digits.py').unlink()
    (bench / 'digits.py').mkdir()


@OPTIONS.row('config that is a FIFO', want='refuse')
def _fifo(bench: Bench) -> None:
    (bench / 'digits.py').unlink()
    os.mkfifo(bench / 'digits.py')


for label, argv in {
    'an unknown flag': ['--trian'],
    '--cfg-options without a value': ['--cfg-options'],
    '--cfg-options without =': ['--cfg-options', 'x'],
    '--cfg-options with unbalanced brackets': ['--cfg-options', 'a=[1'],
    '--petl of an unknown method': ['--petl', 'LoRa'],
    '--petl on a config that has one': ['--petl', 'SSF'],
    '--base without --petl': ['--base', 'x.pth'],
    '--resume of a missing file': ['--resume', 'x.pth'],
    '--resume of a folder': ['--resume', '.'],
    '--device of nothing': ['--device', 'tpu'],
    '--protocol of nothing': ['--protocol', 'x'],
    '--launcher slurm without Slurm': ['--launcher', 'slurm'],
    '--launcher pytorch without its variables': ['--launcher', 'pytorch'],
    '--launcher mpi without MPI': ['--launcher', 'mpi'],
}.items():

    def _argv(bench: Bench, argv: list[str] = argv) -> None:
        bench.call.argv += argv

    OPTIONS.add(label, _argv, want='refuse')

OPTIONS.add(
    '--auto-scale-lr',
    lambda bench: bench.call.argv.append('--auto-scale-lr'),
    want='take',
    differs=True,
)

# ------------------------------------------------------------------------------- system


def work_dir(path: Callable[[Bench], Any]) -> Callable:
    """Another folder of the run."""

    def spoil(bench: Bench) -> None:
        argv = bench.call.argv
        argv[argv.index('--work-dir') + 1] = str(path(bench))

    return spoil


def _made(bench: Bench, name: str, how: Callable) -> Any:
    how(bench / name)
    return bench / name


SYSTEM.add(
    'the work folder is a file',
    work_dir(lambda b: _made(b, 'x', lambda p: p.write_text(''))),
    want='refuse',
)
SYSTEM.add(
    'the work folder lies below a file',
    work_dir(lambda b: _made(b, 'x', lambda p: p.write_text('')) / 'run'),
    want='refuse',
)
SYSTEM.add(
    'the work folder is a FIFO',
    work_dir(lambda b: _made(b, 'x', os.mkfifo)),
    want='refuse',
)
SYSTEM.add(
    'the work folder is a link to itself',
    work_dir(lambda b: _made(b, 'x', lambda p: p.symlink_to('x'))),
    want='refuse',
)
SYSTEM.add(
    'the work folder is a link to nothing',
    work_dir(lambda b: _made(b, 'x', lambda p: p.symlink_to('nowhere'))),
    want='either',
)
SYSTEM.add(
    'the work folder lies in /proc', work_dir(lambda b: '/proc/x/run'), want='refuse'
)
SYSTEM.add(
    'the work folder lies in /sys', work_dir(lambda b: '/sys/x/run'), want='refuse'
)
SYSTEM.add(
    'the work folder is /dev/null', work_dir(lambda b: '/dev/null'), want='refuse'
)
SYSTEM.add(
    "the work folder's name has 300 letters",
    work_dir(lambda b: b / ('a' * 300)),
    want='refuse',
)
SYSTEM.add(
    "the work folder's path has 5,000 letters",
    work_dir(lambda b: b / '/'.join(['a' * 200] * 25)),
    want='refuse',
)
SYSTEM.add(
    'the work folder has a NUL', work_dir(lambda b: f'{b.path}/a\0b'), want='refuse'
)


def full(size: int, **facts: Any) -> None:
    """No file can grow beyond a size, as on a disk that is full."""

    def spoil(bench: Bench) -> None:
        bench.call.file_bytes = size

    SYSTEM.add(f'no file can grow beyond {size:,} bytes', spoil, want='refuse', **facts)


for size in (100, 1000, 5000, 12000):  # of 0, no line can be written either
    full(size)


def _full_test(bench: Bench) -> None:
    bench.call.argv[bench.call.argv.index('--out') + 1] = '/dev/full'


SYSTEM.add('test --out to a full disk', _full_test, 'test', want='refuse')


def _nowhere(bench: Bench) -> None:
    bench.call.argv[bench.call.argv.index('--out') + 1] = str(bench / 'no' / 'x.json')


SYSTEM.add('test --out in a folder that is not there', _nowhere, 'test', want='either')


def _folded(path: str) -> Callable:
    def spoil(bench: Bench) -> None:
        bench.call.argv[2] = path.format(bench.path)

    return spoil


SYSTEM.add('fold to /proc', _folded('/proc/x/y.pth'), 'fold', want='refuse')
SYSTEM.add('fold below a file', _folded('{}/base.pth/y.pth'), 'fold', want='refuse')
SYSTEM.add(
    'fold to a name of 300 letters', _folded('{}/' + 'a' * 300), 'fold', want='refuse'
)


@SYSTEM.row('fold on a full disk', 'fold', want='refuse')
def _fold_full(bench: Bench) -> None:
    bench.call.file_bytes = 500


@SYSTEM.row('demo writes to a full disk', 'demo', want='refuse')
def _demo_full(bench: Bench) -> None:
    bench.call.file_bytes = 10


@SYSTEM.row('demo writes a picture of an unknown suffix', 'demo', want='refuse')
def _demo_suffix(bench: Bench) -> None:
    bench.call.argv[-1] = str(bench / 'shown.xyz')


@SYSTEM.row('demo of a picture that is a FIFO', 'demo', want='refuse')
def _demo_fifo(bench: Bench) -> None:
    (bench / 'picture.png').unlink()
    os.mkfifo(bench / 'picture.png')


@SYSTEM.row('demo of half a picture', 'demo', want='refuse')
def _demo_half(bench: Bench) -> None:
    path = bench / 'picture.png'
    path.write_bytes(path.read_bytes()[:900])


@SYSTEM.row('MMPETL_DATA names a file', want='refuse')
def _data(bench: Bench) -> None:
    bench.call.environ['MMPETL_DATA'] = str(bench / 'base.pth')


@SYSTEM.row('MMPETL_DATA is empty', want='refuse')
def _data_empty(bench: Bench) -> None:
    bench.call.environ['MMPETL_DATA'] = ''


@SYSTEM.row('LOCAL_RANK is text', want='either')
def _rank(bench: Bench) -> None:
    bench.call.environ['LOCAL_RANK'] = 'x'


@SYSTEM.row('MMPETL_MAX_TEXT_MIB is text', want='either')
def _limit(bench: Bench) -> None:
    bench.call.environ['MMPETL_MAX_TEXT_MIB'] = 'x'


@SYSTEM.row('a batch of one with BatchNorm', want='either')
def _one(bench: Bench) -> None:
    bench.options('train_dataloader.batch_size=1', 'train_dataloader.dataset.indices=1')
    bench.options('model.neck.type=BatchNormNeck')


SYSTEM.cases.pop()


@SYSTEM.row('a dead data worker', want='refuse')
def _worker(bench: Bench) -> None:
    (bench / 'dies.py').write_text(
        'import os\nfrom mmpretrain.registry import TRANSFORMS\n'
        'from mmcv.transforms import BaseTransform\n'
        '@TRANSFORMS.register_module()\nclass Dies(BaseTransform):\n'
        '    def transform(self, results):\n        os._exit(9)\n'
    )
    path = bench / 'digits.py'
    path.write_text(
        path.read_text()
        + 'custom_imports = dict(imports=["dies"], allow_failed_imports=False)\n'
        'train_dataloader["num_workers"] = 1\n'
        'train_dataloader["dataset"] = dict(pipeline=[dict(type="Dies")])\n'
    )
    bench.call.environ['PYTHONPATH'] = str(bench.path)
