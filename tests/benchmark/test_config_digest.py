"""The digest of a config holds what decides a result, as resolved, and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.benchmark import claims
from mmpetl.benchmark.config_digest import (
    NAME,
    changes,
    config_hash,
    keep,
    recipe_digest,
)
from mmpetl.benchmark.job import begin
from mmpetl.benchmark.job_config import compose_job
from mmpetl.benchmark.records import Job, write_json
from mmpetl.engine.hooks.run_log import append_line, read_run_log

DIGITS = Job('mini/digits', 'LoRA')


def digest_at(root: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if root is None:
        monkeypatch.delenv('MMPETL_DATA', raising=False)
    else:
        monkeypatch.setenv('MMPETL_DATA', root)
    return config_hash(compose_job(DIGITS, folder))


def test_data_are_named_by_where_they_are_and_not_by_spelling(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'link').symlink_to('data')
    monkeypatch.chdir(tmp_path)
    spelt = (
        None,
        'data',
        './data',
        'data/',
        str(tmp_path / 'data'),
        'link',
        'x/../data',
    )
    digests = {digest_at(root, tmp_path / 'run', monkeypatch) for root in spelt}
    assert len(digests) == 1


def test_a_path_below_a_root_is_the_same_under_every_name_of_the_root(
    tmp_path, monkeypatch
):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'link').symlink_to('data')
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'data'))
    monkeypatch.delenv('MMPETL_WEIGHTS', raising=False)

    def digest(path: str) -> str:
        return config_hash(Config({'model': {'path': path}}))

    one = digest(f'{tmp_path}/data/a')
    assert digest(f'{tmp_path}/link/a') == digest(f'{tmp_path}/data/b/../a') == one
    assert digest(f'{tmp_path}/data2/a') != one
    assert digest('checkpoints/a.npz') != digest('checkpoints/b.npz')
    weights = digest('checkpoints/a.npz')
    monkeypatch.setenv('MMPETL_WEIGHTS', str(tmp_path / 'w'))
    assert digest(f'{tmp_path}/w/a.npz') == weights
    assert digest('data') != digest(f'{tmp_path}/data')  # a word is no path


def test_hooks_that_act_on_the_result_count_and_others_do_not():
    plain = {
        'default_hooks': {
            'logger': {'type': 'LoggerHook', 'interval': 10},
            'checkpoint': {'type': 'mmpetl.DeltaCheckpointHook', 'interval': 1},
        },
        'custom_hooks': [{'type': 'mmpetl.EfficiencyHook'}],
        'train_cfg': {'max_epochs': 3},
    }

    def digest(**change: object) -> str:
        return config_hash(Config({**plain, **change}))

    first = digest()
    hooks = plain['default_hooks']
    for same in (
        {'default_hooks': {**hooks, 'logger': {'type': 'LoggerHook', 'interval': 1}}},
        {'default_hooks': {'checkpoint': {**hooks['checkpoint'], 'interval': 5}}},
        {'default_hooks': {'checkpoint': {**hooks['checkpoint'], 'save_last': True}}},
        {'custom_hooks': []},
        {'log_level': 'ERROR', 'work_dir': 'x', 'resume': True, 'visualizer': {'a': 1}},
    ):
        assert digest(**same) == first
    best = {**hooks['checkpoint'], 'save_best': 'accuracy/top1'}
    lost = {**hooks['checkpoint'], 'save_last': False}
    others = [
        digest(custom_hooks=[{'type': 'mmpetl.TrainableEMAHook'}]),
        digest(custom_hooks=[{'type': 'mmpetl.TrainableEMAHook', 'momentum': 0.1}]),
        digest(custom_hooks=[{'type': 'EarlyStoppingHook', 'monitor': 'a'}]),
        digest(custom_hooks=[{'type': 'NobodyKnowsHook'}]),
        digest(default_hooks={'checkpoint': best}),
        digest(default_hooks={'checkpoint': {**best, 'rule': 'less'}}),
        digest(default_hooks={'checkpoint': lost}),
        digest(load_from='other.pth'),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_stored_features_count_where_they_may_differ_from_the_trunk():
    def digest(**change: object) -> str:
        return config_hash(Config({'train_cfg': {'max_epochs': 3}, **change}))

    plain, hook = digest(), 'mmpetl.FeatureCacheHook'
    exact = {'folder': 'x', 'limit_gib': 1, 'tolerance': 0.0}
    for same in (True, False, None, exact):
        assert digest(cache_features=same) == plain
    assert digest(custom_hooks=[{'type': hook, **exact}]) == plain
    loose = digest(cache_features={**exact, 'tolerance': 1e-6})
    assert loose == digest(cache_features={'tolerance': 1e-6}) != plain
    other = digest(cache_features={'tolerance': 1e-3})
    by_hook = digest(custom_hooks=[{'type': hook, 'tolerance': 1e-3}])
    assert len({plain, loose, other, by_hook}) == 4


def test_the_order_of_keys_does_not_count():
    ema = {'type': 'mmpetl.TrainableEMAHook', 'momentum': 0.1}
    stop = {'monitor': 'a', 'type': 'EarlyStoppingHook'}
    turned = [dict(reversed(node.items())) for node in (stop, ema)]
    one, other = (Config({'custom_hooks': hooks}) for hooks in ([ema, stop], turned))
    assert config_hash(one) == config_hash(other)


def test_methods_of_one_recipe_share_its_digest(tmp_path):
    def digest(method: str, **change: object) -> str:
        return recipe_digest(
            compose_job(Job('mini/digits', method, **change), tmp_path)
        )

    first = digest('LoRA')
    assert digest('SSF') == first
    assert digest('LoRA', seed=1) == first
    assert digest('LoRA', options={'model.backbone.method.rank': 2}) == first
    assert digest('LoRA', options={'optim_wrapper.optimizer.lr': 0.5}) != first


def begun(folder: Path, rate: float) -> str:
    config = Config({'optim_wrapper': {'optimizer': {'lr': rate}}})
    return begin(folder, config, config_hash(config))[1]


def test_a_run_of_another_config_is_begun_anew_and_it_is_told_why(tmp_path, capsys):
    assert begun(tmp_path, 0.1) == ''
    (tmp_path / 'iter_3.pth').touch()
    assert begun(tmp_path, 0.1) == ''
    assert (tmp_path / 'iter_3.pth').exists()
    why = begun(tmp_path, 0.2)
    assert why == 'begun anew, since optim_wrapper.optimizer.lr was 0.1, is 0.2'
    assert why in capsys.readouterr().out
    assert not (tmp_path / 'iter_3.pth').exists()
    assert begun(tmp_path, 0.2) == why  # also where that attempt was killed
    assert [x['attempt'] for x in read_run_log(tmp_path / 'log.jsonl')] == [1, 2]


def test_what_is_begun_anew_stays_held(tmp_path, monkeypatch):
    """Where leases hold runs, the one of this process is a file of the folder."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, 'no locks available')

    monkeypatch.setattr(claims.fcntl, 'flock', flock)
    with claims.claim(tmp_path) as mine:
        assert mine
        begun(tmp_path, 0.1)
        begun(tmp_path, 0.2)
        assert (tmp_path / 'lease-1').exists()
        assert claims.held(tmp_path)
        with claims.claim(tmp_path) as second:
            assert not second


def test_a_run_of_an_earlier_mmpetl_is_not_emptied_in_silence(tmp_path):
    append_line(
        tmp_path / 'log.jsonl', {'attempt': 1, 'begun': 'then', 'config': '0' * 16}
    )
    (tmp_path / 'iter_3.pth').touch()
    assert 'begun by an earlier mmpetl' in begun(tmp_path, 0.1)
    assert not (tmp_path / 'iter_3.pth').exists()


def test_a_damaged_note_of_what_was_hashed_is_none(tmp_path):
    config = Config({'a': float('inf'), 'b': [1, {}]})
    keep(tmp_path, config)
    assert changes(tmp_path, config) == 'its log names another config'
    assert changes(tmp_path, Config({'a': 1, 'b': [2, {}]})) == (
        'a was "inf", is 1; b.0 was 1, is 2'
    )
    write_json(tmp_path / NAME, {'format': 2, 'resolved': 3})
    assert 'earlier mmpetl' in changes(tmp_path, config)
    (tmp_path / NAME).write_text('{')
    assert 'earlier mmpetl' in changes(tmp_path, config)
