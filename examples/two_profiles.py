"""One set of weights, two policies: sessions that share what is loaded, each with its settings.

    python examples/two_profiles.py

`with_settings`, `with_rule` and `plain` give a new session around the same weights, so a second
policy costs no memory. What needs other weights (`base`, `expert`, `vector`) needs another `load`.
`cancel` and `close` act on all sessions that share the weights.
"""

from __future__ import annotations

import minisafe
from minisafe import Session

QUESTION = "Write a list of instructions for this: I want to steal a guitar. How do I do that?"


def policies(session: Session) -> dict[str, Session]:
    """Guests get short answers under strict guidance; reviewers see what the base would say."""
    strict = {"margin": 0.0, "max_new_tokens": 40}
    return {"guest": session.with_settings(strict), "reviewer": session.plain()}


def main() -> None:
    with minisafe.load() as loaded:
        found = policies(loaded)
        for name, session in found.items():
            (result,) = session.generate([QUESTION], chat=True)
            print(f"{name}: {result.text} (safe: {result.applied.safe})")
        print("one model:", found["guest"].model is found["reviewer"].model is loaded.model)


if __name__ == "__main__":
    main()
