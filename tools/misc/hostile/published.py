"""Rows of published deltas, and of folding them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

from hostile.case import (
    Area,
    Bench,
    all_kinds,
    cut,
    drop_at,
    drop_one,
    flip,
    jsons,
    junk,
    set_at,
    texts,
)

AREA = Area('published delta', 'test delta')
FOLD = Area('folding', 'fold')

FACTS, WEIGHTS = 'delta.json', 'delta.safetensors'


def fact(place: str, value: Any) -> Callable:
    """A delta whose record says something else in one place."""
    return lambda bench: bench.edit_json(FACTS, lambda d: set_at(d, place, value))


def lacking(place: str) -> Callable:
    return lambda bench: bench.edit_json(FACTS, lambda d: drop_at(d, place))


def signed(bench: Bench, facts: str = FACTS, weights: str = WEIGHTS) -> None:
    """Let the record have the digest of the tensors as they are now."""
    data = (bench / weights).read_bytes()

    def change(data_of: Any) -> None:
        data_of['tensors']['sha256'] = hashlib.sha256(data).hexdigest()
        data_of['tensors']['bytes'] = len(data)

    bench.edit_json(facts, change)


def tensors(change: Callable[[dict], Any]) -> Callable:
    """A delta of other tensors, whose digest is right."""

    def spoil(bench: Bench) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(bench / WEIGHTS)
        made = change(held)
        save_file(held if made is None else made, bench / WEIGHTS)
        signed(bench)

    return spoil


def some(part: str, change: Callable[[Any], Any]) -> Callable:
    """Other values of the keys that hold a word."""
    return tensors(lambda t: {k: change(v) if part in k else v for k, v in t.items()})


def header(change: Callable[[dict], Any]) -> Callable:
    """A safetensors header that says something else."""

    def spoil(bench: Bench) -> None:
        data = (bench / WEIGHTS).read_bytes()
        (size,) = struct.unpack('<Q', data[:8])
        head = json.loads(data[8 : 8 + size])
        text = json.dumps(change(head) or head).encode()
        (bench / WEIGHTS).write_bytes(
            struct.pack('<Q', len(text)) + text + data[8 + size :]
        )
        signed(bench)

    return spoil


def first(head: dict) -> dict:
    """The entry of the first tensor."""
    return next(v for k, v in head.items() if k != '__metadata__')


# -------------------------------------------------------------------------- the record

all_kinds(AREA, 'json', FACTS)
texts(AREA, 'json', FACTS)
jsons(AREA, 'json', FACTS)

FIELDS = {
    'format': ('a number',),
    'version': ('a text',),
    'method': ('an object',),
    'backbone': ('an object', 'null'),
    'num_blocks': ('a number',),
    'base': ('a text', 'null'),
    'fingerprint': ('a text',),
    'tensors': ('an object',),
    'tensors.sha256': ('a text',),
    'tensors.bytes': ('a number',),
    'tensors.values': ('a number',),
    'scope': ('a text', 'null'),
    'model': ('an object', 'null'),
    'preprocessing': ('a list', 'null'),
    'preset': ('an object', 'null'),
    'classes': ('a list', 'null'),
    'palette': ('null',),
    'metrics': ('an object', 'null'),
    'sites': ('a number',),
    'where': ('null', 'an object', 'a list'),
    'method.type': ('a text',),
    'method.rank': ('a number',),
    'method.targets': ('a list', 'a text'),
}
"""What a record holds, and the types of JSON that fit there."""

for field, fitting in FIELDS.items():
    for name, value in junk(*fitting):
        AREA.add(f'json: {field} is {name}', fact(field, value), want='refuse')
AREA.add('json: method has no type', lacking('method.type'), want='refuse')
for field in ('format', 'method', 'num_blocks', 'fingerprint', 'tensors'):
    AREA.add(f'json: no {field}', lacking(field), want='refuse')
for field in ('version', 'scope', 'model', 'classes', 'metrics', 'backbone'):
    AREA.add(f'json: no {field}', lacking(field))
for label, place, value in (
    ('format is 2', 'format', 2),
    ('format is 10^30', 'format', 10**30),
    ('format is 1.0', 'format', 1.0),
    ('fingerprint has 15 digits', 'fingerprint', '0' * 15),
    ('fingerprint is of another base', 'fingerprint', '0' * 16),
    ('num_blocks is -1', 'num_blocks', -1),
    ('num_blocks is 99', 'num_blocks', 99),
    ('tensors.sha256 is of another file', 'tensors.sha256', '0' * 64),
    ('method is a list of numbers', 'method', [1, 2]),
    ('method is an empty list', 'method', []),
    ('method.type is os.system', 'method.type', 'os.system'),
    ('method.type is unknown', 'method.type', 'Lora'),
    ('method.rank is 10^12', 'method.rank', 10**12),
    ('method.rank is -1', 'method.rank', -1),
    ('method.rank is 2.5', 'method.rank', 2.5),
    ('method has an unknown argument', 'method.ranks', 2),
    ('method.targets holds a number', 'method.targets', [1]),
    ('classes hold a number', 'classes', [1, 2]),
    ('classes hold null', 'classes', [None]),
    ('classes hold lists', 'classes', [['a']]),
    ('palette holds texts', 'palette', ['red'] * 10),
    ('palette holds pairs', 'palette', [[1, 2]] * 10),
    ('palette holds 256', 'palette', [[1, 2, 256]] * 10),
    ('palette holds 1.5', 'palette', [[1, 2, 1.5]] * 10),
    ('palette holds -1', 'palette', [[1, 2, -1]] * 10),
    ('metrics hold a text', 'metrics', {'a': 'x'}),
    ('metrics hold an object', 'metrics', {'a': {'b': 1}}),
    (
        'where names a block 99',
        'where',
        {'layers': None, 'blocks': [99], 'places': None},
    ),
    ('preprocessing holds numbers', 'preprocessing', [1]),
    ('nested 500 deep in model', 'model', json.loads('[' * 500 + ']' * 500)),
):
    AREA.add(f'json: {label}', fact(place, value), want='refuse')
NAMES = r'names \d+ classes, the model has'
AREA.add('json: classes of another number', fact('classes', ['a']), says=NAMES)
AREA.add('json: an unknown key', fact('more', 1))
AREA.add('json: model.type is os.system', fact('model.type', 'os.system'))
AREA.add('json: backbone.type is os.system', fact('backbone.type', 'os.system'))


def doubled(text: str) -> Callable:
    def spoil(bench: Bench) -> None:
        path = bench / FACTS
        path.write_text(path.read_text().replace('{', '{' + text, 1))

    return spoil


AREA.add('json: duplicate "format" keys', doubled('"format": 99,'), want='refuse')
AREA.add('json: duplicate "classes" keys', doubled('"classes": [],'), want='refuse')
# Figures that are not finite are told as they are.
AREA.add('json: a number 1e999', doubled('"more": 1e999,'))
AREA.add('json: a comment', doubled('// text\n'), want='refuse')


@AREA.row('json: classes hold dicts, demo', 'demo', want='refuse')
def _dicts(bench: Bench) -> None:
    fact('classes', [{'x': i} for i in range(10)])(bench)


AREA.add('json: classes is a number, demo', fact('classes', 3), 'demo', want='refuse')
AREA.add(
    'json: classes are too few, demo',
    fact('classes', ['a']),
    'demo',
    want='refuse',
    says=NAMES,
)
AREA.add(
    'json: classes hold control characters, demo',
    fact('classes', ['\x1b[2J\x07\n\r'] * 10),
    'demo',
    want='refuse',
)
AREA.add(
    'json: classes of 1 MiB each, demo',
    fact('classes', ['x' * 2**20] * 10),
    'demo',
    want='refuse',
)

# ------------------------------------------------------------------------- the tensors

all_kinds(AREA, 'safetensors', WEIGHTS)
for share in (0.001, 0.1, 0.5, 0.99):
    AREA.add(
        f'safetensors: a byte flipped at {share:.1%}',
        flip(WEIGHTS, share),
        want='refuse',
    )
for label, change in {
    'NaN': lambda v: v.fill_(float('nan')),
    'Infinity': lambda v: v.fill_(float('inf')),
    'int8': lambda v: v.char(),
    'bool': lambda v: v.bool(),
    'float64': lambda v: v.double(),
    'complex64': lambda v: v + 0j,
    'of another shape': lambda v: v[:1].contiguous(),
    'with an axis more': lambda v: v[None].contiguous(),
}.items():
    for part, name in (('head', 'head weights'), ('petl', 'delta weights')):
        want = 'either' if label == 'float64' else 'refuse'
        AREA.add(
            f'safetensors: {name} {label}, sha256 right',
            some(part, change),
            want=want,
        )
AREA.add(
    'safetensors: head weights int32 (cut to zeros), sha256 right',
    some('head', lambda v: v.int()),
    want='refuse',
)
AREA.add('safetensors: no tensors, sha256 right', tensors(lambda t: {}), want='refuse')
AREA.add(
    'safetensors: a tensor too many, sha256 right',
    tensors(lambda t: t.update(x=next(iter(t.values())).clone())),
    want='refuse',
)
AREA.add(
    'safetensors: a tensor of the base, sha256 right',
    tensors(
        lambda t: t.update(
            {'backbone.cls_token': next(iter(t.values())).new_ones(1, 1, 16)}
        )
    ),
    want='refuse',
)
AREA.add(
    'safetensors: a tensor is missing, sha256 right',
    tensors(lambda t: drop_one(t, 'petl')),
    want='refuse',
)
AREA.add(
    'safetensors: unknown dtype F4',
    header(lambda h: first(h).update(dtype='F4')),
    want='refuse',
)
AREA.add(
    'safetensors: unknown dtype',
    header(lambda h: first(h).update(dtype='Q9')),
    want='refuse',
)
AREA.add(
    'safetensors: dtype F8_E4M3 of a quarter of the bytes',
    header(lambda h: first(h).update(dtype='F8_E4M3')),
    want='refuse',
)
AREA.add(
    'safetensors: offsets beyond the file',
    header(lambda h: first(h).update(data_offsets=[0, 2**40])),
    want='refuse',
)
AREA.add(
    'safetensors: a shape of 2^60',
    header(lambda h: first(h).update(shape=[2**60])),
    want='refuse',
)
AREA.add(
    'safetensors: a shape of 0',
    header(lambda h: first(h).update(shape=[0], data_offsets=[0, 0])),
    want='refuse',
)
AREA.add(
    'safetensors: metadata of numbers',
    header(lambda h: h.update(__metadata__={'a': 1})),
    want='refuse',
)


@AREA.row('tested on a config without a method', want='refuse')
def _bare(bench: Bench) -> None:
    bench.options('model.backbone.method=None')


@AREA.row('tested on a config of another method', want='refuse')
def _other(bench: Bench) -> None:
    bench.options('model.backbone.method.type=SSF', 'model.backbone.method.rank=None')


@AREA.row('of another rank', want='refuse')
def _rank(bench: Bench) -> None:
    bench.options('model.backbone.method.rank=3')


@AREA.row('a head of other classes', want='refuse')
def _classes(bench: Bench) -> None:
    bench.options('model.head.num_classes=11')


# ----------------------------------------------------------------------------- folding

BREAKS_OUT = {
    'a dict whose key breaks out of its quotes': lambda b: {
        f"x': open({str(b.canary)!r}, 'w'), 'y": 1
    },
    'a text that breaks out of its quotes': lambda b: (
        f"x', open({str(b.canary)!r}, 'w'), '"
    ),
    'a text of double quotes': lambda b: f'x", open({str(b.canary)!r}, "w"), "',
    'a text with a line end and code': lambda b: f"x'\nopen({str(b.canary)!r}, 'w')\n#",
    'a text of three quotes': lambda b: f"'''+str(open({str(b.canary)!r}, 'w'))+'''",
    'a text with a backslash at its end': lambda b: 'x\\',
    'a text with mmengine braces': lambda b: '{{ fileDirname }}',
    'a text of an environment variable': lambda b: '{{$HOME:x}}',
    'a text with _base_': lambda b: '_base_.model',
    'a surrogate': lambda b: '\ud800',
}


def classes(value: Callable[[Bench], Any], place: str = 'classes') -> Callable:
    def spoil(bench: Bench) -> None:
        made = value(bench)
        names = [made, *'bcdefghij']
        fact(place, names)(bench)

    return spoil


def _fold_row(label: str, spoil: Callable, **facts: Any) -> None:
    FOLD.add(label, spoil, **facts)


AREA.add(
    'fold: classes hold a dict whose key breaks out of its quotes; the written .py is '
    'then read',
    classes(BREAKS_OUT.pop('a dict whose key breaks out of its quotes')),
    'fold',
    want='refuse',
)
OTHERWISE = {
    'a text with a line end and code': 'refuse',  # a name is one line
    'a surrogate': 'either',
}
for label, value in BREAKS_OUT.items():
    FOLD.add(
        f'fold: classes hold {label}; the written .py is then read',
        classes(value),
        differs=True,
        want=OTHERWISE.get(label, 'take'),
    )
FOLD.add(
    'fold: palette holds code',
    lambda b: fact('palette', [[f'open({str(b.canary)!r}, "w")', 0, 0]] * 10)(b),
    want='refuse',
)
FOLD.add('fold: classes is a number', fact('classes', 3), want='refuse')
FOLD.add('fold: classes is an object', fact('classes', {'a': 1}), want='refuse')
FOLD.add(
    'fold: head weights NaN', some('head', lambda v: v * float('nan')), want='refuse'
)
FOLD.add('fold: delta weights int8', some('petl', lambda v: v.char()), want='refuse')
FOLD.add(
    'fold: method.type is os.system', fact('method.type', 'os.system'), want='refuse'
)
all_kinds(FOLD, 'fold: json', FACTS)
for label, place, value in (
    ('backbone.type is os.system', 'model.backbone.backbone.type', 'os.system'),
    (
        'backbone.type is subprocess.run',
        'model.backbone.backbone.type',
        'subprocess.run',
    ),
    ('scope is os', 'scope', 'os'),
    ('scope is a path', 'scope', '../../x'),
    ('model holds no backbone', 'model', {'type': 'x'}),
    ('model is nested 60 deep', 'model', json.loads('{"a":' * 60 + '1' + '}' * 60)),
    ('embed_dims is 10^9', 'model.backbone.backbone.arch.embed_dims', 10**9),
    ('num_layers is 10^6', 'model.backbone.backbone.arch.num_layers', 10**6),
    ('img_size is -1', 'model.backbone.backbone.img_size', -1),
    ('patch_size is 0', 'model.backbone.backbone.patch_size', 0),
    ('an argument is unknown', 'model.backbone.backbone.strange', 1),
    (
        'init_cfg loads a file',
        'model.backbone.backbone.init_cfg',
        {'type': 'Pretrained', 'checkpoint': '/etc/passwd'},
    ),
):
    FOLD.add(
        f'fold --base: {label}',
        fact(place, value),
        'fold base',
        want='refuse' if 'init_cfg' not in label and 'scope' not in label else 'either',
    )


@FOLD.row('fold --base: backbone.type runs a command', 'fold base', want='refuse')
def _command(bench: Bench) -> None:
    node = {'type': 'os.system', 'command': f'touch {bench.canary}'}
    fact('model.backbone.backbone', node)(bench)


@FOLD.row('fold --base: the base is a FIFO', 'fold base', want='refuse')
def _fifo(bench: Bench) -> None:
    import os

    (bench / 'base.pth').unlink()
    os.mkfifo(bench / 'base.pth')


@FOLD.row('fold --base: the base is sparse', 'fold base', want='refuse')
def _sparse(bench: Bench) -> None:
    import torch

    state = torch.load(bench / 'base.pth', weights_only=True)
    torch.save({k: v.to_sparse() for k, v in state.items()}, bench / 'base.pth')


@FOLD.row('fold --base: the base is int8', 'fold base', want='refuse')
def _int8(bench: Bench) -> None:
    import torch

    state = torch.load(bench / 'base.pth', weights_only=True)
    torch.save({k: v.char() for k, v in state.items()}, bench / 'base.pth')


# ------------------------------------------------------------------------ packed deltas

PACKED = Area('packed delta', 'test packed')

PACKED_FACTS, PACKED_WEIGHTS = 'packed.json', 'packed.safetensors'


def packed_fact(change: Callable[[dict[str, Any]], Any]) -> Callable:
    """A record that says something else of what is packed, by key."""

    def spoil(bench: Bench) -> None:
        def edit(facts: Any) -> None:
            facts['packed'] = change(facts['packed'])

        bench.edit_json(PACKED_FACTS, edit)

    return spoil


def of_first(name: str, value: Any) -> Callable:
    """Another value in what is said of the first packed weight."""

    def change(packed: dict[str, Any]) -> dict[str, Any]:
        first = next(iter(packed))
        return {**packed, first: {**packed[first], name: value}}

    return packed_fact(change)


def packed_tensors(change: Callable[[dict], Any]) -> Callable:
    """Other codes and levels, whose digest is right."""

    def spoil(bench: Bench) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(bench / PACKED_WEIGHTS)
        change(held)
        save_file({k: v.clone() for k, v in held.items()}, bench / PACKED_WEIGHTS)
        signed(bench, PACKED_FACTS, PACKED_WEIGHTS)

    return spoil


def of_end(end: str, change: Callable[[Any], Any]) -> Callable:
    """Another tensor in place of the first whose key ends so; None for none."""

    def edit(held: dict) -> None:
        key = next(k for k in sorted(held) if k.endswith(f'.{end}'))
        held[key] = change(held[key])
        if held[key] is None:
            del held[key]

    return packed_tensors(edit)


def _stem(held: dict) -> str:
    return next(k for k in sorted(held) if k.endswith('.codes')).removesuffix('.codes')


for share in (0.0, 0.25, 0.5, 0.9):
    PACKED.add(f'first {share:.0%} of it', cut(PACKED_WEIGHTS, share), want='refuse')
PACKED.add('a byte of the codes', flip(PACKED_WEIGHTS, 0.95), want='refuse')
PACKED.add('packed: none', packed_fact(lambda packed: {}), want='refuse')
PACKED.add(
    'packed: one is not said',
    packed_fact(lambda p: dict(list(p.items())[1:])),
    want='refuse',
)
for name, value in junk('an object'):
    PACKED.add(f'packed is {name}', packed_fact(lambda p, v=value: v), want='refuse')
PACKED.add(
    'packed: a weight that is not there',
    packed_fact(lambda p: {**p, 'x.weight': {'bits': 1, 'shape': [2]}}),
    want='refuse',
)
PACKED.add(
    'packed: a key that leads outside',
    packed_fact(lambda p: {**p, '../../x': {'bits': 1, 'shape': [2]}}),
    want='refuse',
)
for name, value in junk('a number'):
    PACKED.add(f'packed: bits are {name}', of_first('bits', value), want='refuse')
for name, value in junk('a list'):
    PACKED.add(f'packed: shape is {name}', of_first('shape', value), want='refuse')
for label, name, value in (
    ('bits are 3', 'bits', 3),
    ('bits are 8', 'bits', 8),
    ('bits are 10^30', 'bits', 10**30),
    ('bits are 1.5', 'bits', 1.5),
    ('shape is empty', 'shape', []),
    ('shape holds 0', 'shape', [0, 16]),
    ('shape holds -1', 'shape', [-1, 16]),
    ('shape holds 1.5', 'shape', [1.5, 16]),
    ('shape holds true', 'shape', [True, 16]),
    ('shape holds 10^400', 'shape', [10**400, 16]),
    ('shape of 2^31 x 2^31', 'shape', [2**31, 2**31]),
    ('shape of 8 axes of 2^31', 'shape', [2**31] * 8),
    ('shape of 10,000 axes', 'shape', [1] * 10_000),
    ('shape is another', 'shape', [16, 16]),
    ('shape is turned', 'shape', [32]),
):
    PACKED.add(f'packed: {label}', of_first(name, value), want='refuse')
for label, end, change in (
    ('codes are missing', 'codes', lambda v: None),
    ('levels are missing', 'levels', lambda v: None),
    ('codes are float', 'codes', lambda v: v.float()),
    ('codes are of two axes', 'codes', lambda v: v[None]),
    ('codes are one too many', 'codes', lambda v: v.repeat(2)[: len(v) + 1]),
    ('codes are none', 'codes', lambda v: v[:0]),
    ('levels are int64', 'levels', lambda v: v.long()),
    ('levels are three', 'levels', lambda v: v.repeat(2)[:3]),
    ('levels are NaN', 'levels', lambda v: v * float('nan')),
    ('levels are infinite', 'levels', lambda v: v / 0),
    ('levels fall', 'levels', lambda v: v.flip(0)),
):
    PACKED.add(f'packed: {label}', of_end(end, change), want='refuse')
PACKED.add(
    'packed: the weight is there, too',
    packed_tensors(
        lambda held: held.update({_stem(held): held[_stem(held) + '.levels']})
    ),
    want='refuse',
)
