"""``mmpetl predict RUN FOLDER --out FILE.csv``: rows are what the model predicts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mmengine.registry import DefaultScope
from PIL import Image
from workbench import Workbench

from mmpetl import apis
from mmpetl.cli.commands.predict import files_of
from mmpetl.cli.main import mmpetl as command
from mmpetl.core import PETLError

MINI = Path(__file__).parents[2] / 'configs' / 'mini'


def call(*argv: object) -> tuple[int, str]:
    DefaultScope._instance_dict.clear()
    done = CliRunner().invoke(command, [*map(str, argv)], prog_name='mmpetl')
    return done.exit_code, done.output.splitlines()[-1]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    (tmp_path / 'seen').mkdir()
    files = [tmp_path / 'seen' / f'{name}.png' for name in ('a, "b"', 'c')]
    for number, path in enumerate(files):
        pixels = np.random.RandomState(number).randint(0, 255, (40, 52, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return files


def test_classes_of_a_folder(pictures, tmp_path):
    bench = Workbench(tmp_path)
    config = bench.config({'type': 'LoRA', 'rank': 2})
    delta = apis.export_delta(bench.tuned(config), config, tmp_path / 'ants')
    argv = ('predict', delta, tmp_path / 'seen', '--config', config, '--device', 'cpu')
    out = tmp_path / 'to' / 'found.csv'
    assert call(*argv, '--out', out) == (0, f'2 lines on 2 files: {out}')
    header, *found = rows(out)
    assert header == ['file', 'class', 'score']
    model = apis.init_model(config, delta, 'cpu')
    for row, path in zip(found, pictures, strict=True):
        (best,) = apis.predict_image(model, path, 1)
        assert row == [str(path), best.name, f'{best.score:.4f}']
    assert call(*argv, '--out', out, '--topk', 9)[1].startswith('8 lines on 2 files')
    assert [*out.parent.iterdir()] == [out]
    for flag, words in (
        ('--opacity', 'is a table'),
        ('--threshold', 'as a table; the'),
    ):
        assert words in call(*argv, '--out', out, flag, 1)[1]
    before = out.read_bytes()
    pictures[1].write_text('no picture')
    code, line = call(*argv, '--out', out)
    assert (code, 'c.png' in line) == (1, True)
    assert out.read_bytes() == before
    part = rows(out.with_name('found.csv.part'))
    assert part[0] == header
    assert len(part) == 2


def test_names_that_cannot_be_written_are_one_line(pictures, tmp_path):
    bench = Workbench(tmp_path)
    config = bench.config({'type': 'LoRA', 'rank': 2})
    delta = apis.export_delta(bench.tuned(config), config, tmp_path / 'ants')
    odd = tmp_path / 'seen' / 'x\udcff.png'
    pictures[1].rename(odd)
    out = tmp_path / 'found.csv'
    argv = ('predict', delta, tmp_path / 'seen', '--config', config, '--out', out)
    code, line = call(*argv)
    assert (code, 'x\\udcff.png' in line) == (1, True)
    assert '1 files have a name that is no UTF-8' in line
    model = apis.init_model(config, delta, 'cpu')
    with pytest.raises(PETLError, match='no UTF-8'):
        apis.write_table(model, [odd], out)
    assert not out.with_name('found.csv.part').exists()


def test_pictures_behind_links_are_predicted(pictures, tmp_path):
    (tmp_path / 'other').symlink_to(tmp_path / 'seen')
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'linked').symlink_to(tmp_path / 'seen')
    (tmp_path / 'new' / 'again').symlink_to(tmp_path / 'new')
    found = files_of([str(tmp_path / 'new')])
    assert found == [tmp_path / 'new' / 'linked' / path.name for path in pictures]


def test_segments_and_boxes(pictures, tmp_path):
    out = tmp_path / 'found.csv'
    for name, header in (
        ('ade20k', 'file class pixels share'),
        ('voc', 'file class score left top right bottom'),
    ):
        DefaultScope._instance_dict.clear()
        options = {'model.backbone.method.type': 'LoRA', 'log_level': 'ERROR'}
        model = apis.init_model(
            apis.load_config(MINI / f'{name}.py', options), device='cpu'
        )
        option = {} if name == 'ade20k' else {'threshold': 0.0}
        assert apis.write_table(model, pictures, out, **option) > 2
        first, *found = rows(out)
        assert first == header.split()
        assert {row[0] for row in found} == {str(path) for path in pictures}
        for path in pictures:
            mine = [row[1:] for row in found if row[0] == str(path)]
            if name == 'ade20k':
                labels = apis.predict_segmentation(model, path).labels
                _, counts = np.unique(labels, return_counts=True)
                assert [int(r[1]) for r in mine] == sorted(counts, reverse=True)
                shares = [int(r[1]) / (40 * 52) for r in mine]
                assert [float(r[2]) for r in mine] == pytest.approx(shares, abs=1e-4)
                continue
            boxes = apis.predict_detection(model, path, 0.0)
            assert [r[0] for r in mine] == [box.name for box in boxes]
            corners = np.array([r[2:] for r in mine], float)
            expected = [box.corners for box in boxes]
            np.testing.assert_allclose(corners, expected, atol=0.051)
