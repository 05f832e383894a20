"""Mutations that follow the format: bytes, JSON, and formats with a header.

One generator draws them all, so that an input can be reproduced from its number.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
WHOLE = (  # in place of a whole file
    b"", b"\x00", b"{", b"[]", b"{}", b"null", b"NaN", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00",
    b"[" * 100_000, b'{"a":' * 50_000, b"<!DOCTYPE html><title>Not found</title>", LFS,
    b"PK\x03\x04" + bytes(40), b"\x80\x04\x95" + bytes(20), b"GGUF" + bytes(40), b"9" * 10_000,
)  # fmt: skip
RAW = (  # JSON values in place of others, as they are spelt
    "null", "true", "false", "0", "-1", "1", "2", "0.5", "-0.0", "1e30", "-1e30", "1e999", "1e-320",
    "NaN", "Infinity", "-Infinity", "65536", "2147483648", "4611686018427387904", "1" + "0" * 400,
    "9" * 5000, "20000", '""', '"x"', '"1"', '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"\u202ex"',
    '"../../x"', '"/"', '"."', '"(a+)+$"', '"a{99999999999}"', '"([a-z0-9_.]+)+!"', "[]", "{}",
    "[[]]", "[null]", "[1, 2]", '{"a": 1}', '{"a": 1, "a": 2}', "[" * 70 + "]" * 70,
    '{"a":' * 70 + "1" + "}" * 70, "[" * 5000 + "]" * 5000, '"' + "x" * 20_000 + '"',
    '"' + "🙂" * 500 + '"', "[" + "0," * 3000 + "0]",
)  # fmt: skip
BYTES = (
    b"\x00", b"\xff", b"\n", b"\r\n", b'"', b"{", b"}", b"[", b"]", b"\\", b",", b":", b"\x1b[2J",
    b"\x80", b"\xed\xa0\x80", b"\xe2\x80\xae", b"{{", b"}}", b"{%", b"%}", b"(" * 200, b"-", b"1e9",
)  # fmt: skip
JINJA = (
    "{{ 'a' * 2000000000 }}", "{{ '%9999999999d' % 1 }}", "{% break %}",
    "{{ 'x'.center(999999999) }}", "{{ '{:>9999999999}'.format(1) }}", "{{ messages | tojson }}",
    "{{ [1] | tojson(indent=1000000000) }}", "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{% for a in [1] %}" * 30 + "x" + "{% endfor %}" * 30, "{{ raise_exception(messages) }}",
    "{{ ''.__class__.__mro__ }}",
    "{% set x = messages %}{% do x.append(1) %}", "{{ strftime_now('%' * 99999) }}", "{{ none.x }}",
    "{% include 'x' %}", "{{ messages[0]['content'][:-1] }}", "{# ",
    "{{ cycler(1).next() }}", "{{ '\ud800' }}", "{% if %}", "{{ 1/0 }}",
)  # fmt: skip
ENDLESS = (  # each takes the whole time that a template has, so they are few
    "{% for a in range(99999999) %}{% for b in range(99999999) %}x{% endfor %}{% endfor %}",
    "{{ 2 ** 10000000000 }}", "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{{ range(10**9) | list }}", "{{ lipsum(n=9999) }}",
)  # fmt: skip
NUMBERS = (0, 1, 2, 7, 8, 255, 2**15, 2**16, 2**31, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
LARGEST = 1 << 20  # bytes of an input


def mutate(seeds: Sequence[bytes], suffix: str, random: Random) -> bytes:
    """An input made from one of the seeds (and for splices another)."""
    data = random.choice(seeds)
    if random.random() < 0.02:
        return random.choice(WHOLE)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = _once(data, seeds, suffix, random)
    return data[:LARGEST]


def _once(data: bytes, seeds: Sequence[bytes], suffix: str, random: Random) -> bytes:
    kind = random.random()
    if suffix == ".safetensors" and kind < 0.85:
        return safetensors_level(data, random)
    if suffix == ".jinja" and kind < 0.6:
        return text_level(data, random)
    if suffix in (".json", ".jsonl") and kind < 0.8:
        return json_level(data, random)
    return byte_level(data, random.choice(seeds), random)


# ---- bytes -------------------------------------------------------------------------------------


def byte_level(data: bytes, other: bytes, random: Random) -> bytes:
    """Bytes changed, removed, inserted, repeated, cut off, or joined with another seed's."""
    start, stop = _stretch(data, random)
    kind = random.randrange(8)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[stop:]
    if kind == 2:
        return data[:start] + random.choice(BYTES) + data[start:]
    if kind == 3:
        return data[:start] + data[start:stop] * random.choice((2, 3, 50)) + data[stop:]
    if kind == 4:
        return data[:start] + other[_stretch(other, random)[0] :]
    if kind == 5:
        form = random.choice(("<B", "<H", "<I", "<Q"))
        size = struct.calcsize(form)
        number = random.choice(NUMBERS) % 2 ** (8 * size)
        return data[:start] + struct.pack(form, number) + data[start + size :]
    if kind == 6:
        return data[:start] + random.randbytes(stop - start) + data[stop:]
    place = bytes([random.randrange(256)])
    return data[:start] + place + data[start + 1 :]


def _stretch(data: bytes, random: Random) -> tuple[int, int]:
    """Where to act: anywhere, or near the front, where formats keep their header."""
    reach = min(len(data), 120) if data[:4] in (b"\x93NUM", b"GGUF") else len(data)
    if data[:4] == b"GGUF" and len(data) > 4096 and random.random() < 0.7:
        reach = min(len(data), 24_000)  # the vocabulary of a model
    reach = reach if random.random() < 0.8 else len(data)
    start = random.randint(0, max(0, reach))
    return start, min(len(data), start + random.choice((1, 2, 4, 16, 200)))


def text_level(data: bytes, random: Random) -> bytes:
    """A template with an inserted piece of a hostile one."""
    pieces = ENDLESS if random.random() < 0.01 else JINJA
    piece = random.choice(pieces).encode("utf-8", "surrogatepass")
    place = random.randint(0, len(data))
    return random.choice((data[:place] + piece + data[place:], piece, data + piece))


# ---- JSON --------------------------------------------------------------------------------------


def json_level(data: bytes, random: Random) -> bytes:
    """Another JSON text: values and keys swapped, repeated, removed, made huge, deep or invalid.

    In JSON Lines one line changes. Text that is not JSON changes as bytes.
    """
    try:
        text = data.decode("utf-8")
        lines = text.splitlines() if _is_lines(text) else [text]
        place = random.randrange(len(lines))
        value = json.loads(lines[place])
    except (ValueError, RecursionError):
        return byte_level(data, data, random)
    lines[place] = Edited(value, random).text()
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _is_lines(text: str) -> bool:
    """Whether each line is a separate value."""
    first, _, rest = text.partition("\n")
    return first.startswith("{") and first.endswith("}") and rest.startswith("{")


class Edited:
    """A JSON value with one edit. Content that no value can express, such as equal keys or NaN, is
    a placeholder until the text is written."""

    def __init__(self, value: Any, random: Random):
        self.random = random
        self.raw: dict[str, str] = {}  # what to write, by its placeholder
        self.value = self.edit(value)

    def text(self) -> str:
        text = json.dumps(self.value)
        for mark, raw in self.raw.items():
            text = text.replace(json.dumps(mark), raw)
        return text

    def spelt(self, raw: str) -> str:
        """A placeholder for text in place of a value."""
        mark = f"\0{len(self.raw)}\0"
        self.raw[mark] = raw
        return mark

    def edit(self, value: Any) -> Any:
        """The value with a random place below it, or itself, changed."""
        inner = isinstance(value, (dict, list)) and len(value) > 0
        if inner and self.random.random() < 0.85:
            if isinstance(value, list):
                place = self.random.randrange(min(len(value), 64))
                return self.in_list(list(value), place)
            return self.in_object(dict(value), self.random.choice(list(value)))
        return self.spelt(self.random.choice(RAW))

    def in_list(self, value: list[Any], place: int) -> Any:
        kind = self.random.random()
        if kind < 0.6:
            value[place] = self.edit(value[place])
        elif kind < 0.7:
            del value[place]
        elif kind < 0.8:
            value.insert(place, self.spelt(self.random.choice(RAW)))
        elif kind < 0.9:
            value += [value[place]] * self.random.choice((1, 3, 200))
        else:
            other = self.random.randrange(len(value))
            value[place], value[other] = value[other], value[place]
        return value

    def in_object(self, value: dict[str, Any], key: str) -> Any:
        kind = self.random.random()
        if kind < 0.7:
            value[key] = self.edit(value[key])
        elif kind < 0.78:
            del value[key]
        elif kind < 0.84:
            value[self.random.choice(("", "x", key + "x", key.upper(), "\x1b[2J", "9" * 500))] = (
                value.pop(key)
            )
        elif kind < 0.92:  # the key twice
            raw = json.dumps(value)[:-1] + f", {json.dumps(key)}: {self.random.choice(RAW)}}}"
            return self.spelt(self.unmarked(raw))
        else:
            other = self.random.choice(list(value))
            value[key], value[other] = value[other], value[key]
        return value

    def unmarked(self, text: str) -> str:
        for mark, raw in self.raw.items():
            text = text.replace(json.dumps(mark), raw)
        return text


# ---- headers -----------------------------------------------------------------------------------


def safetensors_level(data: bytes, random: Random) -> bytes:
    """A safetensors file with a mutated header and the correct length."""
    if len(data) < 8:
        return byte_level(data, data, random)
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    kind = random.random()
    if kind < 0.7:
        header = json_level(header, random)
    elif kind < 0.8:
        header = byte_level(header, header, random)
    elif kind < 0.9:
        rest = byte_level(rest, rest, random)
    else:
        return random.choice(NUMBERS).to_bytes(8, "little") + header + rest
    return len(header).to_bytes(8, "little") + header + rest
