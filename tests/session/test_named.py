"""Profiles by name: a path wins, then what `minisafe get` made, then what it would make."""

from __future__ import annotations

from pathlib import Path

import pytest

import minisafe
from minisafe.errors import ConfigError
from minisafe.session.named import find_profile, home, shipped


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are kept: there is none; the current directory is an empty one."""
    monkeypatch.setenv("MINISAFE_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def put(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "profile.json").write_text("{}")
    return directory


def test_a_name_is_a_kept_profile(kept: Path) -> None:
    place = put(kept / "smollm2")
    assert find_profile("smollm2") == find_profile(Path("smollm2")) == place


def test_a_path_always_wins(kept: Path) -> None:
    put(kept / "smollm2")
    Path("smollm2").mkdir()
    assert find_profile("smollm2") == Path("smollm2")
    Path("smollm2").rmdir()
    Path("smollm2").write_text("a file")
    assert find_profile("smollm2") == Path("smollm2")


@pytest.mark.usefixtures("kept")
def test_one_that_was_not_fetched() -> None:
    for ask in (lambda: find_profile("smollm2"), lambda: minisafe.load("smollm2")):
        with pytest.raises(ConfigError, match=r"not on this machine yet .*run: minisafe get smoll"):
            ask()


@pytest.mark.parametrize(
    "name", ["tiny", "nothing", "../home/smollm2", ".smollm2", "a/b", "x" * 300]
)
def test_an_unknown_name_stays_a_path(kept: Path, name: str) -> None:
    put(kept / "smollm2")
    put(kept / ".smollm2")
    assert find_profile(name) == Path(name)


@pytest.mark.usefixtures("kept")
def test_the_error_of_an_unknown_name_is_as_before() -> None:
    with pytest.raises(ConfigError, match="nothing: no such file; expected a safety profile"):
        minisafe.load("nothing")


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MINISAFE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert home() == tmp_path / ".cache" / "minisafe"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert home() == tmp_path / ".cache" / "minisafe"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert home() == Path("/caches/minisafe")
    monkeypatch.setenv("MINISAFE_HOME", str(tmp_path / "own"))
    assert home() == tmp_path / "own"


def test_what_is_shipped() -> None:
    assert shipped("none") is None
    for name in ("tiny", "smollm2"):
        found = shipped(name)
        assert found is not None
        assert (found / "profile.json").is_file()
