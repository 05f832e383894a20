"""Draw the sealed test split: `python weights/seal.py --seed N --out weights/data`.

What is held out for the test split (verbs, things, pairs, frames of asking, phrasings) is fixed and
never measured while the recipe is being made. The seed decides which questions are asked of it.
Choose the seed after the recipe is fixed, draw once, and report all that is measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import world  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.seed == world.WORLD_SEED:
        parser.error(f"the seed {options.seed} is the world's own; choose another")
    world.write_split(options.out, "test", options.seed)
    (options.out / "test-seed.txt").write_text(f"{options.seed}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
