"""Spoiling directories, and how a refusal must look."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisafe.checkpoint import INDEX, SINGLE
from minisafe.errors import MinisafeError


def refuses(error: type[MinisafeError], call: Callable[[], object], *words: str) -> None:
    """`call` raises exactly this error, with a one-line message that holds all the words."""
    with pytest.raises(MinisafeError) as raised:
        call()
    text = str(raised.value)
    assert raised.type is error, text
    assert "\n" not in text
    assert raised.value.exit_code == 2
    for word in words:
        assert word in text


def raised(call: Callable[[], object]) -> MinisafeError | None:
    """The named error that `call` raises, if any; others go through."""
    try:
        call()
    except MinisafeError as error:
        return error
    return None


def respell(directory: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = directory / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def restore(directory: Path, changes: dict[str, Tensor | None], file: str = SINGLE) -> None:
    """Change tensors of a safetensors file; None removes one."""
    tensors = load_file(directory / file) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / file)


def shard(directory: Path, n: int) -> dict[str, str]:
    """Split the weights into n files with an index; returns its weight_map."""
    tensors = sorted(load_file(directory / SINGLE).items())
    (directory / SINGLE).unlink()
    weight_map = {}
    for i in range(n):
        name = f"model-{i + 1:05}-of-{n:05}.safetensors"
        save_file(dict(tensors[i::n]), directory / name)
        weight_map |= {key: name for key, _ in tensors[i::n]}
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class Bomb:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")
