"""What belongs to mmdet waits for it: each case in a fresh interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_hooks import output, write

PACKAGES = {
    'mmdet/__init__.py': '',
    'mmdet/registry.py': """
        MADE = []
        def register(cls):
            MADE.append(cls)
            return cls
    """,
    'mmdet/models/__init__.py': 'class ResLayer: pass',
    'mmpretrain/__init__.py': '',
    'mmpretrain/models/__init__.py': """
        from .utils import *
        build = 1
        __all__ = ['build']
    """,
    'mmpretrain/models/utils/__init__.py': """
        from .res_layer_extra_norm import ResLayerExtraNorm
        other = 1
        __all__ = ['ResLayerExtraNorm', 'other']
    """,
    'mmpretrain/models/utils/res_layer_extra_norm.py': """
        try:
            from mmdet.models import ResLayer
            from mmdet.registry import register
            @register
            class ResLayerExtraNorm(ResLayer):
                pass
        except ImportError:
            ResLayerExtraNorm = None
    """,
    'mmaction/__init__.py': '',
    'mmaction/models/__init__.py': """
        from .roi_heads import *
        from .task_modules import *
    """,
    'mmaction/models/task_modules/__init__.py': '',
    'mmaction/models/roi_heads/__init__.py': """
        try:
            from mmdet.registry import register
            from .bbox_heads import BBoxHeadAVA
            from .roi_head import AVARoIHead
            for module in [BBoxHeadAVA, AVARoIHead]:
                register(module)
            __all__ = ['BBoxHeadAVA', 'AVARoIHead']
        except (ImportError, ModuleNotFoundError):
            pass
    """,
    'mmaction/models/roi_heads/bbox_heads/__init__.py': """
        from .bbox_head import BBoxHeadAVA
    """,
    'mmaction/models/roi_heads/bbox_heads/bbox_head.py': """
        from mmdet.models import ResLayer
        class BBoxHeadAVA(ResLayer):
            pass
    """,
    'mmaction/models/roi_heads/roi_head.py': """
        from mmdet.models import ResLayer
        class AVARoIHead(ResLayer):
            pass
    """,
}
"""The imports of the four packages, and no more."""

FIRST = {
    'mmdet is imported': 'import mmdet.models',
    'a name is taken from its module': (
        'from mmaction.models.roi_heads import BBoxHeadAVA'
    ),
    'a name is taken from where it was None': (
        'from mmpretrain.models.utils.res_layer_extra_norm import ResLayerExtraNorm\n'
        'assert ResLayerExtraNorm'
    ),
    'a class is read from a file': (
        'import pickle\n'
        'name = b"mmpretrain.models.utils.res_layer_extra_norm\\nResLayerExtraNorm"\n'
        'assert pickle.loads(b"c" + name + b"\\n.")'
    ),
    'all names are taken': 'from mmpretrain.models.utils import *\nassert other == 1',
    'a name is taken from a package': 'assert mmpretrain.models.ResLayerExtraNorm',
    'a module inside is imported': (
        'from mmaction.models.roi_heads.roi_head import AVARoIHead'
    ),
    'a module further inside is imported': (
        'from mmaction.models.roi_heads.bbox_heads.bbox_head import BBoxHeadAVA'
    ),
    'a package inside is imported': 'import mmaction.models.roi_heads.bbox_heads',
    'a name is looked for': 'assert hasattr(mmaction.models, "BBoxHeadAVA")',
}
"""What a program does first that needs the classes."""

THEN = """
import mmaction.models.roi_heads.bbox_heads.bbox_head as inside
import mmaction.models.roi_heads as roi
import mmaction.models.roi_heads.roi_head as head
from mmdet.registry import MADE
action, models, utils = mmaction.models, mmpretrain.models, mmpretrain.models.utils
assert utils.ResLayerExtraNorm is models.ResLayerExtraNorm
assert sorted(utils.__all__) == ['ResLayerExtraNorm', 'other'] and models.other == 1
assert models.__all__ == ['build']
assert sorted(roi.__all__) == ['AVARoIHead', 'BBoxHeadAVA']
assert not hasattr(models.utils.res_layer_extra_norm, '__all__')
assert inside.BBoxHeadAVA is action.BBoxHeadAVA is roi.BBoxHeadAVA
assert head.AVARoIHead is action.AVARoIHead is roi.AVARoIHead
assert inside is roi.bbox_heads.bbox_head
assert inside.__spec__.origin == inside.__file__ and head.__spec__.loader.name
known = {models.ResLayerExtraNorm, action.BBoxHeadAVA, action.AVARoIHead}
assert {*MADE} == known and len(MADE) == 3
assert not any(hasattr(m, 'Nothing') for m in (action, models, utils))
"""
IMPORT = 'import sys, mmpetl, mmpretrain.models, mmaction.models\n'


@pytest.mark.parametrize('first', FIRST.values(), ids=FIRST)
def test_whoever_asks_first_finds_each_class_once(tmp_path: Path, first: str) -> None:
    here = write(tmp_path, PACKAGES)
    output(f'{IMPORT}assert "mmdet.models" not in sys.modules\n{first}{THEN}', here)


def test_mmdet_may_come_first(tmp_path: Path) -> None:
    here = write(tmp_path, PACKAGES)
    output(f'import mmpetl, mmdet.models\n{IMPORT}{THEN}', here)


ABSENT = """
utils, action = mmpretrain.models.utils, mmaction.models
from mmpretrain.models.utils import ResLayerExtraNorm
from mmpretrain.models.utils.res_layer_extra_norm import ResLayerExtraNorm as same
assert ResLayerExtraNorm is same is utils.ResLayerExtraNorm is None
assert not hasattr(action, 'AVARoIHead') and not hasattr(action.roi_heads, 'AVARoIHead')
"""


def test_without_mmdet_all_is_as_upstream_has_it(tmp_path: Path) -> None:
    here = write(tmp_path, PACKAGES)
    output(f"import sys; sys.modules['mmdet'] = None\n{IMPORT}{ABSENT}", here)


def test_where_mmdet_is_broken_too(tmp_path: Path) -> None:
    files = PACKAGES | {'mmdet/models/__init__.py': 'import mmdet_ops_that_are_not'}
    output(f'{IMPORT}{ABSENT}', write(tmp_path, files))


def test_looking_for_a_module_loads_nothing(tmp_path: Path) -> None:
    code = f"""{IMPORT}
import importlib.util
name = 'mmaction.models.roi_heads.bbox_heads'
spec = importlib.util.find_spec(name)
assert spec.origin.endswith('__init__.py') and spec.submodule_search_locations
assert 'mmdet.models' not in sys.modules and name not in sys.modules
{THEN}"""
    output(code, write(tmp_path, PACKAGES))


@pytest.mark.parametrize('first', ['import mmaction.models', 'import mmdet.models'])
def test_an_import_that_was_interrupted_begins_anew(tmp_path: Path, first: str) -> None:
    stop = """
        import os
        from .roi_heads import *
        from .task_modules import *
        if os.environ.pop('STOP', ''):
            raise KeyboardInterrupt
    """
    here = write(tmp_path, PACKAGES | {'mmaction/models/__init__.py': stop})
    code = f"""
import os, sys, mmpetl, mmpretrain.models
os.environ['STOP'] = 'now'
try:
    import mmaction.models
except KeyboardInterrupt:
    pass
assert 'mmaction.models' not in sys.modules
{first}
{IMPORT}
assert hasattr(mmaction.models, 'AVARoIHead')
{THEN}"""
    output(code, here)


def test_another_thread_may_import_mmdet_meanwhile(tmp_path: Path) -> None:
    slow = """
        import threading, time
        from .res_layer import ResLayer
        threading.main_thread().began.set()
        time.sleep(0.5)
    """
    waiting = """
        import threading
        threading.main_thread().went.set()
        threading.main_thread().began.wait()
        from mmdet.models import ResLayer
        from mmdet.registry import register
        @register
        class ResLayerExtraNorm(ResLayer):
            pass
    """
    files = PACKAGES | {
        'mmdet/models/__init__.py': slow,
        'mmdet/models/res_layer.py': 'class ResLayer: pass',
        'mmpretrain/models/utils/res_layer_extra_norm.py': waiting,
    }
    code = f"""
import threading
main = threading.main_thread()
main.began, main.went = threading.Event(), threading.Event()
def work():
    main.went.wait()
    import mmdet.models
thread = threading.Thread(target=work)
thread.start()
{IMPORT}
thread.join()
{THEN}"""
    output(code, write(tmp_path, files))


def test_pictures_and_clips_load_nothing_of_mmdet(
    tiny_data: Callable[..., Path], tmp_path: Path
) -> None:
    argv = ['lora', 'mini/digits', '--method-options', 'rank=2', '--work-dir']
    argv += [str(tmp_path), '--cfg-options', 'train_cfg.max_epochs=1']
    code = f"""{IMPORT}
import os
from mmpetl.cli.commands import test, train
os.environ['MMPETL_DATA'] = {str(tiny_data('vtab-1k/digits'))!r}
assert not train.main({argv!r}) and not test.main([{str(tmp_path)!r}])
heavy = {{'mmdet.models', 'scipy', 'sklearn'}}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
from mmdet.registry import MODELS, TASK_UTILS
once = MODELS.get('ResLayerExtraNorm')
assert once is mmpretrain.models.utils.ResLayerExtraNorm
assert once is mmpretrain.models.ResLayerExtraNorm
names = ['ACRNHead', 'AVARoIHead', 'BBoxHeadAVA', 'FBOHead', 'LFBInferHead']
for name in [*names, 'SingleRoIExtractor3D']:
    assert MODELS.get(name) is getattr(mmaction.models, name), name
found = TASK_UTILS.get('MaxIoUAssignerAVA')
assert found is mmaction.models.MaxIoUAssignerAVA
"""
    output(code)
