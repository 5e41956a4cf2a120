"""Writing whole corpora: several processes, safe to interrupt, the same bytes for the same seed."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from datasets.corpora import CORPORA, load
from datasets.corpora.writers import FRAMES_PER_SECOND
from datasets.synthetic.layouts import MOST_VIDEOS, Layout
from datasets.synthetic.settings import WorldSettings
from datasets.synthetic.world import make_video
from utils.errors import ConfigError, MoraError
from utils.files import read_json, write_json

_LAYOUTS: list[type[Layout]] = [load(row.layout) for row in CORPORA.values() if row.layout is not None]
LAYOUTS = {layout.name: layout for layout in sorted(_LAYOUTS, key=lambda layout: layout.first_index)}
"""By the name of the corpus."""

WORLD_VERSION = 1
"""Counts changes of the world that change what a seed gives."""

STAMP = "synthetic.json"
"""In the root folder: what was written there, from which settings and seed."""

_CHUNK = 8


@dataclass(frozen=True)
class CorpusPlan:
    """What to write.

    Attributes:
        name: key of LAYOUTS.
        split: "train" or "test".
        seed: of the corpus.
        num_videos: at least 1.
        settings: of the world.
    """

    name: str
    split: str
    seed: int
    num_videos: int
    settings: WorldSettings

    def stamp(self) -> dict[str, Any]:
        """What decides every byte of the corpus, as JSON holds it."""
        values = {"world": WORLD_VERSION, "seed": self.seed, "num_videos": self.num_videos}
        return json.loads(json.dumps({**values, "settings": dataclasses.asdict(self.settings)}))


def write_corpora(root: str | Path, plans: list[CorpusPlan], workers: int = 1, overwrite: bool = False) -> None:
    """Write corpora under ``root``; what an interrupted run has finished is kept, a finished corpus is left alone.

    Args:
        root: made if missing.
        plans: one per corpus and split.
        workers: processes; the result does not depend on it.
        overwrite: replace what earlier runs of this program have written there from other settings, instead of
            refusing. Files that no stamp explains belong to someone and are kept in any case.

    Raises:
        ConfigError: ``root`` holds the same corpus from other settings or of unknown origin, or a plan cannot be
            carried out.
        MoraError: a worker process was killed; run again to continue.
        OSError: the disk is full or not writable; run again to continue.
    """
    root = Path(root)
    layouts = [LAYOUTS[plan.name](root, plan.split) for plan in plans]
    for plan in plans:
        _check(plan)
    stamps = _read_stamps(root)
    for plan, layout in zip(plans, layouts):
        known = stamps.get(_stamp_key(plan))
        if known is None:
            _refuse_strangers(root, layout)
        elif known["made_from"] != plan.stamp() and not overwrite:
            raise ConfigError(_clash(root, plan, known["made_from"]))
    for plan, layout in zip(plans, layouts):
        known = stamps.get(_stamp_key(plan))
        if known is not None and known["made_from"] != plan.stamp():
            _clear(root, plan, layout)
    for plan, layout in zip(plans, layouts):
        known = _read_stamps(root).get(_stamp_key(plan))
        if known is None or known["made_from"] != plan.stamp() or not known["complete"]:
            _write_corpus(root, plan, layout, workers)


def _check(plan: CorpusPlan) -> None:
    if plan.num_videos < 1:
        raise ConfigError(
            f"{plan.name}: {plan.num_videos} videos asked for; ask for at least 1, or leave the corpus out"
        )
    if plan.num_videos > MOST_VIDEOS:
        raise ConfigError(f"{plan.name}: {plan.num_videos} videos asked for; a corpus has at most {MOST_VIDEOS:,}")
    if plan.seed < 0:
        raise ConfigError(f"seed {plan.seed}: must not be negative")
    if plan.name == "groundmore" and plan.settings.fps != FRAMES_PER_SECOND:
        message = f"fps {plan.settings.fps}: GroundMoRe counts at {FRAMES_PER_SECOND} frames per second; use that"
        raise ConfigError(message)


def _stamp_key(plan: CorpusPlan) -> str:
    return f"{plan.name}/{plan.split}"


def _read_stamps(root: Path) -> dict[str, dict[str, Any]]:
    path = root / STAMP
    if not os.path.lexists(path):
        return {}
    stamps = read_json(path)
    entries = stamps.get("corpora") if isinstance(stamps, dict) else None
    if not isinstance(entries, dict) or not all(_is_stamp(entry) for entry in entries.values()):
        raise ConfigError(
            f"{path}: not a stamp of this program ('corpora' is missing); move it or choose another --out"
        )
    return entries


def _is_stamp(entry: Any) -> bool:
    made_from = entry.get("made_from") if isinstance(entry, dict) else None
    return isinstance(made_from, dict) and isinstance(made_from.get("settings"), dict) and "complete" in entry


def _put_stamp(root: Path, plan: CorpusPlan, complete: bool) -> None:
    stamps = _read_stamps(root)
    stamps[_stamp_key(plan)] = {"made_from": plan.stamp(), "complete": complete}
    write_json(root / STAMP, {"corpora": dict(sorted(stamps.items()))})


def _clash(root: Path, plan: CorpusPlan, known: dict[str, Any]) -> str:
    wanted = plan.stamp()
    old, new = ({**stamp, **stamp["settings"]} for stamp in (known, wanted))
    differences = [
        f"{key} {old.get(key)!r} there, {new.get(key)!r} now"
        for key in new
        if key != "settings" and old.get(key) != new.get(key)
    ]
    return (
        f"{root}: holds {_stamp_key(plan)} from other settings ({'; '.join(differences)}); choose another --out, use "
        "the same settings, or replace it with --overwrite"
    )


def _refuse_strangers(root: Path, layout: Layout) -> None:
    """Refuse a folder whose corpus no stamp explains: it is somebody's."""
    strangers = layout.owned()
    if layout.name != "groundmore":  # whose splits share a folder of videos
        strangers += [path for folder in layout.writer.image_folders for path in folder.glob("[!.]*")]
    if strangers:
        raise ConfigError(
            f"{root}: {strangers[0]} is there already, but {STAMP} does not say that this program wrote it; it is "
            "kept, with --overwrite as well: choose another --out, or move it away"
        )


def _clear(root: Path, plan: CorpusPlan, layout: Layout) -> None:
    """Remove what an earlier run has written."""
    for path in [*layout.owned(), *layout.leftovers(), _parts_folder(root, plan)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    stamps = _read_stamps(root)
    if stamps.pop(_stamp_key(plan), None) is not None:
        write_json(root / STAMP, {"corpora": stamps})


def _parts_folder(root: Path, plan: CorpusPlan) -> Path:
    return root / f".parts_{plan.name}_{plan.split}"


def _part_file(root: Path, plan: CorpusPlan, first: int) -> Path:
    return _parts_folder(root, plan) / f"{first:07d}.json"


def _write_corpus(root: Path, plan: CorpusPlan, layout: Layout, workers: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    _put_stamp(root, plan, complete=False)
    for folder in layout.writer.image_folders:
        folder.mkdir(parents=True, exist_ok=True)
    for path in layout.leftovers():
        shutil.rmtree(path)
    chunks = range(0, plan.num_videos, _CHUNK)
    missing = [first for first in chunks if not _part_file(root, plan, first).exists()]
    left = sum(min(_CHUNK, plan.num_videos - first) for first in missing)
    tasks = [(root, plan, first) for first in missing]
    label = f"{plan.name} ({plan.split})"
    with tqdm(total=plan.num_videos, initial=plan.num_videos - left, desc=label, unit="video") as bar:
        for written in _write_chunks(tasks, min(workers, len(tasks))):
            bar.update(written)
    parts = [part for first in chunks for part in read_json(_part_file(root, plan, first))]
    layout.writer.write_annotations(parts)
    _put_stamp(root, plan, complete=True)
    shutil.rmtree(_parts_folder(root, plan))


def _use_one_thread() -> None:
    """In a function, since OpenCV's own has no module: to pickle it, all modules are searched for it and imported."""
    cv2.setNumThreads(1)


def _write_chunks(tasks: list[tuple[Path, CorpusPlan, int]], workers: int) -> Iterator[int]:
    """Carry out tasks in any order, in this process or several; gives the number of videos of each.

    Raises:
        MoraError: a process was killed.
    """
    if workers <= 1:
        yield from map(_write_chunk, tasks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _use_one_thread)
    try:
        for done in as_completed([pool.submit(_write_chunk, task) for task in tasks]):
            yield done.result()
    except BrokenProcessPool:
        raise MoraError(
            f"{tasks[0][0]}: a worker process was killed (out of memory?); run the same command again "
            "to continue, with fewer --workers if need be"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _write_chunk(task: tuple[Path, CorpusPlan, int]) -> int:
    """Write a few videos, then note their annotations, which marks them as done; returns how many."""
    root, plan, first = task
    layout = LAYOUTS[plan.name](root, plan.split)
    numbers = range(first, min(first + _CHUNK, plan.num_videos))
    parts = []
    for number in numbers:
        video = make_video(plan.seed, layout.first_index + number, plan.settings, plan.split)
        parts.append(layout.write_video(video, plan.seed, number))
    write_json(_part_file(root, plan, first), parts, indent=None)
    return len(numbers)
