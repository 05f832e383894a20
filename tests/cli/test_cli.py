"""The command line: what it prints, what it exits with, and that errors are one line."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import minisafe
from minisafe.checkpoint import save_adapter, save_model
from minisafe.checkpoint.vectors import save_npy, save_vector
from minisafe.cli import main
from minisafe.model import Llama
from minisafe.tokenizer import TextStream
from minisafe.vectors import SafetyVector
from tests.support.templates import BYTE
from tests.support.tiny import random_adapter, tensors_of
from tests.support.worlds import (
    World,
    base_model,
    safety_vector,
    tokenizer,
    write_json,
    write_tokenizer,
)

pytest_plugins = ["tests.support.world_fixtures"]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("minisafe: ")]

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Input(io.TextIOWrapper):
    """Standard input with these bytes, at a terminal or not."""

    def __init__(self, data: bytes, terminal: bool):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run("generate", "--base", path, "text", stdin=b"")`: the command line in this process."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*args: object, stdin: bytes | str = b"", terminal: bool = False) -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["minisafe", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", Input(data, terminal))
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main changes it
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    return call


def flags(world: World, **changes: object) -> list[str]:
    """Flags for a safe session on the world's parts, 8 tokens an answer."""
    given = world.flags(**{"max_new_tokens": 8} | changes)
    found = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            found.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            found += [flag, str(value)]
    return found


def api(world: World, **changes: Any) -> minisafe.Session:
    return minisafe.load(None, world.flags(**{"max_new_tokens": 8} | changes))


# ---- generate ----------------------------------------------------------------------------------


def test_a_prompt_is_continued(run: Run, world: World) -> None:
    found = run("generate", *flags(world), "The fox")
    (expected,) = api(world).generate(["The fox"])
    assert (found.code, found.out) == (0, expected.text + "\n")
    assert (
        found.err == "safe decoding: SA (layer 1, scale 1.25, last) + sGDS (adapter, lambda 0.99)\n"
    )


@pytest.mark.parametrize("source", ["argument", "file", "stdin", "dash", "lines"])
def test_where_a_prompt_comes_from(run: Run, world: World, tmp_path: Path, source: str) -> None:
    """As it stands: blanks and newlines are the prompt's, and no template is put around it."""
    text = " The fox é日\n" if source != "lines" else " The fox é日"
    (tmp_path / "p.txt").write_bytes(text.encode() + (b"\n" if source == "lines" else b""))
    args: dict[str, list[object]] = {
        "argument": [text], "file": ["--file", tmp_path / "p.txt"], "stdin": [], "dash": ["-"],
        "lines": ["--lines", tmp_path / "p.txt"],
    }  # fmt: skip
    stdin = text if source in ("stdin", "dash") else ""
    found = run("generate", *flags(world), "--json", *args[source], stdin=stdin)
    (expected,) = api(world).generate([text])
    assert found.code == 0
    assert found.objects[0]["tokens"] == list(expected.tokens)
    assert found.objects[0]["prompt_tokens"] == len(tokenizer("llama3").encode(text))


def test_one_prompt_a_line(run: Run, world: World, tmp_path: Path) -> None:
    """A line ends where the file says so; other separators are text, and empty lines are none."""
    prompts = ["The fox", " and a\u2028bird\x0c \x85", "the\x1criver", "a"]
    (tmp_path / "p").write_bytes("\r\n\n".join([*prompts, "  "]).encode())
    found = run("generate", *flags(world), "--json", "--lines", tmp_path / "p", "--batch-size", 2)
    expected = api(world).generate(prompts)
    assert [each["tokens"] for each in found.objects] == [list(r.tokens) for r in expected]
    assert [each["prompt_tokens"] for each in found.objects] == [r.prompt_tokens for r in expected]


def test_the_fields_of_json(run: Run, world: World) -> None:
    found = run("generate", *flags(world), "--json", "--chat", "The fox")
    (expected,) = api(world).generate(["The fox"], chat=True)
    (said,) = found.objects
    assert said.pop("timings_ms").keys() == {"prefill", "total"}
    assert said == {
        "prompt_tokens": expected.prompt_tokens,
        "tokens": list(expected.tokens),
        "text": expected.text,
        "finish_reason": "length",
        "applied": json.loads(json.dumps(expected.applied.to_json())),
    }
    assert said["applied"]["sgds"]["lambda"] == 0.99
    plain = run("generate", *flags(world, safe=False), "--json", "The fox")
    assert plain.objects[0]["applied"] == {"safe": False, "sa": None, "sgds": None}
    assert plain.err == "plain decoding, no safety applied\n"


def test_a_batch_as_text(run: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("The fox\nWhy?\n")
    found = run("generate", *flags(world), "--lines", tmp_path / "p")
    texts = [result.text for result in api(world).generate(["The fox", "Why?"])]
    assert found.out == f"[1/2] The fox\n{texts[0]}\n\n[2/2] Why?\n{texts[1]}\n\n"


def test_echo(run: Run, world: World) -> None:
    found = run("generate", *flags(world), "--echo", "The fox")
    assert found.out == "The fox" + api(world).generate(["The fox"])[0].text + "\n"


def test_every_flag_is_heard(run: Run, world: World) -> None:
    """Each of them changes the answer, or what is said to be applied."""
    common = {"temperature": 1.0, "max_new_tokens": 24}

    def said(**changes: object) -> str:
        found = run("generate", *flags(world, **common | changes), "--json", "--chat", "The fox")
        assert found.code == 0, found.err
        (answer,) = found.objects
        answer.pop("timings_ms")
        return json.dumps(answer)

    stop = json.loads(said())["text"][2:4]
    changed: list[dict[str, object]] = [
        {}, {"safe": False}, {"expert": world.expert}, {"sa_layer": 0}, {"sa_scale": 3},
        {"expert": None, "expert_system": "You are careless."}, {"sa_positions": "all"},
        {"sgds_lambda": 0.5}, {"margin": 0.2}, {"seed": 1}, {"max_new_tokens": 9},
        {"edit": world.adapter}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.4},
        {"min_p": 0.5}, {"stop": stop}, {"presence_penalty": 9}, {"frequency_penalty": 0.5},
        {"system": "Be kind."}, {"dtype": "bfloat16"},
    ]  # fmt: skip
    assert len({said(**each) for each in changed}) == len(changed)
    assert said(threads=1, device="cpu", allow_padding=True, safe=True) == said()


def test_one_stage_alone_is_legal(run: Run, world: World) -> None:
    found = run("generate", *flags(world, vector=None, sa_scale=0, safe=True), "The fox")
    assert (found.code, found.err) == (0, "safe decoding: sGDS (adapter, lambda 0.99)\n")
    found = run("generate", *flags(world, expert=None, sgds_lambda=0, safe=True), "The fox")
    assert (found.code, found.err) == (0, "safe decoding: SA (layer 1, scale 1.25, last)\n")


def test_a_profile(run: Run, world: World) -> None:
    found = run("generate", "--profile", world.root, "--max-new-tokens", 5, "--json", "The fox")
    (said,) = found.objects
    assert len(said["tokens"]) == 5
    assert said["applied"]["safe"]


def test_the_right_end_of_a_story(run: Run, story: Path) -> None:
    found = run("generate", "--base", story, "Once upon a time", "--max-new-tokens", 40, "--echo")
    assert found.code == 0
    assert re.match(r"Once upon a time, \w+ \w+ \w+ .*\.", found.out)


@pytest.mark.live
def test_the_story_is_transformers(run: Run, story: Path) -> None:
    transformers = pytest.importorskip("transformers")
    found = run("generate", "--base", story, "Once upon a time", "--max-new-tokens", 48, "--json")
    ids = tokenizer_of(story).encode("Once upon a time")
    model = transformers.AutoModelForCausalLM.from_pretrained(story, dtype=torch.float32)
    theirs = model.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False)
    assert found.objects[0]["tokens"] == theirs[0, len(ids) :].tolist()


def tokenizer_of(path: Path) -> minisafe.tokenizer.Tokenizer:
    return minisafe.load_tokenizer(path)


# ---- chat --------------------------------------------------------------------------------------


def talk(run: Run, world: World, *said: str, json: bool = False, **changes: object) -> Outcome:
    extra = ["--json"] if json else []
    return run("chat", *flags(world, **changes), *extra, stdin="\n".join(said) + "\n")


def test_a_piped_conversation(run: Run, world: World) -> None:
    found = talk(run, world, "Hello there!", "", "Why?")
    conversation = api(world).chat()
    expected = ["".join(conversation.send(text)) for text in ("Hello there!", "Why?")]
    from minisafe.cli.options import harmless

    assert (found.code, found.out) == (0, "".join(harmless(text) + "\n" for text in expected))
    assert found.err == (
        "safe decoding: SA (layer 1, scale 1.25, last) + sGDS (adapter, lambda 0.99)\n"
    )


def test_a_conversation_as_json(run: Run, world: World) -> None:
    found = talk(run, world, "Hello there!", "Why?", json=True)
    conversation = api(world).chat()
    for said, text in zip(found.objects, ("Hello there!", "Why?"), strict=True):
        list(conversation.send(text))
        result = conversation.result
        assert (said["tokens"], said["text"]) == (list(result.tokens), result.text)
        assert said["applied"] == json.loads(json.dumps(result.applied.to_json()))
        assert said["finish_reason"] == "length"


def test_commands(run: Run, world: World) -> None:
    found = talk(
        run, world, "Hello there!", "/reset", "Hello there!", "/safe off", "Why?", "/safe on",
        "/set sgds-lambda 0.5", "/set max_new_tokens 3", "Why?", "/set stop e",
        "/set system A bird.", "/help", "/quit", "never said", json=True,
    )  # fmt: skip
    first, again, _, short = found.objects
    assert found.code == 0
    assert first["tokens"] == again["tokens"]
    assert [each["applied"]["safe"] for each in found.objects] == [True, True, False, True]
    assert short["applied"]["sgds"]["lambda"] == 0.5
    assert len(short["tokens"]) == 3
    told = found.err.splitlines()[1:]
    assert told[:6] == [
        "the conversation is deleted", "plain decoding, no safety applied",
        "safe decoding: SA (layer 1, scale 1.25, last) + sGDS (adapter, lambda 0.99)",
        "sgds_lambda is 0.5", "max_new_tokens is 3", "stop is 'e'",
    ]  # fmt: skip
    assert told[6] == "system is 'A bird.'"
    assert told[7].startswith("/help ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "unknown command '/nonsense'; /help lists them"),
        ("/safe maybe", "got /safe 'maybe'; expected /safe on or /safe off"),
        ("/reset all", "got '/reset all'; expected /reset"),
        ("/save", "got '/save'; expected /save FILE"),
        ("/set temperature hot", "temperature is 'hot'; expected float"),
        ("/set temperature -1", "temperature is -1.0; expected 0"),
        ("/set top_k 1.5", "top_k is '1.5'; expected int"),
        ("/set sgds_lambda 1", "lambda is 1.0; expected 0 <= lambda < 1"),
        ("/set sa_scale 0", "steering cannot be switched on or off now"),
        ("/set sa_positions first", "sa_positions is 'first'; expected one of"),
        ("/set base x", "'base' cannot be changed now"),
        ("/set nonsense 1", "'nonsense' cannot be changed now"),
        ("/", "unknown command '/'"),
    ],
)
def test_commands_that_cannot_be(run: Run, world: World, line: str, message: str) -> None:
    """One line, and nothing more is done."""
    found = talk(run, world, line, "Why?", json=True)
    assert found.code == 2
    assert found.objects == []
    (error,) = found.errors
    assert message in error


def test_safety_that_was_not_loaded(run: Run, world: World) -> None:
    found = talk(run, world, "/safe on", safe=False)
    assert found.code == 2
    assert found.errors == ["minisafe: no safety parts were loaded; start again with --safe"]


def test_messages_that_cannot_be_answered_end_a_piped_chat(run: Run, world: World) -> None:
    found = talk(run, world, "Why?", "fox " * 600, "Why?", json=True)
    assert found.code == 2
    assert len(found.objects) == 1
    assert re.search(r"the prompt has \d+ tokens; the model's context holds 512", found.errors[0])


def test_at_a_terminal_they_do_not(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["fox " * 600, KeyboardInterrupt(), "Why?"])

    def asked(prompt: str) -> str:
        try:
            line = next(typed)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", asked)
    found = run("chat", *flags(world), "--json", terminal=True)
    assert found.code == 0
    assert len(found.objects) == 1
    assert len(found.errors) == 1
    assert "(Ctrl-D or /quit ends the chat)" in found.err


def test_invalid_utf_8_in_a_conversation(run: Run, world: World) -> None:
    found = run("chat", *flags(world), "--json", stdin=b"Why?\ncaf\xe9\n")
    assert found.code == 2
    assert len(found.objects) == 1
    assert found.errors == [
        "minisafe: standard input, line 2: byte 3 is not valid UTF-8; expected UTF-8 text"
    ]


def test_control_sequences_do_not_reach_the_terminal(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextStream, "push", lambda self, id_: "a\x1b[2J\x9b1m\u202e\r\x07")
    found = talk(run, world, "Why?")
    assert "a␛[2J�1m�␍␇a" in found.out
    assert not set("\x1b\x9b\u202e\r\x07") & set(found.out)
    as_json = talk(run, world, "Why?", json=True)
    assert "\x1b" not in as_json.out
    assert as_json.objects[0]["text"].startswith("a\x1b[2J\x9b1m\u202e\r\x07")  # escaped, not lost
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    for args in (["The fox"], ["--lines", world.profile]):
        shown = run("generate", *flags(world), *args)
        assert "a␛[2J�1m�␍␇a" in shown.out
        assert not set("\x1b\x9b\u202e\r\x07") & set(shown.out)


def test_ctrl_c_ends_an_answer_and_not_the_chat(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, though the answer has shown nothing yet."""
    push, seen = TextStream.push, []

    def silent(self: TextStream, id_: int) -> str:
        seen.append(id_)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, id_) if len(seen) > 5 else ""

    monkeypatch.setattr(TextStream, "push", silent)
    before = signal.getsignal(signal.SIGINT)
    found = talk(run, world, "Hello there!", "Why?", json=True, max_new_tokens=30)
    broken, whole = found.objects
    assert found.code == 0
    assert broken["finish_reason"] == "cancelled"
    assert 3 <= len(broken["tokens"]) <= 4
    assert (whole["finish_reason"], len(whole["tokens"])) == ("length", 30)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves_a_piped_chat(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Llama.forward

    def interrupted(self: Llama, *args: Any, **options: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *args, **options)

    monkeypatch.setattr(Llama, "forward", interrupted)
    found = talk(run, world, "Why?")
    assert found.code == 130
    assert found.errors == ["minisafe: stopped"]


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_a_model(run: Run, world: World) -> None:
    found = run("inspect", world.base, "--json").objects[0]
    model = base_model()
    size = sum(tensor.numel() for tensor in tensors_of(model).values())
    expected = {
        "kind": "model", "family": "llama", "parameters": size, "bytes": 4 * size, "n_layers": 3,
        "hidden": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "max_positions": 512,
        "vocab_size": model.config.vocab_size, "dtypes": ["float32"], "chat_template": True,
        "kv_bytes_per_token": 2 * 3 * 2 * 8 * 4, "tokens": tokenizer("llama3").size,
        "path": str(world.base),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    text = run("inspect", world.base)
    assert text.code == 0
    assert f"parameters: {size:,}\n" in text.out
    assert "family: llama\n" in text.out


def test_inspect_an_adapter(run: Run, world: World) -> None:
    found = run("inspect", world.adapter, "--json").objects[0]
    tensors = load_file(world.adapter / "adapter_model.safetensors")
    size = sum(tensor.numel() for tensor in tensors.values())
    expected = {
        "kind": "LoRA adapter", "r": 3, "lora_alpha": 1.5, "tensors": len(tensors),
        "parameters": size, "bytes": 4 * size,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert "kind: LoRA adapter\n" in run("inspect", world.adapter).out


def test_inspect_vectors(run: Run, world: World, tmp_path: Path) -> None:
    found = run("inspect", world.vector, "--json").objects[0]
    vector = minisafe.load_vector(world.vector)
    assert found["kind"] == "safety vector"
    assert found["hidden"] == 32
    assert found["norm_by_layer"] == {"1": pytest.approx(float(vector.layers[1].norm()), abs=1e-3)}
    assert found["metadata.sa_scale"] == 1.25
    save_npy(vector, tmp_path / "v.npy")
    bare = run("inspect", tmp_path / "v.npy", "--json").objects[0]
    assert list(bare["norm_by_layer"]) == ["stated nowhere"]


def test_inspect_a_profile(run: Run, world: World) -> None:
    for path in (world.root, world.profile):
        found = run("inspect", path, "--json").objects[0]
        kinds = {name: found[name]["kind"] for name in ("base", "expert", "vector")}
        assert kinds == {"base": "model", "expert": "LoRA adapter", "vector": "safety vector"}
        assert found["max_new_tokens"] == 12
    text = run("inspect", world.root)
    assert "\nbase:\n  kind: model\n" in text.out


def test_inspect_tells_what_a_profile_makes_of_the_cache(run: Run, world: World) -> None:
    """2 halves x 3 layers x 2 heads x 8 values, in bfloat16, or as int8 with a bfloat16 scale."""
    settings = {"minisafe_profile": 1, "base": str(world.base), "dtype": "bfloat16"}
    path = world.root / "smaller.json"
    for cache_dtype, size in (("auto", 16), ("int8", 10), ("float32", 32)):
        write_json(path, settings | {"cache_dtype": cache_dtype})
        found = run("inspect", path, "--json").objects[0]
        assert found["kv_bytes_per_token"] == 2 * 3 * 2 * size
        assert found["base"]["kv_bytes_per_token"] == 2 * 3 * 2 * 32
    assert "kv_bytes_per_token" not in run("inspect", world.profile, "--json").objects[0]


def test_a_cache_dtype_that_is_none(run: Run, world: World) -> None:
    found = run("generate", *flags(world, cache_dtype="float8"), "Hi")
    assert found.code == 2
    assert "'float8' is not one of 'auto', 'float32', 'bfloat16', 'int8'" in found.err
    path = world.root / "bad.json"
    write_json(path, {"minisafe_profile": 1, "base": str(world.base), "cache_dtype": "float8"})
    found = run("generate", "--profile", path, "Hi")
    assert found.code == 2
    assert found.errors == [
        "minisafe: cache_dtype is 'float8'; expected one of auto, float32, bfloat16, int8"
    ]


def test_inspect_something_else(run: Run, world: World, tmp_path: Path) -> None:
    for path, what in ((tmp_path / "nowhere", "no such file"), (tmp_path, "nothing that minisafe")):
        found = run("inspect", path)
        assert (found.code, found.out) == (2, "")
        assert what in found.errors[0]
    base = world.copy(world.base, tmp_path)
    (base / "tokenizer.json").unlink()
    assert "no tokenizer: " in run("inspect", base).out


# ---- bad input ---------------------------------------------------------------------------------

Spoil = Callable[[World, Path], list[object]]
BAD: dict[str, tuple[Spoil, str]] = {}


def bad(pattern: str) -> Callable[[Spoil], Spoil]:
    """Register bad input: a function that gives arguments of `generate`, and what must be said."""

    def register(spoil: Spoil) -> Spoil:
        BAD[spoil.__name__] = (spoil, pattern)
        return spoil

    return register


def with_config(**changes: Any) -> Spoil:
    return lambda world, path: [
        "--base", world.edited(world.base, path, "config.json", **changes), "Hi"
    ]  # fmt: skip


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(world: World, path: Path) -> list[object]:
        base = world.copy(world.base, path)
        tensors = load_file(base / "model.safetensors")
        change(tensors)
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        return ["--base", base, "Hi"]

    return spoil


def with_weights(content: Callable[[bytes], bytes]) -> Spoil:
    def spoil(world: World, path: Path) -> list[object]:
        base = world.copy(world.base, path)
        weights = base / "model.safetensors"
        weights.write_bytes(content(weights.read_bytes()))
        return ["--base", base, "Hi"]

    return spoil


def with_shards(weight_map: dict[str, str]) -> Spoil:
    def spoil(world: World, path: Path) -> list[object]:
        base = world.copy(world.base, path)
        (base / "model.safetensors").rename(base.parent / "outside.safetensors")
        write_json(base / "model.safetensors.index.json", {"weight_map": weight_map})
        return ["--base", base, "Hi"]

    return spoil


def with_adapter(**config: Any) -> Spoil:
    def spoil(world: World, path: Path) -> list[object]:
        adapter = world.edited(world.adapter, path, "adapter_config.json", **config)
        return [*flags(world, expert=adapter), "Hi"]

    return spoil


def with_flags(*args: object, **changes: object) -> Spoil:
    return lambda world, path: [*flags(world, **changes), *args]


DOWN = "model.layers.1.mlp.down_proj.weight"
WORDS: dict[str, tuple[Spoil, str]] = {
    "no such directory": (lambda w, p: ["--base", p / "x", "Hi"], r"x: no such directory"),
    "no config": (lambda w, p: ["--base", p, "Hi"], r"config.json: no such file"),
    "unsupported family": (with_config(model_type="gpt2"), "model_type is 'gpt2'; minisafe runs"),
    "unsupported RoPE": (
        with_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope_type is 'dynamic'"
    ),
    "unsupported activation": (with_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "quantised": (
        with_config(quantization_config={"quant_method": "gptq"}), r"quantization_config \(gptq\)"
    ),
    "truncated weights": (
        with_weights(lambda data: data[:-100]), "not a complete safetensors file"
    ),
    "empty weights": (with_weights(lambda data: b""), "not a complete safetensors file"),
    "mislabelled weights": (
        with_weights(lambda data: b"PK\x03\x04" + data), "not a complete safetensors file"
    ),
    "missing shard": (with_shards({DOWN: "a.safetensors"}), "a.safetensors: no such file"),
    "shard elsewhere": (
        with_shards({DOWN: "../outside.safetensors"}), "is not a safetensors file of this directory"
    ),
    "misshapen tensor": (
        with_tensors(lambda t: t.update({DOWN: torch.ones(3, 4)})), rf"{DOWN} has shape \(3, 4\)"
    ),
    "missing tensor": (with_tensors(lambda t: t.pop(DOWN)), f"missing tensors: {DOWN}"),
    "extra tensor": (
        with_tensors(lambda t: t.update(extra=torch.ones(3))), "unexpected tensor extra"
    ),
    "NaN weights": (
        with_tensors(lambda t: t[DOWN].view(-1)[:2].fill_(float("nan"))),
        f"{DOWN} has 2 NaN or infinite values",
    ),
    "infinite weights": (
        with_tensors(lambda t: t[DOWN].view(-1)[:1].fill_(float("inf"))), f"{DOWN} has 1 NaN"
    ),
    "lambda 1": (with_flags("Hi", sgds_lambda=1), "lambda is 1.0; expected 0 <= lambda < 1"),
    "lambda below 0": (with_flags("Hi", sgds_lambda=-0.5), "lambda is -0.5"),
    "lambda nan": (with_flags("Hi", sgds_lambda="nan"), "lambda is nan"),
    "layer out of range": (with_flags("Hi", sa_layer=3), "sa_layer is 3; .* layers 0 to 2"),
    "negative layer": (with_flags("Hi", sa_layer=-1), "sa_layer is -1"),
    "prompt too long": (with_flags("fox " * 600), r"prompt has \d+ tokens; .* holds 512"),
    "empty prompt": (with_flags(""), "the prompt is empty"),
    "empty standard input": (with_flags(), "the prompt is empty"),
    "prompt that is no text": (with_flags("a\udcffb"), "not valid UTF-8"),
    "system prompt that is no text": (
        with_flags("--chat", "Hi", system="a\udcffb"), "not valid UTF-8"
    ),
    "stop string that is no text": (with_flags("Hi", stop="\udcff"), "not valid UTF-8"),
    "no prompt file": (with_flags("--file", "/nowhere/p"), "p: cannot be read"),
    "prompt file that is a directory": (with_flags("--file", "/"), "cannot be read"),
    "no vector": (with_flags("Hi", vector=None), "needs a safety vector"),
    "no expert": (with_flags("Hi", expert=None), "needs an unsafe expert"),
    "nothing safe": (
        with_flags("Hi", vector=None, expert=None, safe=True), "needs a safety vector"
    ),
    "unknown device": (with_flags("Hi", device="tpu"), "device 'tpu' cannot be used"),
    "no tokens wanted": (with_flags("Hi", max_new_tokens=0), "max_new_tokens is 0"),
    "empty stop string": (with_flags("Hi", stop=""), "stop is .*expected strings"),
    "empty batch": (with_flags("--batch-size", 0, "--json", "Hi"), "batch_size is 0"),
    "adapter with DoRA": (with_adapter(use_dora=True), r"use_dora \(DoRA\) is not supported"),
    "adapter with biases": (with_adapter(bias="all"), "bias is 'all'"),
    "adapter with modules": (with_adapter(modules_to_save=["lm_head"]), "modules_to_save"),
    "adapter that changes the base": (with_adapter(init_lora_weights="pissa"), "'pissa'"),
    "adapter of another rank": (with_adapter(r=4), r"this model and rank need \(4, "),
    "adapter for other modules": (with_adapter(target_modules=["nothing"]), "match nothing"),
}  # fmt: skip


@bad("model.bin is a pickle, .*never reads it; .*save_pretrained")
def pickled(world: World, path: Path) -> list[object]:
    base = world.copy(world.base, path)
    (base / "model.safetensors").rename(base / "model.bin")
    return ["--base", base, "Hi"]


@bad("tokenizer.json: no such file")
def no_tokenizer(world: World, path: Path) -> list[object]:
    base = world.copy(world.base, path)
    (base / "tokenizer.json").unlink()
    return ["--base", base, "Hi"]


@bad("the tokenizer has 306 ids, the model embeds 50")
def tokenizer_too_large(world: World, path: Path) -> list[object]:
    save_model(base_model(vocab_size=50), path / "b")
    write_tokenizer(path / "b", "byte_level", {})
    return ["--base", path / "b", "Hi"]


@bad("vocabularies of .* differ in 2 tokens")
def other_vocabulary(world: World, path: Path) -> list[object]:
    expert = world.copy(world.expert, path)
    text = (expert / "tokenizer.json").read_text(encoding="utf-8")
    (expert / "tokenizer.json").write_text(text.replace("<|eot|>", "<|x|>"), encoding="utf-8")
    return [*flags(world, expert=expert), "Hi"]


@bad("the delta of .* has A")
def adapter_for_another_shape(world: World, path: Path) -> list[object]:
    save_adapter(random_adapter(base_model(hidden=24)), path / "a", rank=3, alpha=1.5)
    return [*flags(world, expert=path / "a"), "Hi"]


@bad("the vector has 31 values; the model's residual stream has 32")
def vector_of_another_size(world: World, path: Path) -> list[object]:
    np.save(path / "v.npy", np.ones((1, 31), np.float32))
    return [*flags(world, vector=path / "v.npy", sa_layer=1), "Hi"]


@bad("p.txt: byte 3 is not valid UTF-8")
def prompt_file_that_is_no_text(world: World, path: Path) -> list[object]:
    (path / "p.txt").write_bytes(b"caf\xe9")
    return [*flags(world), "--file", path / "p.txt"]


@bad("p.txt: byte 5 is not valid UTF-8")
def prompts_that_are_no_text(world: World, path: Path) -> list[object]:
    (path / "p.txt").write_bytes(b"good\n\xff\n")
    return [*flags(world), "--lines", path / "p.txt"]


@bad("p.txt: no prompts; expected one per line")
def no_prompts(world: World, path: Path) -> list[object]:
    (path / "p.txt").write_bytes(b"\n  \n")
    return [*flags(world), "--lines", path / "p.txt"]


@bad("unknown setting 'lambda'")
def unknown_key_in_a_profile(world: World, path: Path) -> list[object]:
    return ["--profile", write_json(path / "p.json", {"minisafe_profile": 1, "lambda": 1}), "Hi"]


@bad("has no chat template")
def no_chat_template(world: World, path: Path) -> list[object]:
    base = world.copy(world.base, path)
    write_tokenizer(base, "byte_level", BYTE)
    return ["--base", base, "--chat", "Hi"]


@bad("chat_template.jinja: byte 0 is not valid UTF-8")
def chat_template_that_is_no_text(world: World, path: Path) -> list[object]:
    base = world.copy(world.base, path)
    (base / "chat_template.jinja").write_bytes(b"\xff")
    return ["--base", base, "--chat", "Hi"]


@bad("needs the chat template; use --chat")
def system_prompt_expert_without_a_chat(world: World, path: Path) -> list[object]:
    return [*flags(world, expert=None, expert_system="Be bad."), "Hi"]


EVERY = WORDS | {name.replace("_", " "): case for name, case in BAD.items()}


@pytest.mark.parametrize("case", EVERY)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, world: World, tmp_path: Path, case: str
) -> None:
    spoil, pattern = EVERY[case]
    found = run("generate", *spoil(world, tmp_path))
    assert (found.code, found.out) == (2, "")
    assert "Traceback" not in found.err
    assert re.search(pattern, found.errors[-1])
    told = [line for line in found.err.splitlines() if " decoding" not in line[:16]]
    assert told == found.errors
    assert len(told) == 1


@pytest.mark.parametrize("case", ["no such directory", "no tokenizer", "lambda 1", "no expert"])
def test_a_chat_refuses_alike(run: Run, world: World, tmp_path: Path, case: str) -> None:
    spoil, pattern = EVERY[case]
    found = run("chat", *spoil(world, tmp_path)[:-1], stdin="Hi\n")
    assert (found.code, found.out) == (2, "")
    assert len(found.errors) == 1
    assert re.search(pattern, found.errors[0])


@pytest.mark.parametrize(
    "args", [["--dtype", "float64"], ["--top-k", "x"], ["--nonsense"], ["a", "b"],
             ["a", "--file", "p"], ["--sa-positions", "first"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use(run: Run, world: World, args: list[str]) -> None:
    found = run("generate", "--base", world.base, *args)
    assert (found.code, found.out) == (2, "")
    assert len(found.errors) == 1
    assert "Traceback" not in found.err


def test_no_prompt_at_a_terminal(run: Run, world: World) -> None:
    found = run("generate", "--base", world.base, terminal=True)
    assert found.code == 2
    assert "no PROMPT; give one, or --file, --lines, or standard input" in found.err


def test_help_and_version(run: Run) -> None:
    assert run("--version").out == f"minisafe, version {minisafe.__version__}\n"
    for command in ("chat", "generate", "inspect"):
        found = run(command, "-h")
        assert found.code == 0
        assert "Example" in found.out


class Allocator:
    """Lets torch allocate up to some bytes at once, then fails as torch's own allocator does."""

    def __init__(self, limit: int):
        self.limit = limit

    def __call__(self, *shape: Any, **options: Any) -> torch.Tensor:
        size = 4 * torch.Size(shape[0] if not isinstance(shape[0], int) else shape).numel()
        if size > self.limit:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory:"
                f" you tried to allocate {size} bytes. Error code 12 (Cannot allocate memory)\nmore"
            )
        return torch.empty(*shape, **options).zero_()


def test_no_room_for_a_cache(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minisafe.cache.torch.zeros", Allocator(1000))
    found = run("generate", *flags(world), "The fox")
    assert (found.code, found.out) == (2, "")
    assert re.search(r"key-value cache for 3 rows of \d+ tokens needs \d+ MiB", found.errors[0])


def test_no_room_for_a_conversion(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return Allocator(1000)(self.shape)

    monkeypatch.setattr(torch.Tensor, "to", full)
    found = run("generate", *flags(world, dtype="bfloat16"), "The fox")
    assert (found.code, found.out) == (2, "")
    assert re.search(r"needs \d+ MiB more as bfloat16 on cpu", found.errors[0])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory.\nx"),
        RuntimeError("can't start new thread"),
    ],
)
def test_no_room_in_a_forward(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: object, **options: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Llama, "forward", full)
    found = run("generate", *flags(world), "The fox")
    assert found.code == 2
    assert len(found.errors) == 1
    assert re.match(r"minisafe: out of memory: .*; use a smaller batch", found.errors[0])


def test_other_errors_are_not_hidden(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Llama, "forward", broken)
    monkeypatch.setattr(sys, "argv", ["minisafe", "generate", *flags(world), "Hi"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(RuntimeError, match="a bug"):
        main()


def test_a_file_that_may_not_be_read(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def forbidden(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "tokenizer.json":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    found = run("generate", *flags(world), "Hi")
    assert (found.code, found.out) == (2, "")
    assert len(found.errors) == 1
    assert "Permission denied" in found.errors[0]


def test_broken_weights_fail_by_name(run: Run, world: World, tmp_path: Path) -> None:
    args = with_tensors(lambda t: t[DOWN].fill_(3e38))(world, tmp_path)
    found = run("generate", *args)
    assert found.code == 1
    assert "NaN or infinite logits" in found.errors[-1]


def test_warnings_are_one_line(run: Run, world: World, tmp_path: Path) -> None:
    made = safety_vector(base_model(), tokenizer("llama3"))
    other = SafetyVector(made.layers, {**made.metadata, "weights": "0" * 15 + "x"})
    save_vector(other, tmp_path / "v.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        found = run("generate", *flags(world, vector=tmp_path / "v.safetensors"), "Hi")
    assert found.code == 0
    (warning,) = found.errors
    assert re.match(r"minisafe: warning: .* was made with other weights of the same shape", warning)


# ---- in a process of its own -------------------------------------------------------------------


@pytest.fixture
def start(world: World) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`start("chat", ...)`: `python cli.py` with pipes."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*args: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, args)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_ctrl_c_in_a_process(start: Callable[..., subprocess.Popen[bytes]], world: World) -> None:
    process = start("chat", *flags(world, safe=False, max_new_tokens=500))
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"Hello there!\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    process.stdin.write(b"/set max_new_tokens 2\nWhy?\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.endswith(b"max_new_tokens is 2\n")
    assert len(out.splitlines()) >= 2
    assert b"Traceback" not in err


def test_a_reader_that_has_seen_enough(
    start: Callable[..., subprocess.Popen[bytes]], world: World
) -> None:
    process = start("generate", *flags(world, safe=False, max_new_tokens=450), "The fox")
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    err = process.stderr.read()
    assert process.wait(60) == 0
    assert err == b"plain decoding, no safety applied\n"


def test_python_m_minisafe() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "minisafe", "--version"], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout.decode() == f"minisafe, version {minisafe.__version__}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["generate", "--nonsense"], "No such option '--nonsense'"),
        (["generate", "--temperature", "hot", "x"], "'hot' is not a valid float"),
        (["generate", "--seed", "1", "--seed", "2", "x"], "--seed is given more than once"),
        (["inspect"], "Missing argument 'PATH'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_use_is_one_line(run: Run, args: list[str], says: str) -> None:
    found = run(*args)
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert line.startswith("minisafe: ")
    assert says in line
    assert "--help` explains" in line


def test_no_command_shows_the_help(run: Run) -> None:
    found = run()
    assert found.code == 2
    assert "Commands:" in found.err
