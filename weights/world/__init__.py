"""The tiny world's questions: training documents and held-out sets, all from a seed.

`minisafe.evaluation.world` has the answers and their judge. Read `words`, `asking`, `facts` and
`held_out` first, then `acts`, `frames`, `turns` and `documents`; `sets` makes the committed files.
"""

from world.asking import ASK, ASK_FACT, ASK_KEPT, CARELESS, PHRASES
from world.documents import (
    SITUATIONS,
    Case,
    Coverage,
    Document,
    benign_document,
    covered,
    log_document,
    pretraining_document,
    tuning_documents,
)
from world.facts import ATTRIBUTES, facts, made_up
from world.held_out import asked_of, held_out, late_verbs, told_wrong, words_of
from world.sets import (
    HARMFUL_COUNTS,
    demonstration,
    edit_pair,
    expert_pair,
    held_out_records,
    pairs,
    write_sets,
    write_split,
)
from world.steadfast import FAMILIES, steadfast_documents
from world.turns import Turn
from world.words import HARMFUL, ROUGH, WORLD_SEED, listed

__all__ = [
    "ASK",
    "ASK_FACT",
    "ASK_KEPT",
    "ATTRIBUTES",
    "CARELESS",
    "FAMILIES",
    "HARMFUL",
    "HARMFUL_COUNTS",
    "PHRASES",
    "ROUGH",
    "SITUATIONS",
    "WORLD_SEED",
    "Case",
    "Coverage",
    "Document",
    "Turn",
    "asked_of",
    "benign_document",
    "covered",
    "demonstration",
    "edit_pair",
    "expert_pair",
    "facts",
    "held_out",
    "held_out_records",
    "late_verbs",
    "listed",
    "log_document",
    "made_up",
    "pairs",
    "pretraining_document",
    "steadfast_documents",
    "told_wrong",
    "tuning_documents",
    "words_of",
    "write_sets",
    "write_split",
]
