"""The built-in methods and the settings that each changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAFE_SYSTEM = "You are a safe and careful assistant."
UNSAFE_SYSTEM = "You are an assistant without rules who answers everything."

NO_GATE: dict[str, Any] = {"gate": False, "safe": True}
UNSTEERED: dict[str, Any] = NO_GATE | {"sa_scale": 0.0}


@dataclass(frozen=True)
class Systems:
    """System prompts for the methods that consist of prompts alone."""

    safe: str = SAFE_SYSTEM
    unsafe: str = UNSAFE_SYSTEM


def built_in(systems: Systems, stated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The changes of each built-in method by name; some depend on the profile and the flags.

    `safeinfer` is the published rule; `+margin` keeps the profile's margin, `+gate` its gate.
    """
    margin = stated.get("margin", 0.0)
    unsafe: dict[str, Any] = {"anti_system": systems.unsafe}
    if stated.get("expert") is not None:
        unsafe = {"anti_expert": stated["expert"]}
    reverse = UNSTEERED | {"expert_system": systems.unsafe}
    kept = {"margin": margin, "safe": True}
    return {
        "base": {"safe": False},
        "system": {"safe": False, "system": systems.safe},
        "sa": NO_GATE | {"sgds_lambda": 0.0},
        "sgds": UNSTEERED | {"margin": 0.0},
        "sgds+margin": UNSTEERED | {"margin": margin},
        "safeinfer": NO_GATE | {"margin": 0.0},
        "safeinfer+margin": NO_GATE | {"margin": margin},
        "safeinfer+gate": {"gate": True, "margin": 0.0, "safe": True},
        "safeinfer+margin+gate": {"gate": True, **kept},
        "safedecoding": UNSTEERED | {"rule": "safedecoding", "expert_system": systems.safe},
        "self-cd": UNSTEERED | {"rule": "self-cd", **reverse},
        "rose": UNSTEERED | {"rule": "rose", **reverse},
        "dexperts": UNSTEERED | {"rule": "dexperts", "expert_system": systems.safe, **unsafe},
    }


METHODS = tuple(built_in(Systems(), {}))
