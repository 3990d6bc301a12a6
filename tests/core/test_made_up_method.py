"""A stranger adds a method: one file, and nothing else is edited."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import TINY, base, hosts, images, offered, outputs, shake_

import mmpetl
from mmpetl.core import PETLError, eject, inject
from mmpetl.registry import METHODS

ROOT = Path(mmpetl.__file__).parent.parent

RIPPLE = '''
"""Ripple: a low-rank nudge on the value projection, gated per channel."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpetl.core import Affine, Context, Delta, Method, Site
from mmpetl.registry import METHODS


class RippleDelta(Delta):
    """y -> gate * (y + up(down(x))).  x: (B, N, in_dims), y: (B, N, out_dims)."""

    def __init__(self, in_dims: int, out_dims: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_dims, rank, bias=False)
        self.up = nn.Linear(rank, out_dims, bias=False)
        self.gate = nn.Parameter(torch.ones(out_dims))
        nn.init.zeros_(self.up.weight)

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.gate * (y + self.up(self.down(x)))


@METHODS.register_module()
class Ripple(Method):
    """Ripple tuning."""

    targets = ('attn.v',)
    family = 'reparameterisation'

    def __init__(self, rank: int = 4) -> None:
        self.rank = rank

    def build(self, site: Site) -> RippleDelta:
        return RippleDelta(site.in_dims, site.out_dims, self.rank)

    def fold(self, site: Site, delta: RippleDelta, affine: Affine) -> None:
        affine.add_(delta.up.weight.double() @ delta.down.weight.double())
        affine.scale_(delta.gate)
'''


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / 'ripple.py'
    path.write_text(RIPPLE)
    yield path
    METHODS._module_dict.pop('Ripple', None)


def test_importing_the_file_is_all_it_takes(file: Path) -> None:
    with pytest.raises(PETLError, match="unknown method 'Ripple'"):
        inject(base('timm_vit'), 'Ripple')
    spec = importlib.util.spec_from_file_location('ripple', file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    stems = [stem for stem in TINY if 'attn.v' in offered(stem)]
    assert set(stems) >= {'timm_vit', 'mmpretrain_swin', 'mmaction_swin3d'}
    for stem in stems:
        x = images(stem)
        model = inject(base(stem), {'type': 'Ripple', 'rank': 3})
        plain = outputs(base(stem), x)
        torch.testing.assert_close(outputs(model, x), plain, rtol=1e-5, atol=1e-5)
        shake_(model)
        assert not torch.allclose(outputs(model, x)[-1], plain[-1])
        eject(model)
        assert all(map(torch.equal, outputs(model, x), plain))


# What `pytest -k <stem>` does for a file that lies in mmpetl/methods; the file is
# imported before the tests are collected, so that the folder need not be written to.
PLUGIN = """
import importlib.util, sys
import mmpetl.methods
spec = importlib.util.spec_from_file_location('mmpetl.methods.ripple', {file!r})
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
"""


def test_the_contract_picks_it_up_on_every_host(file: Path, tmp_path: Path) -> None:
    (tmp_path / 'with_ripple.py').write_text(PLUGIN.format(file=str(file)))
    args = ['-p', 'with_ripple', '-q', '-k', 'ripple', 'tests/contract']
    args += ['-p', 'no:cacheprovider', '-p', 'no:warnings']
    args += [f'--trunk={stem}' for stem in hosts()]
    path = [str(tmp_path), str(ROOT)]
    done = subprocess.run(
        [sys.executable, '-c', _RUN.format(path=path, args=args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = int(done.stdout.rpartition(' passed')[0].split()[-1])
    # What meets the trunk on every host, and what core keeps in order on the first:
    # tens of tests, none of them written for it.
    assert passed > 2 * len(hosts()) + 20


_RUN = 'import sys; sys.path[:0] = {path}; import pytest; sys.exit(pytest.main({args}))'


@pytest.mark.slow
def test_a_broken_method_does_not_pass_the_contract(tmp_path: Path) -> None:
    broken = RIPPLE.replace('nn.init.zeros_(self.up.weight)', 'pass').replace(
        'affine.scale_(delta.gate)', 'pass'
    )
    file = tmp_path / 'ripple.py'
    file.write_text(broken)
    (tmp_path / 'with_ripple.py').write_text(PLUGIN.format(file=str(file)))
    args = ['-p', 'with_ripple', '-q', '-k', 'ripple-timm_vit', '-p', 'no:warnings']
    args += ['--trunk=timm_vit']
    args += ['-p', 'no:cacheprovider', '--tb=no', 'tests/contract']
    path = [str(tmp_path), str(ROOT)]
    done = subprocess.run(
        [sys.executable, '-c', _RUN.format(path=path, args=args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    failed = [x for x in done.stdout.splitlines() if x.startswith('FAILED')]
    names = {x.split('::')[1].split('[')[0] for x in failed}
    assert names == {
        'test_output_equals_the_base_at_step_0',
        'test_folded_equals_unfolded',
    }
