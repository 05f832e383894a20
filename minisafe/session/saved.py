"""A saved conversation: what a chat needs to continue as if it had never stopped.

The file is not trusted. It provides a conversation and how to sample. What decides safety is
compared with the chat and never taken from the file. Turns and a system prompt are taken, and words
that someone else put there can influence a model as any prompt can.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisafe.errors import PromptError, SettingError
from minisafe.files import parse_json, read_text, write_text
from minisafe.session.chat import Chat
from minisafe.session.conversation import Conversation, Exchange
from minisafe.session.fingerprints import fingerprints
from minisafe.session.own_rule import is_own
from minisafe.session.settings import DECIDES_SAFETY, SETTABLE, SETTINGS, Settings, checked
from minisafe.tokenizer import Tokenizer

VERSION = 1
MAX_BYTES = 4 << 20  # about ten bytes per token: more than any context that runs here holds
TAKEN = tuple(name for name in SETTABLE if name not in DECIDES_SAFETY)
EXCHANGE = {"question": str, "answer": str, "ids": list, "guided": bool}


@dataclass(frozen=True)
class SavedChat:
    """What a file holds.

    made_with: fingerprints of weights, vector, tokenizer and template, by part. deciding: the
    settings that decide safety; empty if safe decoding was off. sampling: the other settings.
    """

    conversation: Conversation
    safe: bool
    made_with: Mapping[str, str]
    deciding: Mapping[str, Any]
    sampling: Mapping[str, Any]


def state_of(chat: Chat) -> SavedChat:
    """What would be saved of a chat now."""
    settings = chat.session.settings
    return SavedChat(
        chat.conversation(),
        chat.safe,
        made_with(chat),
        {name: getattr(settings, name) for name in DECIDES_SAFETY} if chat.safe else {},
        {name: getattr(settings, name) for name in TAKEN},
    )


def made_with(chat: Chat) -> dict[str, str]:
    """Fingerprints of all that reads and writes the conversation, by part."""
    session = chat.session
    streams = session.streams if chat.safe else session.streams[:1]
    others = session.settings.others if chat.safe else ()
    found = fingerprints(streams, session.steering if chat.safe else None, others)
    if chat.safe and session.shots:
        shots = json.dumps(session.shots, sort_keys=True).encode()
        found["anchor's demonstrations"] = hashlib.sha256(shots).hexdigest()[:16]
    if chat.safe and is_own(session.rule):
        found["rule"] = repr(session.rule)
    options = json.dumps(dict(session.settings.template_options), sort_keys=True)
    return found | {
        "tokenizer": tokenizer_hash(session.tokenizer), "template_options": options,
    }  # fmt: skip


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary and of what renders a chat: template and special tokens."""
    parts = [tokenizer.fingerprint, tokenizer.template_source, tokenizer.special]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# ---- writing -----------------------------------------------------------------------------------


def save_chat(chat: Chat, path: str | Path) -> None:
    """Write the chat's conversation to a file, whole or not at all.

    Raises `PromptError` if the file exists and is not a saved conversation, or if the conversation
    is too long; `OutputError` if writing fails.
    """
    path = Path(path)
    if path.exists():
        try:
            read_object(path)
        except PromptError:
            raise PromptError(
                f"{path}: exists and is not a saved conversation; choose another name"
            ) from None
    state = state_of(chat)
    data = {
        "minisafe_chat": VERSION, "safe": state.safe, "made_with": state.made_with,
        "deciding": state.deciding, "sampling": state.sampling, "turn": state.conversation.turn,
        "exchanges": [dict(vars(each)) for each in state.conversation.exchanges],
    }  # fmt: skip
    text = json.dumps(data) + "\n"
    if len(text) > MAX_BYTES:
        raise PromptError(f"{path}: the conversation has more than {MAX_BYTES:,} bytes; not saved")
    write_text(path, text)


# ---- reading -----------------------------------------------------------------------------------


def load_chat(chat: Chat, path: str | Path) -> list[str]:
    """Continue a saved conversation in a chat; returns the names of settings that this changed.

    Raises `PromptError` if the file is not a saved conversation, or if this chat would continue it
    differently: other weights, vector or tokenizer, or other settings that decide safety. The chat
    is then unchanged.
    """
    saved, present = read_chat(Path(path), chat), state_of(chat)
    check_same(saved, present, str(path))
    changed = [name for name in TAKEN if saved.sampling[name] != present.sampling[name]]
    session = chat.session
    if changed:
        session = session.with_settings({name: saved.sampling[name] for name in changed})
    chat.restore(saved.conversation)
    chat.session = session
    return changed


def check_same(saved: SavedChat, present: SavedChat, source: str) -> None:
    """Raise `PromptError` if the chat would answer differently from the saved one."""
    if saved.safe != present.safe:
        was = "on" if saved.safe else "off"
        raise PromptError(
            f"{source}: saved while safe decoding was {was}; enter /safe {was}, then load it again"
        )
    parts = sorted(saved.made_with.keys() | present.made_with.keys())
    other = [name for name in parts if saved.made_with.get(name) != present.made_with.get(name)]
    if other:
        raise PromptError(
            f"{source}: saved with another {' and '.join(other)}; start the chat with the same"
        )
    for name, value in saved.deciding.items():
        if value != present.deciding[name]:
            raise PromptError(
                f"{source}: saved with {name} {value!r}, but it is {present.deciding[name]!r} now; "
                f"a file cannot change what decides safety: set it yourself, then load it again"
            )


def read_object(path: Path) -> dict[str, Any]:
    """A saved conversation's JSON object; raises `PromptError` unless the file is one."""
    if not path.is_file():
        raise PromptError(f"{path}: no such file; expected a conversation that /save wrote")
    data = parse_json(read_text(path, MAX_BYTES, PromptError), str(path), PromptError)
    if not isinstance(data, dict) or data.get("minisafe_chat") != VERSION:
        raise PromptError(f"{path}: not a saved conversation; expected one that /save wrote")
    return data


def read_chat(path: Path, chat: Chat) -> SavedChat:
    """A file's content, checked as far as possible without the chat's settings."""
    data, source = read_object(path), str(path)
    kinds = {
        "safe": bool, "made_with": dict, "deciding": dict, "sampling": dict, "turn": int,
        "exchanges": list,
    }  # fmt: skip
    check_keys(data, kinds | {"minisafe_chat": int}, source)
    if not 0 <= data["turn"] < 1 << 31:
        raise PromptError(f"{source}: turn is {data['turn']}; expected 0 or more, below 2^31")
    if not all(isinstance(each, str) for each in data["made_with"].values()):
        raise PromptError(f"{source}: made_with holds something other than text")
    deciding = settings_of(data["deciding"], DECIDES_SAFETY if data["safe"] else (), source)
    sampling = settings_of(data["sampling"], TAKEN, source)
    said = tuple(
        exchange_of(each, f"{source}: exchange {number}", chat, first=number == 1)
        for number, each in enumerate(data["exchanges"], 1)
    )
    check_fits(said, chat, source)
    conversation = Conversation(said, data["turn"])
    return SavedChat(conversation, data["safe"], data["made_with"], deciding, sampling)


def check_keys(data: Mapping[str, Any], kinds: Mapping[str, type], source: str) -> None:
    """Raise `PromptError` unless the object has exactly these keys, with values of these types."""
    if set(data) != set(kinds):
        odd = sorted(set(data) ^ set(kinds))[0]
        what = "unknown key" if odd in data else "no key"
        raise PromptError(f"{source}: {what} {odd[:80]!r}; not a complete saved conversation")
    for name, kind in kinds.items():
        value = data[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise PromptError(
                f"{source}: {name} is a {type(value).__name__}; expected {kind.__name__}"
            )


def settings_of(data: Mapping[str, Any], names: tuple[str, ...], source: str) -> dict[str, Any]:
    """Settings by name in their own types; those left out have their defaults."""
    for name in data:
        if name not in names:
            raise PromptError(f"{source}: unknown setting {name[:80]!r}")
    try:
        given = {name: checked(name, data[name], source) for name in data}
        Settings(**given)  # checks ranges
    except SettingError as error:
        raise PromptError(str(error)) from None
    return {name: given.get(name, SETTINGS[name].default) for name in names}


def exchange_of(data: Any, source: str, chat: Chat, first: bool) -> Exchange:
    """One exchange; raises `PromptError` unless its ids are those of its answer."""
    if not isinstance(data, dict):
        raise PromptError(f"{source}: expected an object, got {type(data).__name__}")
    check_keys(data, EXCHANGE, source)
    ids, limit = data["ids"], chat.session.n_ids
    if not ids or not all(type(id_) is int and 0 <= id_ < limit for id_ in ids):
        raise PromptError(f"{source}: ids are not token ids below {limit}")
    if not data["question"].strip():
        raise PromptError(f"{source}: the question is empty; expected some text")
    if not data["guided"] and not first:
        raise PromptError(f"{source}: only a first answer can be left to the base")
    if len(ids) <= chat.session.limit and not chat.session.tokenizer.decode(ids).startswith(
        data["answer"]
    ):
        raise PromptError(f"{source}: the answer's text does not match its ids")
    return Exchange(data["question"], data["answer"], tuple(ids), data["guided"])


def check_fits(said: tuple[Exchange, ...], chat: Chat, source: str) -> None:
    """Raise `PromptError` if the answers alone are longer than the context."""
    total = sum(len(each.ids) for each in said)
    if total > chat.session.limit:
        raise PromptError(
            f"{source}: its answers have {total} tokens; the model's context holds "
            f"{chat.session.limit}"
        )
