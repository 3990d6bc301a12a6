"""Import hooks: each in a fresh interpreter, where nothing is imported yet."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, *paths: Path) -> subprocess.CompletedProcess:
    """Run ``code`` in a new interpreter, with ``paths`` before all else."""
    env = dict(os.environ)
    env['PYTHONPATH'] = os.pathsep.join(map(str, [*paths, ROOT]))
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(code: str, *paths: Path) -> str:
    done = run_python(code, *paths)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return folder


def metadata_of(name: str, number: str) -> dict[str, str]:
    """An installed distribution, as importlib.metadata sees it."""
    text = f'Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n'
    return {f'{name}-{number}.dist-info/METADATA': text}


def test_all_four_packages_import():
    code = """
        import mmpetl
        import mmpretrain.models, mmseg.models, mmdet.models, mmaction.models
        import mmpretrain.apis, mmseg.apis, mmdet.apis, mmaction.apis
        from mmaction.models.localizers import DRN
        try:
            DRN()
        except ImportError as error:
            print(error)
    """
    out = output(code)
    assert not out or 'lacks mmaction.models.localizers.drn;' in out


def test_install_is_idempotent_and_imports_nothing():
    code = """
        import sys
        import mmpetl
        before = list(sys.meta_path)
        mmpetl.compat.install()
        assert sys.meta_path == before
        kinds = [type(f).__name__ for f in before]
        assert kinds.count('SwitchFinder') == kinds.count('StandInFinder') == 1
        heavy = {'torchvision', 'mmcv', 'mmpretrain', 'mmseg', 'mmdet', 'mmaction'}
        print(*sorted(heavy & sys.modules.keys()))
    """
    assert output(code) == ''


def test_a_compiled_mmcv_is_used_untouched(tmp_path):
    files = {'mmcv/__init__.py': '', 'mmcv/_ext.py': "nms = 'compiled'\n"}
    code = """
        import mmpetl
        import mmcv._ext
        print(mmcv._ext.nms, hasattr(mmcv._ext, 'roi_align_forward'))
        print(mmcv._ext.__file__)
    """
    first, second = output(code, write(tmp_path, files)).splitlines()
    assert first == 'compiled False'
    assert second == str(tmp_path / 'mmcv' / '_ext.py')


def test_a_broken_compiled_mmcv_is_not_papered_over(tmp_path):
    files = {
        'mmcv/__init__.py': '',
        'mmcv/_ext.py': "raise ImportError('undefined symbol')\n",
    }
    done = run_python('import mmpetl, mmcv._ext', write(tmp_path, files))
    assert done.returncode != 0
    assert 'undefined symbol' in done.stderr


def test_a_complete_mmaction_keeps_its_localizer(tmp_path):
    base = 'mmaction/models/localizers'
    files = {
        f'{folder}/__init__.py': ''
        for folder in ('mmaction', 'mmaction/models', base, f'{base}/drn')
    }
    files[f'{base}/drn/drn.py'] = "DRN = 'theirs'\n"
    code = 'import mmpetl; from mmaction.models.localizers.drn.drn import DRN as d'
    assert output(f'{code}; print(d)', write(tmp_path, files)) == 'theirs'


# A transformers in which the names that moved are missing, as in version 5, and one
# that has them. The toolboxes' own models are built on it in both cases.
TOOLBOX = {
    '{name}/__init__.py': '',
    '{name}/utils/__init__.py': '',
    '{name}/utils/dependency.py': 'WITH_MULTIMODAL = True\n',
    '{name}/models/__init__.py': """
        from ..utils.dependency import WITH_MULTIMODAL
        if WITH_MULTIMODAL:
            from . import multimodal
    """,
    '{name}/models/utils/__init__.py': '',
    '{name}/models/multimodal/__init__.py': """
        try:
            from transformers import gone_but_guarded
        except ImportError:
            gone_but_guarded = None
        from transformers.modeling_utils import apply_chunking_to_forward
    """,
}


def fake_transformers(names: str) -> dict[str, str]:
    return {
        **metadata_of('transformers', '5.0.0'),
        **metadata_of('peft', '0.18.0'),
        'transformers/__init__.py': '',
        'transformers/modeling_utils.py': names,
        'peft/__init__.py': 'import transformers\n',
    }


@pytest.mark.parametrize('name', ['mmpretrain', 'mmaction'])
@pytest.mark.parametrize('early', [False, True])
@pytest.mark.parametrize(
    ('names', 'works'),
    [('', False), ('apply_chunking_to_forward = None', True)],
    ids=['moved', 'present'],
)
def test_multimodal_models_follow_transformers(tmp_path, name, early, names, works):
    toolbox = {key.format(name=name): text for key, text in TOOLBOX.items()}
    write(tmp_path, toolbox | fake_transformers(names))
    first = f'import {name}.utils.dependency' if early else 'pass'
    code = f"""
        {first}
        import mmpetl
        import {name}.models
        print({name}.models.WITH_MULTIMODAL)
    """
    assert output(code, tmp_path) == str(works)


@pytest.mark.slow
def test_the_real_packages_import_beside_a_new_transformers(tmp_path):
    """The failure itself: without us, mmpretrain's models do not import here."""
    write(tmp_path, fake_transformers(''))
    without = run_python('import mmpretrain.models', tmp_path)
    assert without.returncode != 0
    code = """
        import mmpetl
        import mmpretrain.models, mmseg.models, mmdet.models, mmaction.models
        from mmpretrain.registry import MODELS
        print('VisionTransformer' in MODELS.module_dict)
    """
    assert output(code, tmp_path) == 'True'
