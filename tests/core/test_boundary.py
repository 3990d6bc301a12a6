"""Files of text and data: bounds, text, JSON and types."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from mmpetl.core import PETLError
from mmpetl.core.boundary import (
    checked,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_utf8,
)


class Entry(msgspec.Struct):
    """A declared type."""

    label: int
    names: list[str] = []


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('{"label": 1, "label": 2}', "x has the key 'label' twice"),
        ('{"label": 1.7}', 'x: label: expected int, got float'),
        ('{"label": true}', 'x: label: expected int, got bool'),
        ('{"label": 1, "names": [2]}', r'x: names\[0\]: expected str, got int'),
        ('{"names": []}', 'missing required field label'),
        ('{"label": NaN}', 'NaN is no number of JSON'),
        ('{"label": 1e400}', '1e400 is too large a number'),
        ('{"label": 1', 'x is damaged or no JSON'),
        ('[' * 100_000, 'x is nested deeper than 64 levels'),
        ('[' * 80 + ']' * 80, 'x is nested deeper than 64 levels'),
        (b'\xff\xfe[\x00]\x00', 'x is UTF-16; save it as UTF-8'),
        (b'[1,\n"\xe9"]', 'x is no UTF-8: byte 0xe9 in line 2'),
        ('{"label": 1, "\\ud800": 2}', 'x holds half of a character'),
    ],
)
def test_what_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(PETLError, match=said):
        parse_json(text, Entry, 'x')


def test_what_is_read(tmp_path) -> None:
    file = tmp_path / 'a.json'
    file.write_bytes(b'\xef\xbb\xbf{"label": 3, "names": ["\xc3\xa9"], "more": 1}')
    assert read_json(file, Entry) == Entry(3, ['\u00e9'])
    assert parse_json('[1.5, {"a": null}]') == [1.5, {'a': None}]


def test_yaml_anchors_and_circles_are_walked_once() -> None:
    wide: Any = ['x'] * 9
    for _ in range(40):
        wide = [wide] * 9  # 9 ** 41 leaves, were each walked
    assert checked(wide, Any, 'x') is wide
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(PETLError, match='deeper than 64'):
        checked(circle, Any, 'x')


def test_no_regular_file_is_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / 'fifo')
    with pytest.raises(PETLError, match='device, FIFO or socket, and no list'):
        read_bytes(tmp_path / 'fifo', 'list')
    with pytest.raises(PETLError, match='is a folder, and no file'):
        read_utf8(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no list'):
        read_bytes(tmp_path / 'none', 'list')
    with pytest.raises(PETLError, match='cannot read'):
        read_bytes('a\0b')


def test_sizes_are_bounded(tmp_path, monkeypatch) -> None:
    file = tmp_path / 'a'
    file.write_bytes(b'x' * 5)
    assert read_bytes(file, limit=5) == b'x' * 5
    with pytest.raises(PETLError, match='MMPETL_MAX_TEXT_MIB'):
        read_bytes(file, limit=4)
    monkeypatch.setenv('MMPETL_MAX_TEXT_MIB', 'much')
    with pytest.raises(PETLError, match="number of MiB, got 'much'"):
        read_bytes(file)


def test_one_bad_line_does_not_stop_the_others(tmp_path) -> None:
    file = tmp_path / 'a.jsonl'
    file.write_text('{"label": 1}\nnonsense\n\n{"label": 2}\n{"label": 3')
    first, bad, last = read_json_lines(file, Entry)
    assert (first, last) == (Entry(1), Entry(2))
    assert isinstance(bad, PETLError)
    assert 'a.jsonl, line 2' in str(bad)


@pytest.mark.parametrize('text', [r'["\ud800"]', r'{"\udfff": 1}', r'[["a\udead b"]]'])
def test_half_of_a_character_is_refused(text):
    with pytest.raises(PETLError, match='^a.json holds half of a character'):
        parse_json(text, place='a.json')
    assert parse_json(r'["\ud83d\ude00", "\\ud800"]') == ['\U0001f600', r'\ud800']
