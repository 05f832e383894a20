"""The values of a `config.json`, each checked as it is read."""

from __future__ import annotations

from typing import Any

from minisafe.checkpoint import limits
from minisafe.errors import ConfigError
from minisafe.files.display import shown


class Keys:
    """One parsed `config.json`. What is missing or null is the caller's default; what is of another
    type or out of the range in `limits.CONFIG` is a `ConfigError` that names the key."""

    def __init__(self, data: dict[str, Any], source: str):
        self.data, self.source = data, source

    def fail(self, message: str) -> ConfigError:
        return ConfigError(f"{self.source}: {message}")

    def integer(
        self, key: str, default: int | None = None, data: dict[str, Any] | None = None
    ) -> int:
        """A whole number within the key's range in `limits.CONFIG`."""
        value = (self.data if data is None else data).get(key)
        value = default if value is None else value
        within = limits.CONFIG[key]
        if not isinstance(value, int) or isinstance(value, bool) or value not in within:
            raise self.fail(f"{key} is {shown(value)}; expected a whole number, {within}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; null is false, as in transformers."""
        value = self.data.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise self.fail(f"{key} is {shown(value)}; expected true or false")
        return bool(value)

    def number(self, key: str, default: float, data: dict[str, Any] | None = None) -> float:
        """A number within the key's range in `limits.CONFIG`."""
        value = (self.data if data is None else data).get(key)
        value = default if value is None else value
        within = limits.CONFIG[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value not in within:
            raise self.fail(f"{key} is {shown(value)}; expected a number, {within}")
        return float(value)
