"""MTLoRA: pairs that tasks share, and streams of their own in front of outputs."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts
from plain_vit import delta
from torch import Tensor, nn

import mmpetl
from mmpetl.core import Context, PETLError
from mmpetl.core.tasks import task_features
from mmpetl.methods.mt_lora import MTLoRA, fold_shared

F64 = torch.float64
FOUR = ('semseg', 'parts', 'saliency', 'normals')
SMALL = {'rank': 3, 'task_rank': 2, 'drop_rate': 0.0}
HOSTS = ('mmpretrain_swin', 'mmpretrain_vit', 'mmseg_mit', 'mmaction_swin3d')


def tuned(host: str, tasks=FOUR, shaken: bool = True, **args) -> nn.Module:
    torch.manual_seed(4)
    model = mmpetl.inject(tiny.base(host, F64), MTLoRA(tasks, **{**SMALL, **args}))
    if shaken:
        tiny.shake_(model)
    model.eval()
    return model


@pytest.mark.parametrize('mode', ['matrix', 'matrixv2'])
@pytest.mark.parametrize('host', HOSTS)
def test_every_task_starts_as_the_frozen_model(host, mode):
    x = tiny.images(host, dtype=F64)
    frozen = mmpetl.inject(tiny.base(host, F64), tiny.Nothing())
    want = tiny.outputs(frozen, x)
    features = task_features(tuned(host, shaken=False, mode=mode), x, FOUR)
    assert list(features) == list(FOUR)
    for maps in features.values():
        for got, expected in zip(maps, want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def add(pair: nn.Module, x: Tensor) -> Tensor:
    return pair.scale * (x @ pair.A.T @ pair.B.T)


def by_hand(model: nn.Module, images: Tensor, task: str, mode: str) -> Tensor:
    """Scores of one task, from the formula on the parts of the tuned model."""
    x = model._pos_embed(model.patch_embed(images))
    for i, b in enumerate(model.blocks):
        last = i == len(model.blocks) - 1

        def both(kind, linear, generic, own, i=i, last=last):
            d = delta(model, i, kind)
            y = linear(generic)
            shared = 0 if d.pair is None else add(d.pair, generic)
            if not last:
                return y + shared, None
            extra = shared if mode == 'matrixv2' else 0
            return y + shared, y + extra + add(d.tasks[task], own)

        h = b.norm1(x)
        qkv = b.attn.qkv(h) + add(delta(model, i, 'attn_qkv').pair, h)
        q, k, v = qkv.unflatten(-1, (3, b.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        o = (weights @ v).transpose(1, 2).flatten(2)
        y, y_t = both('attn_proj', b.attn.proj, o, o)
        a = x + y
        a_t = x + y_t if last else None
        h, h_t = b.norm2(a), b.norm2(a_t) if last else None
        u, u_t = both('ffn_fc1', b.mlp.fc1, h, h_t)
        f, f_t = both('ffn_fc2', b.mlp.fc2, F.gelu(u), F.gelu(u_t) if last else None)
        x = a_t + f_t if last else a + f
    return model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize('mode', ['matrix', 'matrixv2'])
def test_formula(mode):
    model = tuned('timm_vit', scale=1.5, task_scale=2.5, mode=mode)
    x = tiny.images('timm_vit', dtype=F64)
    got = task_features(model, x, ('parts', 'semseg'))
    want = {task: by_hand(model, x, task, mode) for task in got}
    for task, (scores,) in got.items():
        torch.testing.assert_close(scores, want[task], rtol=1e-10, atol=1e-10)
    assert (want['parts'] - want['semseg']).abs().max() > 1e-3
    dead = delta(model, 1, 'ffn_fc2').pair is None
    assert dead == (mode == 'matrix')


def test_streams_of_tasks_have_no_dropout_behind_the_projection() -> None:
    stream = delta(tuned('timm_vit', drop_rate=0.5), 1, 'ffn_fc1').train()
    generic, own = (torch.randn(2, 3, stream.pair.A.shape[1], dtype=F64),) * 2
    y, ctx = torch.randn(2, 3, len(stream.pair.B), dtype=F64), Context(())
    got = stream.joined(y, generic, {'parts': own}, ctx, stream.drop)
    shared, task = got.chunk(2)
    torch.testing.assert_close(task, y + add(stream.tasks['parts'], own))
    assert not torch.allclose(shared, y + add(stream.pair, generic))


@pytest.mark.parametrize('count', [1, 3])
def test_one_pass_whose_frozen_projections_see_generic_rows_only(count):
    x = tiny.images('mmpretrain_swin', dtype=F64)
    tasks = tuple(f'task{i}' for i in range(count))
    model, calls = tuned('mmpretrain_swin', tasks), []
    with torch.no_grad():
        for path, part in model.named_modules():
            if isinstance(part, nn.Linear) and '.petl.' not in path:
                part.register_forward_hook(
                    lambda _, args, out, path=path: calls.append((path, len(args[0])))
                )
        features = task_features(model, x, tasks)
    assert len(features) == count
    paths = [path for path, _ in calls]
    assert len(paths) == len(set(paths)) > 16
    networks = {rows for path, rows in calls if '.ffn.' in path}
    assert networks == {len(x)}


def test_features_of_a_task_do_not_depend_on_the_others():
    x = tiny.images('mmpretrain_swin', dtype=F64)
    many = tuned('mmpretrain_swin')
    alone = tuned('mmpretrain_swin', ('saliency',))
    state = many.state_dict()
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    want = task_features(many, x, FOUR)
    for got, expected in zip(alone(x), want['saliency'], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(want['saliency'][0], want['parts'][0])


def test_a_loss_on_one_task_and_stage_leaves_the_pairs_of_others():
    model = tuned('mmpretrain_swin')
    x = tiny.images('mmpretrain_swin', dtype=F64)
    # The second stage starts from the generic stream of the first.
    task_features(model, x, FOUR)['parts'][1].square().sum().backward()
    met = 0
    for name, param in model.named_parameters():
        moved = param.grad is not None and bool(param.grad.any())
        if '.tasks.' in name:
            own = '.tasks.parts.' in name and name.startswith('stages.1.')
            assert moved == own, name
            met += moved
        elif '.pair.' in name:
            assert moved, name
    assert met == 2 * 3


def test_counts():
    # Swin-T: 16 r C per block shared, 12 r C per task and stage, and what else trains.
    shared, per_task, dead = 4_521_984, 69_120, 64 * (3072 + 768)
    found = counts('swin_t_dense', MTLoRA(FOUR))
    assert found.delta == shared + 4 * per_task - dead
    # The published trunk has one norm behind it, and ours one behind each stage.
    norms = 2 * (96 + 192 + 384 + 768) - 2 * 768
    assert found.selected == 1_601_082 + norms
    assert found.delta + dead + found.selected - norms == 6_399_546
    assert counts('swin_t_dense', MTLoRA(FOUR, train_rest=False)).selected == 0
    plus = counts('swin_t_dense', MTLoRA(FOUR, plus=True))
    assert plus.delta == found.delta + 258_048
    second = counts('swin_t_dense', MTLoRA(FOUR[:1], mode='matrixv2'))
    assert second.delta == shared + per_task


@pytest.mark.parametrize('mode', ['matrix', 'matrixv2'])
@pytest.mark.parametrize('host', ['mmpretrain_swin', 'mmseg_mit'])
def test_shared_pairs_fold_where_no_task_has_its_own(host, mode):
    x = tiny.images(host, dtype=F64)
    model = tuned(host, plus=True, mode=mode)
    before = task_features(model, x, FOUR)
    with pytest.raises(PETLError, match='cannot be folded'):
        mmpetl.fold(model)
    size = sum('.pair.' in name for name in model.state_dict())
    assert fold_shared(model) is model
    left = [name for name in model.state_dict() if '.pair.' in name]
    assert 0 < len(left) < size
    tasked = {name.partition('.tasks.')[0] for name in model.state_dict()}
    assert {name.partition('.pair.')[0] for name in left} <= tasked
    for task, maps in task_features(model, x, FOUR).items():
        for got, want in zip(maps, before[task], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    model.train()  # checks that the base is what the fold has made of it


def test_nothing_else_is_folded():
    with pytest.raises(PETLError, match='Swin.* holds no MTLoRA'):
        fold_shared(tiny.base('mmpretrain_swin'))


@pytest.mark.parametrize('plus', [False, True])
def test_streams_pass_the_merging_in_front_of_a_late_output(plus):
    late = {'out_indices': (0, 1), 'out_after_downsample': True}
    base = tiny.randomise_(tiny.mmpretrain_swin(**late)).double()
    base.eval()
    x = tiny.images('mmpretrain_swin', dtype=F64)
    want = copy.deepcopy(base)(x)
    model = mmpetl.inject(base, MTLoRA(('a', 'b'), plus=plus, **SMALL))
    model.eval()
    for maps in task_features(model, x, ('a', 'b')).values():
        for got, expected in zip(maps, want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    tiny.shake_(model)
    features = task_features(model, x, ('a', 'b'))
    assert not torch.allclose(features['a'][0], features['b'][0])
    (features['a'][0].square().sum() + features['b'][1].square().sum()).backward()
    for task, stage in (('a', 0), ('b', 1)):
        name = f'stages.{stage}.blocks.1.petl.ffn_fc2.0.tasks.{task}.B'
        assert model.get_parameter(name).grad.any()
    pairs = [n for n, _ in model.named_parameters() if 'downsample_reduction_0' in n]
    assert bool(pairs) == plus
    assert all(model.get_parameter(name).grad.any() for name in pairs)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'rank': 0}, 'rank of at least 1, got 0'),
        ({'task_rank': 99}, 'rank below the narrowest projection'),
        ({'mode': 'matrix2'}, "matrix or matrixv2, got 'matrix2'. Did you mean"),
        ({'plus': True}, 'plus=True adapts patch mergings, and there is none'),
    ],
)
def test_bad_arguments_are_one_line(args, message):
    with pytest.raises(PETLError, match=message) as error:
        tuned('timm_vit', **args)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('order', ['own lora', 'lora own'])
def test_every_stream_reads_what_another_method_does_to_a_projection(order):
    targets = ['attn.q', 'attn.proj', 'ffn.fc1', 'ffn.fc2']
    methods = {
        'own': MTLoRA(FOUR, train_rest=False, **SMALL),
        'lora': {'type': 'LoRA', 'rank': 2, 'targets': targets},
    }
    model, x = tiny.base('timm_vit', F64), tiny.images('timm_vit', dtype=F64)
    for slot in order.split():
        mmpetl.inject(model, methods[slot], slot=slot)
    tiny.shake_(model)
    model.eval()
    both = task_features(model, x, FOUR)
    # A base that holds the other method's update, and this method on it.
    base = copy.deepcopy(model)
    mmpetl.eject(base, 'own')
    mmpetl.fold(base)
    mmpetl.inject(base, methods['own'], slot='own')
    state = model.state_dict()
    own = {key: state[key] for key in base.state_dict() if '.own.' in key}
    base.load_state_dict(own, strict=False)
    assert len(own) == 38
    base.eval()
    for task, (got,) in task_features(base, x, FOUR).items():
        torch.testing.assert_close(got, both[task][0], rtol=1e-10, atol=1e-10)


def test_what_would_meet_several_streams_is_refused():
    model = mmpetl.inject(tiny.base('timm_vit'), MTLoRA(FOUR, **SMALL))
    with pytest.raises(
        PETLError, match='several streams .* block 1, and AdaptFormer acts at ffn'
    ):
        mmpetl.inject(model, 'AdaptFormer', slot='second')


def test_pairs_behind_others_move_from_the_third_step_on():
    x = tiny.images('timm_vit')
    model = mmpetl.inject(tiny.base('timm_vit'), MTLoRA(**SMALL))
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    tiny.train(tiny.Tuned(model, x), x, steps=3)
    after = dict(model.named_parameters())
    assert [n for n, p in before.items() if torch.equal(after[n], p)] == []
