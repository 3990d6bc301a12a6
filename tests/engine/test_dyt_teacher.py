"""Methods that teach themselves, in runs: a second pass, added before scaling."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.nn.functional as F
from killing import KillAt, Killed
from mmengine.optim import OptimWrapper

from mmpetl.core import PETLError, collect_losses, teacher_losses

METHOD = {'type': 'DyT', 'hidden_dims': 4, 'distill': True}


def test_a_run_logs_both_losses_and_ends_the_same_after_a_kill(make_runner):
    whole = make_runner('whole', method=METHOD)
    whole.train()
    for name in ('keep', 'teacher', 'distill'):
        logged = whole.message_hub.get_scalar(f'train/loss_dyt_{name}').data[0]
        assert len(logged) == 20
        assert all(logged > 0) or name == 'keep'
    with pytest.raises(Killed):
        make_runner('killed', method=METHOD, hooks=[KillAt(13)]).train()
    resumed = make_runner('killed', method=METHOD, resume=True)
    resumed.train()
    state, other = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_are_those_of_the_written_sum(make_runner, checkpointing):
    """Also where blocks of both passes run once more in the backward pass."""
    runner, grads = make_runner(method=METHOD), []
    model = runner.model.double().train()
    for name, param in model.named_parameters():
        if param.requires_grad and name.endswith('up.weight'):
            torch.nn.init.normal_(param)
    batch = next(iter(runner.train_dataloader))
    params = [p for p in model.parameters() if p.requires_grad]
    for by_wrapper in (True, False):
        for block in model.backbone.layers:
            block.with_cp = checkpointing and by_wrapper
        wrapper = OptimWrapper(torch.optim.SGD(params, lr=0.0))
        wrapper.zero_grad = lambda: None
        torch.manual_seed(0)
        model.zero_grad()
        if by_wrapper:
            wrapper.initialize_count_status(model, 0, 2)
            model.train_step(batch, wrapper)
        else:
            data = model.data_preprocessor(batch, True)
            labels = torch.cat([s.gt_label for s in data['data_samples']])

            def scored(data=data):
                return model.head(model.backbone(data['inputs'].double()))

            def again(scored=scored, labels=labels):
                scores = scored()
                return F.cross_entropy(scores, labels), scores

            scores = scored()
            found = teacher_losses(model, scores, again)
            total = sum([*collect_losses(model).values(), *found.values()])
            (F.cross_entropy(scores, labels) + total).backward()
            p = again()[1].detach()  # any scores: the formula alone is at hand
            q = F.softmax(p, 1)
            want = (q * (q.log() - F.log_softmax(scores, 1))).sum() / len(scores)
            got = teacher_losses(model, scores, lambda p=p: (p.sum(), p))
            torch.testing.assert_close(got['dyt_distill'], want.float())
        grads.append([p.grad.clone() for p in params])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_model_without_class_scores_is_told(make_runner):
    runner = make_runner(method=METHOD)
    model = runner.model.train()
    model.head.forward = lambda feats: (torch.zeros(len(feats[-1]), 10),)
    model.head.loss = lambda feats, samples: {'loss': model.head(feats)[0].sum()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    wrapper.initialize_count_status(model, 0, 2)
    batch = next(iter(runner.train_dataloader))
    with pytest.raises(PETLError, match='the scores of one head.*LinearClsHead'):
        model.train_step(batch, wrapper)


def test_a_distributed_wrapper_changes_nothing(make_runner, monkeypatch):
    import torch.distributed as dist

    from mmpetl.engine import PETLDistributedDataParallel

    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(port))
    plain = make_runner('plain', method=METHOD)
    plain.train()
    dist.init_process_group('gloo', rank=0, world_size=1)
    try:
        runner = make_runner('wrapped', method=METHOD)
        runner.model = PETLDistributedDataParallel(runner.model)
        runner.train()
    finally:
        dist.destroy_process_group()
    theirs = runner.model.module.state_dict()
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6)
