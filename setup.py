"""Packaging of mmpetl. Versions of what it needs are stated in ``requirements/``."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
EXTRAS = (
    'benchmark',
    'cluster',
    'docs',
    'tests',
    'optional',
    'transformers',
    'peft',
    'quantised',
    'onnx',
    'notebooks',
)
SHIPPED = (
    'configs/**/*.py',
    'configs/**/*.yaml',
    'configs/**/*.yml',
    'configs/**/*.json',
    'demo/weights/*.json',
    'demo/weights/*.md',
    'demo/weights/*.safetensors',
    'demo/zoo/*.json',
    'demo/zoo/*.mp4',
    'demo/zoo/*.png',
    'demo/zoo/*.safetensors',
    'docs/methods/*.md',
    'model-index.yml',
    'requirements/*.txt',
    'tools/dist_*.sh',
    'tools/slurm_test.sh',
    'tools/slurm_train.sh',
    'tools/test.py',
    'tools/train.py',
)
"""What a wheel holds in ``mmpetl/.mim``, where ``mmpetl/shipped.py`` and mim look."""


class BuildWithFiles(build_py):
    """Copies what travels with the package; an editable install has it beside it."""

    def run(self) -> None:
        """Build, and copy."""
        super().run()
        if self.editable_mode:
            return
        for pattern in SHIPPED:
            for path in ROOT.glob(pattern):
                there = Path(self.build_lib, 'mmpetl', '.mim', path.relative_to(ROOT))
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, there)


def requirements(name: str) -> list[str]:
    """Lines of ``requirements/<name>.txt`` that name a package."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in map(str.strip, lines) if line and line[0] != '#']


def version() -> str:
    """The version that ``mmpetl/version.py`` states, read without importing torch."""
    facts: dict[str, str] = {}
    exec((ROOT / 'mmpetl' / 'version.py').read_text(), facts)
    return facts['__version__']


README = ROOT / 'README.md'

setup(
    name='mmpetl',
    version=version(),
    description='Parameter-efficient transfer learning in the OpenMMLab framework',
    long_description=README.read_text(encoding='utf-8') if README.is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author='The mmpetl authors',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['mmpetl', 'mmpetl.*']),
    package_data={
        'mmpetl': ['py.typed'],
        'mmpetl.benchmark.published': ['*.csv', 'README.md'],
        'mmpetl.benchmark.report': ['page.html', 'page.css', '*.js'],
        'mmpetl.own': ['page.html', 'page.css'],
    },
    install_requires=requirements('runtime') + requirements('openmmlab'),
    entry_points={'console_scripts': ['mmpetl = mmpetl.cli.main:main']},
    cmdclass={'build_py': BuildWithFiles},
    extras_require={name: requirements(name) for name in EXTRAS},
    classifiers=[
        'Typing :: Typed',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
    ],
)
