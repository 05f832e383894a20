"""Supervised fine-tuning on conversations: makes an expert (a LoRA adapter) or changes a base.

`forms` reads conversations, `examples` turns them into ids and labels, `trainer` trains on them
with the steps of `loop`, and a stopped run continues from its `state`.
"""

from minisafe.finetune.examples import (
    IGNORED,
    Conversation,
    Example,
    answer_loss,
    batches,
    batches_an_epoch,
    collate,
    encode_all,
    encode_examples,
)
from minisafe.finetune.forms import FORMS, load_conversations
from minisafe.finetune.loop import Loop, Schedule
from minisafe.finetune.settings import LORA_TARGETS, Training, rate
from minisafe.finetune.trainer import (
    Report,
    Trainer,
    detached,
    finished_adapter,
    new_adapter,
    prepared,
    steps_of,
)

__all__ = [
    "FORMS",
    "IGNORED",
    "LORA_TARGETS",
    "Conversation",
    "Example",
    "Loop",
    "Report",
    "Schedule",
    "Trainer",
    "Training",
    "answer_loss",
    "batches",
    "batches_an_epoch",
    "collate",
    "detached",
    "encode_all",
    "encode_examples",
    "finished_adapter",
    "load_conversations",
    "new_adapter",
    "prepared",
    "rate",
    "steps_of",
]
