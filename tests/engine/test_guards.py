"""Guards, optimizer groups and the efficiency record."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from mmpetl.core import Delta, PETLError, delta_state, freeze, inject
from mmpetl.engine import OwnerOptimWrapperConstructor
from mmpetl.engine.hooks.base_guard import BaseGuardHook
from mmpetl.engine.optim import can_fuse


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(make_runner, tmp_path):
    runner = make_runner(spoil=5)
    with pytest.raises(PETLError, match=r'the loss is nan .*picture_\d+\.jpg') as info:
        runner.train()
    assert '\n' not in str(info.value)
    for value in runner.model.state_dict().values():
        assert torch.isfinite(value).all()


class Mover(Hook):
    """Moves one number of the base, by a way that no version counter sees."""

    def __init__(self, when):
        self.when = when

    def _move(self, runner, now):
        if now == self.when:
            runner.model.backbone.layers[0].attn.qkv.weight.data[0, 0] += 1e-3

    def before_train(self, runner):
        self._move(runner, 'before training')

    def after_train_epoch(self, runner):
        self._move(runner, f'epoch {runner.epoch + 1}')


def test_a_moved_base_is_noticed(make_runner):
    unsaved = {'checkpoint': {'type': 'CheckpointHook', 'interval': -1}}
    unsaved['checkpoint']['save_last'] = False
    runner = make_runner(hooks=[Mover('epoch 2')], default_hooks=unsaved)
    with pytest.raises(PETLError, match=r'1 frozen parameters changed during training'):
        runner.train()


@pytest.mark.parametrize(
    ('when', 'left'),
    [
        ('before training', []),
        ('epoch 1', []),
        ('epoch 3', ['epoch_1.pth', 'epoch_2.pth']),
    ],
)
def test_no_delta_is_saved_of_a_base_that_has_moved(make_runner, tmp_path, when, left):
    """Without any other hook of ours."""
    runner = make_runner(hooks=[Mover(when)], custom_hooks=[])
    with pytest.raises(PETLError, match=r'1 tensors of the frozen base .*qkv.*delta'):
        runner.train()
    assert sorted(p.name for p in (tmp_path / 'run').glob('epoch_*')) == left


def test_an_initialiser_that_redraws_the_base_stops_the_run(make_runner, tmp_path):
    """As a model's own init_cfg does at Runner.train() where nothing holds it off."""

    class Redraw(Hook):
        def before_run(self, runner):
            runner._init_model_weights = lambda: [
                nn.init.normal_(m.weight)
                for m in runner.model.modules()
                if isinstance(m, nn.Linear)
            ]

    runner = make_runner(hooks=[Redraw()], custom_hooks=[])
    with pytest.raises(PETLError, match=r'tensors of the frozen base differ'):
        runner.train()
    assert not list((tmp_path / 'run').glob('*.pth'))


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD'])
def test_an_optimizer_may_know_frozen_parameters(make_runner, optimizer):
    """MMEngine's own constructor hands all of them over; decay leaves them alone."""
    ends = []
    for constructor in (
        'DefaultOptimWrapperConstructor',
        'mmpetl.OwnerOptimWrapperConstructor',
    ):
        wrapper = {
            'type': 'OptimWrapper',
            'optimizer': {
                'type': optimizer,
                'lr': 1e-2,
                'weight_decay': 0.1,
                'fused': False,  # one takes it by itself, and rounds elsewhere
            },
            'constructor': constructor,
        }
        if constructor.startswith('mmpetl'):
            wrapper['paramwise_cfg'] = {'decay_all': True}
        runner = make_runner(constructor, optim_wrapper=wrapper)
        runner.train()
        ends.append(runner.model.state_dict())
    assert all(map(torch.equal, ends[0].values(), ends[1].values()))


def test_a_thawed_base_is_noticed(make_runner):
    class Thaw(Hook):
        priority = 'HIGHEST'

        def before_train(self, runner):
            runner.model.backbone.layers[0].attn.qkv.weight.requires_grad_(True)

    runner = make_runner(hooks=[Thaw()])
    with pytest.raises(PETLError, match='belongs to the frozen base but would train: '):
        runner.train()


def with_a_frozen_slot(make_runner, method, hooks=()):
    """A run that trains LoRA beside a method that acts without training."""
    runner = make_runner(method=method, hooks=hooks)
    backbone = inject(runner.model.backbone, {'type': 'LoRA', 'rank': 2}, slot='new')
    freeze(backbone, '0')
    return runner


@pytest.mark.parametrize(
    'method',
    [{'type': 'SSF'}, {'type': 'SCT', 'num_channels': 8}, {'type': 'BitFit'}],
    ids=lambda method: method['type'],
)
def test_a_frozen_slot_rests_through_a_run(make_runner, tmp_path, method):
    runner = with_a_frozen_slot(make_runner, method)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    after = runner.model.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved
    assert all('.new.' in k or k.startswith('head.') for k in moved)
    handed = {id(p) for g in runner.optim_wrapper.param_groups for p in g['params']}
    frozen = [p for p in runner.model.parameters() if not p.requires_grad]
    assert not [p for p in frozen if id(p) in handed]
    content = torch.load(tmp_path / 'run' / 'epoch_4.pth', weights_only=True)
    assert set(content['state_dict']) == set(delta_state(runner.model))


def test_a_frozen_slot_that_moves_is_noticed(make_runner):
    class MoveSlot(Hook):
        def after_train_epoch(self, runner):
            params = runner.model.named_parameters()
            name = next(n for n, p in params if 'petl' in n and not p.requires_grad)
            runner.model.get_parameter(name).data += 1

    runner = with_a_frozen_slot(make_runner, {'type': 'SSF'}, [MoveSlot()])
    with pytest.raises(PETLError, match='1 parameters of slots that are frozen or'):
        runner.train()


def constructor(**paramwise):
    return OwnerOptimWrapperConstructor(
        {'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}}, paramwise
    )


def test_groups_are_by_owner_and_hold_all_that_trains(make_runner):
    model = make_runner(method={'type': 'BitFit'}).model
    groups = {g['name']: g for g in constructor(head={'lr_mult': 10}).groups(model)}
    assert set(groups) == {'selected_no_decay', 'head', 'head_no_decay'}
    assert groups['head']['lr'] == pytest.approx(1e-2)
    assert groups['head']['weight_decay'] == pytest.approx(0.1)
    assert groups['selected_no_decay']['weight_decay'] == 0
    handed = {id(p) for g in groups.values() for p in g['params']}
    assert handed == {id(p) for p in model.parameters() if p.requires_grad}


def test_one_decay_for_all_on_request(make_runner):
    model = make_runner(method={'type': 'BitFit'}).model
    groups = constructor(decay_all=True).groups(model)
    assert {g['weight_decay'] for g in groups} == {0.1}


@pytest.mark.parametrize(
    ('kind', 'devices'),
    [
        ('Adagrad', {'cpu'}),
        ('Adam', {'cpu', 'cuda'}),
        ('AdamW', {'cpu', 'cuda'}),
        ('SGD', {'cpu', 'cuda'}),
        ('RMSprop', set()),
    ],
)
def test_a_fused_step_is_taken_where_torch_has_one(kind, devices):
    for device in ('cpu', 'cuda', 'meta'):
        param = SimpleNamespace(
            is_floating_point=lambda: True, device=torch.device(device)
        )
        fits = can_fuse({'type': kind}, [param])
        assert fits == (device in devices), device
        assert not can_fuse({'type': kind, 'fused': False}, [param])


def test_unknown_group_options_are_refused():
    with pytest.raises(PETLError, match=r"no key 'heads'.* Did you mean 'head'"):
        constructor(heads={'lr_mult': 2})
    with pytest.raises(PETLError, match='takes lr_mult and decay_mult'):
        constructor(head={'lr': 2})


def small(**paramwise):
    """Groups of a small model of heads: name, then what is set, by parameter."""
    model = nn.Sequential()
    model.norm = nn.LayerNorm(4)
    model.conv = nn.Conv2d(4, 4, 3, groups=4)
    model.fc = nn.Linear(4, 2)
    model.scale = nn.Parameter(torch.ones(()))
    model.fixed = nn.Linear(2, 2).requires_grad_(False)
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (group['name'], group['lr'], group['weight_decay'])
        for group in constructor(**paramwise).groups(model)
        for p in group['params']
    }


def reference(**paramwise):
    """The same by MMEngine's constructor, with the zero that ours begins with."""
    from mmengine.optim import build_optim_wrapper

    model = nn.Sequential()
    model.norm = nn.LayerNorm(4)
    model.conv = nn.Conv2d(4, 4, 3, groups=4)
    model.fc = nn.Linear(4, 2)
    names = {id(p): n for n, p in model.named_parameters()}
    wrapper = build_optim_wrapper(
        model,
        {
            'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1},
            'paramwise_cfg': paramwise,
        },
    )
    return {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }


@pytest.mark.parametrize(
    'options',
    [
        {'norm_decay_mult': 0.5},
        {'bias_decay_mult': 0.5, 'norm_decay_mult': 0.0},
        {'bias_lr_mult': 2.0},
        {'dwconv_decay_mult': 0.2, 'flat_decay_mult': 0.0},
        {'flat_decay_mult': 0.3, 'norm_decay_mult': 0.7, 'bypass_duplicate': True},
        {'custom_keys': {'fc': {'lr_mult': 3}, 'fc.bias': {'decay_mult': 0.0}}},
    ],
    ids=lambda options: '-'.join(options),
)
def test_upstreams_options_mean_what_they_mean_there(options):
    ours = small(decay_all=True, **options)
    for name, expected in reference(**options).items():
        assert ours[name][1:] == pytest.approx(expected), name
    assert not [name for name in ours if name.startswith('fixed')]


def test_what_no_option_names_keeps_the_rule_of_the_owner():
    groups = small(norm_decay_mult=0.5, bias_lr_mult=2.0, head={'lr_mult': 10})
    assert groups == {
        'fc.weight': ('head', 1e-2, 0.1),
        'conv.weight': ('head', 1e-2, 0.1),
        'scale': ('head_no_decay', 1e-2, 0.0),
        'norm.weight': ('head_norm', 1e-2, 0.05),
        'norm.bias': ('head_norm', 1e-2, 0.05),
        'conv.bias': ('head_no_decay_bias_lr', 2e-2, 0.0),
        'fc.bias': ('head_no_decay_bias_lr', 2e-2, 0.0),
    }


def test_options_without_a_rate_or_decay_to_multiply_are_refused():
    for options, message in (
        ({'norm_decay_mult': 0.0}, 'norm_decay_mult=0.0 multiplies weight_decay'),
        (
            {'custom_keys': {'a': {'decay_mult': 0}}},
            r"custom_keys\['a'\].decay_mult mul",
        ),
        ({'custom_keys': {'a': 0.1}}, 'takes a dict for each part of a name'),
    ):
        with pytest.raises(PETLError, match=message):
            OwnerOptimWrapperConstructor(
                {'optimizer': {'type': 'SGD', 'lr': 1e-3}}, options
            )


@pytest.mark.parametrize(
    ('settings', 'fused'),
    [
        ({'type': 'AdamW', 'weight_decay': 0.1}, True),
        ({'type': torch.optim.Adam}, True),
        ({'type': 'SGD', 'momentum': 0.9, 'nesterov': True}, True),
        ({'type': 'AdamW', 'fused': False}, False),
        ({'type': 'AdamW', 'foreach': True}, False),
        ({'type': 'RMSprop'}, False),
    ],
    ids=['adamw', 'adam', 'sgd', 'said', 'foreach', 'rmsprop'],
)
def test_a_fused_step_is_taken_where_there_is_one(settings, fused):
    settings = {'lr': 1e-2, **settings}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    twin = copy.deepcopy(model)
    ours = OwnerOptimWrapperConstructor({'optimizer': settings})(model).optimizer
    assert bool(ours.defaults.get('fused')) is fused
    kind = settings.pop('type')
    kind = getattr(torch.optim, kind) if isinstance(kind, str) else kind
    # Biases do not decay where a decay is named.
    spared = {'weight_decay': 0.0} if 'weight_decay' in settings else {}
    groups = [
        {'params': [twin[0].weight, twin[2].weight]},
        {'params': [twin[0].bias, twin[2].bias], **spared},
    ]
    settings |= {key: False for key in ('foreach', 'fused') if key in settings}
    plain = kind(groups, **settings)
    for _ in range(5):
        x = torch.randn(16, 4)
        for net, optimizer in ((model, ours), (twin, plain)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_that_stepped_plainly_goes_on_fused():
    model = nn.Linear(4, 2)
    twin = copy.deepcopy(model)
    settings = {'lr': 1e-2, 'weight_decay': 0.0}
    cfg = {'optimizer': {'type': 'AdamW', **settings}}
    ours = OwnerOptimWrapperConstructor(cfg)(model).optimizer
    plain = torch.optim.AdamW([twin.weight, twin.bias], **settings)
    scaler = torch.amp.GradScaler('cpu', init_scale=16.0)

    def step(net, optimizer):
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(3, 4)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(twin, plain)
    model.load_state_dict(twin.state_dict())
    state = copy.deepcopy(plain.state_dict())  # of one group, and ours has two
    (group,) = state['param_groups']
    state['param_groups'] = [{**group, 'params': [i]} for i in group['params']]
    ours.load_state_dict(state)
    assert all(group['fused'] for group in ours.param_groups)
    step(twin, plain)
    step(model, ours)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_record_holds_counts_time_memory_and_ppt(make_runner, tmp_path):
    runner = make_runner()
    runner.train()
    record = json.loads((tmp_path / 'run' / 'efficiency.json').read_text())
    # 2 blocks x (q, v) x (A, B) x rank 2 x width 32; head 32 x 10 + 10
    assert record['counts']['delta'] == 2 * 2 * 2 * 2 * 32
    assert record['counts']['head'] == 330
    assert record['steps'] == 20
    assert record['step_time_s'] > 0
    assert record['peak_memory_bytes'] > 0
    score = record['val']['accuracy/top1'] / 100
    assert record['val']['PPT/accuracy/top1'] == pytest.approx(
        score * 0.99997776, rel=1e-5
    )


def test_the_builder_says_loudly_that_the_base_is_random(make_runner, tmp_path):
    make_runner(log_level='INFO')
    logs = ''.join(p.read_text() for p in (tmp_path / 'run').rglob('*.log'))
    assert 'THE BASE IS RANDOM' in logs


# Models that no file describes


class Skips(nn.Module):
    """A layer that is called, and one whose weight alone is read."""

    def __init__(self):
        super().__init__()
        self.used, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(self.used(x), self.read.weight)


def guarded(model):
    """The hook before the first iteration, and what it takes for a runner."""
    runner = SimpleNamespace(model=model)
    hook = BaseGuardHook()
    hook.before_train(runner)
    return hook, runner


def test_a_layer_without_gradient_stops_the_first_iteration():
    model = inject(Skips(), {'type': 'LoRA', 'rank': 2})
    hook, runner = guarded(model)
    model(torch.ones(1, 8)).sum().backward()
    model.zero_grad()  # as an optimizer wrapper does before hooks are asked
    with pytest.raises(PETLError, match=r'1 of the chosen layers are not .*\(read\)'):
        hook.after_train_iter(runner, 0)


def test_layers_with_gradients_pass_and_are_watched_no_more():
    model = inject(Skips(), {'type': 'LoRA', 'rank': 2}, layers='used')
    hook, runner = guarded(model)
    model(torch.ones(1, 8)).sum().backward()
    hook.after_train_iter(runner, 0)
    hook.after_train_iter(runner, 1)
    assert not any(p._backward_hooks for p in model.parameters())


def test_a_conversion_of_norms_is_noticed_before_training():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    inject(model, 'SSF')
    whole = nn.Module()
    whole.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(PETLError, match='1 is now a SyncBatchNorm without sites'):
        guarded(whole)


def test_a_delta_may_ask_for_another_rate(make_runner, tmp_path):
    """``Delta.lr_mults``: a group of its own, named by the factor, said in the log."""
    runner = make_runner(method={'type': 'LoRA', 'rank': 2}, log_level='INFO')
    model = runner.model
    lora = next(m for m in model.modules() if isinstance(m, Delta))
    lora.lr_mults = {'B': 16.0}
    groups = {g['name']: g for g in constructor(delta={'lr_mult': 2}).groups(model)}
    assert list(groups) == ['delta', 'delta_x16', 'head', 'head_no_decay']
    assert [id(p) for p in groups['delta_x16']['params']] == [id(lora.B)]
    assert groups['delta']['lr'] == pytest.approx(2e-3)
    assert groups['delta_x16']['lr'] == pytest.approx(3.2e-2)
    assert groups['delta_x16']['weight_decay'] == groups['delta']['weight_decay']
    key = {'petl': {'lr_mult': 3, 'decay_mult': 0}}
    groups = {g['name']: g for g in constructor(custom_keys=key).groups(model)}
    assert groups['delta[petl]_x16']['lr'] == pytest.approx(4.8e-2)
    runner.train()
    logs = ''.join(p.read_text() for p in (tmp_path / 'run').rglob('*.log'))
    said = 'optimizer groups: delta: 7 tensors at lr='
    assert said in logs
    assert '; delta_x16: 1 tensors at lr=' in logs


def test_a_rate_for_no_parameter_or_of_no_rate_is_refused(make_runner):
    model = make_runner(method={'type': 'LoRA', 'rank': 2}).model
    lora = next(m for m in model.modules() if isinstance(m, Delta))
    lora.lr_mults = {'b': 16.0}
    with pytest.raises(PETLError, match=r"LoRADelta at .+ names a rate for 'b'"):
        constructor().groups(model)
    lora.lr_mults = {'B': 16.0}
    with pytest.raises(PETLError, match='a factor of a method multiplies lr, which'):
        OwnerOptimWrapperConstructor({'optimizer': {'type': 'SGD'}}).groups(model)
