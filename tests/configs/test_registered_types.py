"""What loaded data may name as a type, where a name is evaluated."""

from __future__ import annotations

import pytest

from mmpetl.config.registered import check_types
from mmpetl.core import PETLError


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_a_detectors_suppression_may_be_named(kind):
    check_types({'test_cfg': {'nms': {'type': kind}}}, 'here', 'mmdet')


@pytest.mark.parametrize(
    'data',
    [
        {'nms': {'type': '__import__("os").getpid'}},
        {'nms': {'type': 'print'}},
        {'other': {'type': 'nms'}},
    ],
)
def test_nothing_else_that_is_evaluated_may_be(data):
    with pytest.raises(PETLError, match='no package has registered|would be imported'):
        check_types(data, 'here', 'mmdet')
