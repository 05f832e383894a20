"""One fresh process: loads one system of a real model, answers once to warm up and once for the
clock. Prints milliseconds, bytes and the greedy ids as JSON.

    python bench/real_probe.py PROFILE --system anchored --dtype bfloat16

`real.py` starts it. Memory is read as in `memory.py`: what is beyond the libraries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface import transformers_model, transformers_tokens
from llamacpp import Peer
from probe import STATUS, memory, start_up
from timing import answer_ms

import minisafe
from minisafe import SGDS
from minisafe.guidance import Rule
from minisafe.session import Session

System = Callable[[], Iterator[int]]
UNGATED = {"gate": False, "read_alone": False}
UNANCHORED = {"anchor": None, "anchor_system": None, "anchor_shots": None, "sa_streams": None}
CHANGES: dict[str, dict[str, Any]] = {  # of the profile's settings, by system
    "plain": {"safe": False},
    "safe": {"rule": "sgds", **UNANCHORED, **UNGATED},
    "anchored": UNGATED,
    "profile": {},
}
TRANSFORMERS = {"transformers": 1, "transformers-two": 2, "transformers-three": 3}
LLAMACPP = {"llama.cpp": 1, "llama.cpp-two": 2}
SYSTEMS = (*CHANGES, *TRANSFORMERS, *LLAMACPP)


def session_of(args: argparse.Namespace, changes: dict[str, Any], weights: str) -> Session:
    """The profile with these changes, as `minisafe.load` makes it."""
    given = {"dtype": args.dtype, "weights": weights, "max_new_tokens": args.new + 1}
    return minisafe.load(args.profile, given | {"temperature": 0.0} | changes)


def with_anchor(session: Session) -> Session:
    """The same session; ends the program if it has no anchor to measure."""
    if "anchor" not in session.settings.others:
        raise SystemExit("the profile names no anchor; expected one for three streams")
    return session


def session_tokens(session: Session, prompt: str) -> Iterator[int]:
    """Tokens of a chat's first answer, on the path of `Session.run`, reading alone included."""
    (encoded,) = session.encode_prompts([prompt], chat=True)
    generation = session.new_generation([session.new_request(encoded)])
    return (event.id for event in generation if event.id is not None)


def endless(session: Session) -> Session:
    """The same session, whose answers have no end token: all systems give as many tokens."""
    return replace(session, eos=frozenset())


def transformers_system(args: argparse.Namespace) -> System:
    """The peer on the profile's base; further streams are models with the adapter merged in."""
    count = TRANSFORMERS[args.system]
    names = ("plain", "safe", "anchored")
    session = session_of(args, CHANGES[names[count - 1]], "plain")
    session = with_anchor(session) if count == 3 else session
    ids = session.encode(args.prompt, chat=True)[0]
    models = [transformers_model(each.model, each.adapter) for each in session.streams]
    rule: Rule | None = {1: None, 2: SGDS(), 3: session.rule}[count]
    return partial(transformers_tokens, models, ids, rule)


def llamacpp_system(args: argparse.Namespace) -> System:
    """llama.cpp on a GGUF file; the ids are those of the profile's tokenizer."""
    with session_of(args, CHANGES["plain"], "plain") as session:
        ids = session.encode(args.prompt, chat=True)[0]
    peer = Peer(args.gguf, len(ids) + args.new + 1, args.threads, block=args.block)
    count = LLAMACPP[args.system]
    return partial(peer.tokens, ids, count, SGDS() if count > 1 else None)


def system_of(args: argparse.Namespace) -> System:
    """The asked system, loaded."""
    if args.system in TRANSFORMERS:
        return transformers_system(args)
    if args.system in LLAMACPP:
        return llamacpp_system(args)
    session = endless(session_of(args, CHANGES[args.system], args.weights))
    session = with_anchor(session) if args.system == "anchored" else session
    return partial(session_tokens, session, args.prompt)


def noted(system: System, ids: list[int]) -> Iterator[int]:
    """The system's tokens, which also go to `ids`."""
    for each in system():
        ids.append(each)
        yield each


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("profile", help="a profile with expert and anchor")
    parser.add_argument("--system", choices=SYSTEMS, default="plain")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--weights", default="auto", help="as in a profile")
    parser.add_argument("--gguf", type=Path, help="the file, for llama.cpp")
    parser.add_argument("--block", type=int, help="tokens that llama.cpp reads at once")
    parser.add_argument("--prompt", default="How is bread made?")
    parser.add_argument("--new", type=int, default=8, help="tokens timed, after the first")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    start_up("transformers" if args.system in TRANSFORMERS else "plain")
    libraries = memory() if STATUS.exists() else {}
    system, ids = system_of(args), list[int]()
    answer_ms(system, min(args.new, 4))
    first, each = answer_ms(partial(noted, system, ids), args.new)
    now = memory() if STATUS.exists() else {}
    found = {name: now[name] - libraries[name] for name in ("peak", "anonymous") if name in now}
    print(json.dumps(found | {"first_ms": first, "token_ms": each, "ids": ids}))


if __name__ == "__main__":
    main()
