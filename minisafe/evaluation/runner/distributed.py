"""Several processes on one run, as `torchrun` starts them: who does what, and when all are there.

Processes share the work through the directory that they write to; all hosts must see it. Beyond
that they only wait for one another, through torchrun's key-value store. A gloo or NCCL group would
do no more, and its connections sometimes hang after a restart (docs/log.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from torch.distributed.rendezvous import rendezvous

from minisafe.errors import SettingError

PATIENCE = timedelta(days=7)  # a process may wait long for another's share


class Store(Protocol):
    """What is used of a `torch.distributed.Store`."""

    def add(self, key: str, amount: int) -> int: ...
    def set(self, key: str, value: str) -> None: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


class Meeting:
    """Where `size` processes wait for one another, over a store that all of them reach."""

    def __init__(self, store: Store, rank: int, size: int):
        self.store, self.rank, self.size, self.held = store, rank, size, 0

    def wait(self) -> None:
        """Return when all are here. The first process is the last to go: it may be the one that
        keeps the store."""
        self.held += 1
        self.gather(f"here {self.held}")
        name = f"gone {self.held}"
        if self.rank == 0:
            self.gather(name)
        else:
            self.add(name)

    def add(self, name: str) -> None:
        """Count this process in; the last one tells the others."""
        if self.store.add(name, 1) == self.size:
            self.store.set(f"{name} open", "1")

    def gather(self, name: str) -> None:
        """Count this process in, and wait for the others."""
        self.add(name)
        self.store.wait([f"{name} open"], PATIENCE)


@dataclass(frozen=True)
class Processes:
    """`size` processes, of which this is number `rank`; `local` counts on this host. `again`: they
    were started before, and torchrun has restarted them."""

    rank: int = 0
    size: int = 1
    local: int = 0
    again: bool = False
    meetings: list[Meeting] = field(default_factory=list, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """As torchrun's environment variables say; one process without them."""
        try:
            rank, size = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
            local = int(environment.get("LOCAL_RANK", 0))
            again = int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        except ValueError:
            raise SettingError(
                "RANK, WORLD_SIZE and LOCAL_RANK must be numbers; start with torchrun"
            ) from None
        return cls(rank, size, local, again)

    def start(self) -> None:
        """Join the others; a process alone needs nobody."""
        if self.size > 1:
            store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
            self.meetings.append(Meeting(store, rank, size))

    def barrier(self) -> None:
        """Wait until every process is here."""
        for meeting in self.meetings:
            meeting.wait()

    def device(self, device: str) -> str:
        """`cuda` becomes this process's own card."""
        return f"cuda:{self.local}" if device == "cuda" and self.size > 1 else device

    def file(self, name: str) -> str:
        """This process's own file: `name`, with the rank before its suffix where it has company."""
        path = Path(name)
        return name if self.size == 1 else f"{path.stem}.{self.rank}{path.suffix}"
