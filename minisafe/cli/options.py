"""Flags that commands share, how they become settings, and text that is safe to show."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from minisafe.cache import CACHE_DTYPES
from minisafe.config import DTYPES
from minisafe.display import harmless as harmless  # commands take it from here
from minisafe.errors import PromptError, SettingError
from minisafe.guidance import RULES
from minisafe.prepare import WEIGHTS
from minisafe.session.acted import Acted
from minisafe.session.session import Session, load
from minisafe.tokenizer import parse_option
from minisafe.vectors import POSITIONS

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put a common flag that was given where `session_from_flags` finds it."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str):
            check_text(text, parameter.opts[0])
    if value is not None and value != () and parameter.name is not None:
        context.meta.setdefault(FLAGS, {})[parameter.name] = value


def check_text(text: str, name: str) -> None:
    """Raise `PromptError` for an argument whose bytes were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{name} is not valid UTF-8; expected UTF-8 text") from None


def _setting(*names: str, **details: Any) -> Callable[[Command], Command]:
    """A click option that is a setting: commands need not name it among their arguments."""
    return click.option(*names, expose_value=False, callback=keep, **details)


def keep_options(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put template options, as NAME=VALUE, where `session_from_flags` finds them as one setting."""
    found: dict[str, Any] = {}
    for text in value:
        check_text(text, parameter.opts[0])
        name, scalar = parse_option(text)
        if name in found:
            raise SettingError(f"the template option {name!r} is given twice")
        found[name] = scalar
    if found:
        context.meta.setdefault(FLAGS, {})["template_options"] = found


FLAGS = "minisafe.flags"
PROFILE = _setting("--profile", type=PATH, help="Safety profile (JSON file or its directory).")
BASE = _setting("--base", type=PATH, help="Model directory; without --profile, just this model.")
DTYPE = _setting("--dtype", type=click.Choice(DTYPES), help="Default: the checkpoint's own.")
WORK_DTYPE = _setting(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Default: the checkpoint's own for training an adapter, else float32.",
)
DEVICE = _setting("--device", help="cpu (default), cuda, cuda:1 ...")
THREADS = _setting("--threads", type=int, help="CPU threads.")
EDIT = _setting("--edit", type=PATH, help="LoRA directory to merge into the base first.")
EXPERT = _setting(
    "--expert",
    type=PATH,
    help="Unsafe expert (of safedecoding and dexperts: safe): model or LoRA directory.",
)
EXPERT_SYSTEM = _setting(
    "--expert-system", help="Use the base under this system prompt as the expert."
)
SA_LAYER = _setting("--sa-layer", type=int, help="Layer after which the vector is added, from 0.")
SA_SCALE = _setting(
    "--sa-scale", type=float, help="Times which the vector is added; 0: not at all."
)
ALLOW_PADDING = _setting(
    "--allow-padding/--no-allow-padding",
    default=None,
    help="Base and expert may differ in unused ids at the vocabulary's end.",
)
SYSTEM = _setting("--system", help="System prompt.")
TEMPLATE_OPTION = click.option(
    "--template-option",
    "template_options",
    metavar="NAME=VALUE",
    multiple=True,
    expose_value=False,
    callback=keep_options,
    help="Give the chat template a value, such as enable_thinking=false; may be repeated.",
)

BASE_OPTIONS = (PROFILE, BASE, WORK_DTYPE, DEVICE, THREADS)
AMPLIFY_OPTIONS = (
    PROFILE, BASE, EDIT, EXPERT, EXPERT_SYSTEM, SA_LAYER, SA_SCALE, ALLOW_PADDING, DTYPE, DEVICE,
    THREADS, SYSTEM, TEMPLATE_OPTION,
)  # fmt: skip
MODEL_OPTIONS = (
    PROFILE,
    BASE,
    EDIT,
    EXPERT,
    EXPERT_SYSTEM,
    _setting("--vector", type=PATH, help="Safety vector (.safetensors, .npy or .gguf)."),
    _setting(
        "--safe/--no-safe", default=None,
        help="Decode safely, or plainly. Default: safely if there is an expert or a vector.",
    ),
    SA_LAYER,
    SA_SCALE,
    _setting("--sa-positions", type=click.Choice(POSITIONS), help="Tokens that are steered."),
    _setting("--sgds-lambda", type=float, help="Strength of guidance, 0 (off) to below 1."),
    _setting("--margin", type=float, help="Nats by which the expert may prefer a token."),
    _setting("--gate/--no-gate", default=None,
             help="Leave answers alone that a calibrated gate finds harmless. Default: if there is "
             "a calibration for these weights (minisafe calibrate)."),
    _setting("--rule", type=click.Choice(tuple(RULES)), help="Guidance rule. Default: sgds."),
    _setting("--expert-kind", type=click.Choice(("unsafe", "safe")),
             help="What the expert is. Default: what the rule reads."),
    _setting("--reverse-sa/--no-reverse-sa", default=None,
             help="Research: let a negative --sa-scale steer towards harm."),
    _setting("--alpha", type=float, help="Strength of the rules other than sgds."),
    _setting("--first-tokens", type=int, help="Guide only so many tokens of an answer."),
    _setting("--common-tokens", type=int, help="Tokens that safedecoding's models must share."),
    _setting("--anti-expert", type=PATH, help="Anti-expert of dexperts: model or LoRA directory."),
    _setting("--anti-system", help="Anti-expert of dexperts: the base under this system prompt."),
    ALLOW_PADDING,
    _setting("--speculate", type=int,
                 help="Tokens drafted at most for a separate expert; 0: none. Default: automatic."),
    DTYPE,
    _setting("--weights", type=click.Choice(WEIGHTS),
             help="How weights are stored; int8 is fastest and rounds them. Default: auto."),
    _setting("--cache-dtype", type=click.Choice(CACHE_DTYPES),
             help="How keys and values are held; int8 halves a bf16 cache and rounds them. "
             "Default: auto, the model's dtype."),
    _setting("--compile/--no-compile", default=None,
             help="Compile the decoding step first: faster tokens after a slow start. Needs a C++ "
             "compiler. Default: no."),
    DEVICE,
    THREADS,
    SYSTEM,
    TEMPLATE_OPTION,
)  # fmt: skip

SAMPLING_OPTIONS = (
    _setting("--seed", type=int, help="Same seed, same text. Default 0."),
    _setting("--max-new-tokens", type=int, help="Length limit of an answer. Default 256."),
    _setting("--temperature", type=float, help="0 (default unless the model says): greedy."),
    _setting("--top-k", type=int, help="Only the k likeliest tokens; 0: all."),
    _setting("--top-p", type=float, help="Only the likeliest tokens that make up p; 1: all."),
    _setting("--min-p", type=float, help="Only tokens p times as likely as the best; 0: all."),
    _setting("--presence-penalty", type=float, help="Nats off for a token that occurred."),
    _setting("--frequency-penalty", type=float, help="Nats off for each time it occurred."),
    _setting("--stop", multiple=True, help="Text that ends an answer; may be repeated."),
)


def offering(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Give a command these flags, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


common_options = offering(MODEL_OPTIONS + SAMPLING_OPTIONS)  # what to load, how to sample
model_options = offering(MODEL_OPTIONS)
base_options = offering(BASE_OPTIONS)  # of a command that works on a base alone
amplify_options = offering(AMPLIFY_OPTIONS)  # a base, its expert, the vector to be made


def fields_as_options(settings: type, helps: Mapping[str, str]) -> Callable[[Command], Command]:
    """Options for fields of a dataclass of settings, with its own defaults; `helps` names them."""

    def decorate(command: Command) -> Command:
        for name, text in reversed(list(helps.items())):
            default = getattr(settings, name)
            details: dict[str, Any] = {"default": default, "show_default": True, "help": text}
            if isinstance(default, bool):
                details["is_flag"] = True
            else:
                details["type"] = type(default)
            flag = "--" + name.removeprefix("n_").replace("_", "-")
            command = _setting(flag, name, **details)(command)
        return command

    return decorate


def chosen(names: Iterable[str]) -> dict[str, Any]:
    """What this command's `fields_as_options` ended up as, by field."""
    flags = common_flags()
    return {name: flags[name] for name in names if name in flags}


def common_flags() -> dict[str, Any]:
    """The common flags that this command was given, by setting."""
    return dict(click.get_current_context().meta.get(FLAGS, {}))


def load_plain(own: Iterable[str]) -> Session:
    """Load the base alone, with what the common flags say of the rest; `own` are no settings."""
    given = {name: value for name, value in common_flags().items() if name not in set(own)}
    profile = given.pop("profile", None)
    return load(profile, {"weights": "plain"} | given | {"safe": False, "compile": False})


class ProgressLine:
    """One line on standard error: how far long work is, how fast, and how long it will take.

    Where that is no terminal, a line is written at every tenth of the work.
    """

    def __init__(self) -> None:
        self.what, self.started, self.first, self.tenth = "", time.monotonic(), 0, -1

    def show(self, what: str, done: int, total: int) -> None:
        kind = what.rsplit(" ", 1)[-1]
        if kind != self.what:  # the first report of a kind starts its clock
            self.what, self.started, self.first, self.tenth = kind, time.monotonic(), done, -1
        spent, text = time.monotonic() - self.started, f"{what} {done}/{total}"
        if done > self.first and spent > 0:
            rate = (done - self.first) / spent
            text += f", {rate:.3g}/s, {(total - done) / rate:.0f} s left"
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            click.echo(text, err=True)

    def close(self) -> None:
        if sys.stderr.isatty():
            click.echo(err=True)


def session_from_flags() -> Session:
    """Load what the command's common flags ask for; the rest is left to the profile."""
    given = common_flags()
    profile = given.pop("profile", None)
    return load(profile, given)


def describe(applied: Acted) -> str:
    """One line that says what safety acts."""
    if not applied.safe:
        return "plain decoding, no safety applied"
    parts = []
    if applied.sa:
        sa = applied.sa
        layers = ",".join(map(str, sa.layers))
        towards = ", REVERSED: towards harm" if sa.reversed else ""
        parts.append(f"SA (layer {layers}, scale {sa.scale:g}, {sa.positions}{towards})")
    if applied.sgds:
        sgds = applied.sgds
        margin = f", margin {sgds.margin:g}" if sgds.margin else ""
        parts.append(f"sGDS ({sgds.expert}, lambda {sgds.lam:g}{margin}{only(sgds.first_tokens)})")
    if applied.rule:
        numbers = applied.rule.numbers
        first = only(numbers["first_tokens"])
        parts.append(f"{applied.rule.name} (alpha {numbers['alpha']:g}{first})")
    beside = ""
    if applied.gate:
        beside = (
            f"; a chat's first answer below the gate ({applied.gate.threshold:.3f}) is the base's"
        )
    return "safe decoding: " + " + ".join(parts) + beside


def only(first_tokens: int | None) -> str:
    """How much of an answer is guided, where that is not all of it."""
    if first_tokens is None:
        return ""
    return f", first {first_tokens} token{'s' if first_tokens > 1 else ''} only"


def read_text(source: Path | None) -> str:
    """A file's or standard input's text; raises `PromptError` unless it is valid UTF-8."""
    name = "standard input" if source is None else str(source)
    try:
        data = sys.stdin.buffer.read() if source is None else source.read_bytes()
    except OSError as error:
        raise PromptError(f"{name}: cannot be read ({error.strerror})") from None
    return decode_text(data, name)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 bytes as text; raises `PromptError` that says where they are not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name}: byte {error.start} is not valid UTF-8; expected UTF-8 text"
        ) from None
