"""Rotary positions as a `config.json` states them, to values and back."""

from __future__ import annotations

import math
from typing import Any

from minisafe.checkpoint import limits
from minisafe.checkpoint.keys import Keys
from minisafe.config import RopeScaling, Yarn
from minisafe.files.display import shown

ORIGINAL = "original_max_position_embeddings"
NEEDED = {  # by rope_type
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL),
}


def read_rope(
    keys: Keys, max_positions: int, theta: float
) -> tuple[float, RopeScaling | Yarn | None]:
    """Theta and scaling: `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters`
    (transformers 5). Raises `ConfigError` for what is not run.

    max_positions: the context length that the config states. theta: what the family's class takes
    if the config does not say.
    """
    new, old = keys.data.get("rope_parameters"), keys.data.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise keys.fail(f"{key} is {shown(value)}; expected an object or null")
    rope: dict[str, Any] = new or old or {}
    theta = keys.number("rope_theta", keys.number("rope_theta", theta), rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise keys.fail("partial_rotary_factor is not supported; expected 1.0")
    if kind == "default":
        if any(isinstance(value, dict) for value in rope.values()):
            raise keys.fail("rope_parameters differ by layer type, which is not supported")
        return theta, None
    if not isinstance(kind, str) or kind not in NEEDED:
        raise keys.fail(f"rope_type is {shown(kind)}; minisafe runs 'default', 'llama3' and 'yarn'")
    missing = [key for key in NEEDED[kind] if key not in rope]
    if missing:
        raise keys.fail(f"{kind} RoPE scaling lacks {', '.join(missing)}")
    if kind == "llama3":
        return theta, read_llama3(keys, rope)
    return theta, read_yarn(keys, rope, theta, max_positions)


def read_llama3(keys: Keys, rope: dict[str, Any]) -> RopeScaling:
    """Llama 3's scaling; raises `ConfigError` for values out of range."""
    low = keys.number("low_freq_factor", 1.0, rope)
    high = keys.number("high_freq_factor", 4.0, rope)
    if high <= low:
        raise keys.fail(f"high_freq_factor {high} must exceed low_freq_factor {low}")
    return RopeScaling(
        factor=keys.number("factor", 1.0, rope),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=keys.integer(ORIGINAL, None, rope),
    )


def read_yarn(keys: Keys, rope: dict[str, Any], theta: float, max_positions: int) -> Yarn:
    """A factor of null is the ratio of the two context lengths, as in transformers."""
    for key in ("mscale", "mscale_all_dim"):
        if rope.get(key) is not None:
            raise keys.fail(f"{key} is not supported; give attention_factor instead")
    original = keys.integer(ORIGINAL, None, rope)
    factor = keys.number("factor", max_positions / original, rope)
    fast, slow = keys.number("beta_fast", 32.0, rope), keys.number("beta_slow", 1.0, rope)
    if fast < slow:
        raise keys.fail(f"beta_fast {fast} must not be below beta_slow {slow}")
    if theta == 1:
        raise keys.fail("rope_theta is 1.0; yarn needs more than 1")
    truncate = rope.get("truncate", True)
    if truncate is not None and not isinstance(truncate, bool):
        raise keys.fail(f"truncate is {shown(truncate)}; expected true or false")
    yarn = Yarn(
        factor=factor,
        original_max_positions=original,
        attention_factor=keys.number("attention_factor", 0.1 * math.log(factor) + 1, rope),
        beta_fast=fast,
        beta_slow=slow,
        truncate=bool(truncate),
    )
    if yarn.max_positions > limits.POSITIONS:
        raise keys.fail(
            f"yarn's factor {factor} makes a context of {yarn.max_positions:,} tokens; expected at "
            f"most {limits.POSITIONS:,}"
        )
    return yarn


def rope_json(scaling: RopeScaling | Yarn | None) -> dict[str, Any] | None:
    """The `rope_scaling` that reads back as this."""
    if scaling is None:
        return None
    data = {"factor": scaling.factor, ORIGINAL: scaling.original_max_positions}
    if isinstance(scaling, Yarn):
        return data | {
            "rope_type": "yarn",
            "attention_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    return data | {
        "rope_type": "llama3",
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
    }
