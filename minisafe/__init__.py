"""minisafe: a small Llama engine that makes a model safer while it decodes (SafeInfer).

    session = minisafe.load("weights/tiny")          # base + expert + vector + settings
    for piece in session.stream("How do I clean a shelf?", chat=True):
        print(piece, end="")

To embed the parts, use `load_model`, `load_tokenizer`, `Llama`, `KVCache`, `Lockstep`, `Stream`,
`Generation`, `Request` and `safe_log_probs`. docs/api.md describes every public name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisafe.cache import KVCache
    from minisafe.checkpoint import load_adapter, load_model
    from minisafe.checkpoint.vectors import load_vector
    from minisafe.config import LlamaConfig
    from minisafe.engine import Generation, Request
    from minisafe.errors import MinisafeError
    from minisafe.guidance import SGDS, safe_log_probs
    from minisafe.lockstep import Lockstep, Stream
    from minisafe.model import Llama
    from minisafe.sampling import Sampling
    from minisafe.session.answer import Result
    from minisafe.session.chat import Chat
    from minisafe.session.chat_prompt import ChatPrompt
    from minisafe.session.load import load
    from minisafe.session.session import Session
    from minisafe.session.settings import Settings
    from minisafe.tokenizer import load_tokenizer
    from minisafe.vectors import SafetyVector, Steering

__version__ = "0.1.0"

__all__ = [
    "SGDS",
    "Chat",
    "ChatPrompt",
    "Generation",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "Lockstep",
    "MinisafeError",
    "Request",
    "Result",
    "SafetyVector",
    "Sampling",
    "Session",
    "Settings",
    "Steering",
    "Stream",
    "load",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "load_vector",
    "safe_log_probs",
]

# the module of each name; it is imported on first access, because importing torch takes seconds
HOMES = {
    "checkpoint.vectors": ("load_vector",),
    "cache": ("KVCache",),
    "checkpoint": (
        "load_adapter",
        "load_model",
    ),
    "config": ("LlamaConfig",),
    "engine": (
        "Generation",
        "Request",
    ),
    "errors": ("MinisafeError",),
    "guidance": (
        "SGDS",
        "safe_log_probs",
    ),
    "lockstep": (
        "Lockstep",
        "Stream",
    ),
    "model": ("Llama",),
    "sampling": ("Sampling",),
    "session.answer": ("Result",),
    "session.chat": ("Chat",),
    "session.chat_prompt": ("ChatPrompt",),
    "session.settings": ("Settings",),
    "session.load": ("load",),
    "session.session": ("Session",),
    "tokenizer": ("load_tokenizer",),
    "vectors": (
        "SafetyVector",
        "Steering",
    ),
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module."""
    for module, names in HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"minisafe.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'minisafe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
