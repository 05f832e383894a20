"""The comparison with peers counts right, and names files and definitions that are there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tiny import load_bench

ROOT = Path(__file__).resolve().parents[2]

SOURCE = '''\
"""A module's docstring
of two lines."""

import math  # not counted: it stands beside the definitions

LIMIT = 3


@cache
def one(x: int) -> int:  # a comment
    """A docstring."""
    # a line of its own
    if x > 0 and x < 9 and math.sin(x):
        return 1
    elif x:
        return 2

    text = """not a
    docstring"""
    return 3 if text else 4


class Two:
    """A class."""

    def first(self) -> None:
        try:
            for each in [n for n in range(3) if n]:
                while each:
                    each -= 1
        except (ValueError, KeyError):
            pass

    async def second(self, kind: str) -> None:
        def inner() -> None:
            """Nothing else."""

        match kind:
            case "a":
                inner()
            case _:
                return
'''


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_bench("side_by_side")


@pytest.mark.parametrize(
    ("names", "lines", "functions", "branches"),
    [
        (["one"], 9, 1, 5),  # if, elif, two ands, a conditional expression
        (["Two.first"], 7, 1, 3),  # for, while, except; not the comprehension
        (["Two.second"], 7, 2, 2),  # two cases
        (["Two"], 15, 3, 5),
        (["Two.first", "Two.second"], 14, 3, 5),
        ([], 24, 4, 10),
    ],
)
def test_a_known_source_is_counted(
    bench: ModuleType, names: list[str], lines: int, functions: int, branches: int
) -> None:
    assert bench.count(SOURCE, names) == bench.Count(lines, functions, branches)


def test_a_name_that_is_not_there_is_an_error(bench: ModuleType) -> None:
    with pytest.raises(KeyError, match="three"):
        bench.count(SOURCE, ["three"])


def test_our_side_of_the_table_is_there(bench: ModuleType) -> None:
    for part, entries in bench.PARTS.items():
        own = [(path, names) for project, path, names in entries if project == bench.OURS]
        assert own, part
        for path, names in own:
            assert bench.count((ROOT / path).read_text("utf-8"), names.split()).lines > 0


def test_every_file_of_a_peer_has_a_source(bench: ModuleType) -> None:
    entries = [entry for part in bench.PARTS.values() for entry in part]
    peers = {(project, path) for project, path, _ in entries if project != bench.OURS}
    assert peers == set(bench.SOURCES)
    assert {project for project, _ in peers} == set(bench.REPOSITORIES)
    assert not any((ROOT / name).exists() for name in bench.REPOSITORIES)


def test_the_table_adds_up(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([str(tmp_path)]) == 1
    assert "gpt-fast/model.py" in capsys.readouterr().err
    for project, path in bench.SOURCES:
        entries = [entry for part in bench.PARTS.values() for entry in part]
        names = " ".join(n for p, f, n in entries if (p, f) == (project, path)).split() or ["it"]
        lines = [f"def {name}(): pass" for name in names if "." not in name]
        methods = [name.split(".")[1] for name in names if "." in name]
        lines += ["class GPT:", *(f"    def {name}(self): pass" for name in methods)]
        target = tmp_path / project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines if methods else lines[:-1]) + "\n", "utf-8")
    assert bench.main([str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "| loop | nano-vllm | together | 2 | 2 | 0 |" in rows
    assert "| loop | gpt-fast | `generate.py`, in part | 4 | 4 | 0 |" in rows
    assert bench.main(["--sources"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 + len(bench.SOURCES)
