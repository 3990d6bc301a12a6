"""The demo scripts as a user runs them, and what they draw."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpetl import apis
from mmpetl.core import PETLError

ROOT = Path(__file__).parents[2]
DEMOS = ('image_demo', 'video_demo', 'seg_demo', 'det_demo')


def demo(name: str, *args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-W', 'ignore', f'demo/{name}.py', *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )


def test_demos_are_short():
    for name in DEMOS:
        assert len((ROOT / 'demo' / f'{name}.py').read_text().splitlines()) < 60


def test_the_image_demo_writes_a_picture(bench, picture):
    config = bench.config({'type': 'LoRA', 'rank': 2})
    model = bench.tuned(config)
    delta = apis.export_delta(model, config, bench.folder / 'ants')
    out = bench.folder / 'out.png'
    done = demo('image_demo', picture, config, '--delta', delta, '--out', out)
    assert done.returncode == 0, done.stderr[-1500:]
    best = apis.predict_image(apis.init_model(config, delta, 'cpu'), picture)
    assert [f'{100 * p.score:5.1f}%  {p.name}' for p in best] == [
        line for line in done.stdout.splitlines() if '%' in line
    ]
    assert {p.name for p in best} == {'ant', 'bee', 'cat', 'dog'}
    assert sum(p.score for p in best) == pytest.approx(1, abs=1e-5)
    drawn = np.asarray(Image.open(out))
    # The picture itself, each pixel 9 x 9, and rows of text below it.
    plain = np.asarray(Image.open(picture)).repeat(9, 0).repeat(9, 1)
    assert np.array_equal(drawn[: len(plain)], plain)
    assert drawn[len(plain) :].std() > 10


def test_bad_input_is_one_line_and_exit_code_1(bench, picture, monkeypatch, capsys):
    config = bench.config({'type': 'LoRA', 'rank': 2})
    text = bench.folder / 'text.png'
    text.write_text('no picture')
    cases = {
        (bench.folder / 'none.png', config): 'none.png is not there',
        (text, config): 'text.png',
        (picture, bench.folder / 'none.py'): 'there is no config',
        (picture, config, '--device', 'cuda:63'): "device 'cuda:63' is not there",
        (
            picture,
            config,
            '--delta',
            'none.safetensors',
        ): 'there is no none.safetensors',
    }
    image_demo = runpy.run_path(str(ROOT / 'demo' / 'image_demo.py'))
    for args, message in cases.items():
        whole = ['image_demo', *args, '--out', bench.folder / 'out.png']
        monkeypatch.setattr(sys, 'argv', [str(arg) for arg in whole])
        with pytest.raises(SystemExit) as stopped:
            image_demo['main']()
        assert stopped.value.code == 1, args
        said = capsys.readouterr().err
        last = said.strip().splitlines()[-1]
        assert last.startswith('error: '), said[-500:]
        assert message in last
        assert 'Traceback' not in said
    assert not (bench.folder / 'out.png').exists()


def test_a_truncated_picture_is_named(bench):
    pixels = np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)
    path = bench.folder / 'cut.jpg'
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:900])
    model = apis.init_model(bench.config(None), device='cpu')
    with pytest.raises(PETLError, match=r'cut\.jpg'):
        apis.predict_image(model, path)


def test_a_model_of_another_task_is_refused(bench, picture):
    model = apis.init_model(bench.config(None), device='cpu')
    with pytest.raises(PETLError, match='not pred_sem_seg; a segmentation config'):
        apis.predict_segmentation(model, picture)
    with pytest.raises(PETLError, match='not pred_instances; a detection config'):
        apis.predict_detection(model, picture)
    with pytest.raises(PETLError, match='the config is for images'):
        apis.predict_video(model, picture)


@pytest.mark.parametrize('device', ['cuda:63', 'cuda:-1', 'tpu', 'meta'])
def test_an_absent_device_is_refused(device):
    with pytest.raises(PETLError, match=r'there are: cpu'):
        apis.pick_device(device)


def test_segmentation_has_the_colours_of_its_classes(bench, picture):
    labels = np.zeros((40, 52), np.int64)
    labels[:, 26:] = 1
    labels[:10] = 255
    result = apis.Segmentation(labels, ['sky', 'sea'], [[255, 0, 0], [0, 0, 255]])
    assert result.shares() == {0: 0.375, 1: 0.375, 255: 0.25}
    out = apis.draw_segmentation(picture, result, bench.folder / 'seg.png', opacity=1.0)
    drawn = np.asarray(Image.open(out))
    plain = np.asarray(Image.open(picture))
    assert drawn[200, 100].tolist() == [255, 0, 0]
    assert drawn[200, 400].tolist() == [0, 0, 255]
    assert drawn[5, 5].tolist() == plain[0, 0].tolist()  # no class, no colour
    assert drawn.shape[1] > 52 * 9  # the legend


def test_boxes_are_drawn_where_they_are(bench, picture):
    box = apis.Box(0, 'cat', 0.9, (10.0, 20.0, 30.0, 35.0), None)
    out = apis.draw_detection(picture, [box], bench.folder / 'det.png', [[1, 2, 3]])
    drawn = np.asarray(Image.open(out)).astype(int)
    for x, y in ((90, 250), (270, 250), (200, 180), (200, 315)):
        assert abs(drawn[y, x] - [1, 2, 3]).max() == 0
    assert abs(drawn[250, 180] - [1, 2, 3]).max() > 0


def test_videos_keep_their_frames(bench):
    import cv2

    clip = bench.folder / 'clip.mp4'
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*'mp4v'), 12, (48, 40))
    for i in range(7):
        writer.write(np.full((40, 48, 3), 30 * i, np.uint8))
    writer.release()
    found = [apis.Prediction(0, 'wave', 0.75), apis.Prediction(1, 'nod', 0.25)]
    out = apis.draw_video(clip, found, bench.folder / 'out.mp4')
    reader = cv2.VideoCapture(str(out))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    there, frame = reader.read()
    assert there
    assert frame.shape[1] == 48 * 9
    assert frame.shape[0] > 40 * 9
    broken = bench.folder / 'broken.mp4'
    broken.write_bytes(b'nothing')
    with pytest.raises(PETLError, match=r'no frame of .*broken\.mp4'):
        apis.draw_video(broken, found, bench.folder / 'out2.mp4')
    with pytest.raises(PETLError, match=r'written as \.mp4'):
        apis.draw_video(clip, found, bench.folder / 'out.gif')
