"""Deltas of plain models on disk: the right method, base and slot, or one line."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import Tuned, base, images, outputs, shake_
from torch import nn

import mmpetl
from mmpetl.core import PETLError
from mmpetl.core.delta_file import read_delta_file, write_delta_file
from mmpetl.methods.lora import LoRA

VIT = 'timm_vit'


def tuned(method=None, slot: str | None = None, seed: int = 0) -> nn.Module:
    model = mmpetl.inject(base(VIT), method or LoRA(rank=2), slot=slot)
    shake_(model, seed=seed)
    return model


@pytest.mark.parametrize('method', ['LoRA', 'BitFit', 'SSF', 'LST', 'VPTDeep', 'Full'])
def test_what_is_saved_is_what_is_loaded(method, tmp_path) -> None:
    model = tuned(method)
    with torch.no_grad():
        model.head.bias += 1
    file = mmpetl.save_delta(model, tmp_path / 'delta')
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'delta.json',
        'delta.safetensors',
    ]
    other = mmpetl.inject(base(VIT), method, slot='mine')
    assert mmpetl.load_delta(other, file) is other
    x = images(VIT)
    assert all(map(torch.equal, outputs(other, x), outputs(model, x)))


def test_other_arguments_are_refused(tmp_path) -> None:
    """A LoRA(alpha=32) delta loaded into LoRA() without a word, with other answers."""
    mmpetl.save_delta(tuned(LoRA(rank=2, alpha=32)), tmp_path / 'd')
    model = mmpetl.inject(base(VIT), LoRA(rank=2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PETLError, match="'alpha': 32.*use the same arguments") as error:
        mmpetl.load_delta(model, tmp_path / 'd')
    assert '\n' not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_base_another_method_and_another_class_are_refused(tmp_path) -> None:
    mmpetl.save_delta(tuned(), tmp_path / 'd')
    moved = base(VIT)
    with torch.no_grad():
        moved.norm.weight += 1
    for model, message in (
        (mmpetl.inject(moved, LoRA(rank=2)), 'was made on the base'),
        (mmpetl.inject(base(VIT), 'SSF'), 'is of LoRA, the model has SSF'),
        (
            mmpetl.inject(base('mmpretrain_swin_cls'), LoRA(rank=2)),
            'is of a VisionTransformer, this backbone is a SwinTransformer',
        ),
        (base(VIT), r"holds no method; first mmpetl.inject\(model, {'type': 'LoRA'"),
    ):
        with pytest.raises(PETLError, match=message) as error:
            mmpetl.load_delta(model, tmp_path / 'd')
        assert '\n' not in str(error.value)


def test_a_slot_is_saved_alone_and_loaded_into_another(tmp_path) -> None:
    model = tuned(LoRA(rank=2), slot='first')
    mmpetl.inject(model, LoRA(rank=3), slot='second')
    shake_(model, seed=1)
    mmpetl.save_delta(model, tmp_path / 'two', slot='second')
    tensors, facts = read_delta_file(tmp_path / 'two')
    assert facts['method']['rank'] == 3
    assert not [key for key in tensors if 'second' in key or 'first' in key]
    other = mmpetl.inject(base(VIT), LoRA(rank=2), slot='own')
    mmpetl.inject(other, LoRA(rank=3), slot='guest')
    own = other.blocks[0].petl.attn_v.own.A.clone()
    mmpetl.load_delta(other, tmp_path / 'two', slot='guest')
    assert torch.equal(other.blocks[0].petl.attn_v.own.A, own)
    for block, theirs in zip(other.blocks, model.blocks, strict=True):
        for a, b in zip(
            block.petl.attn_v.guest.parameters(),
            theirs.petl.attn_v.second.parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)
    with pytest.raises(PETLError, match='the delta is of LoRA, the model has LoRA'):
        mmpetl.load_delta(other, tmp_path / 'two')
    with pytest.raises(PETLError, match="no slot 'gest'.*guest"):
        mmpetl.load_delta(other, tmp_path / 'two', slot='gest')


@pytest.mark.parametrize('off', [(), ('a',), ('b',), ('a', 'b')])
@pytest.mark.parametrize('on_load', [(), ('a', 'b')])
def test_selectors_are_saved_whichever_is_switched_on(off, on_load, tmp_path) -> None:
    model = tuned('BitFit', slot='a')
    mmpetl.inject(model, 'LNTune', slot='b')
    shake_(model, seed=1)
    x = images(VIT)
    want = outputs(model, x)
    for slot in off:
        mmpetl.disable(model, slot)
    mmpetl.save_delta(model, tmp_path / 'd')
    mmpetl.save_delta(model, tmp_path / 'a', slot='a')
    other = mmpetl.inject(base(VIT), 'BitFit', slot='a')
    mmpetl.inject(other, 'LNTune', slot='b')
    for slot in on_load:
        mmpetl.disable(other, slot)
    mmpetl.load_delta(other, tmp_path / 'd')
    for slot in on_load:
        mmpetl.enable(other, slot)
    assert all(map(torch.equal, outputs(other, x), want))
    for slot in off:
        mmpetl.enable(model, slot)
    mmpetl.disable(model, 'b')
    alone = mmpetl.load_delta(mmpetl.inject(base(VIT), 'BitFit'), tmp_path / 'a')
    assert all(map(torch.equal, outputs(alone, x), outputs(model, x)))


class Parallel(nn.Module):
    """As DistributedDataParallel names what it wraps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrappers_leave_no_trace_in_the_file(tmp_path) -> None:
    x = images(VIT)
    model = Tuned(tuned(), x)
    compiled = torch.compile(model, backend='eager')
    mmpetl.save_delta(Parallel(compiled), tmp_path / 'd')
    tensors, _ = read_delta_file(tmp_path / 'd')
    assert not [k for k in tensors if 'module' in k or '_orig_mod' in k]
    assert 'heads.0.weight' in tensors
    plain = Tuned(mmpetl.inject(base(VIT), LoRA(rank=2), slot='x'), x)
    mmpetl.load_delta(plain, tmp_path / 'd')
    assert all(map(torch.equal, plain(x), model(x)))
    again = Parallel(Tuned(mmpetl.inject(base(VIT), LoRA(rank=2)), x))
    mmpetl.load_delta(again, tmp_path / 'd')
    assert all(map(torch.equal, again.module(x), model(x)))


def test_the_tools_read_what_python_wrote_and_the_other_way(tmp_path) -> None:
    from mmpetl.apis import export_delta, load_delta

    model = tuned()
    x = images(VIT)
    want = outputs(model, x)
    mmpetl.save_delta(model, tmp_path / 'python')
    export_delta(model, None, tmp_path / 'tools')
    for load, name in ((load_delta, 'python'), (mmpetl.load_delta, 'tools')):
        other = load(mmpetl.inject(base(VIT), LoRA(rank=2)), tmp_path / name)
        assert all(map(torch.equal, outputs(other, x), want))


def test_values_that_are_not_finite_are_not_written(tmp_path) -> None:
    model = tuned()
    with torch.no_grad():
        model.blocks[0].petl.attn_v['0'].A[0, 0] = float('nan')
    with pytest.raises(PETLError, match='values that are not finite'):
        mmpetl.save_delta(model, tmp_path / 'd')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('method', ['SSF', 'PartialK'])
def test_a_delta_from_before_pooled_norms_had_a_site_leaves_them(
    method, tmp_path
) -> None:
    def trunk() -> nn.Module:
        return tiny.randomise_(tiny.mmpretrain_vit(out_type='avg_featmap'))

    model = mmpetl.inject(trunk(), method)
    shake_(model)
    slot = model.petl.out_norm_2['0'] if method == 'SSF' else model.ln2
    plain = mmpetl.inject(trunk(), method)
    start = plain.petl.out_norm_2['0'] if method == 'SSF' else plain.ln2
    slot.load_state_dict(start.state_dict())
    mmpetl.save_delta(model, tmp_path / 'new')
    tensors, facts = read_delta_file(tmp_path / 'new')
    later = 'petl.out_norm_2.' if method == 'SSF' else 'ln2.'
    old = {k: v for k, v in tensors.items() if not k.startswith(later)}
    assert len(old) < len(tensors)
    write_delta_file(tmp_path / 'both', old, facts)
    with pytest.raises(PETLError, match=f'{later}.* missing'):
        mmpetl.load_delta(plain, tmp_path / 'both')
    write_delta_file(
        tmp_path / 'old', old, {k: v for k, v in facts.items() if k != 'sites'}
    )
    mmpetl.load_delta(plain, tmp_path / 'old')
    x = images('mmpretrain_vit')
    assert all(map(torch.equal, outputs(plain, x), outputs(model, x)))


def test_a_delta_of_a_base_that_moved_is_not_written(tmp_path) -> None:
    model = tuned()
    model.norm.weight.data += 1
    with pytest.raises(PETLError, match=r'norm.weight of the frozen base changed'):
        mmpetl.save_delta(model, tmp_path / 'd')


def with_norm(method='LoRA') -> nn.Module:
    """A trunk whose head, which lies in it, has running statistics."""
    model = base(VIT)
    width = model.head.in_features
    model.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 3))
    torch.manual_seed(1)
    nn.init.normal_(model.head[1].weight)
    return mmpetl.inject(model, method)


def trained_with_norm() -> nn.Module:
    model = with_norm()
    shake_(model)
    model.train()(images(VIT))
    assert not torch.equal(model.head[0].running_mean, torch.zeros(1))
    return model.eval()


@pytest.mark.parametrize('writes', ['save_delta', 'export_delta'])
@pytest.mark.parametrize('reads', ['core', 'apis'])
def test_statistics_of_a_head_inside_of_the_trunk_are_saved(
    writes, reads, tmp_path
) -> None:
    from mmpetl import apis

    model, x = trained_with_norm(), images(VIT)
    if writes == 'save_delta':
        mmpetl.save_delta(model, tmp_path / 'd')
    else:
        apis.export_delta(model, None, tmp_path / 'd')
    tensors, _ = read_delta_file(tmp_path / 'd')
    assert {'head.0.running_mean', 'head.0.num_batches_tracked'} <= set(tensors)
    load = mmpetl.load_delta if reads == 'core' else apis.load_delta
    other = load(with_norm(), tmp_path / 'd').eval()
    assert all(map(torch.equal, outputs(other, x), outputs(model, x)))


@pytest.mark.parametrize('reads', ['core', 'apis'])
def test_a_delta_from_before_they_were_saved_still_loads(reads, tmp_path) -> None:
    from mmpetl import apis

    model = trained_with_norm()
    mmpetl.save_delta(model, tmp_path / 'new')
    tensors, facts = read_delta_file(tmp_path / 'new')
    buffers = {name for name, _ in model.named_buffers()}
    old = {k: v for k, v in tensors.items() if k not in buffers}
    assert len(old) == len(tensors) - 3
    load = mmpetl.load_delta if reads == 'core' else apis.load_delta
    write_delta_file(tmp_path / 'cut', old, facts)
    with pytest.raises(PETLError, match='head.0.*missing'):
        load(with_norm(), tmp_path / 'cut')
    del facts['head']
    write_delta_file(tmp_path / 'old', old, facts)
    other = with_norm()
    with pytest.warns(UserWarning, match='lacks head.0.num_batches_tracked'):
        load(other, tmp_path / 'old')
    assert torch.equal(other.head[1].weight, model.head[1].weight)
    assert not other.head[0].running_mean.any()


def test_a_model_with_channels_last_is_saved(tmp_path) -> None:
    from mmpetl.apis import export_delta

    model = base(VIT).to(memory_format=torch.channels_last)
    model.head = nn.Sequential(
        nn.Unflatten(1, (-1, 4, 4)), nn.Conv2d(model.head.in_features // 16, 3, 3)
    )
    model = mmpetl.inject(model, 'Full').to(memory_format=torch.channels_last)
    assert not model.head[1].weight.is_contiguous()
    mmpetl.save_delta(model, tmp_path / 'd')
    export_delta(model, None, tmp_path / 'e')
    for name in ('d', 'e'):
        tensors, _ = read_delta_file(tmp_path / name)
        assert torch.equal(tensors['head.1.weight'], model.head[1].weight)


class Towers(nn.Module):
    """Two trunks, each of which may hold a method."""

    def __init__(self, one='LoRA', two='SSF') -> None:
        super().__init__()
        self.one = mmpetl.inject(base(VIT), one)
        self.two = mmpetl.inject(base(VIT), two)


def test_each_of_two_trunks_is_on_record(tmp_path) -> None:
    from mmpetl.apis import export_delta, load_delta

    model = Towers()
    shake_(model)
    export_delta(model, None, tmp_path / 'd')
    _, facts = read_delta_file(tmp_path / 'd')
    assert [(t['path'], t['method']['type']) for t in facts['trunks']] == [
        ('one', 'LoRA'),
        ('two', 'SSF'),
    ]
    other = load_delta(Towers(), tmp_path / 'd')
    found = dict(other.named_parameters())
    assert all(torch.equal(p, found[n]) for n, p in model.named_parameters())
    export_delta(Towers('LoRA', LoRA(alpha=3)), None, tmp_path / 'alpha')
    for path, twin, line in (
        ('d', Towers('LoRA', 'BitFit'), 'two: the delta is of SSF, the model has Bi'),
        ('alpha', Towers('LoRA', 'LoRA'), "two: .*'alpha': 3"),
        (
            'alpha',
            Towers('LoRA', [{'type': 'LoRA', 'alpha': 3, 'blocks': '1:'}]),
            'two: the delta acts at all layers, the model at',
        ),
        ('d', tuned('LoRA'), 'methods in 2 backbones .one, two., the model .* in one'),
    ):
        with pytest.raises(PETLError, match=line) as error:
            load_delta(twin, tmp_path / path)
        assert '\n' not in str(error.value)
    # Files from before tell of the first trunk alone.
    tensors, facts = read_delta_file(tmp_path / 'd')
    del facts['trunks']
    write_delta_file(tmp_path / 'old', tensors, facts)
    load_delta(Towers(), tmp_path / 'old')


def test_what_trained_like_a_head_is_on_record(tmp_path) -> None:
    model = mmpetl.inject(base(VIT), 'LoRA', head=('norm',))
    shake_(model)
    with torch.no_grad():
        model.norm.weight += 1
    mmpetl.save_delta(model, tmp_path / 'd')
    with pytest.raises(PETLError, match=r"holds no.*head=\('norm',\)"):
        mmpetl.load_delta(base(VIT), tmp_path / 'd')
    line = r"trained with head=\('norm',\), the model was injected with no head="
    with pytest.raises(PETLError, match=line) as error:
        mmpetl.load_delta(mmpetl.inject(base(VIT), 'LoRA'), tmp_path / 'd')
    assert '\n' not in str(error.value)
    tensors, facts = read_delta_file(tmp_path / 'd')
    assert facts['head'] == ['norm']
    del facts['head']
    write_delta_file(tmp_path / 'old', tensors, facts)
    for name in ('d', 'old'):
        other = mmpetl.inject(base(VIT), 'LoRA', head=('norm',))
        mmpetl.load_delta(other, tmp_path / name)
        assert torch.equal(other.norm.weight, model.norm.weight)


def test_two_writers_of_a_file_do_not_meet(tmp_path) -> None:
    """Ranks that save to one path renamed the file of each other away."""
    from concurrent.futures import ThreadPoolExecutor

    from mmpetl.core.delta_file import write_all

    path = tmp_path / 'd.json'
    written = [bytes([n]) * 100_000 for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda data: write_all({path: data}), written * 4))
    assert path.read_bytes() in written
    assert list(tmp_path.iterdir()) == [path]
