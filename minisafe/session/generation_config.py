"""What a model directory says about sampling (`generation_config.json`), and what ends a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minisafe.checkpoint.config import load_config
from minisafe.errors import ConfigError, SettingError
from minisafe.files import read_json
from minisafe.files.display import shown
from minisafe.sampling import Sampling
from minisafe.session.settings import checked


def from_generation_config(directory: Path) -> tuple[dict[str, Any], frozenset[int]]:
    """The sampling defaults of a model directory, and the ids that end a text."""
    vocab_size = load_config(directory).vocab_size
    data: dict[str, Any] = {}
    path = directory / "generation_config.json"
    if path.is_file():
        data = read_json(path, "sampling defaults")
    eos, source = data.get("eos_token_id"), path
    if eos is None:
        source = directory / "config.json"
        eos = read_json(source, "a model has one").get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(id_) is int and 0 <= id_ < vocab_size for id_ in ids):
        raise ConfigError(
            f"{source}: eos_token_id is {shown(eos)}; expected one or more token ids, 0 to "
            f"{vocab_size - 1}"
        )
    if not isinstance(data.get("do_sample") or False, bool):
        raise ConfigError(
            f"{path}: do_sample is {shown(data['do_sample'])}; expected true or false"
        )
    settings: dict[str, Any] = {}
    if data.get("do_sample"):
        names = ("temperature", "top_k", "top_p", "min_p")
        settings = {"temperature": 1.0} | {
            name: checked(name, data[name], str(path))
            for name in names
            if data.get(name) is not None
        }
    try:
        Sampling(**settings)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return settings, frozenset(ids)
