"""The wheel is whole: what it holds, what it asks for, and configs by their names."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.config import Config
from modelindex.load_model_index import load

from mmpetl.config.compose import compose
from mmpetl.config.own import own_file
from mmpetl.core import PETLError
from mmpetl.version import __version__

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ('configs', 'demo', 'docs', 'mmpetl', 'requirements', 'tools')


@pytest.fixture(scope='module')
def release() -> ModuleType:
    path = ROOT / 'tools' / 'misc' / 'build_release.py'
    spec = importlib.util.spec_from_file_location('build_release', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def wheel(release, tmp_path_factory) -> zipfile.ZipFile:
    """Built of an sdist, which is built of a copy of the checkout."""
    tmp = tmp_path_factory.mktemp('wheel')
    copy = tmp / 'checkout'
    ignored = shutil.ignore_patterns('__pycache__', '*.log')
    for name in BESIDE:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != '.git':
            shutil.copy(path, copy)
    sdist, path = release.build(copy, tmp / 'dist')
    assert sdist.name == f'mmpetl-{__version__}.tar.gz'
    return zipfile.ZipFile(path)


def files(*patterns: str) -> set[str]:
    found = {p for pattern in patterns for p in ROOT.glob(pattern) if p.is_file()}
    return {
        p.relative_to(ROOT).as_posix() for p in found if '__pycache__' not in str(p)
    }


def test_it_holds_the_package_and_what_travels_with_it(wheel):
    there = set(wheel.namelist())
    assert files('mmpetl/**/*.*') <= there
    beside = files('configs/**/*.*', 'requirements/*', 'demo/weights/*.safetensors')
    beside |= files('demo/zoo/*')
    beside |= {'model-index.yml', 'tools/train.py', 'tools/dist_train.sh'}
    assert {f'mmpetl/.mim/{name}' for name in beside} <= there
    assert not [name for name in there if name.startswith(('tests/', 'configs/'))]


def test_it_asks_for_one_opencv_and_for_bounded_torch(wheel):
    info = f'mmpetl-{__version__}.dist-info'
    text = wheel.read(f'{info}/METADATA').decode()
    needs = re.findall(r'(?m)^Requires-Dist: ([\w-]+)([^;\n]*)$', text)
    names = {name: bounds for name, bounds in needs}
    assert not [name for name in names if name.startswith('opencv')]
    # Of those that OpenMMLab declares, mmengine and mmcv-lite want opencv-python, and
    # mmaction2 another one.
    assert {'mmengine', 'mmcv-lite', 'mmpretrain', 'mmdet'} <= names.keys()
    assert 'mmaction2' not in names
    assert '<2.12' in names['torch']
    assert '>=2.6' in names['torch']
    entries = wheel.read(f'{info}/entry_points.txt').decode()
    assert 'mmpetl = mmpetl.cli.main:main' in entries


def test_a_version_is_released_where_all_files_say_it(release, tmp_path):
    (tmp_path / 'CITATION.cff').write_text('version: 1.2.3\n')
    log = tmp_path / 'CHANGELOG.md'
    log.write_text('# Changelog\n\n## 1.2.3 (2030-01-31)\n\n## 1.2.2 (2029-01-31)\n')
    assert release.faults(tmp_path, '1.2.3') == []
    assert len(release.faults(tmp_path, '1.2.4')) == 2
    log.write_text('# Changelog\n\n## 1.2.3 (unreleased)\n')
    assert 'unreleased' in release.faults(tmp_path, '1.2.3')[0]


def test_the_index_for_mim_is_what_the_weights_say():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert {m.name for m in index.models} == {
        p.stem for p in (ROOT / 'demo' / 'weights').glob('*.safetensors')
    }
    for model in index.models:
        known = json.loads((ROOT / 'demo/weights' / f'{model.name}.json').read_text())
        assert known['command'].endswith(model.config)
        assert (ROOT / model.config).is_file()
        assert (ROOT / model.metadata.data['File']).is_file()
        assert model.metadata.data['Parameters'] == known['parameters']
        (result,) = model.results
        assert [*result.metrics.values()] == [*known['accuracy'].values()]


def test_a_config_elsewhere_inherits_ours(tmp_path):
    path = tmp_path / 'mine.py'
    for name, method in (
        ('ssf/vtab/svhn.py', 'SSF'),
        ('mini/digits.py', 'LinearProbe'),
    ):
        path.write_text(f"_base_ = 'mmpetl::{name}'\nseed_of_mine = 3\n")
        config = Config.fromfile(path)
        assert config.seed_of_mine == 3
        assert config.model.backbone.method.type == method
        assert config.default_scope == 'mmpretrain'
    row = Config.fromfile(own_file('ssf/vtab/svhn'))
    assert row.dataset == 'svhn'
    leaf = compose('vtab/svhn', 'SSF', leaf=True)
    assert row.optim_wrapper.optimizer.lr == leaf.optim_wrapper.optimizer.lr


def test_a_config_that_is_not_shipped_is_told(tmp_path):
    with pytest.raises(PETLError, match="Did you mean 'mini/digits.py'"):
        own_file('mini/digit.py')
    with pytest.raises(PETLError, match="has no row 'svnh'"):
        own_file('ssf/vtab/svnh.py')
