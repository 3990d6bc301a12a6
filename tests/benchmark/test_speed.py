"""The scripts that measure speed: where they are, and what they compare."""

from __future__ import annotations

import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import mmpetl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def names_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``names_of(script)``: what a script of ``speed`` defines."""
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'speed'), *sys.path])
    return lambda script: runpy.run_path(str(ROOT / 'speed' / script))


@torch.no_grad()
def test_the_swapped_backbone_is_the_original_and_trains_as_it_does(
    stem: str, names_of: Any
) -> None:
    x = tiny.images(stem)
    want = tiny.outputs(tiny.base(stem), x)
    swapped = mmpetl.inject(tiny.base(stem), names_of('backbones.py')['Nothing']())
    swapped.eval()
    assert not any('petl' in name for name, _ in swapped.named_modules())
    unread = tiny.record(swapped).site_map.is_unused
    for name, param in swapped.named_parameters():
        assert param.requires_grad != unread(name)
    for got, y in zip(tiny.outputs(swapped, x), want, strict=True):
        torch.testing.assert_close(got, y)


def test_methods_of_dense_tasks_are_those_with_published_settings(
    names_of: Any,
) -> None:
    found = names_of('methods.py')['dense_methods']()
    # Mona's tables, those of E3VA and LoRand, all on COCO, and Rein.
    assert found == [
        'AdaptFormer',
        'Adapter',
        'BitFit',
        'E3VA',
        'Full',
        'LNTune',
        'LinearProbe',
        'LoRA',
        'LoRand',
        'Mona',
        'PartialK',
        'Rein',
    ]


@pytest.fixture
def small(names_of: Any) -> Any:
    """``speed/methods.py`` on a trunk of two narrow blocks, and an input of it."""
    from mmpretrain.models import VisionTransformer

    arch = {'embed_dims': 32, 'num_layers': 2, 'num_heads': 2}
    arch['feedforward_channels'] = 64

    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return VisionTransformer(arch=arch, img_size=16, patch_size=8)

    script = names_of('methods.py')
    return script, script['References'](make, torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize(
    ('method', 'lowest'),
    [('BitFit', 0), ('PartialK', 1), ('LinearProbe', None), ('LST', None)],
)
def test_the_bound_of_a_method_is_where_its_gradient_ends(
    method: Any, lowest: int | None, small: Any
) -> None:
    script, references = small
    net = mmpetl.inject(references.make(), method)
    net.train()
    assert script['lowest_block'](net, references.x) == lowest
    bound = references.bound(lowest)
    if lowest is None:
        assert bound == references.forward
    else:
        trained = {n for n, p in bound.net.named_parameters() if p.requires_grad}
        assert trained == {f'layers.{lowest}.ln1.bias'}


def test_a_row_says_what_a_method_costs(small: Any) -> None:
    script, references = small
    ticks = iter(range(10_000))
    methods = {name: script['Measured'](name, references) for name in ('LoRA', 'LST')}
    found = script['measure'](methods, references, 2, lambda: float(next(ticks)))
    row, beside = found
    assert [beside['method'], beside['lowest_block']] == ['LST', None]
    assert beside['step_bound'] == beside['step_forward'] == [1, 1, 1, 1]
    assert 'folded_forward' not in beside
    assert row['parameters'] == 2 * 2 * 8 * (32 + 32)
    assert 0 < row['kept'] < 1
    assert row['disk'] > 4 * row['parameters']
    # A clock that goes a second at each look measures one second of everything.
    for ratio in ('step_bound', 'step_forward', 'step_full', 'folded_forward'):
        assert row[ratio][:3] == [1, 1, 1]
    assert '| LoRA | 2,048 | 1.00 (1.00 to 1.00) |' in script['table']([row])


def test_rows_that_were_cut_are_measured_again(names_of: Any, tmp_path: Path) -> None:
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"method": "LoRA"}\n{"method": "SS', encoding='utf-8')
    assert names_of('page.py')['read_rows'](path) == [{'method': 'LoRA'}]


def test_every_old_speed_script_leads_to_a_new_one() -> None:
    scripts = [p for p in (ROOT / 'benchmarks').glob('*.py') if p.name != '_moved.py']
    assert {p.stem for p in scripts} == {'backbones', 'methods', 'report_page', 'sizes'}
    for path in scripts:
        (name,) = re.findall(r"_moved\.run\('(.*)'\)", path.read_text())
        assert (ROOT / 'speed' / name).is_file()


def test_an_old_speed_command_says_where_it_is_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    old = 'benchmarks/methods.py'
    monkeypatch.setattr(sys, 'argv', [old, '--help'])
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / old), run_name='__main__')
    out, err = capsys.readouterr()
    assert end.value.code == 0
    assert err == 'benchmarks/methods.py has moved to speed/methods.py\n'
    assert '--backbone {vit_b,vit_b_frames,videomae_b,swin_b,video_swin_b}' in out


def test_numbers_on_a_device_are_held_to_fp64(names_of: Any, tmp_path: Path) -> None:
    """That of a right method pass, those of a wrong one do not."""
    gpu = names_of('gpu.py')
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    net = gpu['tiny']('LoRA')
    exact = gpu['results'](net, x, None)
    assert len(exact) > 1
    near = gpu['results'](net.float(), x.float(), torch.bfloat16)
    assert 1e-4 < gpu['difference'](near, exact) <= gpu['BOUNDS']['bf16']
    assert gpu['difference'](exact[:-1], exact) == float('inf')
    wrong = [exact[0], *(2 * gradient for gradient in exact[1:])]
    assert gpu['difference'](wrong, exact) == pytest.approx(1)


def test_a_part_on_a_device_goes_on_where_it_stopped(
    names_of: Any, tmp_path: Path
) -> None:
    make = names_of('gpu.py')['Part']
    case = {'device': 'CPU'}
    first = make(tmp_path, 'numbers', time.monotonic() + 60, case)
    assert list(first.missing(['a', 'b'])) == ['a', 'b']
    first.keep('a', fp32=0.5)
    late = make(tmp_path, 'numbers', time.monotonic(), case)
    assert list(late.missing(['a', 'b'])) == []
    assert late.left == ['b']
    assert not make(tmp_path, 'numbers', 0.0, {'device': 'other'}).rows
