"""The plan of a run: prompts in their styles, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from minisafe.errors import SettingError
from minisafe.evaluation.attacks import Attack
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.prompts.styles import fill
from minisafe.session.chat_prompt import ChatPrompt


@dataclass(frozen=True)
class Job:
    """One prompt in one style; `number` fixes the draws of sampling, the same for every method."""

    number: int
    style: str
    prompt: Prompt
    asked: str
    attack: Attack | None = None

    @property
    def chat(self) -> ChatPrompt:
        """What is asked: the prompt's own conversation, if it has one, or one message."""
        own = self.prompt.conversation
        return ChatPrompt.of(self.asked) if own is None else own.asking(self.asked)


@dataclass(frozen=True)
class Plan:
    """The jobs of every method, in order."""

    jobs: tuple[Job, ...]
    batch_size: int

    @classmethod
    def make(
        cls,
        prompts: Sequence[Prompt],
        styles: Mapping[str, str],
        benign_styles: Mapping[str, str],
        batch_size: int,
        attacks: Sequence[Attack] = (),
    ) -> Plan:
        """Harmful prompts in every style of `styles` and under every attack, the others in the
        styles of `benign_styles`.

        Raises `SettingError` for two prompts with the same id, or two styles with the same name.
        """
        check_names(prompts, styles, benign_styles)
        names = [*styles, *(name for name in benign_styles if name not in styles)]
        templates = dict(styles) | dict(benign_styles)
        chosen = [
            (name, prompt)
            for name in names
            for prompt in prompts
            if name in (styles if prompt.kind == "harmful" else benign_styles)
        ]
        jobs = [
            Job(number, name, prompt, fill(templates[name], prompt.text))
            for number, (name, prompt) in enumerate(chosen)
        ]
        harmful = [prompt for prompt in prompts if prompt.kind == "harmful"]
        attacked = [(attack, prompt) for attack in attacks for prompt in harmful]
        jobs += [
            Job(number, attack.name, prompt, prompt.text, attack)
            for number, (attack, prompt) in enumerate(attacked, len(jobs))
        ]
        for attack in attacks:
            if attack.name in names:
                raise SettingError(f"a style and an attack have the name {attack.name!r}")
        return cls(tuple(jobs), batch_size)

    def batches(self) -> Iterator[tuple[Job, ...]]:
        """Batches of jobs with consecutive numbers, of any lengths."""
        for start in range(0, len(self.jobs), self.batch_size):
            yield self.jobs[start : start + self.batch_size]


def check_names(
    prompts: Sequence[Prompt], styles: Mapping[str, str], benign_styles: Mapping[str, str]
) -> None:
    """Raise `SettingError` for a name with two meanings."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise SettingError(f"two prompts have the id {prompt.id!r}; expected unique ids")
        seen.add(prompt.id)
    for name in styles:
        if benign_styles.get(name, styles[name]) != styles[name]:
            raise SettingError(f"two styles have the name {name!r}; rename one of the files")
