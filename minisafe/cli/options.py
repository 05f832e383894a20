"""Shared flags, their conversion to settings, and text that is safe to show."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from minisafe.declared import NUMBER, SWITCH, WHOLE, Setting
from minisafe.errors import PromptError, SettingError
from minisafe.files.display import harmless as harmless  # commands import it from here
from minisafe.files.sizes import size_words
from minisafe.sampling import Sampling
from minisafe.session.load import load
from minisafe.session.named import find_profile
from minisafe.session.session import Session
from minisafe.session.settings import OPTIONS, SETTINGS, TEXTS, Settings
from minisafe.session.settings import PATH as PATHS_KIND
from minisafe.session.stages import Stages
from minisafe.tokenizer import parse_option

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store a given common flag where `common_flags` finds it."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str):
            check_text(text, parameter.opts[0])
    if value is not None and value != () and parameter.name is not None:
        context.meta.setdefault(FLAGS, {})[parameter.name] = value


def check_text(text: str, name: str) -> None:
    """Raise `PromptError` for an argument whose bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{name} is not valid UTF-8; expected UTF-8 text") from None


def keep_options(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store template options, NAME=VALUE, where `common_flags` finds them as one setting."""
    found: dict[str, Any] = {}
    for text in value:
        check_text(text, parameter.opts[0])
        name, scalar = parse_option(text)
        if name in found:
            raise SettingError(f"the template option {name!r} is given twice; expected it once")
        found[name] = scalar
    if found:
        context.meta.setdefault(FLAGS, {})["template_options"] = found


def keep_profile(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Store the path of the profile that is given by path or by name."""
    keep(context, parameter, None if value is None else find_profile(value))


FLAGS = "minisafe.flags"


def _kept(*names: str, **details: Any) -> Callable[[Command], Command]:
    """A click option whose value is stored in the context, not passed to the command."""
    return click.option(*names, expose_value=False, callback=keep, **details)


def option(name: str, help: str = "") -> Callable[[Command], Command]:
    """The flag of a declared setting; `help` replaces the help text if a command needs another."""
    setting = SETTINGS[name]
    flag = setting.flag or "--" + name.replace("_", "-")
    default = setting.default_words
    text = help or setting.help + (f" Default: {default}." if default else "")
    if setting.kind is SWITCH:
        return _kept(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    if setting.kind is OPTIONS:
        return click.option(
            flag, name, metavar="NAME=VALUE", multiple=True, expose_value=False,
            callback=keep_options, help=text,
        )  # fmt: skip
    if setting.kind is TEXTS:
        return _kept(flag, name, multiple=True, help=text)
    return _kept(flag, name, type=click_type(setting), help=text)


def click_type(setting: Setting) -> Any:
    """The click type of a setting."""
    if setting.choices:
        return click.Choice(setting.choices)
    return {PATHS_KIND: PATH, WHOLE: int, NUMBER: float}.get(setting.kind, str)


PROFILE = click.option(
    "--profile", expose_value=False, callback=keep_profile, type=PATH,
    help="Safety profile (JSON file or its directory), or the name of a model of `minisafe get`.",
)  # fmt: skip
WORK_DTYPE = option(
    "dtype", "Dtype of the weights. Default: the checkpoint's dtype for training an adapter, "
    "otherwise float32.",
)  # fmt: skip
OF_A_BASE = ("base", "device", "threads")
OF_A_VECTOR = (
    "base", "edit", "expert", "expert_system", "sa_layer", "sa_scale", "allow_padding", "dtype",
    "device", "threads", "system", "template_options",
)  # fmt: skip
OF_AN_ANSWER = (*(each.name for each in fields(Sampling)), "max_new_tokens", "max_seconds", "stop")
OF_A_MODEL = tuple(name for name in SETTINGS if name not in OF_AN_ANSWER)
BASE_OPTIONS = (PROFILE, WORK_DTYPE, *map(option, OF_A_BASE))
AMPLIFY_OPTIONS = (PROFILE, *map(option, OF_A_VECTOR))
MODEL_OPTIONS = (PROFILE, *map(option, OF_A_MODEL))
SAMPLING_OPTIONS = tuple(map(option, OF_AN_ANSWER))


def offering(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Give a command these flags, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


common_options = offering(MODEL_OPTIONS + SAMPLING_OPTIONS)  # what to load, how to sample
model_options = offering(MODEL_OPTIONS)
base_options = offering(BASE_OPTIONS)  # for a command that works on a base alone
amplify_options = offering(AMPLIFY_OPTIONS)  # a base, its expert, the new vector


def fields_as_options(settings: type, helps: Mapping[str, str]) -> Callable[[Command], Command]:
    """Options for the fields of a dataclass that `helps` names, with the dataclass's defaults."""

    def decorate(command: Command) -> Command:
        for name, text in reversed(list(helps.items())):
            default = getattr(settings, name)
            details: dict[str, Any] = {"default": default, "show_default": True, "help": text}
            if isinstance(default, bool):
                details["is_flag"] = True
            else:
                details["type"] = type(default)
            flag = "--" + name.removeprefix("n_").replace("_", "-")
            command = _kept(flag, name, **details)(command)
        return command

    return decorate


def chosen(names: Iterable[str]) -> dict[str, Any]:
    """The values of this command's `fields_as_options`, by field."""
    flags = common_flags()
    return {name: flags[name] for name in names if name in flags}


def common_flags() -> dict[str, Any]:
    """The given common flags of this command, by setting."""
    return dict(click.get_current_context().meta.get(FLAGS, {}))


NEVER_COMPILED = {"compile": False, "compiled": None}  # for what needs plain weights


def load_plain(flags: Mapping[str, Any], own: Iterable[str]) -> Session:
    """Load the base alone, for plain decoding; `own` names the flags that are not settings."""
    given = {name: value for name, value in flags.items() if name not in {"profile", *own}}
    settings = {"weights": "plain"} | given | NEVER_COMPILED | {"safe": False}
    return load(flags.get("profile"), settings)


class ProgressLine:
    """One line on standard error: progress, speed and remaining time of long work.

    If standard error is not a terminal, it gets a line after every tenth of the work.
    """

    def __init__(self) -> None:
        self.what, self.started, self.first, self.tenth = "", time.monotonic(), 0, -1
        self.done = 0

    def show(self, what: str, done: int, total: int) -> None:
        kind = what.rsplit(" ", 1)[-1]
        if kind != self.what or done < self.done:  # the first report of some work starts its clock
            self.what, self.started, self.first, self.tenth = kind, time.monotonic(), done, -1
        self.done = done
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


def load_session(flags: Mapping[str, Any]) -> Session:
    """Load a session from a command's common flags; the profile decides the rest."""
    given = {name: value for name, value in flags.items() if name != "profile"}
    session = load(flags.get("profile"), given)
    if session.settings.memory_limit is not None:
        click.echo(chosen_for(session.settings, session.limit), err=True)
    return session


def chosen_for(settings: Settings, context: int) -> str:
    """One line that says what was chosen for a memory limit."""
    assert settings.memory_limit is not None
    return (
        f"memory limit {size_words(settings.memory_limit)}: weights {settings.weights}, cache "
        f"{settings.cache_dtype}, {context:,} tokens"
    )


def describe(applied: Stages) -> str:
    """One line that says which safety stages act."""
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
        name = "sGDS" if sgds.anchor is None else f"{sgds.rule} guidance"
        streams = sgds.expert if sgds.anchor is None else f"{sgds.expert}, anchor {sgds.anchor[0]}"
        parts.append(f"{name} ({streams}, lambda {sgds.lam:g}{margin}{only(sgds.first_tokens)})")
    if applied.rule:
        numbers = applied.rule.numbers
        first = only(numbers["first_tokens"])
        parts.append(f"{applied.rule.name} (alpha {numbers['alpha']:g}{first})")
    beside = ""
    if applied.alone:
        above = f"(harm above {applied.alone.threshold:.3f})"
        beside += f"; in a chat, what is harmful alone {above} is answered alone"
        if applied.alone.left:
            beside += ", and the rest is left to the base"
    if applied.gate:
        beside += (
            f"; a chat's first answer below the gate ({applied.gate.threshold:.3f}) is the base's"
        )
    return "safe decoding: " + " + ".join(parts) + beside


def only(first_tokens: int | None) -> str:
    """How much of an answer is guided, if not all of it."""
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
    """UTF-8 bytes as text; raises `PromptError` with the position of an invalid byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name}: byte {error.start} is not valid UTF-8; expected UTF-8 text"
        ) from None
