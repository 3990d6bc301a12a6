"""VMT-Adapter (a reconstruction): one shared adapter, a scale and shift per task."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from full_size import counts

import mmpetl
from mmpetl.core import Context, PETLError, Site
from mmpetl.core.tasks import task_features
from mmpetl.methods.vmt_adapter import VMTAdapter

F64 = torch.float64
FOUR = ('semseg', 'parts', 'saliency', 'normals')
DENSE = ('mmpretrain_swin', 'mmpretrain_vit', 'mmaction_swin3d')


def tuned(host: str, shaken: bool = True, **args):
    torch.manual_seed(4)
    method = VMTAdapter(**{'reduction': 4, 'tasks': FOUR} | args)
    model = mmpetl.inject(tiny.base(host, F64), method)
    if shaken:
        tiny.shake_(model)
    model.eval()
    return model


def site(kind: str, dims: int = 8, **facts) -> Site:
    return Site(kind, 'b', dims, dims, embed_dims=8, **facts)


@pytest.mark.parametrize('lite', [False, True])
@pytest.mark.parametrize('host', DENSE)
def test_every_task_starts_as_the_frozen_model(host, lite):
    x = tiny.images(host, dtype=F64)
    frozen = mmpetl.inject(tiny.base(host, F64), tiny.Nothing())
    want = tiny.outputs(frozen, x)
    features = task_features(tuned(host, shaken=False, lite=lite), x, FOUR)
    for maps in features.values():
        for got, expected in zip(maps, want, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize('count', range(1, 9))
def test_one_backbone_call_for_any_number_of_tasks(count):
    x = tiny.images('mmpretrain_swin', dtype=F64)
    tasks = tuple(f'task{i}' for i in range(count))
    model = tuned('mmpretrain_swin', tasks=tasks)
    calls = {'backbone': 0, 'block': 0}
    model.register_forward_hook(lambda *_: calls.update(backbone=calls['backbone'] + 1))
    for module in model.modules():
        if hasattr(module, 'with_cp') and hasattr(module, 'ffn'):
            module.register_forward_hook(
                lambda _, args, out: (
                    (
                        calls.update(block=calls['block'] + 1),
                        # The stream is as large as for one task.
                        len(out) == len(x) or pytest.fail('the stream was stacked'),
                    )
                    and None
                )
            )
    features = task_features(model, x, tasks)
    assert calls == {'backbone': 1, 'block': 4}
    assert len(features) == count


def test_features_of_a_task_do_not_depend_on_the_others():
    x = tiny.images('mmpretrain_swin', dtype=F64)
    many = tuned('mmpretrain_swin')
    alone = tuned('mmpretrain_swin', tasks=('saliency',))
    state = many.state_dict()
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    want = task_features(many, x, FOUR)['saliency']
    for got, expected in zip(alone(x), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_counts():
    # Swin-T: 2 C^2 / 16 + C / 16 + C per block and 2 C per task and stage.
    adapters, per_task = 274_260, 2_880
    for tasks in (FOUR[:1], FOUR):
        want = adapters + per_task * len(tasks)
        assert counts('swin_t_dense', VMTAdapter(tasks)).delta == want
    # The scalar of each of the 12 blocks is not in the formula of the Lite variant.
    lite = counts('swin_t_dense', VMTAdapter(FOUR, lite=True)).delta
    assert lite == 139_476 + per_task * 4 + 12
    narrow = counts('swin_t_dense', VMTAdapter(FOUR, 32, lite=True)).delta
    assert narrow == 67_392 + 138 + 4_416 + per_task * 4 + 12


def test_lite_ties_both_projections():
    made = VMTAdapter(reduction=4, lite=True).build(site('ffn')).double()
    with torch.no_grad():
        made.scale.fill_(0.7)
        made.up_bias.normal_()
        made.down.bias.normal_()
    x, ctx = torch.randn(2, 5, 8, dtype=F64), Context((5,))
    made.after(x, x, ctx)
    made.notes(ctx)['g'].square().sum().backward()
    down = made.down.weight.detach().clone().requires_grad_()
    up = made.down.weight.detach().t().clone().requires_grad_()
    g = 0.7 * (F.gelu(x @ down.t() + made.down.bias) @ up.t() + made.up_bias)
    first, second = torch.autograd.grad(g.square().sum(), (down, up))
    assert first.abs().max() > 0
    assert second.abs().max() > 0
    torch.testing.assert_close(made.down.weight.grad, first + second.t())


def test_formula():
    method = VMTAdapter(('a', 'b'), reduction=4)
    adapter, join = (method.build(site(kind)).double() for kind in ('ffn', 'ffn.sum'))
    leave = method.build(site('out', index=0)).double()
    switch = method.share([])
    for delta in (adapter, join, leave):
        delta.attach('0', switch)
        for param in delta.parameters():
            torch.nn.init.normal_(param)
    h, b, x, y = (torch.randn(2, 5, 8, dtype=F64) for _ in range(4))
    ctx = Context((5,))
    ctx.notes['0'] = {'tasks': ('b', 'a')}
    assert adapter.after(h, b, ctx) is b
    g = F.gelu(h @ adapter.down.weight.t() + adapter.down.bias)
    g = g @ adapter.up.weight.t() + adapter.up.bias
    torch.testing.assert_close(join.after(x, y, ctx), y + g)
    want = [x + leave.gamma[t] * g + leave.beta[t] for t in ('b', 'a')]
    torch.testing.assert_close(leave.before(x, ctx), torch.cat(want))


def test_the_adapter_bypasses_stochastic_depth():
    model = tuned('mmpretrain_swin', tasks=('only',))
    x = tiny.images('mmpretrain_swin', dtype=F64)
    block = model.stages[0].blocks[0]
    # A branch that is dropped leaves the stream and g.
    block.residual = lambda branch, b: torch.zeros_like(b)
    seen = {}

    def note(module, args, out):
        seen['x'], ctx = args
        seen['g'] = ctx.notes['0']['g']
        seen['y'] = out

    block.register_forward_hook(note)
    model(x)
    assert seen['g'].abs().max() > 0
    torch.testing.assert_close(seen['y'], seen['x'] + seen['g'])


def test_a_loss_on_one_task_leaves_the_parameters_of_another():
    model = tuned('mmpretrain_swin')
    x = tiny.images('mmpretrain_swin', dtype=F64)
    tiny.loss_of(list(task_features(model, x, FOUR)['parts'])).backward()
    for name, param in model.named_parameters():
        if name.rpartition('.')[2] in FOUR:
            moved = param.grad is not None and bool(param.grad.any())
            assert moved == name.endswith('.parts'), name
        elif param.requires_grad:
            assert param.grad.any(), name


@pytest.mark.parametrize('reduction', [0, 33])
def test_a_reduction_out_of_range_is_one_line(reduction):
    with pytest.raises(PETLError, match='reduction of at') as error:
        mmpetl.inject(tiny.base('timm_vit'), VMTAdapter(reduction=reduction))
    assert '\n' not in str(error.value)
