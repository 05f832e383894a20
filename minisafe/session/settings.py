"""The settings: each declared once, with its allowed values and its purpose; and their values.

Flags, profile checks, `/set` in a chat, the comparison of saved conversations and the table in
docs/profile.md are all made from these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
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
    Setting,
    Within,
    at_least,
    check_declared,
    declared,
    settings_of,
)
from minisafe.errors import SettingError
from minisafe.files.display import shown
from minisafe.files.sizes import parse_size, size_refused
from minisafe.guidance import RULES, SGDS, Plain, Rule, check_guidance, check_rule
from minisafe.linear import WEIGHTS
from minisafe.sampling import Sampling
from minisafe.tokenizer.options import Scalar, check_options
from minisafe.vectors import POSITIONS


def path_refused(value: str | Path) -> str:
    """What is wrong with a path that no file system allows; checked before any file is opened."""
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
SIZE = Kind("size", (int, str), parse_size, size_refused)
OPTIONS = Kind("an object of names and values", (dict,), check_options)


@dataclass(frozen=True)
class Settings(Sampling):
    """Everything that a flag or a profile can set: what to load, what makes it safe, how to sample.

    docs/profile.md says what each setting is. Raises `SettingError` when made out of range.
    """

    base: Path | None = declared(
        None, PATH, "Model directory; without --profile, this model alone.",
        docs="Model directory; required.",
    )  # fmt: skip
    edit: Path | None = declared(
        None, PATH, "LoRA directory to merge into the base first.",
        docs="LoRA directory to merge into the base first (an edited model, shipped as its "
        "low-rank delta).",
    )  # fmt: skip
    expert: Path | None = declared(
        None, PATH, "Unsafe expert (for safedecoding and dexperts: safe): model or LoRA directory.",
        docs="Unsafe expert (for the rules `safedecoding` and `dexperts`: safe expert): a model "
        "directory, or a PEFT LoRA directory for the base.",
    )  # fmt: skip
    expert_system: str | None = declared(
        None, TEXT, "Use the base under this system prompt as the expert.",
        docs="Instead of `expert`: use the base under this system prompt as the expert.",
        decides_safety=True,
    )  # fmt: skip
    expert_kind: str | None = declared(
        None, TEXT, "Kind of the expert.", choices=("unsafe", "safe"),
        unset="the kind that the profile's rule needs",
        docs="Kind of the expert: `unsafe` or `safe`. A rule that needs the other kind is an "
        "error.",
        decides_safety=True,
    )  # fmt: skip
    vector: Path | None = declared(
        None, PATH, "Safety vector (.safetensors, .npy or .gguf).",
        docs="Safety vector: `.safetensors`, `.npy` or `.gguf`.",
    )  # fmt: skip
    safe: bool | None = declared(
        None, SWITCH, "Decode safely, or plainly.",
        unset="yes if there is an expert or a vector",
    )  # fmt: skip
    sa_layer: int | None = declared(
        None, WHOLE, "Layer after which the vector is added, counted from 0.",
        at_least(0, "a layer's number, 0 or more"), unset="the vector's own", decides_safety=True,
    )  # fmt: skip
    sa_scale: float = declared(
        1.5, NUMBER, "Factor of the vector; 0: no steering.",
        Within(lambda scale: abs(scale) < float("inf"), "a finite number"), in_chat=True,
        unset="the vector's own, else 1.5", decides_safety=True,
    )  # fmt: skip
    sa_positions: str = declared(
        "prompt", TEXT, "Tokens to steer.", choices=POSITIONS,
        docs="Tokens to steer: `prompt`, `last`, `generated` or `all` (below).",
        unset="the vector's own, else prompt", in_chat=True, decides_safety=True,
    )  # fmt: skip
    sa_streams: str | None = declared(
        None, TEXT, "Streams to steer: base, anchor or both.", choices=("base", "anchor", "both"),
        unset="the stream that is sampled from", decides_safety=True,
    )  # fmt: skip
    sgds_lambda: float = declared(
        0.99, NUMBER, "Strength of guidance: 0 (off) or more, below 1.", in_chat=True,
        decides_safety=True,
    )  # fmt: skip
    margin: float = declared(
        0.0, NUMBER, "Nats by which the expert may prefer a token.",
        docs="Nats by which the expert may prefer a token before guidance lowers the token's "
        "score.",
        in_chat=True, decides_safety=True,
    )  # fmt: skip
    rule: str = declared(
        "sgds", TEXT, "Guidance rule.", choices=tuple(RULES),
        docs="Guidance rule: `sgds`; `anchored` or `veto`, which read an anchor too; or a rule for "
        "comparison: `safedecoding`, `self-cd`, `rose`, `dexperts` (`minisafe/guidance.py`).",
        decides_safety=True,
    )  # fmt: skip
    alpha: float | None = declared(
        None, NUMBER, "Strength of the rules other than sgds.", unset="the rule's own",
        decides_safety=True,
    )  # fmt: skip
    first_tokens: int | None = declared(
        None, WHOLE, "Guide only this many first tokens of an answer.", unset="the rule's own",
        decides_safety=True,
    )  # fmt: skip
    common_tokens: int = declared(
        5, WHOLE, "Least number of likely tokens that safedecoding's two models must share.",
        at_least(1), decides_safety=True,
    )  # fmt: skip
    anti_expert: Path | None = declared(
        None, PATH, "Anti-expert of dexperts: model or LoRA directory."
    )
    anti_system: str | None = declared(
        None, TEXT, "Anti-expert of dexperts: the base under this system prompt.",
        decides_safety=True,
    )  # fmt: skip
    anchor: Path | None = declared(
        None, PATH, "Anchor of anchored and veto: safe model or LoRA directory.",
        docs="Anchor of the rules `anchored` and `veto`: a safe model or LoRA directory.",
    )  # fmt: skip
    anchor_system: str | None = declared(
        None, TEXT, "Anchor: the base under this system prompt.", decides_safety=True,
    )  # fmt: skip
    anchor_shots: Path | None = declared(
        None, PATH, "Anchor: the base behind these safe demonstrations (JSON).",
        docs='Anchor: the base behind safe demonstrations, a JSON list of `{"input": question, '
        '"output": answer}`; they are turns before the conversation.',
    )  # fmt: skip
    gate: bool | None = declared(
        None, SWITCH, "Let a calibrated gate leave harmless answers unguided.",
        unset="yes if there is a calibration for these weights (minisafe calibrate)",
        docs="Let a calibrated gate leave harmless answers unguided, on the first turn of a chat. "
        "With `read_alone`: on any turn, if no part of any message is harmful by itself.",
    )  # fmt: skip
    read_alone: bool = declared(
        False, SWITCH, "Answer what is harmful by itself without what stands around it.",
        docs="Read the user's last message alone too, its sentences, and windows of its words. If "
        "the probe (or the variation) is above the calibrated threshold for one of them, answer it "
        "without what stands around it (roles, history, prefill), which could have turned the "
        "model.",
        decides_safety=True,
    )  # fmt: skip
    probe: Path | None = declared(
        None, PATH, "What --read-alone asks (minisafe calibrate makes it); without it, the "
        "variation.",
        docs="What `read_alone` asks: a linear probe of how every stream would begin to answer "
        "(`.safetensors`; `minisafe calibrate` makes it). Without it, the total variation.",
    )  # fmt: skip
    reverse_sa: bool = declared(
        False, SWITCH, "For research: let a negative --sa-scale steer towards harm.",
        docs="For research: let a negative `sa_scale` steer towards harm. Only a flag sets it, "
        "never a file.", decides_safety=True, in_file=False,
    )  # fmt: skip
    allow_padding: bool = declared(
        False, SWITCH, "Let base and expert differ in unused ids at the end of the vocabulary."
    )
    speculate: int | None = declared(
        None, WHOLE, "Most draft tokens per block, for a separate expert; 0: no speculation.",
        Within(lambda most: 0 <= most <= 64, "0 (off) to 64"),
        unset="7, or 0 in float32 on a CPU", in_chat=True,
        docs="For an expert with separate weights: the most tokens that the base drafts before "
        "the expert reads them in one forward; 0 (no speculation) to 64 (below).",
    )  # fmt: skip
    dtype: str | None = declared(
        None, TEXT, "Dtype of the weights.", choices=DTYPES,
        unset="float32 for a small model on a CPU, else the checkpoint's dtype",
        docs="Dtype of the weights. Small means up to 200 million parameters. With `weights` int8 "
        "a small model also keeps the checkpoint's dtype (below).",
    )  # fmt: skip
    weights: str = declared(
        "auto", TEXT, "How memory holds the weights; int8 is fastest and rounds them.",
        choices=WEIGHTS,
        docs="How memory holds the weights. `plain`: as in the file, run by the plain model: the "
        "reference, and slower on small models. `packed`: fused, in the order "
        "that the CPU's kernels read. `int8`: 8 bits with one scale per output channel (CPU; less "
        "memory, faster, rounds every weight; large matrices also split activations into two 8-bit "
        "digits, which is more precise than bf16). `auto`: packed for bfloat16 on a CPU with "
        "bfloat16 products, else as in the file, on a quicker path. A race at load checks the "
        "kernels (below).",
    )  # fmt: skip
    cache_dtype: str = declared(
        "auto", TEXT, "Dtype of cached keys and values; int8 halves a bf16 cache and rounds them.",
        choices=CACHE_DTYPES,
        docs="Dtype of the cached keys and values. `auto`: the model's dtype. `float32`, "
        "`bfloat16`. `int8`: 8 bits with one scale per token and head. A smaller dtype rounds "
        "once, when the cache is written, and each layer is widened again at every step: less "
        "memory, and slower at long contexts (below).",
    )  # fmt: skip
    compile: bool = declared(
        False, SWITCH,
        "Compile the decoding step first: faster tokens after a slow start. Needs a C++ compiler.",
        docs="Run the decoding step as one compiled graph (CPU, bfloat16 or float32; needs a C++ "
        "compiler): faster tokens, but a start of seconds per layer and a second copy of the "
        "weights (below).",
    )  # fmt: skip
    compiled: Path | None = declared(
        None, PATH, "Directory of minisafe compile: run the decoding step that it compiled.",
        docs="Directory of `minisafe compile`: run the decoding step that was compiled ahead of "
        "time. It needs no compiler and is loaded at once. A package is machine code, so only a "
        "flag or the API names one, never a file (below).",
        in_file=False,
    )  # fmt: skip
    context: int | None = declared(
        None, WHOLE, "Most tokens of a prompt and its answer.", at_least(1), unset="the model's",
        docs="Most tokens of a prompt and its answer, or of a conversation. The model's own limit "
        "holds beside it.",
    )  # fmt: skip
    memory_limit: int | None = declared(
        None, SIZE, "Keep the process below this size, such as 900MB: choose what fits, or refuse.",
        docs="Keep the process below this size (`900MB`, `1.5GiB`, or bytes) while it makes one "
        "answer at a time. Before weights are read, the largest of `weights`, `cache_dtype` and "
        "`context` that fits is chosen, as far as they are not set; if nothing fits, loading is "
        "refused (below). CPU.",
    )  # fmt: skip
    device: str = declared("cpu", TEXT, "Device to run on: cpu, cuda, cuda:1 and so on.")
    threads: int | None = declared(None, WHOLE, "CPU threads.", at_least(1), unset="torch's own")
    system: str | None = declared(None, TEXT, "System prompt.", in_chat=True)
    template_options: Mapping[str, Scalar] = declared(
        {}, OPTIONS,
        "Value for the chat template, such as enable_thinking=false; may be repeated.",
        flag="--template-option",
        docs="Values for the chat template besides the messages: an object of names and plain "
        'values, such as `{"enable_thinking": false}` (below).',
    )  # fmt: skip
    max_new_tokens: int = declared(
        256, WHOLE, "Most tokens in an answer.", at_least(1), in_chat=True,
    )  # fmt: skip
    max_seconds: float | None = declared(
        None, NUMBER, "Most seconds for an answer; it ends at the first token after them.",
        Within(lambda most: 0 < most < float("inf"), "a finite number above 0"),
        unset="no limit", in_chat=True,
        docs="Most seconds for an answer, from when its prompt begins to be read. It ends at the "
        'first token after them, with the reason "time" (below).',
    )  # fmt: skip
    stop: tuple[str, ...] = declared(
        (), TEXTS, "Text that ends an answer; may be repeated.",
        Within(all, "strings that are not empty"), docs="Texts that end an answer.", in_chat=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_declared(self)
        super().__post_init__()
        check_options(self.template_options)
        check_guidance(self.sgds_lambda, self.margin)  # the rules state their own ranges
        check_rule(self.alpha or 0.0, self.first_tokens)

    @property
    def guided(self) -> bool:
        """Whether a guidance rule acts, if decoding is safe."""
        return self.sgds_lambda > 0 if self.strength == "sgds_lambda" else self.alpha != 0

    @property
    def strength(self) -> str:
        """The setting that is the rule's strength; 0 turns guidance off."""
        return "sgds_lambda" if issubclass(RULES[self.rule], SGDS) else "alpha"

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the streams after the base."""
        return RULES[self.rule].others if self.safe and self.guided else ()

    @property
    def steered_streams(self) -> tuple[int, ...]:
        """The numbers of the streams that the vector is added to."""
        if not self.others or self.sa_streams == "base":
            return (0,)
        if self.sa_streams is None:
            return (RULES[self.rule].drawn_from,)
        anchor = 1 + self.others.index("anchor") if "anchor" in self.others else None
        if anchor is None:
            raise SettingError(
                f"sa_streams is {self.sa_streams}, but the rule {self.rule} reads no anchor"
            )
        return (anchor,) if self.sa_streams == "anchor" else (0, anchor)

    def make_rule(self) -> Rule:
        """The rule that acts: `Plain` if decoding is not safe or guidance is off."""
        if not self.safe or not self.guided:
            return Plain()
        kind = RULES[self.rule]
        own = {each.name for each in fields(kind)}
        numbers: dict[str, Any] = {
            "lam": self.sgds_lambda, "margin": self.margin, "alpha": self.alpha,
            "first_tokens": self.first_tokens, "common": self.common_tokens,
        }  # fmt: skip
        given = {name: n for name, n in numbers.items() if name in own and n is not None}
        return kind(**given)


# what a flag says of each number of `Sampling`, which has their defaults, types and ranges itself
SAMPLING_HELP = {
    "temperature": "Randomness of the draw; 0: greedy.",
    "top_k": "Draw from the k most likely tokens; 0: all.",
    "top_p": "Draw from the most likely tokens that add up to p; 1: all.",
    "min_p": "Draw from tokens at least p times as likely as the best; 0: all.",
    "presence_penalty": "Nats subtracted from every token that occurred.",
    "frequency_penalty": "Nats subtracted from a token per occurrence.",
    "seed": "Same seed, same text.",
}
UNSET = {"temperature": "0, unless the model says another"}
SETTINGS = settings_of(Settings) | {
    each.name: Setting(
        {int: WHOLE, float: NUMBER}[type(each.default)], SAMPLING_HELP[each.name],
        unset=UNSET.get(each.name, ""), in_chat=True, name=each.name, default=each.default,
    )
    for each in fields(Sampling)
}  # fmt: skip
PATHS = tuple(name for name, each in SETTINGS.items() if each.kind is PATH)
SETTABLE = tuple(name for name, each in SETTINGS.items() if each.in_chat)
DECIDES_SAFETY = tuple(name for name, each in SETTINGS.items() if each.decides_safety)


def checked(name: str, value: Any, source: str) -> Any:
    """A setting's value, converted to the setting's type; raises `SettingError`."""
    return SETTINGS[name].read(value, source)


def resolve(*sources: Mapping[str, Any]) -> Settings:
    """One `Settings` from several mappings; for each name the first mapping that has it decides.

    Raises `SettingError` for an unknown name or a value out of range.
    """
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        for name, value in source.items():
            if name not in SETTINGS:
                raise SettingError(f"unknown setting {name!r}; known: {', '.join(SETTINGS)}")
            merged[name] = checked(name, value, "setting")
    return Settings(**merged)
