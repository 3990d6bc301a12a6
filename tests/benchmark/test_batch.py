"""Dense and video jobs train at the batch of their recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler, InfiniteSampler
from safetensors.torch import load_file

from mmpetl.benchmark.executors import make_executor
from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.plan import Plan, parse_plan, resolve
from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.benchmark.sweep import Sweep
from mmpetl.config.batch import join_passes, missed_batch, reach_batch, shares_of
from mmpetl.core import PETLError
from mmpetl.engine import SharesSampler

RECIPES = {'ade20k': 16, 'coco': 16, 'voc': 2, 'voc_seg': 16, 'nyud_mt': 32}
VIDEO = {'kinetics400': 1024, 'ssv2': 1024, 'hmdb51_swin': 1024}


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('recipe', [*RECIPES, *VIDEO])
def test_a_job_trains_at_the_batch_of_its_recipe(
    recipe: str, processes: int, tmp_path: Path
) -> None:
    options = {'processes': processes} if processes > 1 else {}
    method = 'PolyhistorLite' if recipe == 'nyud_mt' else 'LoRA'
    config = compose_job(Job(recipe, method, options=options), tmp_path)
    shares = shares_of(config)
    assert shares.batch == {**RECIPES, **VIDEO}[recipe]
    assert shares.processes == processes
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    assert accumulated * processes * config.train_dataloader.batch_size == shares.batch
    # What upstream would scale by the batch of a pass is that of a step already.
    assert not config.auto_scale_lr.get('enable') or accumulated == 1
    if recipe in VIDEO:
        assert config.optim_wrapper.optimizer.lr == 0.4
        assert 'drop_last' not in config.train_dataloader
        assert config.train_dataloader.batch_sampler.drop_last


def test_an_iteration_based_loop_makes_as_many_steps(tmp_path: Path) -> None:
    config = compose_job(Job('ade20k', 'LoRA', protocol='published'), tmp_path)
    assert config.optim_wrapper.accumulative_counts == 8
    assert config.train_cfg.max_iters == 8 * 160_000
    assert config.train_cfg.val_interval == 8 * 16_000
    assert config.default_hooks.checkpoint.interval == 8 * 16_000
    # Schedules move with the steps.
    assert config.param_scheduler[1]['end'] == 160_000
    assert config.default_hooks.param_scheduler.passes == 8


def test_image_recipes_share_their_batch_among_processes(tmp_path: Path) -> None:
    job = Job('vtab/svhn', 'LoRA', options={'processes': 4})
    config = compose_job(job, tmp_path)
    alone = compose_job(Job('vtab/svhn', 'LoRA'), tmp_path)
    assert shares_of(config).batch == shares_of(alone).batch == 64
    assert config.train_dataloader.batch_size == 16
    assert 'accumulative_counts' not in alone.optim_wrapper


def test_passes_that_are_said_are_shared_too(tmp_path: Path) -> None:
    options = {
        'processes': 2,
        'batch': 64,
        'optim_wrapper.accumulative_counts': 2,
        'train_dataloader.batch_size': 16,
    }
    config = compose_job(Job('vtab/svhn', 'LoRA', options=options), tmp_path)
    assert config.processes == 2
    assert shares_of(config).batch == 64


@pytest.mark.parametrize('recipe', ['ade20k', 'vtab/svhn'])
def test_passes_that_are_said_train_as_those_that_are_found(
    recipe: str, tmp_path: Path
) -> None:
    options = {'batch': 16, 'train_dataloader.batch_size': 4}
    said = {**options, 'optim_wrapper.accumulative_counts': 4}
    one, other = (
        compose_job(Job(recipe, 'LoRA', options=given), tmp_path)
        for given in (options, said)
    )
    assert one.optim_wrapper.accumulative_counts == 4
    assert other.to_dict() == one.to_dict()
    reach_batch(other)
    assert other.to_dict() == one.to_dict(), 'it is reached once'


def test_passes_without_a_batch_are_counted_as_upstream_does() -> None:
    given = {
        'train_dataloader': {'batch_size': 4, 'sampler': {}},
        'train_cfg': {'max_iters': 10},
        'optim_wrapper': {'optimizer': {'lr': 0.4}, 'accumulative_counts': 4},
    }
    config = ConfigDict(given)
    reach_batch(config)
    assert config.to_dict() == given


BAD: dict[str, tuple[dict[str, Any], str]] = {
    'a pass that does not divide': (
        {'train_dataloader.batch_size': 3},
        'batch of the recipe is 8 samples, which 3 in a pass do not make up: it would '
        'be 3',
    ),
    'processes that do not divide': ({'processes': 3}, 'it would be 24'),
    'no number': ({'processes': '2'}, "whole number from 1 to 1024, got '2'"),
    'own accumulation': (
        {'optim_wrapper.accumulative_counts': 2},
        'accumulative_counts=2 makes the batch 16, and that of the recipe is 8',
    ),
    'an average of passes': (
        {
            'custom_hooks': [{'type': 'EMAHook'}],
            'train_dataloader.batch_size': 4,
        },
        'EMAHook averages after every pass',
    ),
    'an average of passes that are said': (
        {
            'custom_hooks': [{'type': 'EMAHook'}],
            'train_dataloader.batch_size': 4,
            'optim_wrapper.accumulative_counts': 2,
        },
        'EMAHook averages after every pass',
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_reach_the_batch_is_refused_in_a_line(
    case: str, tmp_path: Path
) -> None:
    options, message = BAD[case]
    with pytest.raises(PETLError, match=message) as error:
        compose_job(Job('mini/voc', 'LoRA', options=options), tmp_path)
    assert '\n' not in str(error.value)


def test_a_run_at_another_batch_says_so() -> None:
    from mmpetl.config.compose import compose

    config = compose('coco', 'LoRA')
    assert missed_batch(config, 16) is None
    assert missed_batch(config, 1).startswith(
        'a step takes 1 samples, and the rate of the recipe belongs to 16; begin more'
    )
    reach_batch(config, 2)
    assert missed_batch(config, 2) is None
    assert missed_batch(compose('mini/digits', 'LoRA'), 4) is None


def test_another_batch_may_be_asked_for_by_name(tmp_path: Path) -> None:
    options = {'batch': 6, 'train_dataloader.batch_size': 3}
    config = compose_job(Job('mini/voc', 'LoRA', options=options), tmp_path)
    assert str(shares_of(config)) == '6 = 3 in a pass x 2 passes accumulated'


def test_a_plan_says_how_its_batches_are_made_up() -> None:
    data = {'name': 'x', 'methods': ['LoRA'], 'recipes': ['mini/voc', 'mini/ade20k']}
    plan = parse_plan({**data, 'processes': {'mini/voc': 2}})
    found = resolve(plan)
    assert found.batches == {
        'mini/voc': '8 = 4 in a pass x 2 processes',
        'mini/ade20k': '8 = 8 in a pass',
    }
    assert [job.options for job in found.jobs] == [{'processes': 2}, {}]
    assert parse_plan({**data, 'processes': 4}).processes == {'*': 4}
    with pytest.raises(PETLError, match=r'x, recipe mini/voc .* it would be 24'):
        resolve(parse_plan({**data, 'processes': {'mini/voc': 3}}))
    with pytest.raises(PETLError, match="processes speak of 'voc'"):
        resolve(parse_plan({**data, 'processes': {'voc': 2}}))
    with pytest.raises(PETLError, match='processes of mini/voc: .* got 0'):
        parse_plan({**data, 'processes': {'mini/voc': 0}})


@pytest.mark.parametrize('kind', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('size', [24, 23, 7])
def test_shares_are_what_processes_would_read(kind: type, size: int) -> None:
    data, passes, samples = range(size), 3, 2

    def batches(rank: int, world: int) -> list[list[int]]:
        sampler = kind(data, seed=5)
        sampler.rank, sampler.world_size = rank, world
        if kind is DefaultSampler:
            sampler.num_samples = -(-size // world)
            sampler.total_size = sampler.num_samples * world
        indices = [i for i, _ in zip(sampler, range(4 * size), strict=False)]
        return [indices[i : i + samples] for i in range(0, len(indices), samples)]

    ranks = [batches(rank, passes) for rank in range(passes)]
    want = [batch for step in zip(*ranks, strict=True) for batch in step]
    found = SharesSampler(kind(data, seed=5), samples, passes)
    assert [b for b, _ in zip(found, want, strict=False)] == want
    if kind is DefaultSampler:
        assert len(found) == len(want)
        assert len(want) % passes == 0
        found.sampler.set_epoch(1)
        assert list(found) != want


def test_a_sampler_of_others_cannot_be_shared_out() -> None:
    class Own(DefaultSampler):
        pass

    with pytest.raises(PETLError, match='Own cannot be shared out'):
        SharesSampler(Own(range(4), seed=0), 1, 2)


def test_a_rate_that_follows_the_batch_follows_that_of_a_step() -> None:
    config = ConfigDict(
        batch=64,
        train_dataloader={'batch_size': 16, 'sampler': {}},
        train_cfg={'max_epochs': 2},
        optim_wrapper={'optimizer': {'lr': 0.4}},
        auto_scale_lr={'enable': True, 'base_batch_size': 256},
    )
    reach_batch(config)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.1)
    assert config.auto_scale_lr == {'enable': False, 'base_batch_size': 256}


@pytest.fixture(scope='module')
def _voc(tiny_data: Callable[..., Path]) -> Iterator[None]:
    root = tiny_data('VOCdevkit/VOC2007', 'VOCdevkit/VOC2012')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPETL_DATA', str(root))
        yield


OPTIONS = {
    'train_cfg.max_epochs': 1,
    # Adam takes a full step even where a gradient is nothing but rounding.
    'optim_wrapper.optimizer': {
        '_delete_': True,
        'type': 'SGD',
        'lr': 0.02,
        'momentum': 0.9,
    },
    # By iteration and from epochs, which count differently while passes accumulate.
    'param_scheduler': [
        {'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.1, 'end': 2},
        {
            'type': 'CosineAnnealingLR',
            'T_max': 1,
            'end': 1,
            'convert_to_iter_based': True,
        },
    ],
}
"""No batch norm trains in RetinaNet, and nothing in this recipe is random but order."""


@pytest.mark.slow
@pytest.mark.usefixtures('_voc')
def test_accumulation_and_two_processes_train_a_dense_plan_equally(
    tmp_path: Path,
) -> None:
    found = {}
    for name, more in (
        ('passes', {'recipe_options': {'*': {'train_dataloader.batch_size': 4}}}),
        ('processes', {'processes': {'*': 2}}),
    ):
        plan = Plan('x', ('LoRA',), ('mini/voc',), options=OPTIONS, **more)
        (job,) = resolve(plan).jobs
        executor = make_executor('inline')
        summary = Sweep([job], tmp_path / name, executor, retries=0).run()
        assert summary.failed == {}
        store = RecordStore(tmp_path / name)
        record = store.read(job)
        assert record.test_reads == 1
        assert (record.batch, record.steps) == (8, 3)
        assert record.processes == (2 if name == 'processes' else 1)
        found[name] = load_file(store.folder(job) / 'delta.safetensors'), record
    assert [r.curves['loss'][-1][0] for _, r in found.values()] == [6, 3]
    trained, _ = found['passes']
    grown = [value for key, value in trained.items() if key.endswith('.B')]
    assert min(float(value.abs().max()) for value in grown) > 0, 'they begin at zero'
    for key, value in found['processes'][0].items():
        # Bit-equal where it was tried; sums of float32 may come in another order.
        torch.testing.assert_close(trained[key], value, rtol=1e-4, atol=1e-9)


def test_passes_that_make_up_the_batch_count_as_those_of_a_job() -> None:
    """In `mmpetl train` as in the benchmark; another product stays upstream's."""
    from mmpetl.config.compose import compose
    from mmpetl.config.load import finish_config

    def made(**options: Any) -> Any:
        return finish_config(compose('hmdb51', 'LoRA'), options or None)

    said = {'train_dataloader.batch_size': 8, 'optim_wrapper.accumulative_counts': 4}
    config, wanted = made(**said, batch=64), made(**said, batch=64)
    rate = wanted.optim_wrapper.optimizer.lr
    base = wanted.auto_scale_lr.base_batch_size
    join_passes(config, 2)
    reach_batch(wanted, 2)
    assert config.to_dict() == wanted.to_dict()
    assert config.optim_wrapper.optimizer.lr == pytest.approx(rate * 64 / base)
    assert not config.auto_scale_lr.enable
    again = copy.deepcopy(config)
    join_passes(again, 2)
    assert again.to_dict() == config.to_dict()
    with pytest.raises(PETLError, match='auto_scale_lr counts the samples of a pass'):
        join_passes(made(**said, batch=64), 1)
    assert missed_batch(made(batch=64), 1).endswith('the rate follows (auto_scale_lr)')
