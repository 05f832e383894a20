"""`make test-minimal`: its versions are exactly the lower bounds of pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTED = ("", "report", "gguf", "parquet", "testing", "test")  # "": what everyone gets
BOUND = re.compile(r"^(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[\d.]+)$")


def bounds() -> dict[str, str]:
    """The lower bound of each requirement of the tested extras, by name."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    given = [each for extra in TESTED for each in extras[extra] if not each.startswith("minisafe[")]
    found = [BOUND.match(each) for each in given]
    assert None not in found, given
    return {each["name"]: each["version"] for each in found if each is not None}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints-minimal.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def release(version: str) -> tuple[int, ...]:
    """A version's numbers, at least three: 2.5 is 2.5.0."""
    numbers = [int(each) for each in version.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)))


def test_the_versions_are_the_lower_bounds() -> None:
    expected, found = bounds(), constraints()
    assert found.keys() == expected.keys()
    for name, version in found.items():
        assert release(version) == release(expected[name]), name


def test_the_job_names_tests_that_are_there() -> None:
    done = subprocess.run(
        ["make", "-n", "test-minimal", "MINIMAL=none", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "-c constraints-minimal.txt" in done.stdout
    (line,) = (each for each in done.stdout.splitlines() if "pytest" in each)
    named = [each for each in line.split() if each.startswith("tests/")]
    assert len(named) >= 7
    for each in named:
        assert list(ROOT.glob(each)), each
