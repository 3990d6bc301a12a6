"""The text of a config, which MMEngine lays out for every checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

from mmengine.config import Config
from mmengine.config import config as mmengine_config

from mmpetl.compat.texts import format_once


def test_a_config_is_laid_out_once_and_again_when_it_changes() -> None:
    config = Config({'model': {'type': 'A', 'depth': 2}, 'seed': 71823})
    kept = mmengine_config.FormatCode.kept
    text = config.pretty_text
    newest = list(kept)[-1]
    assert '71823' in newest[0]
    assert kept[newest][0] == text
    before = len(kept)
    assert config.pretty_text == text
    assert len(kept) == before
    config.model.depth = 3
    assert config.pretty_text == text.replace('depth=2', 'depth=3')


def test_the_oldest_texts_go_and_styles_are_told_apart() -> None:
    seen: list[tuple] = []

    def lay_out(text: str, **options: object) -> tuple[str, bool]:
        seen.append((text, options))
        return text.upper(), True

    module = SimpleNamespace(FormatCode=lay_out)
    format_once(module)
    format_once(module)  # twice changes nothing
    assert module.FormatCode('a', style_config={'x': 1}) == ('A', True)
    module.FormatCode('a', style_config={'x': 1})
    module.FormatCode('a', style_config={'x': 2})
    module.FormatCode('a', style_config={'x': 2}, verify=True)
    assert len(seen) == 3
    for number in range(40):
        module.FormatCode(str(number))
        module.FormatCode('a', style_config={'x': 1})  # asked for again, so it stays
    assert len(seen) == 43
    assert len(module.FormatCode.kept) == 16
