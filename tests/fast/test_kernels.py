"""Which kernels multiply, on this CPU and with fewer of its instructions (ONEDNN_MAX_CPU_ISA)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from minisafe.checkpoint import save_model
from minisafe.cli.inspect import inspect
from minisafe.cli.kernels import lap_line
from minisafe.errors import SettingError
from minisafe.fast import kernels as module
from minisafe.fast import left as left_module
from minisafe.fast.kernels import Choice, can_pack, choices, in_words, shapes_of
from minisafe.fast.race import Lap
from tests.support.tiny import random_model, tiny_config

BF16 = torch.bfloat16


# ---- instruction sets --------------------------------------------------------------------------

CELLS = """
import json, sys, time

import torch
import torch.nn.functional as F

from minisafe.fast.left import LeftLinear
from minisafe.fast.packed import PackedLinear
from minisafe.fast.quantized import Int8Linear
from minisafe.linear import Linear
from minisafe.rounding import dequantize, quantize

LIMIT, FLOOR_MS, TURNS = 4.0, 0.15, 25
torch.set_num_threads(1)


def ms(act):
    started = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - started)


def plain_of(weight):
    with torch.device("meta"):
        plain = Linear(weight.shape[1], len(weight), False, "w")
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    plain.__class__ = LeftLinear
    return plain


def cell(projection, rounded, weight, x):
    # the least of several turns, and more of them before a ratio counts as slow
    act, linear = lambda: projection(x, ()), lambda: F.linear(x, weight)
    expected = x[0].double() @ rounded.double().T
    error = float((act()[0].double() - expected).abs().max() / expected.abs().max())
    linear()
    mine = theirs = float("inf")
    for turn in range(TURNS):
        mine, theirs = min(mine, ms(act)), min(theirs, ms(linear))
        slow = mine >= LIMIT * theirs and mine >= FLOOR_MS
        if turn >= 2 and (not slow or mine > 50 * theirs):
            break
    return {"ms": mine, "linear_ms": theirs, "slow": slow, "error": error}


found = []
with torch.inference_mode():
    for shape in ((2048, 2048), (768, 2048), (320, 192)):
        generator = torch.Generator().manual_seed(0)
        for dtype in (torch.bfloat16, torch.float32):
            weight = torch.randn(shape, generator=generator).to(dtype)
            for kind in ("plain", "packed", "int8"):
                make = {"packed": PackedLinear, "int8": Int8Linear}.get(kind)
                plain = plain_of(weight)
                projection = plain if make is None else make((plain,))
                rounded = dequantize(*quantize(weight)) if kind == "int8" else weight
                digits = kind == "int8" and projection.packed is not None
                for rows in (1, 2, 16, 64):
                    x = torch.randn(1, rows, shape[1], generator=generator).to(dtype)
                    said = {"shape": shape, "dtype": str(dtype), "kind": kind, "rows": rows}
                    found.append(said | cell(projection, rounded, weight, x) | {"digits": digits})
print(json.dumps(found))
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", None])
def test_no_path_is_slow_or_wrong_on_any_instruction_set(isa: str | None) -> None:
    """The only test that looks at times: signed digits took 300 to 1,000 times as long here."""
    here = Path(__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(here), env.get("PYTHONPATH"))))
    env |= {"OMP_NUM_THREADS": "1"} | ({} if isa is None else {"ONEDNN_MAX_CPU_ISA": isa})
    command = [sys.executable, "-c", CELLS]
    out = subprocess.run(command, env=env, capture_output=True, text=True, cwd=here, check=False)
    assert out.returncode == 0, out.stderr
    cells = json.loads(out.stdout)
    assert len(cells) == 3 * 2 * 3 * 4
    assert [cell for cell in cells if cell["slow"]] == []
    for cell in cells:
        assert cell["error"] < (2e-2 if cell["dtype"] == "torch.bfloat16" else 1e-4), cell
    vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    large = [cell["digits"] for cell in cells if cell["kind"] == "int8" and cell["shape"][0] > 2000]
    if vnni:  # without, sums of pairs are rounded to 16 bits
        assert large == [isa != "AVX2"] * 8


# ---- choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_every_shape_of_a_model_has_its_choice(tied: bool) -> None:
    config = tiny_config(tied=tied, hidden=64)
    for weights in ("plain", "packed", "int8"):
        found = choices(config, torch.float32, weights)
        names = [name for each in found for name in each.names]
        assert sorted(names) == sorted(name for name, _ in shapes_of(config, weights))
        assert len({each.shape for each in found}) == len(found)
    for name, (rows, columns) in shapes_of(config, "packed"):
        if name == "qkv":
            assert rows == (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
            assert columns == 64


def lap(kernel: str, rows: int, fits: bool) -> Lap:
    return Lap(kernel, rows, 1.0, 1.0, 0.0, fits)


@pytest.mark.parametrize("fits", [False, True])
def test_choices_follow_the_races(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    few = tuple(lap("left", rows, fits or rows == 1) for rows in (1, 2, 16))
    monkeypatch.setattr(left_module, "has_amx", lambda: True)
    monkeypatch.setattr(module, "left_laps", lambda shape: few)
    monkeypatch.setattr(module, "left_rows", lambda shape: 16 if fits else 1)
    monkeypatch.setattr(module, "pack_laps", lambda shape, dtype: (lap("packed", 1, fits),))
    monkeypatch.setattr(module, "wide_laps", lambda shape: (lap("float32", 1, True),))
    monkeypatch.setattr(module, "digits_fit", lambda shape, dtype: fits)
    monkeypatch.setattr(module, "few_rows", lambda shape, dtype: 2)
    large, small = (2048, 2048), (64, 64)
    rows = "up to 16 rows" if fits else "1 row"
    left = f"weight on the left for {rows}, else F.linear"
    assert module.plain_choice(large, BF16, False) == (left, few)
    assert module.plain_choice(small, BF16, False) == ("F.linear", ())
    assert module.plain_choice(large, torch.float32, False) == ("F.linear", ())
    assert module.packed_choice(large, BF16, False)[0] == ("packed" if fits else "F.linear")
    assert module.packed_choice(large, BF16, True)[0] == left
    words = "float32 for 1 row, else packed" if fits else "F.linear"
    assert module.packed_choice(small, BF16, False)[0] == words
    rows_of = "int8 rows for up to 2 rows, else widened by blocks"
    assert module.int8_choice(large, BF16, False)[0] == ("digits" if fits else rows_of)
    assert module.int8_choice(large, BF16, True)[0] == rows_of


def test_choices_share_the_kernel_of_a_shape() -> None:
    assert in_words("a", 0, "b") == "b"
    config = tiny_config(hidden=64)
    (first, *_) = choices(config, torch.float32, "plain")
    assert isinstance(first, Choice)
    assert "q_proj" in first.names


# ---- minisafe inspect --kernels ----------------------------------------------------------------


def inspected(*args: str) -> str:
    result = CliRunner().invoke(inspect, [*args])
    assert result.exit_code == 0, result.output
    return result.output


def test_inspect_names_times_and_choices(tmp_path: Path) -> None:
    model = random_model(tiny_config(hidden=64), dtype=BF16)
    save_model(model, tmp_path)
    found = json.loads(inspected(str(tmp_path), "--kernels", "--json"))["kernels"]
    assert (found["dtype"], found["weights"]) == ("float32", "plain")
    assert {"path", "threads", "plain", "packed", "int8"} <= set(found)
    for kind in ("plain", "packed", "int8"):
        assert found[kind] == json.loads(
            json.dumps([asdict(each) for each in choices(model.config, torch.float32, kind)])
        )
    text = inspected(str(tmp_path), "--kernels")
    assert "plain: (used)" in text
    assert "F.linear" in text
    if can_pack(torch.float32):
        assert "packed, 1 row: 0." in text


def test_inspect_takes_the_profiles_dtype_and_weights(tmp_path: Path) -> None:
    save_model(random_model(tiny_config(), dtype=BF16), tmp_path / "base")
    profile = {"minisafe_profile": 1, "base": "base", "weights": "int8"}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    found = json.loads(inspected(str(tmp_path), "--kernels", "--json"))["kernels"]
    assert (found["dtype"], found["weights"]) == ("bfloat16", "int8")
    profile |= {"dtype": "float16"}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    result = CliRunner().invoke(inspect, [str(tmp_path), "--kernels"])
    assert isinstance(result.exception, SettingError)


def test_inspect_without_a_path_is_for_kernels_only() -> None:
    result = CliRunner().invoke(inspect, [])
    assert result.exit_code == 2
    assert "Missing argument" in result.output


def test_a_lap_in_words() -> None:
    lap = asdict(Lap("packed", 2, 1.0, 0.25, 0.001, False))
    assert lap_line(lap) == "packed, 2 rows: 1.000, F.linear 0.250, error 1e-03, excluded"
    assert lap_line(lap | {"ms": None, "rows": 1}) == "packed, 1 row: does not run here"
