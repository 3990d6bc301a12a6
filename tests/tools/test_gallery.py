"""Pictures show what an injected backbone says; the default suite holds them as new."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mmpetl.core import FAMILIES, KINDS, PETLError, build_method

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tools' / 'misc'))

import gallery  # noqa: E402
import schematics  # noqa: E402


@pytest.fixture(scope='module')
def trunks():
    return dict(gallery.trunks())


def test_a_picture_shows_sites_ports_blocks_and_counts(trunks):
    facts = gallery.facts_of(build_method('LoRA'), trunks)
    assert facts.ports == {'attn.q': ('after',), 'attn.v': ('after',)}
    assert (facts.trains, facts.blocks, facts.num_blocks) == ({}, 12, 12)
    assert facts.trainable == 12 * 4 * 8 * 768  # A and B of rank 8, at two sites
    svg = schematics.draw(facts)
    filled = re.findall(r'<rect [^>]*fill="#6b1da3"', svg)
    assert len(filled) == 2
    assert svg.count('<path d="M144 ') == 2  # the marks right of q and v
    assert '294,912 parameters on ViT-B/16' in svg


def test_a_picture_frames_what_trains_of_the_base(trunks):
    facts = gallery.facts_of(build_method('PartialK'), trunks)
    assert facts.ports == {}
    assert facts.blocks == 1
    assert set(facts.trains.values()) == {'weights'}
    assert 'stroke-dasharray' not in schematics.draw(facts)
    biases = gallery.facts_of(build_method('BitFit'), trunks)
    assert biases.trains['ffn.fc2'] == biases.trains['norm1'] == 'biases'
    assert schematics.draw(biases).count('stroke-dasharray') == len(biases.trains)


def test_a_method_of_clips_is_drawn_over_frames(trunks):
    assert gallery.facts_of(build_method('AIM'), trunks).on.endswith('8 frames')


def test_every_kind_of_a_plain_block_has_a_box():
    others = {'mix', 'downsample', 'downsample.norm', 'downsample.reduction'}
    assert KINDS.keys() - others == schematics.BOXES.keys()


def test_every_family_has_a_colour():
    assert set(FAMILIES) == schematics.COLOURS.keys()


def test_text_is_read_on_every_colour():
    assert schematics._ink('#000000') == '#ffffff'
    assert schematics._ink('#ffffff') == '#000000'
    assert schematics._ink('#ba8210') == '#000000'  # 6.3:1 against 3.3:1


def test_the_paragraph_is_the_idea_and_not_the_reference(tmp_path):
    page = tmp_path / 'x.md'
    page.write_text(
        '# X\n\nA et al., [X](https://x.org).\n\nIt does:\n\n    y = x\n\nMore.\n'
    )
    assert gallery.paragraph(page) == 'It does:\n\n    y = x'
    page.write_text('# X\n\nWhat it is.\n\n**Idea.** A thing.\n')
    assert gallery.paragraph(page) == 'A thing.'
    page.write_text('# X\n\n| a |\n')
    with pytest.raises(PETLError, match=r'x\.md has no paragraph'):
        gallery.paragraph(page)
