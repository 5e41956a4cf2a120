"""The card that an exported model carries: which files it has, what it was made from, what its weights are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoints.files import checkpoint_json
from model.checkpoints.report import LoadReport
from utils.errors import CheckpointError, TokenizerError

CARD = "export.json"
"""Name of the card; keys "format", "files" (names in the folder), "digests" (of the weights), "tokenizer" (digest of
what it does), "made_from"."""

CARD_FORMAT = "mora-export-1"


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a folder, or None if it has none.

    Raises:
        CheckpointError: there is one, and it is damaged or of another version.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    card = checkpoint_json(path)
    kinds = {"files": list, "digests": dict, "tokenizer": str, "made_from": dict}
    whole = isinstance(card, dict) and card.get("format") == CARD_FORMAT
    if not whole or not all(isinstance(card.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{path}: not a card of format {CARD_FORMAT}; export the model again")
    return card


def require_undamaged(folder: Path, exported: Mapping[str, str], report: LoadReport) -> None:
    """Compare the weights of an export with its card; what other files had to fill in is not looked at.

    Raises:
        CheckpointError: naming the parts that are not what was written.
    """
    bad = [part for part, digest in exported.items() if report.digests.get(part, digest) != digest]
    if bad:
        raise CheckpointError(
            f"{folder}: the weights of {', '.join(bad)} are not those that were exported ({CARD} holds their digests): "
            f"damaged, or changed since. Export again, or delete {folder / CARD} if the change is meant"
        )


def require_own_tokenizer(folder: Path, digest: str) -> None:
    """Compare the tokenizer of an export with its card; folders without a card pass.

    Args:
        folder: of the model.
        digest: of the tokenizer found there.

    Raises:
        TokenizerError: it is another than the one that was exported.
    """
    card = read_card(folder)
    if card is not None and card["tokenizer"] != digest:
        raise TokenizerError(
            f"{folder}: its tokenizer is not the one that was exported with the weights (other ids, or text cut "
            "elsewhere); export the model again, or put its own tokenizer back"
        )
