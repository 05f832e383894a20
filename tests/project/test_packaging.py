"""What is installed: the wheel, its metadata and its types; the API's page; what CI runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import minisafe

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
from collections.abc import Iterator

import minisafe

session: minisafe.Session = minisafe.load("weights/tiny", {"safe": True})
pieces: Iterator[str] = session.stream("Hello!", chat=True)
results: list[minisafe.Result] = session.generate(["Hello!"], chat=True)
length: int = len(results[0].text)
chat: minisafe.Chat = session.chat()
"""
BAD = """\
import minisafe

session: int = minisafe.load("weights/tiny")
minisafe.load("weights/tiny").generate(3)
"""

BESIDE = {"evaluation", "cli", "explorer", "check", "testing", "get"}  # rooms on the top floors


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` would build, without pip and its network."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (each for each in file.namelist() if each.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def test_the_wheel_holds_the_package_and_the_shipped_model(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(each.relative_to(ROOT)) for each in (ROOT / "minisafe").rglob("*.py")}
    assert modules <= held
    assert "minisafe/py.typed" in held
    page = (ROOT / "minisafe" / "explorer").iterdir()
    assert {f"minisafe/explorer/{each.name}" for each in page if each.is_file()} <= held
    assert {
        "minisafe/weights/tiny/profile.json",
        "minisafe/weights/tiny/vector.safetensors",
    } <= held
    parts = ROOT / "weights" / "smollm2"
    shipped = {path.relative_to(parts).as_posix() for path in parts.rglob("*") if path.is_file()}
    wanted = {name for name in shipped if not name.startswith("base/")}
    assert {"profile.json", "README.md"} <= wanted
    assert {f"minisafe/weights/smollm2/{name}" for name in wanted} <= held
    assert not [each for each in held if each.startswith("minisafe/weights/smollm2/base/")]
    assert not [
        each for each in held if each.startswith(("tests/", "bench/", "docs/", "examples/"))
    ]


def test_the_wheels_code_is_small(wheel: Path) -> None:
    """In kB (10^3 bytes) as the wheel holds it, beside the weights. A program that only answers
    needs what is not in `BESIDE`; test_light.py and test_house.py hold it to that."""
    held = [
        each
        for each in zipfile.ZipFile(wheel).infolist()
        if not each.filename.startswith("minisafe/weights/")
    ]
    rooms = [(each.filename.split("/")[1], each.compress_size / 1e3) for each in held]
    assert sum(size for room, size in rooms if room not in BESIDE) < 400
    assert sum(size for _, size in rooms) < 680


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Name"] == "minisafe"
    assert found["Version"] == minisafe.__version__
    assert found.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2406.12274"]
    classifiers = found.get_all("Classifier", [])
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(classifiers)
    assert "decoding" in found["Keywords"]
    needs = [each for each in found.get_all("Requires-Dist", []) if "extra" not in each]
    names = {re.split(r"[^\w]", each)[0] for each in needs}
    assert names == {"torch", "safetensors", "tokenizers", "numpy", "click", "jinja2"}
    assert "jinja2>=3.1.6" in needs  # what was wrong in the sandbox before


def test_a_program_is_checked_against_the_wheels_types(wheel: Path, tmp_path: Path) -> None:
    """Installed alone, torch left out: its types are then unknown, and minisafe's are not."""
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)

    def check(program: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(path)]
        python = tmp_path / "venv" / "bin" / "python"
        options = ["--python-executable", str(python), "--cache-dir", str(tmp_path / "cache")]
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [*command, *options], cwd=tmp_path, env=alone, capture_output=True, text=True
        ).stdout

    assert "Success: no issues found" in check(GOOD)
    errors = [line for line in check(BAD).splitlines() if "error:" in line]
    assert len(errors) == 2, errors
    assert 'has type "Session", variable has type "int"' in errors[0]
    assert 'Argument 1 to "generate"' in errors[1]


def test_the_apis_page_is_that_of_this_code() -> None:
    path = ROOT / "docs" / "make_api.py"
    spec = importlib.util.spec_from_file_location("make_api", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == module.page(), "run `python docs/make_api.py`"
    for name in minisafe.__all__:
        assert f"\n## `{name}`\n" in page


def stub(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("fails", [True, False])
def test_ci_shows_what_an_installation_said_when_it_fails(tmp_path: Path, fails: bool) -> None:
    for name in ("bash", "sh", "env", "dirname", "mktemp", "cat", "rm"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    stub(tmp_path, "id", "echo 0")
    stub(tmp_path, "timeout", 'shift; exec "$@"')
    stub(tmp_path, "apt-get", f"echo no such mirror >&2; exit {100 if fails else 0}")
    stub(tmp_path, "make", 'echo "made $1"')
    done = subprocess.run(
        [ROOT / ".ci" / "run"], env={"PATH": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("made test\n")
    assert ("no such mirror" in done.stdout) is fails
    assert ("its tests skip" in done.stdout) is fails
    assert not list(tmp_path.glob("tmp.*"))
