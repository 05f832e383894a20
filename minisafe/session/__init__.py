"""Text in, text out: profiles, loading, sessions and chats.

`Session` is imported on first access, because reading a profile needs neither a tokenizer nor a
model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisafe.session.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    """`Session`, from its module."""
    if name != "Session":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from minisafe.session.session import Session

    return Session
