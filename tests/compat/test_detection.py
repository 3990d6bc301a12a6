"""What belongs to mmdet waits for it: each case in a fresh interpreter."""

from __future__ import annotations

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
    'mmpretrain/models/__init__.py': 'from .utils import *',
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
import mmaction.models.roi_heads.roi_head as head
from mmdet.registry import MADE
action, models, utils = mmaction.models, mmpretrain.models, mmpretrain.models.utils
assert utils.ResLayerExtraNorm is models.ResLayerExtraNorm
assert sorted(utils.__all__) == ['ResLayerExtraNorm', 'other'] and models.other == 1
assert inside.BBoxHeadAVA is action.BBoxHeadAVA is action.roi_heads.BBoxHeadAVA
assert head.AVARoIHead is action.AVARoIHead is action.roi_heads.AVARoIHead
assert inside is action.roi_heads.bbox_heads.bbox_head
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


def test_without_mmdet_all_is_as_upstream_has_it(tmp_path: Path) -> None:
    code = f"""{IMPORT}
print(mmpretrain.models.utils.ResLayerExtraNorm, hasattr(mmaction.models, 'AVARoIHead'))
"""
    here = write(tmp_path, PACKAGES)
    assert output(f"import sys; sys.modules['mmdet'] = None\n{code}", here) == (
        'None False'
    )


def test_pictures_and_clips_load_nothing_of_mmdet() -> None:
    code = f"""{IMPORT}
heavy = {{'mmdet.models', 'scipy', 'sklearn', 'matplotlib'}}
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
