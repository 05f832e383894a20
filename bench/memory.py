"""The cost of a checkpoint on disk: peak resident memory, and the time to the first token.

Every number comes from a fresh process (`probe.py`). Memory is the peak of resident memory (VmHWM:
anonymous pages and those of mapped files) minus the same peak after the import of the libraries and
a first small product, so that torch's own start-up does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface import has_transformers
from probe import STATUS
from report import Row, make_row, under
from subjects import ANCHOR_RANK, RANK, random_model, tensors_of
from timing import by_turns, ratio, seconds_by_turns

from minisafe import Llama, LlamaConfig
from minisafe.checkpoint import (
    INDEX,
    SINGLE,
    linear_modules,
    load_model,
    save_model,
    save_tensors,
)
from minisafe.checkpoint.rounded import WEIGHTS
from minisafe.fast.memory import Memory, Reader, planned
from minisafe.fast.prepare import prepare
from minisafe.rounding import ROUNDED

BENCH = Path(__file__).resolve().parent
SHARDS = 4
NEW = 8  # tokens after the first, where the prompt fills the context


@contextmanager
def checkpoints(config: LlamaConfig) -> Iterator[tuple[Path, Path]]:
    """Directories of random weights of this shape: one file, and the same in `SHARDS`."""
    with TemporaryDirectory() as name:
        whole, sharded = Path(name) / "whole", Path(name) / "sharded"
        model = random_model(config, torch.Generator().manual_seed(0))
        save_model(model, whole)
        save_shards(model, sharded)
        (sharded / "config.json").write_bytes((whole / "config.json").read_bytes())
        del model
        os.sync()  # so that the first readers do not share the disk with the writer
        yield whole, sharded


def round_to(form: str, whole: Path, out: Path) -> Path:
    """The directory of a model's weights in int8 or int4, written by `minisafe convert`."""
    flags = ["--weights", form, "--out", str(out)]
    command = [sys.executable, "-m", "minisafe", "convert", str(whole), *flags]
    paths = [str(BENCH.parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run(command, env=env, check=True, capture_output=True)
    os.sync()
    return out


def save_shards(model: Llama, directory: Path) -> None:
    tensors = list(tensors_of(model).items())
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        part = tensors[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_tensors({key: value.detach() for key, value in part}, directory / file)
        weight_map |= dict.fromkeys((key for key, _ in part), file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def probe(directory: Path, **options: object) -> dict[str, Any]:
    """The output of `probe.py` for one fresh process."""
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(BENCH / "probe.py"), str(directory), *flags]
    paths = [str(BENCH.parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        last = (run.stderr.strip() or "no word").splitlines()[-1]
        raise SystemExit(f"probe.py {' '.join(flags)}: exit code {run.returncode}: {last}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


# ---- peak memory -------------------------------------------------------------------------------


def beyond(found: Mapping[str, Any]) -> int:
    """Bytes of peak resident memory beyond the libraries."""
    return int(found["now"]["peak"]) - int(found["libraries"]["peak"])


def memory_rows(
    label: str, whole: Path, sharded: Path, contexts: Sequence[int], threads: int
) -> list[Row]:
    """Peaks of plain decoding over the weights, of safe decoding over weights and both caches."""
    if not STATUS.exists():
        print(f"{STATUS} does not exist: the rows on memory are skipped")
        return []
    systems = [
        ("plain", whole, "plain", "<= 1.15"),
        ("packed", whole, "packed", "<= 1.3"),
        (f"packed, {SHARDS} shards", sharded, "packed", "<= 1.3"),
        ("int8", whole, "int8", None),
    ]
    rows = []
    for name, directory, weights, target in systems:
        found = probe(directory, weights=weights, threads=threads)
        rows += peak_rows(f"{name}, over the weights", found, found["weights"], target)
    with TemporaryDirectory() as name:
        for form in ROUNDED:
            found = probe(round_to(form, whole, Path(name) / form), threads=threads)
            rows += peak_rows(
                f"{form} from disk, over the file", found, found["weights"], "<= 1.15"
            )
    for n in contexts:
        found = probe(whole, system="safe", prompt=n, threads=threads)
        below = found["weights"] + found["caches"]
        name = f"safe (LoRA), packed, {n} tokens, over weights and both caches"
        rows += peak_rows(name, found, below, "<= 1.05")
    if has_transformers():
        found = probe(whole, system="transformers", threads=threads)
        rows += peak_rows("transformers, over the weights", found, found["weights"], None)
    return under(label, [row | {"name": f"peak memory, {row['name']}"} for row in rows])


def peak_rows(name: str, found: Mapping[str, Any], below: int, target: str | None) -> list[Row]:
    """The peak over `below` bytes, and the memory at the end."""
    system, _, _ = name.partition(", over")
    now, libraries = found["now"], found["libraries"]
    rows = [make_row(name, beyond(found) / below, "x", target)]
    for kind in ("anonymous", "file"):
        left = max(0, now[kind] - libraries[kind]) / 2**20
        rows.append(make_row(f"{system}, {kind} pages at the end", left, "MiB"))
    return rows


# ---- planned memory ------------------------------------------------------------------------------

# settings of `probe.py`; `form`: of the weights on disk, if they are stored as they run
PLANNED: dict[str, dict[str, str]] = {
    "plain": {"weights": "plain"},
    "plain, float32": {"weights": "plain", "dtype": "float32"},
    "packed": {"weights": "packed"},
    "int8": {"weights": "int8"},
    "packed, safe": {"weights": "packed", "system": "safe"},
    "packed, safe, int8 cache": {"weights": "packed", "system": "safe", "cache-dtype": "int8"},
    "packed, safe, 4 rows": {"weights": "packed", "system": "safe", "rows": "4"},
    "packed, anchored": {"weights": "packed", "system": "anchored"},
    "packed, a second model": {"weights": "packed", "system": "two"},
    "int8 from disk, safe": {"form": "int8", "system": "safe"},
    "int4 from disk, safe": {"form": "int4", "system": "safe"},
}


def plan_rows(
    label: str, config: LlamaConfig, whole: Path, context: int, threads: int
) -> Iterator[list[Row]]:
    """How far the measured peak of each setting is from what `minisafe inspect --plan` says."""
    if not STATUS.exists():
        print(f"{STATUS} does not exist: the rows on memory are skipped")
        return
    with TemporaryDirectory() as rounded:
        for name, given in PLANNED.items():
            options, directory, file = dict(given), whole, None
            if form := options.pop("form", None):
                directory = round_to(form, whole, Path(rounded) / form)
                file = (directory / WEIGHTS).stat().st_size
            found = probe(directory, prompt=context - NEW - 1, new=NEW, threads=threads, **options)
            peak, plan = beyond(found), plan_of(config, given, context, file).total
            off, name = abs(peak - plan) / plan, f"{name}, {context} tokens"
            yield under(label, [
                make_row(f"{name}, peak off its plan by", off, "share", "<= 0.1"),
                make_row(f"{name}, planned peak", plan / 2**20, "MiB"),
                make_row(f"{name}, measured peak", peak / 2**20, "MiB"),
            ])  # fmt: skip


def plan_of(
    config: LlamaConfig, given: Mapping[str, str], context: int, file: int | None = None
) -> Memory:
    """The plan for settings of `probe.py`. file: the size of weights that are stored rounded."""
    stored = getattr(torch, config.dtype or "float32")
    dtype = getattr(torch, given["dtype"]) if "dtype" in given else stored
    others = []
    if given.get("system") in ("safe", "anchored"):
        others.append(random_reader("expert", config, RANK, ("q_proj", "v_proj")))
    if given.get("system") == "two":
        others.append(Reader("expert", config))
    if given.get("system") == "anchored":
        others.append(random_reader("anchor", config, ANCHOR_RANK, ("proj",)))
    return planned(
        config, dtype, given.get("form") or given["weights"], others, context,
        int(given.get("rows", 1)), given.get("cache-dtype", "auto"), stored, file,
    )  # fmt: skip


def random_reader(name: str, config: LlamaConfig, rank: int, endings: tuple[str, ...]) -> Reader:
    """A stream with an adapter like those of `subjects.subject_of`."""
    with torch.device("meta"):
        modules = linear_modules(Llama(config))
    shapes = {}
    for module, (n_out, n_in) in modules.items():
        if module.endswith(endings):
            shapes[f"{module}.lora_A.weight"] = (rank, n_in)
            shapes[f"{module}.lora_B.weight"] = (n_out, rank)
    return Reader(name, adapter=shapes)


# ---- loading -----------------------------------------------------------------------------------


def read_once(file: Path) -> None:
    """Read a file through one small buffer."""
    buffer = bytearray(1 << 24)
    with file.open("rb", buffering=0) as source:
        while source.readinto(buffer):
            pass


def load_rows(label: str, whole: Path, runs: int) -> list[Row]:
    """The time to load a checkpoint over the time to read its file once, both warm."""
    file = whole / SINGLE
    acts = (
        lambda: read_once(file),
        lambda: load_model(whole),
        lambda: prepare(load_model(whole), "packed"),
    )
    seconds_by_turns(1, *acts)
    once, plain, ready = seconds_by_turns(runs, *acts)
    rows = [
        make_row("load, plain, over reading the file", ratio(plain, once), "x", "<= 2"),
        make_row("load and pack, seconds", median(ready), "s"),
    ]
    return under(label, rows)


def start_rows(label: str, whole: Path, runs: int, n_prompt: int, threads: int) -> list[Row]:
    """Fresh processes: seconds to the first token, without and with the import of the libraries."""
    options = {"prompt": n_prompt, "new": 1, "threads": threads}
    systems: dict[str, dict[str, object]] = {
        "packed": options | {"weights": "packed"},
        "plain weights": options | {"weights": "plain"},
        "int8": options | {"weights": "int8"},
    }
    if has_transformers():
        systems["transformers"] = options | {"system": "transformers"}
    acts = [partial(probe, whole, **given) for given in systems.values()]
    by_turns(1, *acts)  # warms the file cache and writes bytecode
    found = dict(zip(systems, by_turns(runs, *acts), strict=True))
    first = {name: [each["first_token_s"] for each in results] for name, results in found.items()}
    whole_s = {
        name: [each["first_token_s"] + each["import_s"] for each in results]
        for name, results in found.items()
    }
    rows = []
    for what, times in (("", first), (", with imports", whole_s)):
        for name, values in times.items():
            rows.append(
                make_row(f"from disk to the first token{what}, {name}", median(values), "s")
            )
        if "transformers" in times:
            over = ratio(times["packed"], times["transformers"])
            name = f"from disk to the first token{what}, packed over transformers, time"
            rows.append(make_row(name, over, "x", None if what else "< 1"))
    return under(label, rows)
