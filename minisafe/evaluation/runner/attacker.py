"""What the attacks of a run need: a judge, the questions, and the base's compliant answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minisafe.errors import SettingError
from minisafe.evaluation.attacks import Target
from minisafe.evaluation.attacks.oracle import SessionOracle, compliant_answers
from minisafe.evaluation.defences import Subject
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.methods import Method, load_method
from minisafe.evaluation.prompts import Prompt
from minisafe.evaluation.runner.distributed import Processes
from minisafe.files import parse_json, read_text, write_text

COMPLIANT = "compliant.json"  # in a run's directory: material that attacks are made of
MOST_BYTES = 256 << 20


@dataclass
class Attacker:
    """Makes oracles for a run's methods.

    judge: by which an attack tells whether it is done. prompts: the run's harmful questions. seed:
    with a question's id it fixes what an attack draws.
    """

    judge: Judge
    prompts: Sequence[Prompt]
    seed: int = 0
    batch_size: int = 16
    compliant: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id = {prompt.id: prompt for prompt in self.prompts}
        self.numbers = {prompt.id: number for number, prompt in enumerate(self.prompts)}

    def target(self, prompt: Prompt) -> Target:
        """A question as an attack takes it."""
        return Target(prompt.id, prompt.text, self.numbers[prompt.id], self.seed)

    def oracle(self, session: Subject) -> SessionOracle:
        """What an attack may ask of a method."""
        return SessionOracle(session, self.judge, self.by_id, self.compliant, self.batch_size)

    def prepare(
        self,
        directory: Path,
        method: Method,
        processes: Processes,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Let the undefended base of a method give compliant answers, once per directory."""
        path = directory / COMPLIANT
        if processes.rank == 0 and not path.is_file():
            progress("the base's compliant answers", 0, len(self.prompts))
            base = load_method(method).plain()
            found = compliant_answers(base, self.judge, self.prompts, self.batch_size)
            write_text(path, json.dumps(found, indent=1) + "\n")
            progress("the base's compliant answers", len(found), len(self.prompts))
        processes.barrier()
        self.compliant = read_compliant(path, self.by_id)


def read_compliant(path: Path, prompts: Mapping[str, Prompt]) -> dict[str, str]:
    """Compliant answers by a question's id. Raises `SettingError`."""
    found = parse_json(read_text(path, MOST_BYTES, SettingError), str(path), SettingError)
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise SettingError(f"{path}: no answers by question; delete it, and run again")
    return {id_: answer for id_, answer in found.items() if id_ in prompts}
