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
