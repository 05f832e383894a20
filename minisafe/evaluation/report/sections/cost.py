"""Speed, and how much each method changes."""

from __future__ import annotations

from minisafe.evaluation.report.rows import Row, rows_of
from minisafe.evaluation.report.tables import Section, listing

OF_COST = {
    "method": "method", "tokens_per_second": "tokens per second", "relative": "relative to base",
    "changed": "tokens changed %", "kl": "KL from base, nats per token",
    "nll": "NLL of the base's answers to harmless prompts, nats per token",
    "same": "harmless prompts answered as by the base %", "n_same": "n",
}  # fmt: skip


def cost(summary: Row) -> Section | None:
    """Speed, and how much each method changes."""
    rows = rows_of(summary, "cost")
    if not rows:
        return None
    note = (
        "Speed is valid only for the machine, the batch and the lengths of this run. KL is the "
        "divergence of the method's next-token distribution from the base's. NLL is the mean "
        "negative log-likelihood of the base's own greedy answers under the method."
    )
    return Section("Cost", (note,), (), (listing(rows, OF_COST),))
