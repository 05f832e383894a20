"""A package is refused, in one line, wherever it was not made for; its machine code is a stub."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minisafe.errors import SettingError
from minisafe.fast import package
from minisafe.fast.ahead import Lineup
from minisafe.fast.package import MANIFEST, read_package, use_package, write_package
from minisafe.lockstep import Stream
from minisafe.lora import LoraAdapter
from minisafe.model import Llama
from minisafe.session import load as loading
from minisafe.session.settings import Settings, resolve
from tests.support.tiny import random_adapter, random_model, tiny_config

CONFIG = tiny_config()
MODEL = random_model(CONFIG, 5)
ADAPTER, OTHER = random_adapter(MODEL), random_adapter(MODEL, seed=9)


def streams(model: Llama = MODEL, *adapters: LoraAdapter | None) -> tuple[Stream, ...]:
    model = copy.deepcopy(model)
    return (Stream(model), *(Stream(model, each) for each in adapters))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package for a base and an expert."""

    def export(model: Llama, lineup: Lineup, path: Path, options: Any) -> None:
        path.write_bytes(b"code")

    monkeypatch.setattr(package, "check_compile", lambda *given: None)
    monkeypatch.setattr(package, "export_step", export)
    monkeypatch.setattr(package, "load_step", lambda model, lineup, path: (object(), []))
    out = tmp_path / "package"
    write_package(streams(MODEL, ADAPTER), out)
    return out


def edit(made: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((made / MANIFEST).read_text())
    change(data)
    (made / MANIFEST).write_text(json.dumps(data))


def test_it_has_a_step_for_each_number_of_streams(made: Path) -> None:
    found = read_package(made)
    (part,) = found.parts
    assert [code.rows for code in part.code] == [1, 2]
    assert part.adapters[0] == ""
    assert len(part.adapters[1]) == 16
    assert {path.name for path in made.iterdir()} == {MANIFEST, *(c.file for c in part.code)}


@pytest.mark.parametrize("adapters", [(), (ADAPTER,)])
def test_it_serves_the_streams_that_it_was_made_for(
    made: Path, adapters: tuple[LoraAdapter, ...]
) -> None:
    given = streams(MODEL, *adapters)
    use_package(made, given)
    assert len(given[0].model.steps.runners) == len(given)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: streams(random_model(CONFIG, 6)), "compiled for other weights"),
        (lambda: streams(random_model(CONFIG, 5, torch.bfloat16)), "another dtype .*bfloat16"),
        (lambda: streams(random_model(tiny_config(norm_eps=1e-3), 5)), "another config"),
        (lambda: streams(MODEL, OTHER), "another adapter of stream 1"),
        (lambda: streams(MODEL, None), "another adapter of stream 1 .*here none"),
        (lambda: streams(MODEL, ADAPTER, OTHER), "for 2 streams, but this session has 3"),
        (lambda: (*streams(), *streams()), "for 1 model, but this session has 2"),
    ],
    ids=["weights", "dtype", "config", "adapter", "no adapter", "streams", "models"],
)
def test_other_streams_are_refused(
    made: Path, given: Callable[[], tuple[Stream, ...]], message: str
) -> None:
    found = given()
    with pytest.raises(SettingError, match=message) as caught:
        use_package(made, found)
    assert "minisafe compile again" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert type(found[0].model) is Llama


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(torch="1.0"), "compiled for torch '1.0', but torch is"),
        (lambda d: d.update(system="Plan 9"), "compiled for 'Plan 9', but this is"),
        (lambda d: d["needs"].append("avx9000"), "a processor with 'avx9000'.*lacks"),
        (lambda d: d.update(minisafe_compiled=0), "not a package of this version"),
        (lambda d: d.update(needs=3), "not a package's manifest"),
        (lambda d: d.update(needs=[3]), "3 is not a text"),
        (lambda d: d.update(parts={}), "not a package's manifest"),
        (lambda d: d.update(more=1), "not a package's manifest"),
        (lambda d: d.pop("torch"), "not a package's manifest"),
        (lambda d: d["parts"][0].update(dtype=3), "dtype is 3"),
        (lambda d: d["parts"][0]["code"][0].update(file="../x.so"), "file is '../x.so'"),
        (lambda d: d["parts"][0]["code"][0].update(rows="1"), "rows is '1'"),
    ],
)
def test_other_manifests_are_refused(
    made: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(made, change)
    with pytest.raises(SettingError, match=message):
        read_package(made)


def test_changed_and_missing_code_is_refused(made: Path, tmp_path: Path) -> None:
    file = made / read_package(made).parts[0].code[0].file
    file.write_bytes(b"other")
    with pytest.raises(SettingError, match="changed since it was compiled"):
        use_package(made, streams())
    file.unlink()
    with pytest.raises(SettingError, match="cannot be read"):
        use_package(made, streams())
    with pytest.raises(SettingError, match="no such file; give a directory made by"):
        read_package(tmp_path / "none")


def test_code_that_is_none_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(SettingError, match="cannot be loaded"):
        use_package(made, streams())


def test_avx2_needs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "features", lambda: {"avx2", "fma3", "amx_int8"})
    assert package.needs("avx2") == ("avx2", "fma3")
    assert package.needs("native") == ("amx_int8", "avx2", "fma3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": True}, "compile is True"),
        ({"weights": "int8"}, "weights is 'int8'"),
        ({"cache_dtype": "int8"}, "cache_dtype is 'int8'"),
        ({"device": "cuda"}, "device is 'cuda'"),
    ],
)
def test_settings_that_contradict_it(made: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"{message}, but with compiled it must be"):
        loading.load(None, {"compiled": made, **settings})


def test_it_is_refused_before_anything_is_loaded(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_model", lambda *given: pytest.fail("loaded"))
    edit(made, lambda data: data.update(torch="1.0"))
    with pytest.raises(SettingError, match="compiled for torch"):
        loading.load(None, {"compiled": made})


def test_a_profile_cannot_name_one(tmp_path: Path) -> None:
    """A package runs code, so none comes with a profile from someone else."""
    assert resolve({"compiled": "x"}) == Settings(compiled=Path("x"))
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"minisafe_profile": 1, "base": "b", "compiled": "x"}))
    with pytest.raises(SettingError, match="compiled is never read from a file"):
        loading.load(profile)
