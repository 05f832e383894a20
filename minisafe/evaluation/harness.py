"""minisafe as a model of EleutherAI's lm-evaluation-harness (`pip install 'minisafe[eval]'`).

    python -m minisafe.evaluation.harness run --model minisafe \\
        --model_args profile=weights/tiny,sgds_lambda=0.9 --tasks ...

is the harness's own command line with this model. From Python, with any session:

    lm_eval.simple_evaluate(model=MinisafeLM(minisafe.load("weights/tiny")), tasks=[...])

Releases after 0.4.13 find the model through the entry-point group `lm_eval.models`. Model arguments
are `profile` and fields of `Settings`; batch size and device are the harness's arguments.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

import minisafe
from minisafe.errors import MinisafeError, PromptError, SettingError
from minisafe.evaluation.likelihood.scoring import Pair, encode_pair, following, score_pairs
from minisafe.session import Session
from minisafe.session.chat_prompt import EncodedPrompt
from minisafe.tokenizer import Message

INSTALLED = find_spec("lm_eval") is not None
# without the harness the class still exists, so that its parts can be tested
LM: Any = importlib.import_module("lm_eval.api.model").LM if INSTALLED else object
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
PASSED_ON = ("top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed")

log = logging.getLogger(__name__)


class MinisafeLM(LM):  # type: ignore[misc]
    """A session as a model of the harness: log-likelihoods and answers of the session's method.

    session: from `minisafe.load`. batch_size: texts per batch; it does not change results. Texts
    that exceed the context lose their beginning, as in the harness's own models. A chat that the
    harness rendered is encoded from its messages, so that control tokens in them stay text and an
    expert gets its own system prompt.
    """

    def __init__(self, session: Session, batch_size: int | str | None = None):
        super().__init__()
        if batch_size is not None and not str(batch_size).isdigit():
            raise SettingError(f"batch_size is {batch_size!r}; expected a number, 1 or more")
        if session.alone is not None:
            log.warning("nothing is read alone in the harness: its numbers are those of guidance")
        self.session = session
        self.batch_size = 8 if batch_size is None else int(batch_size)
        self.chats: dict[str, tuple[list[Message], str]] = {}  # rendered chats, by their text

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> MinisafeLM:
        """From `--model_args`, and the harness's own `batch_size` and `device`. The harness's
        default device is cuda:0, which is ignored on a machine without it."""
        asked = dict(additional_config or {})
        if str(asked.get("device")).startswith("cuda") and not torch.cuda.is_available():
            log.warning("there is no %s; the profile's device is used", asked.pop("device"))
        given = {name: value for name, value in asked.items() if value is not None} | dict(arg_dict)
        given.pop("max_batch_size", None)  # only for automatic batch sizes
        profile, batch_size = given.pop("profile", None), given.pop("batch_size", None)
        return cls(minisafe.load(profile, given), batch_size)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> MinisafeLM:
        """The same from `name=value,name=value`."""
        parse = importlib.import_module("lm_eval.utils").simple_parse_args_string
        return cls.create_from_arg_obj(parse(arg_string), additional_config)

    # ---- requests --------------------------------------------------------------------------

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is the greedy answer) of each continuation."""
        pairs = [self.fitted(self.pair(*request.args)) for request in requests]
        scored = score_pairs(self.session, pairs, self.batch_size)
        return [(each.total, each.greedy) for each in scored]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood in nats of whole texts, in windows that fill the context."""
        windows = [list(self.windows(*request.args)) for request in requests]
        flat = [window for each in windows for window in each]
        scores = iter(score_pairs(self.session, flat, self.batch_size))
        return [sum((next(scores).total for _ in each), 0.0) for each in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers that end before the first of their stop strings."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for number, request in enumerate(requests):
            context, options = request.args
            key = json.dumps(options, sort_keys=True), context in self.chats
            groups.setdefault(key, []).append(number)
        answers: dict[int, str] = {}
        for (options, in_chat), numbers in groups.items():
            changes = generation_settings(json.loads(options))
            session = self.session.with_settings(changes)
            prompts = [self.prompts(requests[n].args[0], session) for n in numbers]
            for start in range(0, len(prompts), self.batch_size):
                texts = generate(session, prompts[start : start + self.batch_size], start, in_chat)
                answers |= dict(zip(numbers[start:], texts, strict=False))
        return [answers[number] for number in range(len(requests))]

    # ---- chats -----------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as text. Without a generation prompt, the last turn begins the answer."""
        messages: list[Message] = [
            {"role": turn["role"], "content": turn["content"]} for turn in chat_history
        ]
        prefix = ""
        if not add_generation_prompt:
            prefix = messages.pop()["content"]
        messages = self.with_system(messages)
        text = self.rendered(messages) + prefix
        self.chats[text] = messages, prefix
        return text

    def with_system(self, messages: list[Message]) -> list[Message]:
        """The messages. If the session has its own system prompts, which must come first, the
        task's system prompt goes into the first turn."""
        alone = self.session.one_text and not self.session.settings.system
        if len(messages) < 2 or messages[0]["role"] != "system" or alone:
            return messages
        first, second = messages[:2]
        joined = {**second, "content": f"{first['content']}\n\n{second['content']}"}
        return [joined, *messages[2:]]

    def rendered(self, messages: Sequence[Message]) -> str:
        """The chat as the base reads it, up to the beginning of its answer."""
        system = self.session.settings.system
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        return self.session.tokenizer.render([*first, *messages])

    @property
    def tokenizer_name(self) -> str:
        """The name that separates the harness's request caches."""
        return f"minisafe-{self.session.tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, for the harness's log; there is only one, so the requested name is
        ignored."""
        source = self.session.tokenizer.template_source
        if not chat_template or source is None:
            return ""
        return source if isinstance(source, str) else json.dumps(source)

    def get_model_info(self) -> dict[str, Any]:
        """Information that the harness stores with its results, such as the safety stages."""
        return {"minisafe": minisafe.__version__, "applied": self.session.stages.to_json()}

    # ---- texts to ids ----------------------------------------------------------------------

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of a request's context and continuation."""
        session, known = self.session, self.session.tokenizer
        if context in self.chats:
            messages, prefix = self.chats[context]
            before = self.rendered(messages)
            begun = following(known, before, prefix) if prefix else ()
            prompts = tuple((*chat.ids, *begun) for chat in session.encode_chat(messages))
            return Pair(prompts, following(known, before + prefix, continuation))
        if context:
            return encode_pair(session, context, continuation)
        answer = following(known, "", continuation)
        if answer[:1] == (self.prefix_id,) and len(answer) > 1:  # the text has its own BOS
            return encode_pair(session, answer[:1], answer[1:])
        return encode_pair(session, [self.prefix_id], answer)

    def prompts(self, context: str, session: Session) -> tuple[tuple[int, ...], ...]:
        """Ids of a prompt, by stream, with room for an answer of the session's length."""
        room = session.settings.max_new_tokens
        if room >= self.limit:
            raise SettingError(
                f"max_gen_toks is {room}; the model's context of {self.limit} leaves no prompt"
            )
        if context in self.chats:
            found = self.pair(context, "").prompts
        elif context:
            found = session.encode(context, False)
        else:
            found = encode_pair(session, [self.prefix_id], [self.prefix_id]).prompts
        return cut(found, self.limit - room)

    def fitted(self, pair: Pair) -> Pair:
        """The pair; its prompt loses its beginning if both are too long together."""
        return Pair(cut(pair.prompts, max(1, self.limit + 1 - len(pair.answer))), pair.answer)

    def windows(self, text: str) -> Iterator[Pair]:
        """A text in pairs that predict each token once; the last has as much context as fits."""
        ids = following(self.session.tokenizer, "", text) if text else ()
        whole = (self.prefix_id, *ids)
        for start in range(1, len(whole), self.limit):
            stop = min(start + self.limit, len(whole))
            first = max(0, stop - 1 - self.limit)
            yield encode_pair(self.session, whole[first:start], whole[start:stop])

    @property
    def limit(self) -> int:
        """The number of tokens that every stream's context can hold."""
        return self.session.limit

    @property
    def prefix_id(self) -> int:
        """The token before a text without context: BOS, or the end token."""
        known = self.session.tokenizer
        ids = [known.id_of(known.special[name]) for name in ("bos_token", "eos_token")
               if name in known.special]  # fmt: skip
        found = [id_ for id_ in (*ids, *sorted(self.session.eos)) if id_ is not None]
        if not found:
            raise PromptError(
                "the context is empty, and the tokenizer has no BOS to replace it; give a context"
            )
        return found[0]


def cut(prompts: tuple[tuple[int, ...], ...], length: int) -> tuple[tuple[int, ...], ...]:
    """The prompts' last `length` ids."""
    if max(map(len, prompts)) > length:
        log.warning("a prompt of %d tokens was cut to its last %d", max(map(len, prompts)), length)
    return tuple(prompt[-length:] for prompt in prompts)


def generation_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """A task's `generation_kwargs` as settings; greedy unless they request sampling.

    `until` becomes stop strings. Raises `SettingError` for an unknown name.
    """
    unknown = set(options) - {"until", "do_sample", "temperature", *LENGTHS, *PASSED_ON}
    if unknown:
        raise SettingError(
            f"generation_kwargs {', '.join(sorted(unknown))}: unknown; expected until, do_sample, "
            f"temperature, {LENGTHS[0]}, {', '.join(PASSED_ON)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    until = given.get("until", [])
    sampled = given.get("do_sample")
    temperature = 0.0 if sampled is False else given.get("temperature", 1.0 if sampled else 0.0)
    found = {name: given[name] for name in PASSED_ON if name in given}
    lengths = [given[name] for name in LENGTHS if name in given]
    if lengths:
        found["max_new_tokens"] = int(lengths[0])
    stops = [until] if isinstance(until, str) else until
    return found | {
        "temperature": float(temperature),
        "stop": tuple(each for each in stops if each),
    }


def generate(
    session: Session, prompts: Sequence[tuple[tuple[int, ...], ...]], start: int, in_chat: bool
) -> list[str]:
    """Answers to prompts given as ids by stream; the first prompt has the number `start`."""
    requests = [
        session.new_request(EncodedPrompt.of(ids), start + n) for n, ids in enumerate(prompts)
    ]
    answers = [session.new_answer(() if in_chat else ids[0]) for ids in prompts]
    for _ in session.grow(session.new_generation(requests), answers):
        pass
    return ["".join(answer.pieces) for answer in answers]


def register() -> None:
    """Register the model in the harness under its name."""
    importlib.import_module("lm_eval.models")  # otherwise the harness would not load its own models
    importlib.import_module("lm_eval.api.registry").register_model("minisafe")(MinisafeLM)


def main() -> None:
    """The harness's command line, with this model registered."""
    if not INSTALLED:
        sys.exit("error: lm_eval is not installed; pip install 'minisafe[eval]'")
    importlib.import_module("minisafe.evaluation.harness")  # registers; this file is `__main__`
    try:
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except MinisafeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
elif INSTALLED:
    register()
