"""What a profile tells people about its model: what the model knows, and questions to try."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import ConfigError
from minisafe.files import read_json


@dataclass(frozen=True)
class About:
    """knows: a sentence, or "". questions: questions to try."""

    knows: str = ""
    questions: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Any, source: str) -> About:
        """Read a profile's `about`: a text, or {"knows": text, "try": [texts]}; raises
        `ConfigError`."""
        if data is None or isinstance(data, str):
            return cls(data or "")
        known = isinstance(data, dict) and set(data) <= {"knows", "try"}
        knows, questions = (data.get("knows", ""), data.get("try", [])) if known else (None, None)
        if not isinstance(knows, str) or not (
            isinstance(questions, list) and all(isinstance(each, str) for each in questions)
        ):
            raise ConfigError(
                f'{source}: about is malformed; expected a text, or {{"knows": "...", "try": '
                '["...", ...]}'
            )
        return cls(knows, tuple(questions))

    def to_json(self) -> dict[str, Any]:
        return {"knows": self.knows, "try": list(self.questions)}


def read_about(profile: str | Path) -> About:
    """The `about` of a profile, which is a file or a directory that holds one."""
    path = Path(profile)
    path = path / "profile.json" if path.is_dir() else path
    return About.from_json(read_json(path, "expected a profile").get("about"), str(path))
