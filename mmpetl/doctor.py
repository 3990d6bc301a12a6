"""Tells what is installed, what is missing, what clashes, and how to mend it.

    python -m mmpetl.doctor

Exit code 1 if something required is missing, has the wrong version or clashes. Nothing
but the standard library is needed to run it: ``python mmpetl/doctor.py`` works where
``import mmpetl`` does not.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / '.mim' if (PACKAGE / '.mim').is_dir() else PACKAGE.parent
"""As ``mmpetl/shipped.py`` has it, which is not imported here."""
OPENCV = (
    'opencv-python',
    'opencv-contrib-python',
    'opencv-python-headless',
    'opencv-contrib-python-headless',
)
Verdict = Literal['ok', 'note', 'missing', 'wrong', 'clash']


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``mend`` is empty where nothing needs doing."""

    name: str
    found: str
    wanted: str
    verdict: Verdict
    mend: str = ''

    @property
    def fatal(self) -> bool:
        """Whether mmpetl cannot be relied on before this is mended."""
        return self.verdict in ('missing', 'wrong', 'clash')


def canonical(name: str) -> str:
    """The spelling under which package names compare equal."""
    return re.sub(r'[-_.]+', '-', name).lower()


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by canonical name."""
    return {
        canonical(dist.metadata['Name']): dist.version
        for dist in metadata.distributions()
        if dist.metadata['Name']
    }


def _requirement_class() -> type:
    """``packaging``'s Requirement, or pip's copy where packaging is missing."""
    for module in ('packaging.requirements', 'pip._vendor.packaging.requirements'):
        try:
            return importlib.import_module(module).Requirement
        except ImportError:
            continue
    raise SystemExit('neither packaging nor pip is installed: python -m ensurepip')


def _lines(name: str) -> list[str]:
    file = SHIPPED / 'requirements' / f'{name}.txt'
    if not file.is_file():
        return []
    lines = map(str.strip, file.read_text(encoding='utf-8').splitlines())
    return [line for line in lines if line and not line.startswith('#')]


def declared_requirements() -> list[str]:
    """What mmpetl declares: from the source tree, else from its installed metadata."""
    lines = _lines('runtime') + _lines('openmmlab')
    if lines:
        return lines
    try:
        declared = metadata.requires('mmpetl') or []
    except metadata.PackageNotFoundError:
        declared = []
    return [line for line in declared if 'extra ==' not in line]


def check_python(version: tuple[int, int]) -> Finding:
    """The interpreter against the versions that are held."""
    found = '.'.join(map(str, version))
    if (3, 10) <= version < (3, 13):
        return Finding('Python', found, '3.10 to 3.12', 'ok')
    mend = 'make a new environment: make install PYTHON=/path/to/python3.11'
    return Finding('Python', found, '3.10 to 3.12', 'wrong', mend)


def check_required(
    versions: Mapping[str, str], required: Iterable[str], pinned: Iterable[str] = ()
) -> list[Finding]:
    """Each requirement against what is installed.

    Args:
        versions: Installed versions by canonical name.
        required: Requirements as pip reads them.
        pinned: Lines of the constraints file; another version inside the required
            range is only noted.
    """
    requirement = _requirement_class()

    def applying(lines: Iterable[str]) -> list:
        parsed = [requirement(line) for line in lines]
        return [req for req in parsed if req.marker is None or req.marker.evaluate()]

    tested = {canonical(req.name): req.specifier for req in applying(pinned)}
    findings = []
    for req in applying(required):
        name, wanted = canonical(req.name), str(req.specifier) or 'any'
        found = versions.get(name)
        # A compiled mmcv does all that mmcv-lite does.
        if name == 'mmcv-lite' and found is None and 'mmcv' in versions:
            name, found = 'mmcv', versions['mmcv']
        pin = tested.get(name, '')
        mend = f'pip install "{name}{pin or req.specifier}"'
        if name.startswith('mm') and name != 'mmcv':
            mend += ' --no-deps'
        if found is None:
            findings.append(Finding(name, '-', wanted, 'missing', mend))
        elif not req.specifier.contains(found, prereleases=True):
            findings.append(Finding(name, found, wanted, 'wrong', mend))
        elif pin and not pin.contains(found, prereleases=True):
            note = f'tested with {str(pin)[2:]}; to have that: {mend}'
            findings.append(Finding(name, found, wanted, 'note', note))
        else:
            findings.append(Finding(name, found, wanted, 'ok'))
    return findings


def check_opencv(versions: Mapping[str, str]) -> list[Finding]:
    """One OpenCV, or several of one version; they all write to one folder."""
    present = [name for name in OPENCV if name in versions]
    if not present:
        mend = f'pip install {OPENCV[-1]}'
        return [Finding('OpenCV', '-', 'one package', 'missing', mend)]
    found = ', '.join(f'{name} {versions[name]}' for name in present)
    if len(present) == 1:
        return [Finding('OpenCV', found, 'one package', 'ok')]
    mend = f'pip uninstall -y {" ".join(present)}, then pip install {OPENCV[-1]}'
    if len({versions[name] for name in present}) > 1:
        return [Finding('OpenCV', found, 'one package', 'clash', mend)]
    note = f'same version, so they get along; to have one: {mend}'
    return [Finding('OpenCV', found, 'one package', 'note', note)]


def check_mmcv(versions: Mapping[str, str]) -> list[Finding]:
    """Both mmcv and mmcv-lite, which fill the same folder."""
    if 'mmcv' in versions and 'mmcv-lite' in versions:
        found = f'mmcv {versions["mmcv"]}, mmcv-lite {versions["mmcv-lite"]}'
        mend = (
            'pip uninstall -y mmcv mmcv-lite, then '
            'pip install --no-deps mmcv-lite==2.1.0 (or mmcv, compiled)'
        )
        return [Finding('mmcv and mmcv-lite', found, 'one of them', 'clash', mend)]
    return []


def check_video(
    versions: Mapping[str, str], pinned: Iterable[str] = ()
) -> list[Finding]:
    """MMAction2, which video alone needs.

    Args:
        versions: Installed versions by canonical name.
        pinned: Lines of the constraints file.
    """
    found = versions.get('mmaction2')
    if found is not None:
        return [Finding('mmaction2', found, 'for video', 'ok')]
    pin = next((line for line in pinned if line.startswith('mmaction2==')), 'mmaction2')
    # With what it declares comes a second OpenCV.
    mend = f'for video: pip install --no-deps "{pin}"'
    return [Finding('mmaction2', '-', 'for video', 'note', mend)]


def check_transformers(
    versions: Mapping[str, str], described: Iterable[str] = ()
) -> list[Finding]:
    """What a transformers of this release serves: its own models, or mmpretrain's.

    Args:
        versions: Installed versions by canonical name.
        described: The requirement of mmpetl's own descriptions of its models.
    """
    found = versions.get('transformers')
    if found is None:
        return []
    requirement = _requirement_class()
    ours = next((requirement(line) for line in described), None)
    wanted = 'optional' if ours is None else f'optional, {ours.specifier}'
    notes = []
    if ours is not None and not ours.specifier.contains(found, prereleases=True):
        notes.append(
            'mmpetl describes models of later releases; for those: '
            f'pip install "transformers{ours.specifier}"'
            + (f' ({ours.marker})' if ours.marker else '')
        )
    if int(found.split('.')[0]) >= 5:
        notes.append(
            'the multimodal models of mmpretrain and mmaction2 need a release before '
            '5 and are switched off; all else works'
        )
    verdict = 'note' if notes else 'ok'
    return [Finding('transformers', found, wanted, verdict, '; '.join(notes))]


def check_torch_pair(
    versions: Mapping[str, str], vision_requires: Iterable[str]
) -> list[Finding]:
    """Whether torchvision has the one torch it is built for.

    Args:
        versions: Installed versions by canonical name.
        vision_requires: What torchvision's metadata declares.
    """
    if not {'torch', 'torchvision'} <= versions.keys():
        return []  # reported as missing
    requirement = _requirement_class()
    for req in map(requirement, vision_requires):
        if canonical(req.name) != 'torch':
            continue
        fits = req.specifier.contains(versions['torch'], prereleases=True)
        found = f'torch {versions["torch"]}, torchvision {versions["torchvision"]}'
        mend = '' if fits else f'pip install "torch{req.specifier}"'
        verdict = 'ok' if fits else 'clash'
        return [Finding('torch for torchvision', found, str(req), verdict, mend)]
    return []


def check_pkg_resources(present: bool) -> list[Finding]:
    """MMEngine imports ``pkg_resources``, which setuptools 81 and later lack."""
    if present:
        return []
    mend = 'pip install "setuptools<81"'
    return [Finding('pkg_resources', '-', 'present', 'missing', mend)]


def check_imports(names: Iterable[str]) -> list[Finding]:
    """Modules that are installed but do not load, with what they say."""
    findings = []
    for name in names:
        if importlib.util.find_spec(name) is None:
            continue  # reported as missing
        try:
            importlib.import_module(name)
        # A broken binary may raise anything; the doctor's task is to tell.
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
            mend = f'reinstall it: pip install --force-reinstall --no-deps {name}'
            if name == 'cv2':
                mend = (
                    f'pip uninstall -y {" ".join(OPENCV)}, then pip install '
                    f'{OPENCV[-1]} (it needs no libGL)'
                )
            findings.append(Finding(f'import {name}', reason, 'loads', 'wrong', mend))
    return findings


def check_unpickling(environ: Mapping[str, str]) -> list[Finding]:
    """A variable of torch that turns safe loading off for the whole process."""
    name = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    if environ.get(name, '').lower() not in ('1', 'y', 'yes', 'true'):
        return []
    mend = f'unset {name}: with it, a checkpoint can run code when loaded'
    return [Finding(name, environ[name], 'unset', 'clash', mend)]


def kernels_in_use() -> Finding:
    """Where ``mmcv.ops`` takes its kernels from."""
    try:
        spec = importlib.util.find_spec('mmcv._ext')
    except Exception:  # mmcv is missing or broken, which another line reports
        spec = None
    if spec is not None and spec.origin not in (None, 'mmpetl.compat'):
        return Finding('mmcv kernels', 'compiled', 'any', 'ok')
    return Finding('mmcv kernels', 'torchvision, through mmpetl', 'any', 'ok')


def accelerator() -> Finding:
    """What training would run on."""
    try:
        import torch
    except Exception:  # reported by check_required or check_imports
        return Finding('accelerator', 'unknown (torch does not load)', 'any', 'ok')
    if torch.cuda.is_available():
        names = [
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ]
        return Finding('accelerator', ', '.join(names), 'any', 'ok')
    if torch.backends.mps.is_available():
        return Finding('accelerator', 'Apple GPU (mps)', 'any', 'ok')
    return Finding('accelerator', f'CPU, {os.cpu_count()} cores', 'any', 'ok')


def examine() -> list[Finding]:
    """All checks of this environment."""
    versions = installed_versions()
    vision = metadata.requires('torchvision') if 'torchvision' in versions else None
    return [
        check_python(sys.version_info[:2]),
        *check_required(versions, declared_requirements(), _lines('constraints')),
        *check_opencv(versions),
        *check_mmcv(versions),
        *check_video(versions, _lines('constraints')),
        *check_transformers(versions, _lines('transformers')),
        *check_torch_pair(versions, vision or ()),
        *check_pkg_resources(importlib.util.find_spec('pkg_resources') is not None),
        *check_imports(('torch', 'torchvision', 'cv2', 'mmengine', 'mmcv', 'decord')),
        *check_unpickling(os.environ),
        kernels_in_use(),
        accelerator(),
    ]


def report(findings: Iterable[Finding]) -> str:
    """The table, and below it one line for each thing to mend or to know."""
    findings = list(findings)
    rows = [('what', 'found', 'wanted', 'verdict')]
    rows += [(f.name, f.found, f.wanted, f.verdict) for f in findings]
    widths = [min(max(len(row[i]) for row in rows), 44) for i in range(4)]
    lines = [
        '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    advice = [f'{f.verdict:8}{f.name}: {f.mend}' for f in findings if f.mend]
    if advice:
        lines += ['', *advice]
    fatal = sum(f.fatal for f in findings)
    lines += ['', f'{fatal} to mend' if fatal else 'all that is required is in place']
    return '\n'.join(lines)


def main() -> int:
    """Print the report; 1 if anything must be mended."""
    findings = examine()
    print(report(findings))
    return int(any(finding.fatal for finding in findings))


if __name__ == '__main__':
    sys.exit(main())
