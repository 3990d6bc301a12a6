"""Imports point down the floors, and importing mmpetl loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmpetl

PACKAGE = Path(mmpetl.__file__).parent
ROOT = PACKAGE.parent

# What each part may import of mmpetl beside itself. `methods` and `backbones` are blind
# to each other. `version` and `lazy` stand below everything, the package itself above.
BASE = {'version', 'lazy', 'shipped', 'registry', 'compat'}
CORE = BASE | {'core'}
MIDDLE = CORE | {'methods', 'backbones'}
TASKS = {'models', 'datasets', 'engine', 'evaluation'}
TOP = {'apis', 'analysis', 'benchmark'}
MAY: dict[str, set[str]] = {
    'version': set(),
    'lazy': set(),
    'registry': set(),
    'shipped': set(),
    'compat': {'version', 'lazy', 'shipped', 'registry'},
    'core': CORE,
    'methods': CORE,
    'backbones': CORE,
    **{part: MIDDLE | TASKS for part in TASKS},
    'config': MIDDLE | TASKS,
    **{part: MIDDLE | TASKS | {'config'} | TOP for part in TOP},
    'own': MIDDLE | TASKS | {'config'} | TOP,
    'layers': MIDDLE | TASKS | {'config', 'apis'},
    'cli': MIDDLE | TASKS | {'config', 'layers', 'doctor', 'own'} | TOP,
    '__main__': {'cli'},
    # The doctor must run where the rest does not.
    'doctor': BASE,
}
# The package `mmpetl` re-exports the core.
OUTSIDE_ONLY_TORCH = ('core', 'methods')


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob('*.py') if p.is_file())


def _imports(path: Path) -> set[str]:
    """Absolute names of all that a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                package = path.relative_to(ROOT).with_suffix('').parts[: -node.level]
                base = '.'.join((*package, *filter(None, [node.module])))
            found |= {f'{base}.{alias.name}' for alias in node.names}
    return found


def _part(name: str) -> str | None:
    """``mmpetl.core.site.Site`` -> ``core``; None for other packages."""
    root, _, rest = name.partition('.')
    return rest.partition('.')[0] if root == 'mmpetl' else None


PARTS = sorted(
    p.stem if p.is_file() else p.name
    for p in PACKAGE.iterdir()
    if (p.suffix == '.py' and p.stem != '__init__') or (p / '__init__.py').is_file()
)


@pytest.mark.parametrize('part', PARTS)
def test_a_part_imports_only_what_lies_below_it(part: str) -> None:
    assert part in MAY, f'mmpetl/{part} stands on no floor; name it in this test'
    path = PACKAGE / f'{part}.py'
    for file in [path] if path.is_file() else _files(PACKAGE / part):
        for name in _imports(file):
            other = _part(name)
            if other is not None and other in PARTS:
                allowed = MAY[part] | {part}
                assert other in allowed, f'{file.relative_to(ROOT)} imports {name}'
            elif other is not None:
                # Through the package: what `mmpetl` re-exports is the core's.
                assert MAY[part] >= CORE or other == '', (
                    f'{file.relative_to(ROOT)} imports {name}'
                )


# Indices are cached as arrays; deltas lie in safetensors files; msgspec holds what is
# read to its type.
ALLOWED = {'torch', 'mmpetl', 'numpy', 'safetensors', 'msgspec'}
# Packages that are no requirement, by the one file that uses them where they are there.
EXTRAS = {'core/packed.py': 'torchao'}


@pytest.mark.parametrize('part', OUTSIDE_ONLY_TORCH)
def test_core_and_methods_need_no_task_package(part: str) -> None:
    for file in _files(PACKAGE / part):
        for name in _imports(file):
            root = name.partition('.')[0]
            known = root in sys.stdlib_module_names or root in ALLOWED
            extra = EXTRAS.get(f'{part}/{file.name}') == root
            assert known or extra, f'{file.relative_to(ROOT)} imports {name}'


def test_a_method_imports_no_other_packages_backbone() -> None:
    for file in _files(PACKAGE / 'backbones'):
        package = file.stem.partition('_')[0]
        for name in _imports(file):
            root = name.partition('.')[0]
            if root in {'mmpretrain', 'mmaction', 'mmseg', 'mmdet', 'timm'}:
                assert root == package, f'{file.name} imports {name}'


def test_tools_and_demos_are_imported_by_nobody() -> None:
    for file in _files(PACKAGE):
        for name in _imports(file):
            assert name.partition('.')[0] not in {'tools', 'demo', 'configs', 'tests'}


HEAVY = (
    'torchvision',
    'mmcv',
    'mmpretrain',
    'mmseg',
    'mmdet',
    'mmaction',
    'timm',
    'matplotlib',
    'pandas',
    'scipy',
    'sklearn',
    'cv2',
    'PIL',
)


def _loaded(statement: str) -> set[str]:
    """Modules in memory after a statement, in a process of its own."""
    code = f'{statement}; import sys; print("LOADED", *sys.modules)'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith('LOADED'))
    return set(line.split()[1:])


def test_importing_mmpetl_alone_leaves_torch_where_it_is() -> None:
    assert not {'torch', 'numpy', 'mmengine'} & _loaded('import mmpetl')


def test_mmengine_brings_our_registries_behind_it() -> None:
    assert 'mmpetl.registry' in _loaded('import mmpetl, mmengine.registry')


def test_importing_mmpetl_is_light() -> None:
    before = _loaded('import torch, mmengine')
    after = _loaded('import torch, mmengine, mmpetl')
    new = {name for name in after - before if not name.startswith('mmpetl')}
    assert [h for h in HEAVY if h in after and h not in before] == []
    # What is new beside ourselves is a handful of small modules.
    own = {name for name in after if name.startswith('mmpetl')}
    assert not any(
        name.startswith(('mmpetl.methods.', 'mmpetl.backbones.')) for name in own
    )
    roots = {name.partition('.')[0] for name in new}
    small = {'torch', 'mmengine', 'numpy', 'msgspec'}
    assert roots <= set(sys.stdlib_module_names) | small | {
        r for r in roots if r.startswith('_')
    }


def test_using_timm_loads_no_openmmlab_package() -> None:
    after = _loaded(
        'import timm, mmpetl; '
        'm = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, '
        'embed_dim=32, depth=1, num_heads=2); mmpetl.inject(m, "LoRA")'
    )
    assert not {'mmpretrain', 'mmaction', 'mmseg', 'mmdet', 'mmcv'} & after


def test_nobody_outside_core_reads_the_record_by_its_attribute() -> None:
    for folder in ('mmpetl', 'tools', 'demo', 'tests'):
        for file in _files(ROOT / folder):
            if (PACKAGE / 'core') in file.parents or file == Path(__file__):
                continue
            text = file.read_text(encoding='utf-8')
            assert "'_petl'" not in text, file.relative_to(ROOT)
            assert '._petl' not in text, file.relative_to(ROOT)
