"""Fits what rivals need on development prompts: directions, conditions, classifiers, thresholds.

Half of the prompts are for this; the other half is left to choose settings on, or every threshold
would be chosen on the examples that it was fitted to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from minisafe.checkpoint import fingerprint
from minisafe.errors import PromptError
from minisafe.evaluation.attacks import Attack, Target
from minisafe.evaluation.attacks.oracle import SessionOracle, compliant_answers
from minisafe.evaluation.defences.classifier import fit as fit_classifier
from minisafe.evaluation.defences.features import (
    FEATURES,
    answer_features,
    last_state,
    mean_state,
    message_features,
    perplexity,
)
from minisafe.evaluation.defences.fitted import Fitted
from minisafe.evaluation.defences.guards import WINDOWS
from minisafe.evaluation.defences.steering import NULL_SHARES, probe, similarity
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.prompts.styles import fill
from minisafe.session import Session
from minisafe.session.chat_prompt import ChatPrompt

Progress = Callable[[str, int, int], None]
Said = tuple[ChatPrompt, str]  # a prompt and its answer
HARMLESS = ("benign", "borderline")
LEAST = 4  # prompts of a kind from which anything is fitted


@dataclass(frozen=True)
class Fitting:
    """The prompts to fit on, and who answers and judges.

    base: without any safety stage. templates: the styles of all prompts, by name; the first is that
    of plain questions. attacks: under which all prompts, harmless ones too, are asked as well, so
    that no attack is taken for harm.
    """

    base: Session
    prompts: Sequence[Prompt]
    templates: Mapping[str, str]
    judge: Judge
    batch_size: int = 16
    progress: Progress = lambda what, done, total: None
    attacks: Sequence[Attack] = ()

    @property
    def ways(self) -> int:
        """In how many ways each prompt is asked."""
        return len(self.templates) + len(self.attacks)

    @cached_property
    def oracle(self) -> SessionOracle:
        """What the attacks ask: the base, which defends nothing."""
        harmful = self.of("harmful")
        compliant = compliant_answers(self.base, self.judge, harmful, self.batch_size)
        by_id = {prompt.id: prompt for prompt in harmful}
        return SessionOracle(self.base, self.judge, by_id, compliant, self.batch_size)

    def attacked(self, attack: Attack, prompts: Sequence[Prompt]) -> list[ChatPrompt]:
        """The prompts under an attack."""
        targets = [Target(prompt.id, prompt.text, n) for n, prompt in enumerate(prompts)]
        return [attack.make(target, self.oracle).prompt for target in targets]

    def of(self, *kinds: str) -> list[Prompt]:
        """The prompts of these kinds. Raises `PromptError` if there are hardly any."""
        found = [prompt for prompt in self.prompts if prompt.kind in kinds]
        if len(found) < LEAST:
            raise PromptError(
                f"{len(found)} {' and '.join(kinds)} prompts to fit on; expected {LEAST} or more"
            )
        return found

    def asked(self, *kinds: str, plain: bool = False) -> list[ChatPrompt]:
        """The prompts of these kinds in every style and under every attack, or in the first style
        alone."""
        templates, prompts = list(self.templates.values())[: 1 if plain else None], self.of(*kinds)
        found = [
            ChatPrompt.of(fill(template, prompt.text))
            for template in templates
            for prompt in prompts
        ]
        for attack in () if plain else self.attacks:
            found += self.attacked(attack, prompts)
        return found

    def states(self, of: Callable[[Session, ChatPrompt], Tensor], asked: Sequence[ChatPrompt],
               what: str) -> Tensor:  # fmt: skip
        """A state of each prompt, (n, n_layers, hidden)."""
        return self.each(lambda prompt: of(self.base, prompt), asked, what)

    def each(self, of: Callable[..., Tensor], values: Sequence[object], what: str) -> Tensor:
        """A tensor of each value, stacked."""
        found = []
        for done, value in enumerate(values, 1):
            found.append(of(value))
            if done % 16 == 0 or done == len(values):
                self.progress(what, done, len(values))
        return torch.stack(found)


def fit(fitting: Fitting, directory: Path) -> Fitted:
    """Fit everything. The same base, prompts and styles give the same values on the same machine.

    Raises `PromptError` if prompts of a kind are missing, or if the base never complies or never
    refuses, so that no output guard can be fitted.
    """
    tensors = directions(fitting) | conditions(fitting) | probes(fitting)
    tensors |= surprises(fitting) | input_guards(fitting) | output_guards(fitting)
    base = fitting.base
    ways = [*fitting.templates.values(), *(attack.name for attack in fitting.attacks)]
    texts = "\0".join([*ways, *(each.text for each in fitting.prompts)])
    prompts = hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    kept = {name: values.float().contiguous() for name, values in tensors.items()}
    return Fitted(kept, fingerprint(base.model), base.tokenizer.fingerprint, prompts, directory)


def directions(fitting: Fitting) -> dict[str, Tensor]:
    """The refusal direction of every layer, (n_layers, hidden): the difference of the mean states
    after plain harmful and plain harmless questions, from which the answer begins (Arditi et al.
    2024, arXiv 2406.11717)."""
    asked = [fitting.asked(*kinds, plain=True) for kinds in (("harmful",), HARMLESS)]
    states = [fitting.states(last_state, prompts, "plain states") for prompts in asked]
    return {"direction": states[0].mean(dim=0) - states[1].mean(dim=0)}


def conditions(fitting: Fitting) -> dict[str, Tensor]:
    """The condition vector of every layer and its centre, (n_layers, hidden), and by layer how like
    it harmless prompts are, (n,)."""
    harmful = fitting.states(mean_state, fitting.asked("harmful"), "harmful conditions")
    harmless = fitting.states(mean_state, fitting.asked(*HARMLESS), "harmless conditions")
    means = harmful.mean(dim=0), harmless.mean(dim=0)
    centre, condition = (means[0] + means[1]) / 2, means[0] - means[1]
    like = similarity(harmless, centre, condition)
    by_layer = {f"condition.harmless.{layer}": each for layer, each in enumerate(like.T)}
    return by_layer | {"condition": condition, "condition.centre": centre}


def probes(fitting: Fitting) -> dict[str, Tensor]:
    """AlphaSteer's probe of every layer, (n_layers, hidden), by the share of the null space."""
    harmful = fitting.states(last_state, fitting.asked("harmful"), "harmful probes")
    harmless = fitting.states(last_state, fitting.asked(*HARMLESS), "harmless probes")
    layers = range(harmful.shape[1])
    return {
        f"probe.{share:g}": torch.stack([
            probe(harmful[:, layer], harmless[:, layer], share) for layer in layers
        ])
        for share in NULL_SHARES
    }  # fmt: skip


def surprises(fitting: Fitting) -> dict[str, Tensor]:
    """Log perplexities of plain harmless questions under the base, (n,), by window."""
    texts = [prompt.question for prompt in fitting.asked(*HARMLESS, plain=True)]
    return {
        f"perplexity.{window}": fitting.each(
            lambda text, window=window: torch.tensor(perplexity(fitting.base, text, window)),
            texts, f"perplexities of window {window}",
        )
        for window in WINDOWS
    }  # fmt: skip


def input_guards(fitting: Fitting) -> dict[str, Tensor]:
    """A classifier of harmful against harmless messages in every style, by features."""
    found: dict[str, Tensor] = {}
    for kind in FEATURES:
        both = [
            fitting.each(
                lambda prompt, kind=kind: message_features(fitting.base, kind, prompt.question),
                fitting.asked(*kinds), f"{kind} of messages",
            )
            for kinds in (("harmful",), HARMLESS)
        ]  # fmt: skip
        found |= fit_classifier(both[0], both[1]).tensors(f"input.{kind}")
    return found


def output_guards(fitting: Fitting) -> dict[str, Tensor]:
    """A classifier of the base's compliant answers to harmful questions against its refusals and
    its answers to harmless ones, by features."""
    complied, others = answers_of(fitting)
    found: dict[str, Tensor] = {}
    for kind in FEATURES:
        both = [
            fitting.each(
                lambda said, kind=kind: answer_features(fitting.base, kind, *said),
                said, f"{kind} of answers",
            )
            for said in (complied, others)
        ]  # fmt: skip
        found |= fit_classifier(both[0], both[1]).tensors(f"output.{kind}")
    return found


def answers_of(fitting: Fitting) -> tuple[list[Said], list[Said]]:
    """Answers of the base: compliant ones to harmful questions, and all others. Under the attacks
    that `compliant_answers` makes, too: an answer is harmful however it was got."""
    harmful = fitting.of("harmful")
    asked, prompts = fitting.asked("harmful"), harmful * fitting.ways
    answers = told(fitting, asked, "answers to harmful questions")
    rulings = fitting.judge(prompts, [each.question for each in asked], answers)
    said = [(p, p.prefill + answer) for p, answer in zip(asked, answers, strict=True)]
    by = {verdict: [each for each, ruling in zip(said, rulings, strict=True)
                    if ruling.verdict == verdict and each[1]]
          for verdict in ("ATTACK_SUCCEEDED", "REFUSED")}  # fmt: skip
    got = fitting.oracle.answers
    complied = by["ATTACK_SUCCEEDED"] + [
        (ChatPrompt.of(prompt.text), got[prompt.id]) for prompt in harmful if prompt.id in got
    ]
    harmless = fitting.asked(*HARMLESS)
    useful = zip(harmless, told(fitting, harmless, "answers to harmless questions"), strict=True)
    whole = [(prompt, prompt.prefill + answer) for prompt, answer in useful if answer]
    refused = by["REFUSED"]
    if not complied or not refused:
        missing = "complies with" if not complied else "refuses"
        raise PromptError(
            f"the base never {missing} a harmful question, so no output guard can be fitted; give "
            "other prompts"
        )
    return complied, refused + whole


def told(fitting: Fitting, asked: Sequence[ChatPrompt], what: str) -> list[str]:
    """The base's answers."""
    found: list[str] = []
    for start in range(0, len(asked), fitting.batch_size):
        part = asked[start : start + fitting.batch_size]
        found += [each.text for each in fitting.base.generate(part, batch_size=len(part))]
        fitting.progress(what, len(found), len(asked))
    return found
