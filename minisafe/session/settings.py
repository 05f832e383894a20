"""The settings: each declared once, with what it may be and what it is for; and their values.

Flags, profile checks, `/set` in a chat, the comparison of saved conversations and the table in
docs/profile.md are all made from these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minisafe.cache_dtype import CACHE_DTYPES
from minisafe.config import DTYPES
from minisafe.declared import (
    NUMBER,
    SWITCH,
    TEXT,
    WHOLE,
    Kind,
    Within,
    at_least,
    declared,
    settings_of,
)
from minisafe.errors import SettingError
from minisafe.files.display import shown
from minisafe.guidance import RULES, SGDS, Plain, Rule, SafeDecoding, check_guidance, check_rule
from minisafe.linear import WEIGHTS
from minisafe.sampling import Sampling
from minisafe.tokenizer.options import Scalar, check_options
from minisafe.vectors import POSITIONS


def path_refused(value: str | Path) -> str:
    """What is wrong with a path that no system can have; said before one is asked for it."""
    text = str(value)
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in text.split("/"))
    if "\0" not in text and longest <= 255 and len(text) <= 4000:
        return ""
    return f"names {shown(text)}; expected a path of names up to 255 bytes each"


def texts_refused(value: Any) -> str:
    """What is wrong with a list that should hold texts."""
    return "" if all(isinstance(each, str) for each in value) else f"is {value!r}; expected strings"


PATH = Kind("Path", (str, Path), Path, path_refused)
TEXTS = Kind("strings", (list, tuple), tuple, texts_refused)
OPTIONS = Kind("an object of names and values", (dict,), check_options)


@dataclass(frozen=True)
class Settings(Sampling):
    """Everything that a flag or a profile can set: what to load, what makes it safe, how to sample.

    docs/profile.md says what each setting is. Raises `SettingError` when made out of range.
    """

    base: Path | None = declared(
        None, PATH, "Model directory; without --profile, just this model.",
        docs="Model directory; required.",
    )  # fmt: skip
    edit: Path | None = declared(
        None, PATH, "LoRA directory to merge into the base first.",
        docs="A LoRA directory that is merged into the base first (an edited model, shipped as its "
        "low-rank delta).",
    )  # fmt: skip
    expert: Path | None = declared(
        None, PATH, "Unsafe expert (of safedecoding and dexperts: safe): model or LoRA directory.",
        docs="Unsafe expert (of the rules `safedecoding` and `dexperts`: safe): a model directory, "
        "or a PEFT LoRA directory on the base.",
    )  # fmt: skip
    expert_system: str | None = declared(
        None, TEXT, "Use the base under this system prompt as the expert.",
        docs="Instead of `expert`: the base under this system prompt is the expert.",
        decides_safety=True,
    )  # fmt: skip
    expert_kind: str | None = declared(
        None, TEXT, "What the expert is.", choices=("unsafe", "safe"),
        unset="what the rule beside it in the profile reads",
        docs="`unsafe` or `safe`: what the expert is. A rule of the other kind is refused.",
        decides_safety=True,
    )  # fmt: skip
    vector: Path | None = declared(
        None, PATH, "Safety vector (.safetensors, .npy or .gguf).",
        docs="Safety vector: `.safetensors`, `.npy` or `.gguf`.",
    )  # fmt: skip
    safe: bool | None = declared(
        None, SWITCH, "Decode safely, or plainly.",
        unset="safely if there is an expert or a vector",
    )  # fmt: skip
    sa_layer: int | None = declared(
        None, WHOLE, "Layer after which the vector is added, from 0.",
        at_least(0, "a layer's number, 0 or more"), unset="the vector's own", decides_safety=True,
    )  # fmt: skip
    sa_scale: float = declared(
        1.5, NUMBER, "Times which the vector is added; 0: not at all.",
        Within(lambda scale: abs(scale) < float("inf"), "a finite number"), in_chat=True,
        unset="the vector's own, else 1.5", decides_safety=True,
    )  # fmt: skip
    sa_positions: str = declared(
        "prompt", TEXT, "Tokens that are steered.", choices=POSITIONS,
        docs="Tokens that are steered: `prompt`, `last`, `generated` or `all` (below).",
        unset="the vector's own, else prompt", in_chat=True, decides_safety=True,
    )  # fmt: skip
    sgds_lambda: float = declared(
        0.99, NUMBER, "Strength of guidance, 0 (off) to below 1.", in_chat=True,
        decides_safety=True,
    )  # fmt: skip
    margin: float = declared(
        0.0, NUMBER, "Nats by which the expert may prefer a token.",
        docs="Nats by which the expert may prefer a token before it is pushed down.",
        in_chat=True, decides_safety=True,
    )  # fmt: skip
    rule: str = declared(
        "sgds", TEXT, "Guidance rule.", choices=tuple(RULES),
        docs="`sgds`, or one of the rules it is compared with: `safedecoding`, `self-cd`, `rose`, "
        "`dexperts` (`minisafe/guidance.py`).", decides_safety=True,
    )  # fmt: skip
    alpha: float | None = declared(
        None, NUMBER, "Strength of the rules other than sgds.", unset="the rule's own",
        decides_safety=True,
    )  # fmt: skip
    first_tokens: int | None = declared(
        None, WHOLE, "Guide only so many tokens of an answer.", unset="the rule's own",
        decides_safety=True,
    )  # fmt: skip
    common_tokens: int = declared(
        5, WHOLE, "Tokens that safedecoding's models must share.", at_least(1), decides_safety=True
    )
    anti_expert: Path | None = declared(
        None, PATH, "Anti-expert of dexperts: model or LoRA directory."
    )
    anti_system: str | None = declared(
        None, TEXT, "Anti-expert of dexperts: the base under this system prompt.",
        decides_safety=True,
    )  # fmt: skip
    gate: bool | None = declared(
        None, SWITCH, "Leave answers alone that a calibrated gate finds harmless.",
        unset="if there is a calibration for these weights (minisafe calibrate)",
        docs="Whether a calibrated gate may leave answers unguided, on the first turn of a chat.",
    )  # fmt: skip
    reverse_sa: bool = declared(
        False, SWITCH, "Research: let a negative --sa-scale steer towards harm.",
        docs="Research: let a negative `sa_scale` steer towards harm. A flag only, never from a "
        "file.", decides_safety=True, in_file=False,
    )  # fmt: skip
    allow_padding: bool = declared(
        False, SWITCH, "Base and expert may differ in unused ids at the vocabulary's end."
    )
    speculate: int | None = declared(
        None, WHOLE, "Tokens drafted at most for a separate expert; 0: none.",
        Within(lambda most: 0 <= most <= 64, "0 (off) to 64"),
        unset="7, or 0 in float32 on a CPU", in_chat=True,
        docs="An expert with weights of its own: tokens a block that the base drafts at most and "
        "the expert then reads in one forward; 0: none, 1 to 64: so many (below).",
    )  # fmt: skip
    dtype: str | None = declared(
        None, TEXT, "Dtype of the weights.", choices=DTYPES,
        unset="float32 for a small model on a CPU, else the checkpoint's own",
        docs="Dtype of the weights. A model of up to 200 million parameters is small; with "
        "`weights` int8 it keeps the checkpoint's own (below).",
    )  # fmt: skip
    weights: str = declared(
        "auto", TEXT, "How weights are stored; int8 is fastest and rounds them.", choices=WEIGHTS,
        docs="How weights are kept in memory: `plain` as the file has them; `packed` in the order "
        "that the CPU's kernels read, and fused; `int8` as 8 bits with a scale an output channel "
        "(CPU; less memory, faster, rounds every weight; large matrices also write activations as "
        "two 8-bit digits, which is finer than bf16); `auto`: packed for bfloat16 on a CPU that "
        "multiplies it, else plain. Which kernels do it is raced at load (below).",
    )  # fmt: skip
    cache_dtype: str = declared(
        "auto", TEXT, "How keys and values are held; int8 halves a bf16 cache and rounds them.",
        choices=CACHE_DTYPES,
        docs="How keys and values of the tokens read so far are held: `auto` in the model's dtype; "
        "`float32`, `bfloat16`; `int8` as 8 bits with a scale a token and head. A smaller one is "
        "rounded once, when it is written, and each layer is widened again at every step: less "
        "memory, and slower at long contexts (below).",
    )  # fmt: skip
    compile: bool = declared(
        False, SWITCH,
        "Compile the decoding step first: faster tokens after a slow start. Needs a C++ compiler.",
        docs="Run the step that decodes as one compiled graph (CPU, bfloat16 or float32, a C++ "
        "compiler): faster tokens after a start of seconds a layer, and a second copy of the "
        "weights (below).",
    )  # fmt: skip
    device: str = declared("cpu", TEXT, "Where it runs: cpu, cuda, cuda:1 and so on.")
    threads: int | None = declared(None, WHOLE, "CPU threads.", at_least(1), unset="torch's own")
    system: str | None = declared(None, TEXT, "System prompt.", in_chat=True)
    template_options: Mapping[str, Scalar] = declared(
        {}, OPTIONS,
        "Give the chat template a value, such as enable_thinking=false; may be repeated.",
        flag="--template-option",
        docs="What the chat template is given besides the messages: an object of names and plain "
        'values, such as `{"enable_thinking": false}` (below).',
    )  # fmt: skip
    max_new_tokens: int = declared(
        256, WHOLE, "Length limit of an answer.", at_least(1), docs="Most tokens of an answer.",
        in_chat=True,
    )  # fmt: skip
    stop: tuple[str, ...] = declared(
        (), TEXTS, "Text that ends an answer; may be repeated.",
        Within(all, "strings that are not empty"), docs="Texts that end an answer.", in_chat=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.template_options)
        check_guidance(self.sgds_lambda, self.margin)  # the rules state ranges of their own
        check_rule(self.alpha or 0.0, self.first_tokens)

    @property
    def guided(self) -> bool:
        """Whether a guidance rule acts, if decoding is safe."""
        return self.sgds_lambda > 0 if self.rule == "sgds" else self.alpha != 0

    def make_rule(self) -> Rule:
        """The rule that acts: `Plain` where decoding is not safe or guidance is off."""
        if not self.safe or not self.guided:
            return Plain()
        if self.rule == "sgds":
            return SGDS(self.sgds_lambda, self.margin, self.first_tokens)
        rule = RULES[self.rule]()
        assert not isinstance(rule, SGDS)
        alpha = rule.alpha if self.alpha is None else self.alpha
        first = rule.first_tokens if self.first_tokens is None else self.first_tokens
        rule = replace(rule, alpha=alpha, first_tokens=first)
        return replace(rule, common=self.common_tokens) if isinstance(rule, SafeDecoding) else rule


SETTINGS = settings_of(Settings)
PATHS = tuple(name for name, each in SETTINGS.items() if each.kind is PATH)
SETTABLE = tuple(name for name, each in SETTINGS.items() if each.in_chat)
DECIDES_SAFETY = tuple(name for name, each in SETTINGS.items() if each.decides_safety)


def checked(name: str, value: Any, source: str) -> Any:
    """A setting's value in its own type; raises `SettingError`."""
    return SETTINGS[name].read(value, source)


def resolve(*sources: Mapping[str, Any]) -> Settings:
    """One `Settings` from mappings of given settings, the first that has a name decides.

    Raises `SettingError` for an unknown name or a value out of range.
    """
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        for name, value in source.items():
            if name not in SETTINGS:
                raise SettingError(f"unknown setting {name!r}; known: {', '.join(SETTINGS)}")
            merged[name] = checked(name, value, "setting")
    return Settings(**merged)
