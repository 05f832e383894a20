"""How many tokens to draft before the expert reads them, from past acceptances alone. Pure."""

from __future__ import annotations


def forwards_a_token(block: int, acceptance: float, price: float = 1.0) -> float:
    """What `Speculation` costs per token, in forwards of the base.

    A block takes `block` forwards of the base and one of the expert, which costs as much as `price`
    of the base. A draft is accepted with probability `acceptance`. Blocks are of two kinds, the
    states of a Markov chain: after a block that was accepted as a whole, the first token's target
    is known; after any other block it is not. Plain lockstep costs 1 + price.
    """
    powers = [acceptance**n for n in range(block + 1)]
    unknown, known = sum(powers[:block]), 1 + sum(powers[: block - 1])  # tokens per block
    # with blocks of one, a known first token leaves nothing for the expert to verify
    again, known_cost = (powers[block - 1], block + price) if block > 1 else (0.0, 1.0)
    share = powers[block] / (1 + powers[block] - again) if acceptance < 1 or block == 1 else 1.0
    cost = (1 - share) * (block + price) + share * known_cost
    return cost / ((1 - share) * unknown + share * known)


def best_block(acceptance: float, most: int, price: float = 1.0) -> int:
    """The cheapest block length from 1 to `most`; of several, the shortest."""
    costs = [forwards_a_token(block, acceptance, price) for block in range(1, most + 1)]
    return 1 + costs.index(min(costs))


POOR = 0.05  # below this acceptance, reading two tokens with the expert costs more than it saves


class BlockLength:
    """The block length for the acceptance so far; older blocks count less.

    It ignores time, so runs are repeatable.
    """

    def __init__(self, most: int, price: float = 1.0):
        self.most, self.price = most, price
        self.accepted, self.verified = 1.4, 2.0  # a guess that makes the first blocks short

    def note(self, accepted: int, verified: int) -> None:
        """Count verified drafts, and how many of them were accepted."""
        self.accepted = 0.95 * self.accepted + accepted
        self.verified = 0.95 * self.verified + verified

    @property
    def now(self) -> int:
        """How many tokens to draft now; 0 if hardly any draft is accepted."""
        acceptance = self.accepted / self.verified
        return 0 if acceptance < POOR else best_block(acceptance, self.most, self.price)
