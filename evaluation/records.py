"""Prediction records: one JSON file per question, written at once, and the settings they were made under.

Layout of an output folder::

    run.json                          settings of the run and their fingerprint
    records/<video_id>/<query_id>.json
    scores/<video_id>.json            scores of those records, see evaluation/scoring/score.py

A record is either a prediction or a failure with its reason. Masks are COCO run lengths before any refinement by [LOC],
so that one set of records can be scored under several thresholds.

A record is keyed by what it was made from: the settings of the run (weights included), the listed frames (file names
and sizes) and the question (text). What else the annotation file holds does not matter to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from datasets.sample import Question, VideoRecord
from evaluation.outputs import RECORD_MARK, is_written_here
from utils.errors import ConfigError, DataError
from utils.files import read_json, write_json

RECORD_FORMAT = "mora-record-2"
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
        frames: digest of the listed frames' file names and sizes (see :func:`frames_digest`).
        reason: why it failed, or why an answer has no mask at all; None otherwise.
        frame_indices: distinct clip frame indices that were predicted, increasing.
        size: (H, W) of the masks.
        masks: per entry of ``frame_indices`` a COCO RLE dict, or None for a frame without [SEG].
        loc_probs: per entry of ``frame_indices`` the probability that the motion is happening; None without [LOC].
        answers: generated text of every language model row (one per frame or one per video).
        forced_seg, forced_loc: whether a token had to be appended to an answer.
        kind: what was answered with: "masks", "points" or "text" (then ``answers`` is all there is).
        points: per entry of ``frame_indices`` a list of (x, y) in pixels, or None; only of that kind.
    """

    video_id: str
    query_id: str
    question: str
    status: str
    fingerprint: str
    num_clip_frames: int
    listed_frames: list[int]
    frames: str = ""
    reason: str | None = None
    frame_indices: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    masks: list[dict | None] = field(default_factory=list)
    loc_probs: list[float] | None = None
    answers: list[str] = field(default_factory=list)
    forced_seg: bool = False
    forced_loc: bool = False
    kind: str = "masks"
    points: list[list[list[float]] | None] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.status == "ok"


def record_path(output_dir: str | Path, video_id: str, query_id: str) -> Path:
    """Where the record of a question lies; ids are escaped so that any id is a file name."""
    return Path(output_dir) / "records" / _file_name(video_id) / f"{_file_name(query_id)}.json"


def scores_path(output_dir: str | Path, video_id: str) -> Path:
    """Where the scores of a video's questions lie."""
    return Path(output_dir) / "scores" / f"{_file_name(video_id)}.json"


def write_record(output_dir: str | Path, record: Record) -> None:
    """Write a record atomically, with a digest of its content."""
    path = record_path(output_dir, record.video_id, record.query_id)
    content = asdict(record)
    if record.kind == "masks":  # as before there were others
        del content["kind"], content["points"]
    write_json(path, {"format": RECORD_FORMAT, "digest": fingerprint(content), **content}, indent=None)


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
    digest = value.pop("digest", None)
    if digest != fingerprint(value):
        raise DataError(f"{path}: damaged (its content does not have the digest that was written with it); {remedy}")
    try:
        record = Record(**value)
    except TypeError as error:
        raise DataError(f"{path}: fields are missing or unknown ({error}); {remedy}") from None
    if (record.video_id, record.query_id) != (video_id, query_id):
        named = f"{record.video_id!r}, {record.query_id!r}"
        raise DataError(f"{path}: the record of another question ({named}); a file system that takes capitals for "
                        f"small letters mixes ids that differ in nothing else. {remedy}")  # fmt: skip
    if wrong := [name for name, fits in _FIELDS.items() if not fits(getattr(record, name))]:
        raise DataError(f"{path}: no record holds such values: {', '.join(wrong)}; {remedy}")
    count = len(record.frame_indices)
    given = {"masks": record.masks, "points": record.points}.get(record.kind)
    if record.ok and any(each is not None and len(each) != count for each in (given, record.loc_probs)):
        raise DataError(f"{path}: {count} frames but {len(given or ())} {record.kind}; {remedy}")
    for rle in record.masks:
        if rle is not None and rle.get("size") != record.size:
            raise DataError(f"{path}: a mask of {rle.get('size')} among masks of {record.size}; {remedy}")
    if record.ok and record.frame_indices != sorted(set(record.listed_frames)):
        raise DataError(f"{path}: its frames are not those that it lists; {remedy}")
    return record


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


_FIELDS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("question", "fingerprint", "frames"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("forced_seg", "forced_loc"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("listed_frames", "frame_indices", "size"), lambda value: _is_list(value, _is_int)),
    "status": lambda value: value in ("ok", "failed"),
    "num_clip_frames": _is_int,
    "reason": lambda value: value is None or isinstance(value, str),
    "masks": lambda value: _is_list(value, lambda mask: mask is None or _is_mask(mask)),
    "loc_probs": lambda value: value is None or _is_list(value, _is_probability),
    "answers": lambda value: _is_list(value, lambda text: isinstance(text, str)),
    "kind": lambda value: value in ("masks", "points", "text"),
    "points": lambda value: _is_list(value, lambda frame: frame is None or _is_list(frame, _is_point)),
}
"""What the fields of a record may hold; the ids are compared with those asked for."""


def _is_mask(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("counts"), str)


def _is_point(value: object) -> bool:
    return _is_list(value, lambda place: isinstance(place, (int, float))) and len(value) == 2


def _is_probability(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def frames_digest(video: VideoRecord, indices: Iterable[int]) -> str:
    """Short digest of some frames' file names and byte sizes; a file that is missing has no size."""
    files = []
    for index in indices:
        path = video.frame_paths[int(index)]
        try:
            files.append([int(index), path.name, path.stat().st_size])
        except OSError:
            files.append([int(index), path.name, None])
    return fingerprint({"files": files})


def what_changed(record: Record, query: Question, settings: str | None, listed: list[int], frames: str) -> str | None:
    """Why a record is not one of this question under these circumstances; None if it is.

    Args:
        record: as read.
        query: the question as it is asked now.
        settings: fingerprint of the run; None accepts any.
        listed: the protocol's frames.
        frames: digest of their files.
    """
    if settings is not None and record.fingerprint != settings:
        return "other settings"
    if record.listed_frames != listed:
        return "other frames"
    if record.frames != frames:
        return "other frame files"
    return None if record.question == query.text else "another question text"


def fingerprint(settings: dict) -> str:
    """Short digest of a JSON-able settings dict; equal settings, equal digest."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def open_run(
    output_dir: str | Path,
    settings: dict,
    overwrite: bool = False,
    about: dict | None = None,
    overwrite_videos: Iterable[str] | None = None,
) -> str:
    """Begin or continue a run in a folder. Several processes may do so at the same time.

    Args:
        output_dir: made if missing.
        settings: everything the predictions depend on, JSON-able and flat or nested.
        overwrite: delete records and scores first, instead of refusing those made under other settings.
        about: facts for the reader on which nothing depends (paths), JSON-able.
        overwrite_videos: delete only what belongs to these videos (those of one shard); None: everything.

    Returns:
        The fingerprint that goes into every record.

    Raises:
        ConfigError: the folder holds records made under other settings; the message lists what differs.
    """
    output_dir = Path(output_dir)
    path = output_dir / "run.json"
    settings = json.loads(json.dumps(settings))
    mark = fingerprint(settings)
    run = {"format": RUN_FORMAT, "fingerprint": mark, "settings": settings, "about": about or {}}
    old = read_run(output_dir) if path.exists() else None
    differing = [] if old is None else _differences(old["settings"], settings)
    if differing and not overwrite:
        listed = "\n".join(f"  - {line}" for line in differing)
        raise ConfigError(
            f"{path}: records here were made under other settings:\n{listed}\n"
            "use another --output_dir, or --overwrite to delete them and predict again"
        )
    if overwrite:
        _delete(output_dir, overwrite_videos)
    if old != run:
        write_json(path, run)
    return mark


def _delete(output_dir: Path, videos: Iterable[str] | None) -> None:
    """Delete records and scores, of some videos or of all. What else somebody put among them stays."""
    if videos is None:
        files = [*output_dir.glob("records/*/*"), *output_dir.glob("scores/*")]
    else:
        files = [path for video_id in videos for path in record_path(output_dir, video_id, "").parent.glob("*")]
        files += [scores_path(output_dir, video_id) for video_id in videos]
    for path in files:
        if path.name.endswith(".tmp") or is_written_here(path, RECORD_MARK):
            path.unlink(missing_ok=True)
    for folder in [*dict.fromkeys(path.parent for path in files), output_dir / "records", output_dir / "scores"]:
        with suppress(OSError):  # what is not empty, or another process fills
            folder.rmdir()


def read_run(output_dir: str | Path) -> dict:
    """The run's ``run.json``: keys "format", "fingerprint", "settings", "about".

    Raises:
        DataError: missing (nothing was predicted here), not a run file, or damaged: the fingerprint is not that of the
            settings.
    """
    path = Path(output_dir) / "run.json"
    value = read_json(path)
    whole = isinstance(value, dict) and value.get("format") == RUN_FORMAT
    if not whole or not all(isinstance(value.get(key), dict) for key in ("settings", "about")):
        raise DataError(f"{path}: not a run file of format {RUN_FORMAT}; predict into an empty folder")
    if value.get("fingerprint") != fingerprint(value["settings"]):
        raise DataError(f"{path}: damaged (its fingerprint is not that of its settings); delete the file and predict "
                        "again: what was recorded under the same settings is kept")  # fmt: skip
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


_LONGEST_NAME = 200
"""Of a record's file without its suffix: 255 bytes less the suffix and what :mod:`utils.files` adds while it writes."""


def _file_name(identifier: str) -> str:
    """An id as one path component, each id another: letters, digits, ``._-~`` stay, the rest is percent-encoded.

    An empty id is a lone ``%``, and the end of what is too long for a file system is a digest.
    """
    name = re.sub(r"^\.", "%2E", quote(identifier, safe="", errors="surrogatepass")) or "%"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{name[: _LONGEST_NAME - len(digest)]}-{digest}"  # longer than any name that is not shortened
