"""Defences around a model: they change what it is asked, steer some prompts, or replace answers."""

from minisafe.evaluation.defences.defence import (
    REFUSAL,
    Defence,
    Defended,
    Route,
    Subject,
    likelihoods,
    with_gradients,
)

__all__ = ["REFUSAL", "Defence", "Defended", "Route", "Subject", "likelihoods", "with_gradients"]
