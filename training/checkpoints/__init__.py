"""Checkpoints of a run, the weights in them, and what these belong to."""

from training.checkpoints.files import RUN_CARD, UNRECORDED, read_run_card
from training.checkpoints.store import CheckpointStore
from training.checkpoints.weights import (
    adapter_rank,
    adapter_targets,
    fit_weights,
    initialise_from,
    is_checkpoint,
    plain_name,
    read_weights,
    take_provenance,
)

__all__ = [
    "RUN_CARD", "UNRECORDED", "CheckpointStore", "adapter_rank", "adapter_targets", "fit_weights", "initialise_from",
    "is_checkpoint", "plain_name", "read_run_card", "read_weights", "take_provenance",
]  # fmt: skip
