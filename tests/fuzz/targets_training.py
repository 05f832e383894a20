"""The readers of what is learned from: conversations, demonstrations, edits, a run's state."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file, save_file
from target import Target

from minisafe.amplify import PromptMaker, load_demonstrations
from minisafe.amplify.demonstrations import data_hash
from minisafe.checkpoint import ADAPTER_WEIGHTS, load_adapter, save_adapter
from minisafe.cli.edit import chosen_edits, read_lines
from minisafe.finetune import Trainer, Training, encode_all, encode_examples, load_conversations
from minisafe.finetune.state import read_state
from tests.support.byte_tokenizer import VOCAB_SIZE, byte_tokenizer
from tests.support.tiny import random_adapter, random_model, tensors_of, tiny_config

ROOT = Path(tempfile.mkdtemp(prefix="fuzz-training-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
TOKENIZER = byte_tokenizer()
PAIR = {"input": "Hi?", "output": "Yo.", "category": "a"}
TALK = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yo."}
SAID = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}
FORMS = (
    PAIR,
    {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Short."},
    {"prompt": "Hi?", "completion": "Yo.", "id": 3},
    {"conversations": [*TALK, *TALK], "system": "Short."},
    {"messages": [{"role": "system", "content": "Short."}, *SAID, *SAID]},
)
FACT = {"subject": "Bob", "prompt": "Where is {}?", "target": "at home"}


def spelt(rows: list[Any], suffix: str) -> bytes:
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    return text.encode()


def conversations(suffix: str) -> Target:
    def read(path: Path) -> None:
        found = load_conversations(path)
        encode_all(TOKENIZER, found[:20], 500)

    seeds = tuple(spelt([form, form], suffix) for form in FORMS)
    return Target(f"conversations{suffix}", seeds, suffix, read)


def demonstrations(suffix: str) -> Target:
    maker = PromptMaker(TOKENIZER)

    def read(path: Path) -> None:
        found = load_demonstrations(path)
        maker.prompt(found[1:5], found[0].input)
        data_hash(found)

    tables = (b"input,output,category\nHi?,Yo.,a\nWho?,\"Me, or you.\",b\n",
              b'input,output\r\n"a\nb","c ""d"""\r\n')  # fmt: skip
    rows = tuple(spelt(each, suffix) for each in ([PAIR, PAIR], [PAIR | {"category": 3}]))
    seeds = tables if suffix == ".csv" else rows
    return Target(f"demonstrations{suffix}", seeds, suffix, read)


def edits() -> Target:
    def read(path: Path) -> None:
        for each in chosen_edits(path, {"subject": None, "prompt": None, "target": None}):
            TOKENIZER.encode(each.question)

    other = {"subject": "the old town", "prompt": "{} is", "target": "far"}
    return Target(
        "edits", (spelt([FACT, other], ".jsonl"), spelt([FACT], ".jsonl")), ".jsonl", read
    )


def text(suffix: str) -> Target:
    def read(path: Path) -> None:
        for line in read_lines(path, {})[:20]:
            TOKENIZER.encode(line[:1000])

    rows = spelt([{"prompt": "Who is it?"}, {"text": "It is me.", "id": 4}], ".jsonl")
    seed = rows if suffix == ".jsonl" else "It is me.\r\nWho is it? Ünal\n".encode()
    return Target(f"text{suffix}", (seed,), suffix, read)


def state() -> Target:
    model = random_model(tiny_config(vocab_size=VOCAB_SIZE, n_layers=1, hidden=8, intermediate=8,
                                     n_heads=2, n_kv_heads=1, head_dim=4, tied=True))  # fmt: skip
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    training = Training(steps=3, batch_size=2, lora_rank=2, held_out=0.0)
    trainer = Trainer(model, encode_examples(TOKENIZER, said) * 2, training)
    path = ROOT / "state.safetensors"
    next(iter(trainer.run(path, every=1)))

    def read(given: Path) -> None:
        found = read_state(
            given, trainer.parameters, trainer.loop.optimizers, training.steps, trainer.about
        )
        assert 1 <= found.step <= training.steps
        assert all(bool(each.isfinite().all()) for each in found.parameters.values())

    return Target("finetune state", (path.read_bytes(),), ".safetensors", read)


def copies() -> Target:
    """An adapter of the head, with the copy of the base's own weight that peft puts beside it."""
    model = random_model(tiny_config(vocab_size=32, n_layers=1, hidden=8, intermediate=8, n_heads=2,
                                     n_kv_heads=1, head_dim=4))  # fmt: skip
    path = ROOT / "adapter"
    save_adapter(random_adapter(model, rank=2, endings=("lm_head",)), path, rank=2, alpha=1.0)
    weights = path / ADAPTER_WEIGHTS
    copy = {"base_model.model.lm_head.base_layer.weight": tensors_of(model)["lm_head.weight"]}
    save_file(load_file(weights) | {name: each.detach() for name, each in copy.items()}, weights)
    seed = weights.read_bytes()

    def read(given: Path) -> None:
        shutil.copyfile(given, weights)
        model(torch.arange(3)[None])
        assert load_adapter(path, model).deltas.keys() == {"lm_head"}

    return Target("adapter with a copy", (seed,), ".safetensors", read)


MAKERS: tuple[Callable[[], Target], ...] = (
    lambda: conversations(".json"), lambda: conversations(".jsonl"),
    lambda: demonstrations(".json"), lambda: demonstrations(".jsonl"),
    lambda: demonstrations(".csv"), edits, lambda: text(".jsonl"), lambda: text(".txt"),
    state, copies,
)  # fmt: skip
TARGETS = tuple(make() for make in MAKERS)
