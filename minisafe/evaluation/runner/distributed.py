"""Several processes on one run, started by `torchrun`: their ranks, and how they wait.

Processes share the work through the output directory, which all hosts must see. Otherwise they only
wait for each other, through torchrun's key-value store. A gloo or NCCL group would do no more, and
its connections sometimes hang after a restart (docs/log.md).
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

PATIENCE = timedelta(days=7)  # a process may wait long for the others


class Store(Protocol):
    """The used part of a `torch.distributed.Store`."""

    def add(self, key: str, amount: int) -> int: ...
    def set(self, key: str, value: str) -> None: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


class Meeting:
    """A barrier for `size` processes, over a store that all of them reach."""

    def __init__(self, store: Store, rank: int, size: int):
        self.store, self.rank, self.size, self.held = store, rank, size, 0

    def wait(self) -> None:
        """Return when all have arrived. The first process leaves last, because it may keep the
        store."""
        self.held += 1
        self.gather(f"here {self.held}")
        name = f"gone {self.held}"
        if self.rank == 0:
            self.gather(name)
        else:
            self.add(name)

    def add(self, name: str) -> None:
        """Count this process; the last one releases the others."""
        if self.store.add(name, 1) == self.size:
            self.store.set(f"{name} open", "1")

    def gather(self, name: str) -> None:
        """Count this process, and wait for the others."""
        self.add(name)
        self.store.wait([f"{name} open"], PATIENCE)


@dataclass(frozen=True)
class Processes:
    """`size` processes; this one has number `rank`, and number `local` on its host. `again`:
    torchrun has restarted them."""

    rank: int = 0
    size: int = 1
    local: int = 0
    again: bool = False
    meetings: list[Meeting] = field(default_factory=list, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """The processes from torchrun's environment variables; one process without them."""
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
        """Join the others; nothing to do for a single process."""
        if self.size > 1:
            store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
            self.meetings.append(Meeting(store, rank, size))

    def barrier(self) -> None:
        """Wait until every process has arrived."""
        for meeting in self.meetings:
            meeting.wait()

    def device(self, device: str) -> str:
        """The device; `cuda` becomes this process's own GPU."""
        return f"cuda:{self.local}" if device == "cuda" and self.size > 1 else device

    def file(self, name: str) -> str:
        """This process's file: `name`, with the rank before its suffix if there are others."""
        path = Path(name)
        return name if self.size == 1 else f"{path.stem}.{self.rank}{path.suffix}"
