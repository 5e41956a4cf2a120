"""Prediction records: one JSON file per question, written at once, and the settings they were made under.

Layout of an output folder::

    run.json                          settings of the run and their fingerprint
    records/<video_id>/<query_id>.json

A record is either a prediction or a failure with its reason. Masks are COCO run lengths before any refinement by [LOC],
so that one set of records can be scored under several thresholds.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from utils.errors import ConfigError, DataError
from utils.files import read_json, write_json
from utils.masks import decode_rle

RECORD_FORMAT = "mora-record-1"
RUN_FORMAT = "mora-run-1"


@dataclass(frozen=True)
class Record:
    """What is known about one question after prediction.

    Attributes:
        video_id, query_id: as in the annotation file.
        question: text asked.
        status: "ok" or "failed".
        fingerprint: of the settings it was made under (see :func:`fingerprint`).
        num_clip_frames: frames of the clip.
        listed_frames: clip frame indices in the protocol's order, repeats included.
        reason: why it failed; None otherwise.
        frame_indices: distinct clip frame indices that were predicted, increasing.
        size: (H, W) of the masks.
        masks: per entry of ``frame_indices`` a COCO RLE dict, or None for a frame without [SEG].
        loc_probs: per entry of ``frame_indices`` the probability that the motion is happening; None without [LOC].
        answers: generated text of every language model row (one per frame or one per video).
        forced_seg, forced_loc: whether a token had to be appended to an answer.
    """

    video_id: str
    query_id: str
    question: str
    status: str
    fingerprint: str
    num_clip_frames: int
    listed_frames: list[int]
    reason: str | None = None
    frame_indices: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    masks: list[dict | None] = field(default_factory=list)
    loc_probs: list[float] | None = None
    answers: list[str] = field(default_factory=list)
    forced_seg: bool = False
    forced_loc: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.status == "ok"

    def listed_positions(self) -> np.ndarray:
        """int64 [num_frames]: position in ``frame_indices`` of every listed frame."""
        return np.searchsorted(np.asarray(self.frame_indices), np.asarray(self.listed_frames))


def record_path(output_dir: str | Path, video_id: str, query_id: str) -> Path:
    """Where the record of a question lies; ids are escaped so that any id is a file name."""
    return Path(output_dir) / "records" / _file_name(video_id) / f"{_file_name(query_id)}.json"


def write_record(output_dir: str | Path, record: Record) -> None:
    """Write a record atomically."""
    path = record_path(output_dir, record.video_id, record.query_id)
    write_json(path, {"format": RECORD_FORMAT, **asdict(record)}, indent=None)


def read_record(output_dir: str | Path, video_id: str, query_id: str) -> Record:
    """Read the record of a question.

    Raises:
        DataError: no such record, or a file that is not one; the message names the file and the remedy.
    """
    path = record_path(output_dir, video_id, query_id)
    value = read_json(path)
    remedy = "delete the file and predict again"
    if not isinstance(value, dict) or value.pop("format", None) != RECORD_FORMAT:
        raise DataError(f"{path}: not a prediction record of format {RECORD_FORMAT}; {remedy}")
    try:
        record = Record(**value)
    except TypeError as error:
        raise DataError(f"{path}: fields are missing or unknown ({error}); {remedy}") from None
    count = len(record.frame_indices)
    if record.ok and (len(record.masks) != count or record.loc_probs is not None and len(record.loc_probs) != count):
        raise DataError(f"{path}: {count} frames but {len(record.masks)} masks; {remedy}")
    try:
        _check_content(record)
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); {remedy}") from None
    return record


def _check_content(record: Record) -> None:
    """Raise DataError, TypeError or ValueError unless masks are of the record's size and probabilities are numbers."""
    for rle in record.masks:
        if rle is not None and list(decode_rle(rle).shape) != record.size:
            raise DataError(f"a mask of {rle['size']} among masks of {record.size}")
    if not all(0.0 <= float(probability) <= 1.0 for probability in record.loc_probs or ()):
        raise ValueError("a [LOC] probability outside 0..1")


def fingerprint(settings: dict) -> str:
    """Short digest of a JSON-able settings dict; equal settings, equal digest."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Digest of every parameter and buffer as they are in memory: names, types, shapes and bytes.

    What ran is fingerprinted, not the files it came from, so two layouts of one checkpoint give the same value and a
    cast to another precision another.
    """

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(head + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(digest, sorted(model.state_dict().items())))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def open_run(output_dir: str | Path, settings: dict, overwrite: bool = False, about: dict | None = None) -> str:
    """Begin or continue a run in a folder.

    Args:
        output_dir: made if missing.
        settings: everything the predictions depend on, JSON-able and flat or nested.
        about: facts for the reader on which nothing depends (paths), JSON-able.
        overwrite: delete all records first, instead of refusing those made under other settings.

    Returns:
        The fingerprint that goes into every record.

    Raises:
        ConfigError: the folder holds records made under other settings; the message lists what differs.
    """
    output_dir = Path(output_dir)
    path = output_dir / "run.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        old = read_run(output_dir)["settings"]
        differing = _differences(old, settings)
        if differing and not overwrite:
            listed = "\n".join(f"  - {line}" for line in differing)
            raise ConfigError(
                f"{path}: records here were made under other settings:\n{listed}\n"
                "use another --output_dir, or --overwrite to delete them and predict again"
            )
    if overwrite:
        shutil.rmtree(output_dir / "records", ignore_errors=True)
    mark = fingerprint(settings)
    write_json(path, {"format": RUN_FORMAT, "fingerprint": mark, "settings": settings, "about": about or {}})
    return mark


def read_run(output_dir: str | Path) -> dict:
    """The run's ``run.json``: keys "format", "fingerprint", "settings", "about".

    Raises:
        DataError: missing (nothing was predicted here) or not a run file.
    """
    path = Path(output_dir) / "run.json"
    value = read_json(path)
    whole = isinstance(value, dict) and value.get("format") == RUN_FORMAT and isinstance(value.get("settings"), dict)
    if not whole or "fingerprint" not in value:
        raise DataError(f"{path}: not a run file of format {RUN_FORMAT}; predict into an empty folder")
    return value


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf that differs."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def _file_name(identifier: str) -> str:
    """An id as one path component: letters, digits, ``._-`` stay, the rest is percent-encoded."""
    name = quote(str(identifier), safe="")
    return re.sub(r"^\.", "%2E", name) or "%00"
