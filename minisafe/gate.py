"""Whether guidance acts on an answer at all, and the threshold that decides it. Pure.

Base and unsafe expert already disagree at an answer's first token, mostly on harmful prompts. Both
distributions are computed there anyway, so testing the total variation between the *steered* base
and the expert costs nothing. At or below the threshold, the gate leaves the answer to the base: no
vector, no expert. Above it, the gate opens and both stages act. The threshold comes from split
conformal prediction on benign prompts (Vovk et al., 2005; Angelopoulos and Bates, 2021, arXiv
2107.07511).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from minisafe.errors import SettingError


@dataclass(frozen=True)
class Gate:
    """Opens, so that guidance acts, if base and expert differ by more than `threshold`."""

    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SettingError(f"the gate's threshold is {self.threshold}; expected 0 to 1")

    def opens(self, variation: float) -> bool:
        return variation > self.threshold


def conformal_threshold(variations: Sequence[float], epsilon: float) -> float:
    """The threshold that a prompt like these exceeds with probability at most `epsilon`.

    It is the ceil((n + 1) (1 - epsilon))-th smallest of the n calibration values. If the next
    prompt and these n are exchangeable (any order is equally likely), its value is greater with
    probability at most epsilon, for any distribution and any n. The probability is over the
    calibration prompts and the next one. Nothing is guaranteed for other prompts.
    The guarantee is marginal: one calibration may do worse than epsilon, another better.

    Raises `SettingError` as `conformal_place` does.
    """
    place = conformal_place(len(variations), epsilon)
    return sorted(variations)[place - 1]


def conformal_place(n: int, epsilon: float) -> int:
    """Which of n calibration values, counted from 1 in rising order, is the threshold.

    Raises `SettingError` for epsilon outside (0, 1), or if n < 1 / epsilon - 1, which is too few
    for any finite threshold.
    """
    if not 0 < epsilon < 1:
        raise SettingError(f"epsilon is {epsilon}; expected a share between 0 and 1")
    # the rounding keeps (n + 1) (1 - epsilon) = 49.00000000000001 from becoming 50
    place = math.ceil(round((n + 1) * (1 - epsilon), 9))
    if place > n:
        need = math.ceil(round(1 / epsilon, 9)) - 1
        raise SettingError(
            f"{n} calibration prompts are too few for epsilon {epsilon:g}; expected at least {need}"
        )
    return place


AGAIN = "run `minisafe calibrate` again"


@dataclass(frozen=True)
class Calibration:
    """A calibrated gate, as a profile holds it.

    made_for: hash of the weights and settings that the variation depends on. data: SHA-256 of the
    calibration prompts. touched: share of them above the threshold; missed: share of `n_harmful`
    harmful prompts at or below it, with its Wilson 95 % interval. max_miss: the share that was
    allowed. Raises `SettingError` for numbers that no calibration can produce.
    """

    threshold: float
    epsilon: float
    made_for: str
    data: str
    n: int
    touched: float
    n_harmful: int
    missed: float
    missed_low: float
    missed_high: float
    max_miss: float

    def __post_init__(self) -> None:
        shares = (self.touched, self.missed_low, self.missed, self.missed_high)
        ordered = self.missed_low <= self.missed <= self.missed_high
        holds = {
            "threshold": 0 <= self.threshold < 1,  # a variation never exceeds 1
            "epsilon": 0 < self.epsilon < 1,
            "n": self.n >= 1,
            "n_harmful": self.n_harmful >= 1,
            "touched": self.touched <= self.epsilon,  # follows from how the threshold is chosen
            "max_miss": 0 <= self.max_miss <= 1,
            "missed": all(0 <= share <= 1 for share in shares) and ordered,
        }
        for name, sound in holds.items():
            if not sound:
                raise SettingError(
                    f"the calibration's {name} is {getattr(self, name)}, which no calibration "
                    f"can produce; {AGAIN}"
                )

    @property
    def gate(self) -> Gate:
        return Gate(self.threshold)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"seal": self.seal}

    @property
    def seal(self) -> str:
        """A hash of all values, so that a number changed by hand is noticed."""
        kinds = {each.name: each.type for each in fields(self)}
        values = asdict(self).items()
        stated = {name: float(v) if kinds[name] == "float" else v for name, v in values}
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, data: Any, source: str) -> Calibration:
        """Read a profile's `calibration`; raises `SettingError` unless it is complete and as it was
        written."""
        wanted = {each.name: str(each.type) for each in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != {*wanted, "seal"}:
            raise SettingError(
                f"{source}: the calibration is malformed; expected exactly "
                f"{', '.join(wanted)} and seal; "
                f"{AGAIN}"
            )
        kinds: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "str": (str,)}
        for name, kind in wanted.items():
            value = data[name]
            if not isinstance(value, kinds[kind]) or isinstance(value, bool):
                raise SettingError(
                    f"{source}: the calibration's {name} is {value!r}; expected {kind}"
                )
        made = cls(**{name: data[name] for name in wanted})
        if made.missed > made.max_miss:
            raise SettingError(
                f"{source}: the calibration's gate misses {made.missed:.1%} of harmful prompts; "
                f"at most {made.max_miss:.1%} was allowed; {AGAIN}"
            )
        if made.seal != data["seal"]:
            raise SettingError(
                f"{source}: the calibration was changed after it was made (its seal is wrong); "
                f"{AGAIN}"
            )
        return made
