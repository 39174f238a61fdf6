"""The examples run, and show what they say."""

from __future__ import annotations

import pytest

import pinmem
from examples import maml


def test_maml(capsys: pytest.CaptureFixture[str]) -> None:
    """The second order is that of plain PyTorch, and far from the first."""
    angle = maml.main()
    assert "second order: norm" in capsys.readouterr().out
    assert angle > 3
    with pinmem.backend("reference"):
        assert abs(maml.main() - angle) < 0.01
