"""Rows of run checkpoints, and of the folder that a run is resumed from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from hostile.case import (
    Area,
    Bench,
    all_kinds,
    drop_at,
    drop_one,
    flip,
    junk,
    set_at,
)
from hostile.weights import payload

AREA = Area('run checkpoint', 'test')

TESTED, RESUMED = 'run/epoch_2.pth', 'run/epoch_1.pth'


def edited(name: str, change: Callable[[Any, Bench], Any]) -> Callable:
    """A checkpoint with something changed; what ``change`` gives replaces it."""

    def spoil(bench: Bench) -> None:
        import torch

        path = bench / name
        content = torch.load(path, map_location='cpu', weights_only=False)
        made = change(content, bench)
        torch.save(content if made is None else made, path)

    return spoil


def tested(change: Callable[[Any, Bench], Any]) -> Callable:
    return edited(TESTED, change)


def resumed(change: Callable[[Any, Bench], Any]) -> Callable:
    return edited(RESUMED, change)


def at(place: str, value: Any) -> Callable[[Any, Bench], None]:
    """Write to a place of a checkpoint."""
    return lambda content, bench: set_at(content, place, value)


def without(place: str) -> Callable[[Any, Bench], None]:
    return lambda content, bench: drop_at(content, place)


def heads(change: Callable[[Any], Any]) -> Callable[[Any, Bench], None]:
    """Change the weights of the head."""

    def work(content: Any, bench: Bench) -> None:
        state = content['state_dict']
        for key in state:
            if key.startswith('head.'):
                state[key] = change(state[key])

    return work


def deltas(change: Callable[[Any], Any]) -> Callable[[Any, Bench], None]:
    """Change the weights of the delta."""

    def work(content: Any, bench: Bench) -> None:
        state = content['state_dict']
        for key in state:
            if '.petl.' in key and state[key].is_floating_point():
                state[key] = change(state[key])

    return work


# ------------------------------------------------------------------------------ tested

all_kinds(AREA, 'tested', TESTED)
for share in (0.05, 0.5, 0.9):
    AREA.add(f'tested: a byte flipped at {share:.0%}', flip(TESTED, share))


@AREA.row('0 bytes, tested', want='refuse')
def _empty(bench: Bench) -> None:
    (bench / TESTED).write_bytes(b'')


AREA.add(
    'tested: os.system in meta',
    tested(lambda c, b: c['meta'].update(x=payload(b))),
    want='refuse',
)
AREA.add(
    'tested: os.system in state_dict',
    tested(lambda c, b: c['state_dict'].update(x=payload(b))),
    want='refuse',
)
AREA.add(
    'head weights NaN', tested(heads(lambda v: v.fill_(float('nan')))), want='refuse'
)
AREA.add(
    'head weights Infinity',
    tested(heads(lambda v: v.fill_(float('inf')))),
    want='refuse',
)
AREA.add('head weights int64', tested(heads(lambda v: v.long())), want='refuse')
AREA.add('head weights bool', tested(heads(lambda v: v.bool())), want='refuse')
AREA.add('head weights complex', tested(heads(lambda v: v + 0j)), want='refuse')
AREA.add('head weights on meta', tested(heads(lambda v: v.to('meta'))), want='refuse')
AREA.add('head weights sparse', tested(heads(lambda v: v.to_sparse())), want='refuse')
AREA.add('head weights of another shape', tested(heads(lambda v: v[:2])), want='refuse')
AREA.add('delta weights int8', tested(deltas(lambda v: v.char())), want='refuse')
AREA.add('delta weights sparse', tested(deltas(lambda v: v.to_sparse())), want='refuse')
AREA.add('delta weights meta', tested(deltas(lambda v: v.to('meta'))), want='refuse')
AREA.add(
    'delta weights NaN', tested(deltas(lambda v: v.fill_(float('nan')))), want='refuse'
)
AREA.add(
    'delta weights of another shape', tested(deltas(lambda v: v[:1])), want='refuse'
)


@AREA.row('a state_dict value is a string', want='refuse')
def _text(bench: Bench) -> None:
    def change(content: Any, bench: Bench) -> None:
        state = content['state_dict']
        state[next(iter(state))] = 'x'

    tested(change)(bench)


AREA.add(
    'a state_dict key is a number', tested(lambda c, b: c['state_dict'].update({3: 4}))
)
AREA.add(
    'a state_dict lacks a delta',
    tested(lambda c, b: drop_one(c['state_dict'], '.petl.')),
    want='refuse',
)
AREA.add('meta is None', tested(at('meta', None)), want='refuse')
AREA.add('meta is a list', tested(at('meta', [1])), want='refuse')
AREA.add('no meta', tested(without('meta')), want='refuse')
AREA.add('no state_dict', tested(without('state_dict')), want='refuse')
AREA.add('state_dict is a list', tested(at('state_dict', [1])), want='refuse')
AREA.add('state_dict is None', tested(at('state_dict', None)), want='refuse')
AREA.add('state_dict is empty', tested(at('state_dict', {})), want='refuse')
AREA.add('the file holds a list', tested(lambda c, b: [c]), want='refuse')
AREA.add('the file holds a number', tested(lambda c, b: 7), want='refuse')
AREA.add('meta.mmpetl is a list', tested(at('meta.mmpetl', [1])), want='refuse')
AREA.add('meta.mmpetl is None', tested(at('meta.mmpetl', None)), want='refuse')
AREA.add(
    'meta.mmpetl lacks method', tested(without('meta.mmpetl.method')), want='refuse'
)
for field, *fitting in (
    ('method', 'an object'),
    ('backbone', 'an object', 'null'),
    ('num_blocks', 'a number'),
    ('base', 'a text', 'null'),
    ('fingerprint', 'a text'),
):
    for name, value in junk(*fitting):
        AREA.add(
            f'meta.mmpetl.{field} is {name}',
            tested(at(f'meta.mmpetl.{field}', value)),
            want='refuse' if field != 'base' else 'either',
        )
for field in ('format', 'num_blocks', 'fingerprint'):
    AREA.add(
        f'meta.mmpetl lacks {field}',
        tested(lambda c, b, f=field: drop_one(c['meta']['mmpetl'], f)),
    )
AREA.add(
    'meta.mmpetl.format is 99', tested(at('meta.mmpetl.format', 99)), want='refuse'
)
AREA.add(
    'meta.mmpetl.method.type is os.system',
    tested(at('meta.mmpetl.method.type', 'os.system')),
    want='refuse',
)
AREA.add('meta.dataset_meta is a number', tested(at('meta.dataset_meta', 7)))
AREA.add('meta.cfg is a number', tested(at('meta.cfg', 7)))
AREA.add('meta.cfg is code', tested(at('meta.cfg', 'import os; os.system("x")')))
AREA.add('meta.cfg of 10,000 brackets', tested(at('meta.cfg', 'x = ' + '(' * 10_000)))
AREA.add(
    'meta.cfg of 50,000 minus signs',
    tested(at('meta.cfg', 'x = ' + '-' * 50_000 + '1')),
)


@AREA.row('tested on a config without a method', want='refuse')
def _bare(bench: Bench) -> None:
    bench.options('model.backbone.method=None')


@AREA.row('tested on a config of another method', want='refuse')
def _other(bench: Bench) -> None:
    bench.options('model.backbone.method.type=SSF', 'model.backbone.method.rank=None')


@AREA.row('tested on another base', want='refuse')
def _base(bench: Bench) -> None:
    import torch

    state = torch.load(bench / 'base.pth', weights_only=True)
    torch.save({k: v + 0.1 for k, v in state.items()}, bench / 'base.pth')


# ----------------------------------------------------------------------------- resumed


def resume(input: str, spoil: Callable, **facts: Any) -> None:
    AREA.add(f'{input}, resumed', spoil, 'resume', **facts)


resume(
    'meta holds os.system',
    resumed(lambda c, b: c['meta'].update(x=payload(b))),
    want='refuse',
    says='cannot be (read|resumed)|is damaged',
)
SAID = {'want': 'refuse', 'says': r'(?i)damaged|no whole|cannot|falls? back|anew|began'}
for label, share in (('cut in half', 0.5), ('cut to a tenth', 0.1), ('0 bytes', 0)):

    def _cut(bench: Bench, share: float = share) -> None:
        path = bench / RESUMED
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    resume(label, _cut, **SAID)
for place in ('epoch', 'iter', 'cfg', 'seed', 'experiment_name', 'mmpetl'):
    resume(f'meta lacks {place}', resumed(without(f'meta.{place}')), says='meta')
resume('meta.epoch is -5', resumed(at('meta.epoch', -5)), want='refuse')
resume('meta.epoch is 10^9', resumed(at('meta.epoch', 10**9)), want='refuse')
resume('meta.epoch is a text', resumed(at('meta.epoch', 'x')), want='refuse')
resume('meta.epoch is 1.5', resumed(at('meta.epoch', 1.5)), want='refuse')
resume('meta.iter is -1', resumed(at('meta.iter', -1)), want='refuse')
resume('meta.iter is None', resumed(at('meta.iter', None)), want='refuse')
# The count of steps decides nothing between epochs.
resume('meta.iter is 1 (the epoch has 2)', resumed(at('meta.iter', 1)))
resume('meta.epoch is true', resumed(at('meta.epoch', True)), want='refuse')
LACKS = r'(?i)lacks|without|no (optimizer|rng|scheduler|message)'
resume('no optimizer', resumed(without('optimizer')), want='refuse', says=LACKS)
resume('optimizer is a list', resumed(at('optimizer', [1])), want='refuse')
resume('optimizer is None', resumed(at('optimizer', None)), want='refuse')
resume('optimizer.state is empty', resumed(at('optimizer.state', {})), want='refuse')
resume(
    'optimizer.param_groups is empty',
    resumed(at('optimizer.param_groups', [])),
    want='refuse',
)


def _sizes(content: Any, bench: Bench) -> None:
    for values in content['optimizer']['state'].values():
        for key, value in values.items():
            if getattr(value, 'ndim', 0) > 0:
                values[key] = value.new_zeros(3, 5)


def _nan(content: Any, bench: Bench) -> None:
    for values in content['optimizer']['state'].values():
        for value in values.values():
            if getattr(value, 'ndim', 0) > 0:
                value.fill_(float('nan'))


resume('optimizer of other sizes', resumed(_sizes), want='refuse')
resume('optimizer holds NaN', resumed(_nan), want='refuse')
resume('weights NaN', resumed(deltas(lambda v: v.fill_(float('nan')))), want='refuse')
resume('weights int8', resumed(deltas(lambda v: v.char())), want='refuse')
AREA.add(
    'no rng, resumed (result then differs)',
    resumed(lambda c, b: _drop_rng(c)),
    'resume',
    want='refuse',
    says=r'(?i)random|rng',
)


def _drop_rng(content: Any) -> None:
    for part in (content, content['meta']):
        for key in [k for k in part if 'rng' in str(k) or 'random' in str(k)]:
            del part[key]


def _rng(value: Any) -> Callable:
    def change(content: Any, bench: Bench) -> None:
        for part in (content, content['meta'], content.get('message_hub') or {}):
            for key in [k for k in part if 'rng' in str(k) or 'random' in str(k)]:
                part[key] = value

    return resumed(change)


resume('rng is a text', _rng('x'), want='refuse', says=r'(?i)random|rng')
resume('rng is an empty list', _rng([]), want='refuse', says=r'(?i)random|rng')
resume('no message_hub', resumed(without('message_hub')), says=LACKS)
resume('message_hub is a list', resumed(at('message_hub', [1])), want='refuse')
resume('message_hub is empty', resumed(at('message_hub', {})), says='message')
resume(
    'param_schedulers of another length',
    resumed(lambda c, b: c['param_schedulers'].append(c['param_schedulers'][0])),
    want='refuse',
)
resume('no param_schedulers', resumed(without('param_schedulers')), want='refuse')
resume('param_schedulers is None', resumed(at('param_schedulers', None)), want='refuse')
resume('param_schedulers empty', resumed(at('param_schedulers', [])), want='refuse')
resume(
    'seed of the checkpoint differs from the config',
    resumed(at('meta.seed', 7)),
    want='refuse',
)
resume('meta.seed is a text', resumed(at('meta.seed', 'x')), want='refuse')
resume('state_dict is a list', resumed(at('state_dict', [1])), want='refuse')
resume('no state_dict', resumed(without('state_dict')), want='refuse')
resume('meta is None', resumed(at('meta', None)), want='refuse')
resume('the file holds a list', resumed(lambda c, b: [c]), want='refuse')


def pointer(label: str, text: bytes | None, **facts: Any) -> None:
    """What ``last_checkpoint`` says."""

    def spoil(bench: Bench) -> None:
        path = bench / 'run' / 'last_checkpoint'
        path.unlink()
        if text is not None:
            path.write_bytes(text)

    resume(f'last_checkpoint {label}', spoil, **facts)


pointer('is missing', None, want='take')
pointer('is empty', b'', want='take')
pointer('names a missing file', b'epoch_9.pth', want='take')
pointer('is not UTF-8', b'\xff\xfe\xff', want='take')
pointer('is 1 MiB of letters', b'a' * 2**20, want='take')
pointer('holds a NUL', b'a\0b', want='take')
pointer('names the folder above', b'../', want='take')
pointer('names its file with a line end', b'epoch_1.pth\n', want='take')


@AREA.row('a folder that was moved, resumed', 'resume', want='take')
def _moved(bench: Bench) -> None:
    (bench / 'run' / 'last_checkpoint').write_text('/elsewhere/run/epoch_1.pth')


@AREA.row(
    'a copied folder whose pointer names its origin, resumed', 'resume', want='take'
)
def _copied(bench: Bench) -> None:
    other = bench / 'other'
    shutil.copytree(bench / 'run', other)
    path = other / 'epoch_1.pth'
    path.write_bytes(path.read_bytes()[:100])
    (bench / 'run' / 'last_checkpoint').write_text(str(path))


@AREA.row('newest checkpoint cut, an older one whole, resumed', 'resume', want='take')
def _newest(bench: Bench) -> None:
    run = bench / 'run'
    (run / 'epoch_2.pth').write_bytes((run / 'epoch_1.pth').read_bytes()[:999])
    (run / 'last_checkpoint').write_text(str(run / 'epoch_2.pth'))


@AREA.row('six pictures fewer in the list, resumed', 'resume', want='refuse')
def _fewer(bench: Bench) -> None:
    path = bench / 'data' / 'vtab-1k' / 'digits' / 'train800val200.txt'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(lines[:-6]) + '\n')


@AREA.row('another batch size, resumed', 'resume', want='refuse')
def _batch(bench: Bench) -> None:
    bench.options('train_dataloader.batch_size=8')
