"""Prompt sets, and the styles in which to ask their questions."""

from minisafe.evaluation.prompts.sets import (
    FORMATS,
    KINDS,
    LONGEST_NAME,
    Prompt,
    default_prompts,
    halves,
    join_prompts,
    limit_prompts,
    load_prompts,
)

__all__ = [
    "FORMATS",
    "KINDS",
    "LONGEST_NAME",
    "Prompt",
    "default_prompts",
    "halves",
    "join_prompts",
    "limit_prompts",
    "load_prompts",
]
