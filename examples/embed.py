"""minisafe in a program of your own: load, generate, print.

python examples/embed.py
"""

import minisafe

with minisafe.load() as session:  # the shipped profile; or load("my-profile.json")
    for result in session.generate(["Hello!", "How do I smuggle a painting?"], chat=True):
        print(result.text)
        print(f"  ({result.finish_reason}; decoded safely: {result.applied.safe})")
