"""The text of a config, which MMEngine lays out for every checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from yapf.yapflib.yapf_api import FormatCode

from mmpetl.compat.texts import MOST, format_once


def test_statements_are_laid_out_once_and_again_when_they_change() -> None:
    config = Config({'model': {'type': 'A', 'depth': 2}, 'seed': 71823})
    kept = mmengine_config.FormatCode.kept
    kept.clear()  # of what other tests have filled it with
    text = config.pretty_text
    newest = list(kept)[-2:]
    assert [key[0].partition('=')[0] for key in newest] == ['model', 'seed']
    assert ''.join(kept[key] for key in newest) == text
    before = len(kept)
    assert config.pretty_text == text
    assert len(kept) == before
    config.model.depth = 3
    assert config.pretty_text == text.replace('depth=2', 'depth=3')
    assert len(kept) == before + 1


def test_a_text_is_that_of_its_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {'type': 'A' * 60, 'names': ['b' * 30, ('c' * 30, None)], 'x': 1.5}
    words = {'of-words': 'two\nlines # and no comment', 'b': "it's"}
    config = Config({'model': model, 'words': words, 'seed': 1})
    ours = config.pretty_text
    assert len(ours.splitlines()) > 10
    monkeypatch.setattr(mmengine_config, 'FormatCode', FormatCode)
    assert config.pretty_text == ours


def test_the_oldest_statements_go_and_styles_are_told_apart() -> None:
    seen: list[tuple] = []

    def lay_out(text: str, **options: object) -> tuple[str, bool]:
        seen.append((text, options))
        return text.upper(), True

    module = SimpleNamespace(FormatCode=lay_out)
    format_once(module)
    format_once(module)  # twice changes nothing
    assert module.FormatCode('a=1\n', style_config={'x': 1}) == ('A=1\n', True)
    module.FormatCode('a=1\n', style_config={'x': 1})
    module.FormatCode('a=1\n', style_config={'x': 2})
    module.FormatCode('a=1\n', style_config={'x': 2}, verify=True)
    assert len(seen) == 3
    assert module.FormatCode('if a: pass\n') == ('IF A: PASS\n', True)
    before = len(seen)
    for number in range(MOST + 20):
        module.FormatCode(f'a={number}\nb=1\n')  # asked for again, so it stays
    assert len(seen) == before + MOST + 21
    assert len(module.FormatCode.kept) == MOST
