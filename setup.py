"""Packaging of mmpetl. Versions of what it needs are stated in ``requirements/``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
EXTRAS = ('benchmark', 'cluster', 'docs', 'tests', 'optional', 'transformers')


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
        'mmpetl.benchmark.published': ['*.csv', 'README.md'],
        'mmpetl.benchmark.report': ['page.html', 'page.css', '*.js'],
    },
    install_requires=requirements('runtime') + requirements('openmmlab'),
    extras_require={name: requirements(name) for name in EXTRAS},
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
    ],
)
