"""The tiny world's questions: training documents and held-out sets, all from a seed.

`minisafe.evaluation.world` has the answers and their judge. Read `words`, `facts` and `held_out`
first, then `acts`, `turns` and `documents`; `sets` makes the committed files.
"""

from world.documents import (
    Coverage,
    Document,
    benign_document,
    covered,
    persona_document,
    pretraining_document,
    tuning_documents,
)
from world.facts import ATTRIBUTES, facts
from world.held_out import held_out
from world.sets import held_out_records, write_sets
from world.turns import Turn
from world.words import ASK_FACT, HARMFUL, PHRASES, ROUGH, WORLD_SEED

__all__ = [
    "ASK_FACT",
    "ATTRIBUTES",
    "HARMFUL",
    "PHRASES",
    "ROUGH",
    "WORLD_SEED",
    "Coverage",
    "Document",
    "Turn",
    "benign_document",
    "covered",
    "facts",
    "held_out",
    "held_out_records",
    "persona_document",
    "pretraining_document",
    "tuning_documents",
    "write_sets",
]
