"""The bench of memory limits: what it says of a limit that holds, and of one that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minisafe.session.profile import default_profile
from tests.support.tiny import load_bench


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_rows_of_limits(tmp_path: Path) -> None:
    out = tmp_path / "bound.json"
    flags = ("--limits", "20MB", "4GB", "--settings", '{"safe": false}', "--new", "2")
    load_bench("bound").main([str(default_profile()), *flags, "--json", str(out)])
    refused, context, peak = json.loads(out.read_text())["rows"]
    assert refused["name"] == "limit 20 MB: refused before loading"
    assert (context["name"], context["value"]) == (
        "limit 4,000 MB, weights auto, cache auto: context", 2048,
    )  # fmt: skip
    assert 0.01 < peak["value"] < 1
    assert peak["holds"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["weights/tiny", "--limits", "foo"], "is 'foo'; expected a size such as 900MB"),
        (["weights/tiny", "--settings", "{"], "--settings: is no JSON"),
        (["weights/tiny", "--settings", "[1]"], "is [1]; expected an object of settings"),
        (["no-such-profile", "--limits", "1GB"], "no-such-profile: no such file"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line_and_exit_code_2(
    flags: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_bench("bound").main(flags)
    assert stopped.value.code == 2
    assert words in capfd.readouterr().err.splitlines()[-1]
