"""Examining a corpus: the annotation in this process, the files of its clips in as many as there are."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
from tqdm import tqdm

from datasets.corpora import CORPORA, corpus_named, load
from datasets.doctor.clip import ClipReport, ClipTask, examine
from datasets.doctor.examination import Examination, Notes, Options
from datasets.doctor.findings import Findings
from datasets.doctor.report import Examined
from utils.errors import ConfigError, DataError

NAMES = [name for row in CORPORA.values() if row.examination for name in (row.name, *row.aliases)]
"""Of the corpora that can be examined, with their aliases."""


def name_of(corpus: str) -> str:
    """What the report calls a corpus, one of NAMES."""
    row = corpus_named(corpus)
    return load(row.examination).name or row.name


def open_examination(corpus: str, folder: Path, options: Options, findings: Findings) -> Examination:
    """Look for a corpus in a folder.

    Args:
        corpus: one of NAMES.
        folder: of the corpus, or the one that holds it.
        options: what part of it, and how deeply.
        findings: where mistakes go.

    Raises:
        ConfigError: there is no such folder, it holds nothing of this corpus, or lacks what was asked for.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the folder of the corpus")
    row = corpus_named(corpus)
    return load(row.examination)(row, folder, options, findings)


def examine_corpus(corpus: str, folder: Path, options: Options, workers: int = 1) -> Examined:
    """Examine a corpus.

    Args:
        corpus, folder, options: see :func:`open_examination`.
        workers: processes; 1 stays in this one. The result does not depend on it.

    Raises:
        ConfigError: as :func:`open_examination`.
    """
    findings = Findings()
    examination = open_examination(corpus, folder, options, findings)
    examined = Examined(name_of(corpus), str(folder), options.fast, options.partial, examination.counts, findings)
    with tqdm(desc=examined.corpus, unit="clip", total=0, mininterval=0.5) as bar:
        tasks = (task for split in examination.splits for task in examination.clips(split))
        for report in reports(tasks, workers):
            examined.add(report)
            bar.total = examination.expected
            bar.update()
    examination.finish()
    unknown = [video for video in options.videos or () if video not in examination.met]
    if unknown:
        raise ConfigError(f"--video {', '.join(unknown)}: not in the splits examined of {folder}; check the id")
    if not options.partial and not findings.count("error"):
        for split in examination.splits:  # whatever else the project's reader may find
            try:
                examination.open_reader(split)
            except DataError as error:
                Notes(findings, split).find("reader-refuses", str(error))
    return examined


def reports(tasks: Iterable[ClipTask], workers: int) -> Iterator[ClipReport]:
    """Examine clips in order; at most a few tasks per worker wait, so that memory stays bounded."""
    if workers <= 1:
        yield from map(examine, tasks)
        return
    pool, waiting = _pool(workers), deque()
    try:
        for task in tasks:
            waiting.append((task, _submit(pool, task)))
            if len(waiting) >= 3 * workers:
                pool = yield from _next(pool, waiting, workers)
        while waiting:
            pool = yield from _next(pool, waiting, workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: ClipTask) -> Future:
    """The report to come; in a pool that broke since the last task, one that raises what those under way raise."""
    try:
        return pool.submit(examine, task)
    except BrokenProcessPool as error:
        failed = Future()
        failed.set_exception(error)
        return failed


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_use_one_thread)


def _use_one_thread() -> None:
    """In a function, since OpenCV's own has no module: to pickle it, all modules are searched for it and imported."""
    cv2.setNumThreads(1)


def _next(pool: ProcessPoolExecutor, waiting: deque[tuple[ClipTask, Future]], workers: int):
    """Yield the oldest report; return the pool to go on with. A file whose decoder kills its process costs one clip:
    those that were under way are examined again, each by itself, until the killer has been met."""
    try:
        yield waiting[0][1].result()
        waiting.popleft()
        return pool
    except BrokenProcessPool:
        pool.shutdown(wait=False, cancel_futures=True)
    suspects = [task for task, _ in waiting]
    waiting.clear()
    single = _pool(1)
    for task in suspects:
        try:
            yield single.submit(examine, task).result()
        except BrokenProcessPool:
            report = ClipReport(task.split, task.video)
            message = "a process that read this clip was killed (a broken file, or too little memory)"
            report.find("examination-failed", message)
            yield report
            single = _pool(1)
    single.shutdown(wait=True)
    return _pool(workers)
