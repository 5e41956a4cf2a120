"""Opening what others published and what this project wrote. Every load says what did not fit, by name and shape, and
fails unless told otherwise; docs/checkpoints.md describes the layouts."""

from model.checkpoints.card import CARD, CARD_FORMAT, read_card, require_own_tokenizer
from model.checkpoints.files import read_config, read_state_dict, strip_wrappers, told_backbone
from model.checkpoints.lisa import rename_published
from model.checkpoints.opening import digest_base, load_any
from model.checkpoints.provenance import (
    PROVENANCE,
    Adapters,
    Provenance,
    attach_provenance,
    differences,
    network_of,
)
from model.checkpoints.report import LoadReport
from model.checkpoints.sam import read_sam, sam_config_of
from model.checkpoints.trained import Trained, head_mode, read_trained, require_trained

__all__ = [
    "CARD",
    "CARD_FORMAT",
    "PROVENANCE",
    "Adapters",
    "LoadReport",
    "Provenance",
    "Trained",
    "attach_provenance",
    "differences",
    "digest_base",
    "head_mode",
    "load_any",
    "network_of",
    "read_card",
    "read_config",
    "read_sam",
    "read_state_dict",
    "read_trained",
    "rename_published",
    "require_own_tokenizer",
    "require_trained",
    "sam_config_of",
    "strip_wrappers",
    "told_backbone",
]
