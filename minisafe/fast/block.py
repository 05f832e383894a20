"""How many tokens to draft before the expert reads them: from past acceptances alone. Pure."""

from __future__ import annotations


def forwards_a_token(block: int, acceptance: float, price: float = 1.0) -> float:
    """What one token of `Speculation` costs, in forwards of the base.

    A block is `block` forwards of the base and one of the expert, which costs `price` of them. A
    draft is accepted with probability `acceptance`. Blocks are of two kinds, states of a Markov
    chain: after one that was accepted as a whole the first token's target is known, after another
    it is not. Plain lockstep costs 1 + price.
    """
    powers = [acceptance**n for n in range(block + 1)]
    unknown, known = sum(powers[:block]), 1 + sum(powers[: block - 1])  # tokens that a block gives
    # with blocks of one, a known first token leaves nothing for the expert to verify
    again, known_cost = (powers[block - 1], block + price) if block > 1 else (0.0, 1.0)
    share = powers[block] / (1 + powers[block] - again) if acceptance < 1 or block == 1 else 1.0
    cost = (1 - share) * (block + price) + share * known_cost
    return cost / ((1 - share) * unknown + share * known)


def best_block(acceptance: float, most: int, price: float = 1.0) -> int:
    """The block of 1 to `most` drafts that is cheapest, the shortest of equals."""
    costs = [forwards_a_token(block, acceptance, price) for block in range(1, most + 1)]
    return 1 + costs.index(min(costs))


POOR = 0.05  # acceptance at which a forward of the expert over two tokens costs more than it saves


class BlockLength:
    """Blocks for the acceptance so far, of which older blocks count less.

    It knows nothing of time, so that runs repeat.
    """

    def __init__(self, most: int, price: float = 1.0):
        self.most, self.price = most, price
        self.accepted, self.verified = 1.4, 2.0  # a guess by which blocks begin short

    def note(self, accepted: int, verified: int) -> None:
        """Count drafts that were verified, and those of them that were accepted."""
        self.accepted = 0.95 * self.accepted + accepted
        self.verified = 0.95 * self.verified + verified

    @property
    def now(self) -> int:
        """How many tokens to draft now; 0 for none, where hardly any is accepted."""
        acceptance = self.accepted / self.verified
        return 0 if acceptance < POOR else best_block(acceptance, self.most, self.price)
