"""Memory of configs of every task, without their data."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from mmpetl.apis import load_config
from mmpetl.apis.counting import count_config
from mmpetl.apis.estimate import estimate_memory
from mmpetl.core import PETLError

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / 'configs' / 'mini'
BITFIT = {'model.backbone.method': {'type': 'BitFit'}}


@pytest.mark.parametrize(
    'name', ['digits', 'hmdb51', 'ade20k', 'voc', 'coco', 'nyud_mt']
)
def test_every_task_has_an_estimate(name):
    config = load_config(MINI / f'{name}.py', BITFIT)
    found = estimate_memory(config, batch=4)
    counts = count_config(config)
    assert found.deltas == 0
    assert found.heads == 4 * counts['head']
    trained = counts['selected'] + counts['head']
    # A gradient may be a view of a larger one: of a bias that queries and values share.
    assert 4 * trained <= found.gradients < 4.5 * trained
    assert 0 < found.kept_per_sample <= found.passes_per_sample
    assert found.peak > found.resting + found.kept


NO_FILE = {**BITFIT, 'model.backbone.checkpoint': 'none/of/it.pth'}


def test_what_is_counted_needs_no_file_of_the_base():
    from mmpetl.apis.operations import count_operations
    from mmpetl.apis.schedule import schedule_of

    config = load_config(MINI / 'digits.py', NO_FILE)
    plain = load_config(MINI / 'digits.py', BITFIT)
    assert count_operations(config) == count_operations(plain)
    found, wanted = (schedule_of(c, epoch_length=4) for c in (config, plain))
    assert found.keys() == wanted.keys()
    assert config.model.backbone.checkpoint == 'none/of/it.pth'


def test_frames_that_a_trunk_of_pictures_reads():
    """TSN of mmaction2: three clips of a frame, each a picture."""
    from mmpetl.apis.operations import count_operations

    name = 'tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb.py'
    config = load_config(
        f'mmaction::recognition/tsn/{name}',
        {
            'model': {
                'type': 'mmpetl.PETLModel',
                'of': 'Recognizer2D',
                'petl': 'BitFit',
                'backbone': {'depth': 18},
                'cls_head': {'in_channels': 512},
            }
        },
    )
    found = estimate_memory(config, batch=2, size=(32, 32))
    # A picture and its activations behind the stem, in float32, for three frames.
    assert found.kept_per_sample > 3 * 4 * (3 * 32 * 32 + 64 * 16 * 16)
    three = count_operations(config, (32, 32))
    assert three.shape == (3, 3, 32, 32)
    step = config.train_dataloader.dataset.pipeline[1]
    assert step.num_clips == 3
    step.num_clips = 1
    one = count_operations(config, (32, 32))
    # The trunk runs three times, the head once, on the mean of the frames.
    head = 2 * 512 * 400
    assert three.flops - head == 3 * (one.flops - head)


def test_a_size_and_a_batch_that_no_config_says():
    config = load_config(MINI / 'digits.py', BITFIT)
    config.train_dataloader.batch_size = None
    with pytest.raises(PETLError, match='say how many samples'):
        estimate_memory(config)
    config.train_dataloader.dataset.pipeline = [{'type': 'PackInputs'}]
    with pytest.raises(PETLError, match='--size 224 224'):
        estimate_memory(config, batch=4)
    assert estimate_memory(config, batch=4, size=(32, 32)).batch == 4


@pytest.fixture
def estimated(monkeypatch, capsys):
    """``estimated(*argv)`` runs the tool; what it printed and its exit code."""

    def run(*argv: str) -> tuple[str, int]:
        options = ['--cfg-options', 'model.backbone.method.type=BitFit']
        monkeypatch.setattr(sys, 'argv', ['estimate.py', *argv, *options])
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / 'estimate.py'), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return (printed.err if code else printed.out), code

    return run


def test_the_tool_tells_parts_and_what_fits(estimated):
    digits = str(MINI / 'digits.py')
    text, code = estimated(digits, '--json', '--batch', '8')
    assert code == 0
    facts = json.loads(text.splitlines()[-1])
    limit = (facts['peak'] + facts['passes_per_sample']) / 2**30
    text, code = estimated(digits, '--batch', '8', '--memory-gb', f'{limit:.9f}')
    assert code == 0
    assert f'{facts["kept"] / 2**20:,.1f} MiB' in text
    assert 'fit batches of up to 9' in text or 'fit batches of up to 8' in text
    text, code = estimated(digits, '--batch', '0')
    assert code == 1
    assert text.splitlines()[-1].startswith('error: estimate needs batch')


def test_activations_wait_elsewhere(estimated):
    argv = (str(MINI / 'digits.py'), '--batch', '4096')

    def facts(*more: str) -> dict[str, int]:
        text, code = estimated(*argv, '--json', *more)
        assert code == 0
        return json.loads(text.splitlines()[-1])

    plain, away = facts(), facts('--offload-activations')
    assert plain['offloaded'] is None
    assert away['offloaded'] == pytest.approx(plain['kept'], rel=0.05)
    assert away['kept'] < 0.05 * plain['kept']
    assert away['peak'] < 0.5 * plain['peak']
    text, code = estimated(*argv, '--offload-activations')
    assert code == 0
    said = f'{away["offloaded"] / 2**20:,.1f} MiB of activations of each process wait'
    assert said in text
    # Nothing of one sample is large enough to go.
    alone = facts('--batch', '1', '--offload-activations')
    assert alone == {**facts('--batch', '1'), 'offloaded': 0}
    text, code = estimated(*argv, '--batch', '1', '--offload-activations')
    assert code == 0
    assert 'no activation is large enough' in text
    config = load_config(argv[0], {'compile': True, 'offload_activations': True})
    with pytest.raises(PETLError, match='not supported beside compile'):
        estimate_memory(config)


def test_processes_share_the_base(estimated):
    digits = str(MINI / 'digits.py')
    several = ('--gpus', '4')

    def facts(*argv: str) -> dict[str, int]:
        text, code = estimated(digits, '--json', '--batch', '8', *argv)
        assert code == 0
        return json.loads(text.splitlines()[-1])

    alone, whole, shared = facts(), facts(*several), facts(*several, '--shard-base')
    assert whole == {
        **alone,
        'exchanged': alone['gradients'],
        'peak': alone['peak'] + alone['gradients'],
    }
    # Blocks are most of the mini ViT, and a quarter of them stays.
    assert 0.25 * whole['trunk'] < shared['trunk'] < 0.5 * whole['trunk']
    assert shared['peak'] - whole['peak'] == pytest.approx(
        shared['trunk'] - whole['trunk'] + shared['gathered'], abs=1
    )
    assert shared['before'] == sum(
        whole[part] for part in ('trunk', 'deltas', 'heads', 'exchanged')
    )
    text, code = estimated(digits, *several, '--shard-base')
    assert code == 0
    assert 'weights gathered' in text
    with pytest.raises(PETLError, match='what deepspeed shards is not estimated'):
        estimate_memory(load_config(digits, {'deepspeed': 3}), processes=4)
    text, code = estimated(digits, '--shard-base')
    assert code == 1
    assert 'this one has one; start several' in text.splitlines()[-1]
