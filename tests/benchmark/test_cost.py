"""What stands for a calibration of a pair, and what then is said of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from mmpetl.benchmark.cost import (
    estimated,
    estimates,
    likeness,
    models_of,
    to_calibrate,
)
from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.records import Job, Record, RecordStore
from mmpetl.benchmark.task import Task
from mmpetl.core import PETLError

LORA, SSF = (Job('mini/digits', m, seed=0) for m in ('LoRA', 'SSF'))


def on(recipe: str, job: Job, **more: object) -> Job:
    return replace(job, recipe=recipe, **more)


def test_a_recipe_that_differs_in_data_alone_is_looked_at_with_one_method() -> None:
    textures, cub = 'mini/textures', 'mini/cub'
    jobs = [on(r, j) for r in ('mini/digits', textures, cub) for j in (LORA, SSF)]
    assert models_of(jobs) == {
        SSF.id: (LORA,),
        on(textures, SSF).id: (SSF, on(textures, LORA)),
        on(cub, SSF).id: (on(cub, LORA),),
    }
    # Other arguments of a method take other steps, and so may published settings.
    wide = on(textures, LORA, options={'model.backbone.method.rank': 4})
    assert models_of([LORA, on(textures, SSF), wide]) == {wide.id: (on(textures, SSF),)}
    assert models_of([LORA, *(on(textures, job, leaf=True) for job in jobs[:2])]) == {}


@pytest.mark.parametrize(
    ('options', 'same'),
    [
        ({'train_cfg.max_epochs': 2}, True),
        ({'train_dataloader.batch_size': 8, 'batch': 8}, False),
        ({'optim_wrapper.optimizer.weight_decay': 0.5}, False),
    ],
)
def test_what_a_step_takes_time_for_makes_another_recipe(
    options: dict, same: bool
) -> None:
    plain = likeness(LORA)
    other = likeness(on('mini/textures', LORA, options=options))
    assert (other == plain) is same


def calibration(job: Job, steps: int, step_seconds: float, test_batches: int) -> Record:
    facts = {'steps': steps, 'startup_s': 1.0, 'test_batches': test_batches}
    facts |= {'own_steps': steps, 'own_test_batches': test_batches, 'test_batch_s': 0.1}
    return Record(
        job,
        'done',
        metrics=facts,
        step_seconds=step_seconds,
        peak_memory_bytes=int(1e8 * step_seconds),
    )


def test_a_pair_is_said_to_take_the_steps_of_one_and_the_data_of_the_other(
    tmp_path: Path,
) -> None:
    looks, asked = (on('mini/textures', job) for job in (LORA, SSF))
    store = RecordStore(tmp_path / 'calibration')
    task = Task(asked, str(store.out), like=(SSF, looks))
    config = compose_job(asked, tmp_path)
    assert estimated(task, config) is None  # nothing is measured yet
    store.write(calibration(LORA, 100, 1.0, 5))
    store.write(calibration(looks, 300, 1.0, 7))
    store.write(replace(calibration(SSF, 100, 2.0, 5), status='failed'))
    assert estimated(task, config) is None
    store.write(calibration(SSF, 100, 2.0, 5))
    store.write(estimated(task, config))
    assert to_calibrate([asked], tmp_path) == []
    (found,) = estimates([asked], tmp_path).values()
    assert (found.steps, found.like) == (300, 'mini/digits')
    assert found.seconds == pytest.approx(1.0 + 300 * 2.0 + 7 * 0.1)
    assert found.memory_bytes == 2e8
    # A dry run counts steps of the optimizer, as records do.
    accumulating = copy.deepcopy(config)
    accumulating.optim_wrapper.accumulative_counts = 8
    store.write(estimated(task, accumulating))
    (same,) = estimates([asked], tmp_path).values()
    assert (same.steps, same.seconds) == (38, found.seconds)
    # What cannot be built is said, though its twin could be measured.
    config.model.backbone.method = {'type': 'LoRA', 'rank': 10**6}
    with pytest.raises(PETLError, match='rank'):
        estimated(task, config)


def test_curves_of_older_versions_are_not_taken_for_steps(tmp_path: Path) -> None:
    curves = {'loss': [[1, 2.0], [76, 1.0]]}
    RecordStore(tmp_path).write(Record(LORA, 'done', steps=38, curves=curves))
    (found,) = estimates([LORA], tmp_path).values()
    assert found.steps == 38
