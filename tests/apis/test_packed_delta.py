"""Packed deltas: few bits for each entry, the same outputs, and nothing odd read."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmpetl import apis
from mmpetl.core import PETLError, fold
from mmpetl.core.packing import BITS, PackedTensor, few_values, pack, unpack

TWO = {'type': 'BiLoRA', 'rank': 3, 'bits': 2}


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('shape', [(1, 1), (3, 5), (8, 16), (2, 3, 7)])
def test_a_tensor_comes_back_bit_for_bit(bits: int, shape: tuple[int, ...]) -> None:
    levels = torch.randn(2**bits)
    value = levels[torch.randint(2**bits, shape)]
    held = pack('w', value, bits)
    assert held['codes'].numel() == -(-value.numel() * bits // 8)
    assert held['levels'].numel() == 2**bits
    again = unpack(**held, facts=PackedTensor(bits, list(shape)))
    assert torch.equal(again, value)


def test_the_first_entry_lies_in_the_lowest_bits() -> None:
    value = torch.tensor([[1.0, 0, 0, 0, 1, 1, 0, 0, 1]])
    assert pack('w', value, 1)['codes'].tolist() == [0b00110001, 1]


def test_more_values_than_bits_tell_apart_are_refused() -> None:
    with pytest.raises(PETLError, match='w takes 3 values, which 1 bits cannot tell'):
        pack('w', torch.arange(3.0), 1)


def inputs() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def scores(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().backbone(inputs())[0]


@pytest.mark.parametrize(
    'method',
    [
        TWO,
        {'type': 'BiLoRA', 'rank': 3, 'bits': 1},
        {'type': 'BiAdaptFormer', 'hidden_dims': 3, 'bits': 8},
        {'type': 'BiAdaptFormer', 'hidden_dims': 3, 'bits': 4},
    ],
    ids=lambda method: f'{method["type"]}-{method["bits"]}',
)
def test_what_is_packed_and_loaded_computes_the_same(bench, method) -> None:
    config = bench.config(method)
    model = bench.tuned(config)
    plain = apis.export_delta(model, config, bench.folder / 'plain')
    packed = apis.export_delta(model, config, bench.folder / 'packed', packed=True)
    fresh = apis.load_delta(config, packed)
    assert torch.equal(scores(fresh), scores(model))
    assert torch.equal(scores(apis.load_delta(config, plain)), scores(model))
    # Packed once more, plainly exported, and folded, it is still the same.
    again = apis.export_delta(fresh, config, bench.folder / 'again', packed=True)
    assert again.read_bytes() == packed.read_bytes()
    twice = apis.export_delta(packed, config, bench.folder / 'twice')
    assert 'packed' not in json.loads(twice.with_suffix('.json').read_text())
    assert torch.equal(scores(apis.load_delta(config, twice)), scores(model))
    if method['type'] == 'BiLoRA':
        folded = scores_folded(fresh)
        torch.testing.assert_close(folded, scores(model), rtol=1e-4, atol=1e-5)


def scores_folded(model: nn.Module) -> torch.Tensor:
    fold(model.backbone)
    return scores(model)


def test_bytes_are_those_of_the_entries(bench) -> None:
    config = bench.config(TWO)
    model = bench.tuned(config)
    path = apis.export_delta(model, config, bench.folder / 'x', packed=True)
    held, few = load_file(path), few_values(model)
    codes = [v for k, v in held.items() if k.endswith('.codes')]
    levels = [v for k, v in held.items() if k.endswith('.levels')]
    assert len(codes) == len(levels) == len(few)
    assert sum(v.numel() for v in codes) == sum(v.numel() for v, _ in few.values()) // 4
    assert all(v.shape == (4,) for v in levels)
    assert not [k for k in held if k.endswith('.packed')]


def test_a_packed_delta_does_not_train(bench) -> None:
    config = bench.config(TWO)
    path = apis.export_delta(bench.tuned(config), None, bench.folder / 'x', packed=True)
    model = apis.load_delta(config, path)
    model.train()
    with pytest.raises(PETLError, match='take the delta that was packed'):
        model.backbone(inputs())
    with torch.no_grad():
        model.backbone(inputs())


def test_a_file_is_packed_with_its_config(bench) -> None:
    config = bench.config(TWO)
    model = bench.tuned(config)
    plain = apis.export_delta(model, config, bench.folder / 'x', {'top1': 3.5})
    with pytest.raises(PETLError, match='give the config of the run'):
        apis.export_delta(plain, None, bench.folder / 'y', packed=True)
    path = apis.export_delta(plain, config, bench.folder / 'y', packed=True)
    assert apis.read_delta(path).metrics == {'top1': 3.5}
    assert torch.equal(scores(apis.load_delta(config, path)), scores(model))


def test_what_has_no_weights_of_few_values_is_not_packed(bench) -> None:
    model = bench.tuned(bench.config({'type': 'LoRA', 'rank': 2}))
    with pytest.raises(PETLError, match='LoRA has no weights of few values'):
        apis.export_delta(model, None, bench.folder / 'x', packed=True)
    assert not list(bench.folder.glob('x*'))


def test_packed_files_that_do_not_hold_together_are_refused(bench) -> None:
    model = bench.tuned(bench.config(TWO))
    path = apis.export_delta(model, None, bench.folder / 'x', packed=True)
    record = path.with_suffix('.json')
    good, held = json.loads(record.read_text()), load_file(path)
    key = next(iter(good['packed']))
    facts = good['packed'][key]

    def refused(line: str, own: dict | None = None, change: dict | None = None) -> None:
        tensors = {k: v for k, v in (held | (change or {})).items() if v is not None}
        save_file(tensors, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sealed = {**good['tensors'], 'sha256': digest}
        packed = {**good['packed'], key: {**facts, **(own or {})}}
        record.write_text(json.dumps({**good, 'tensors': sealed, 'packed': packed}))
        with pytest.raises(PETLError, match=line) as error:
            apis.read_delta(path)
        assert '\n' not in str(error.value)

    n = facts['shape'][0] * facts['shape'][1]
    refused(r'bits: Invalid enum value 3', {'bits': 3})
    refused(r'shape\[0\]: expected int >= 1', {'shape': [0, 3]})
    refused(r'shape: expected array of length >= 1', {'shape': []})
    refused(f'{n * 2} entries of 2 bits are', {'shape': [2 * n]})
    refused('entries of 1 bits are', {'bits': 1})
    codes, levels = f'{key}.codes', f'{key}.levels'
    refused('codes are .* of torch.int32', None, {codes: held[codes].int()})
    refused(r'levels are \(3,\)', None, {levels: held[levels][:3].clone()})
    refused('levels do not ascend', None, {levels: held[levels].flip(0)})
    refused('levels are .* of torch.int64', None, {levels: held[levels].long()})
    refused(f'and the file has no {levels}', None, {levels: None})
    refused(f'and the file has {key} as well', None, {key: torch.ones(1)})
    refused('not finite', None, {levels: held[levels] / 0})


def test_a_head_of_few_bits_is_packed_too(bench) -> None:
    config = bench.config({'type': 'LoRA', 'rank': 2})
    text = config.read_text().replace("'LinearClsHead'", "'mmpetl.FewBitsHead'")
    config.write_text(text)
    model = bench.tuned(config)
    assert dict(model.head.named_parameters()).keys() == {'fc.weight'}
    assert len(model.head.fc.used().unique()) == 2
    x = torch.randn(3, 32, requires_grad=True)
    logits = model.head((x,))
    torch.testing.assert_close(logits, x @ model.head.fc.used().T)
    path = apis.export_delta(model, config, bench.folder / 'x', packed=True)
    held = load_file(path)
    assert held['head.fc.weight.codes'].numel() == 4 * 32 // 8
    fresh = apis.load_delta(config, path).eval()
    assert torch.equal(fresh.head((x,)), logits)
    config.write_text(text.replace('num_classes=4', 'num_classes=4, bits=3'))
    with pytest.raises(PETLError, match='FewBitsHead needs bits of 1, 2, 4, 8, got 3'):
        bench.tuned(config)
