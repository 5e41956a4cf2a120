"""Examine a corpus before training or evaluating on it: every mistake at once, grouped, with pictures of the worst.

python -m datasets.doctor groundmore ./dataset/GroundMoRe
python -m datasets.doctor refer_youtube_vos ./dataset --fast
python -m datasets.doctor mevis ./dataset/MeViSv2 --split valid_u --json mevis.json --sheet mevis.png
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
from tqdm import tqdm

from datasets.doctor.annotations import Examination, Options
from datasets.doctor.clip import ClipReport, ClipTask, examine
from datasets.doctor.findings import Finding, Findings
from datasets.doctor.groundmore import GroundMoReExamination
from datasets.doctor.mevis import MeViSExamination
from datasets.doctor.refer_youtube_vos import ReferYoutubeVosExamination
from datasets.doctor.report import Examined, as_json, as_text
from datasets.doctor.sheet import draw_sheet, worst
from utils.drawing import write_png
from utils.errors import ConfigError, DataError, MoraError
from utils.files import not_a_file, read_json, unusable_folder, write_json
from utils.paths import is_same, user_path
from utils.pictures import open_picture
from utils.terminal import write_any_text

EXAMINATIONS: dict[str, type[Examination]] = {
    "groundmore": GroundMoReExamination,
    "refer_youtube_vos": ReferYoutubeVosExamination,
    "mevis": MeViSExamination,
}
"""By the name of the corpus."""

_SOFTWARE = "MoRA data doctor"
"""Written into every sheet, so that a later run knows it for its own."""

ALIASES = {"refer_video_seg": "refer_youtube_vos", "refytvos": "refer_youtube_vos"}
"""Names that training's ``--dataset`` and ``datasets.synthetic`` use."""

_EPILOG = """\
exit status
  0: no error (and, with --strict, no warning); 1: errors were found (with --strict: or warnings);
  2: the examination could not be run (no such folder, unknown split, a report that cannot be written)

docs/data.md lists every kind of finding, the JSON's keys, and how and how well masks that drift are found.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.doctor",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", choices=(*EXAMINATIONS, *ALIASES), help="which corpus", metavar="CORPUS")
    parser.add_argument("folder", type=_path, metavar="DIR", help="the corpus's folder, or the one that holds it")
    parser.add_argument("--split", action="append", metavar="NAME", help="examine this one alone (may be repeated): a "
                        "split's folder, for groundmore an annotation file without .json (default: all)")  # fmt: skip
    parser.add_argument("--video", action="append", metavar="ID", help="examine this one alone (may be repeated)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="examine the first N videos of each split")
    parser.add_argument("--fast", action=argparse.BooleanOptionalAction, default=False,
                        help="headers and names only: no ids, no truncated files, no drift")  # fmt: skip
    parser.add_argument("--examples", type=_positive, default=5, metavar="N", help="printed of each kind (default 5)")
    parser.add_argument("--json", type=_path, metavar="FILE", help="write everything found as JSON, too")
    parser.add_argument("--sheet", type=_path, metavar="FILE", help="picture of the worst (default doctor_CORPUS.png)")
    parser.add_argument("--no-sheet", dest="draw", action="store_false", help="draw no picture")
    parser.add_argument("--cells", type=_positive, default=36, metavar="N", help="pictures on the sheet (default 36)")
    parser.add_argument("--strict", action=argparse.BooleanOptionalAction, default=False,
                        help="exit with 1 for warnings, too")  # fmt: skip
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N",
                        help="processes (default: all CPU cores); the report does not depend on it")  # fmt: skip
    return parser


def _path(text: str) -> Path:
    return Path(user_path(text))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def examine_corpus(corpus: str, folder: Path, options: Options, workers: int = 1) -> Examined:
    """Examine a corpus.

    Args:
        corpus: key of EXAMINATIONS or ALIASES.
        folder: of the corpus, or the one that holds it.
        options: what part of it, and how deeply.
        workers: processes; 1 stays in this one. The result does not depend on it.

    Raises:
        ConfigError: there is no such folder, it holds nothing of this corpus, or lacks what was asked for.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the folder of the corpus")
    corpus = ALIASES.get(corpus, corpus)
    examined = Examined(corpus, str(folder), options.fast, options.partial)
    examination = EXAMINATIONS[corpus](folder, options, examined.findings)
    examined.counts = examination.counts
    with tqdm(desc=corpus, unit="clip", total=0, mininterval=0.5) as bar:
        tasks = (task for split in examination.splits for task in examination.clips(split))
        for report in _reports(tasks, workers):
            examined.add(report)
            bar.total = examination.expected
            bar.update()
    examination.finish()
    unknown = [video for video in options.videos or () if video not in examination.met]
    if unknown:
        raise ConfigError(f"--video {', '.join(unknown)}: not in the splits examined of {folder}; check the id")
    if not options.partial and not examined.findings.count("error"):
        _ask_reader(examination, examined.findings)
    return examined


def _ask_reader(examination: Examination, findings: Findings) -> None:
    """Where no error was found, the project's reader must open the corpus; if it does not, say why."""
    for split in examination.splits:
        try:
            examination.open_reader(split)
        except DataError as error:
            findings.add("reader-refuses", str(error), split=split)


def _reports(tasks: Iterable[ClipTask], workers: int) -> Iterator[ClipReport]:
    """Examine clips in order; at most a few tasks per worker wait, so that memory stays bounded."""
    if workers <= 1:
        yield from map(examine, tasks)
        return
    pool, waiting = _pool(workers), deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(examine, task)))
            if len(waiting) >= 3 * workers:
                pool = yield from _next(pool, waiting, workers)
        while waiting:
            pool = yield from _next(pool, waiting, workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,))


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
            message = "a process that read this clip was killed (a broken file, or too little memory)"
            finding = Finding("examination-failed", message, task.split, task.video)
            yield ClipReport(task.split, task.video, [finding])
            single = _pool(1)
    single.shutdown(wait=True)
    return _pool(workers)


def write_sheet(examined: Examined, path: Path, cells: int) -> bool:
    """Draw the worst of what was found; False, and no file, if nothing can be drawn.

    Raises:
        OSError: the file cannot be written.
    """
    chosen = worst(examined.findings, cells)
    if not chosen:
        return False
    write_png(path, draw_sheet(chosen, f"{examined.corpus}: the worst of {examined.folder}"), _SOFTWARE)
    return True


def _check_outputs(report: Path | None, sheet: Path | None) -> None:
    """See that both can be written, and that they replace nothing but what this program wrote.

    Raises:
        ConfigError: they do not.
    """
    if report is not None and sheet is not None and is_same(report, sheet):
        raise ConfigError(f"--json and --sheet are both {report}; give each a file of its own")
    for path, is_ours in ((report, _is_report), (sheet, _is_sheet)):
        if path is None:
            continue
        reason = unusable_folder(path.absolute().parent)
        if not reason and os.path.lexists(path):
            reason = not_a_file(path) or ("" if is_ours(path) else "that file is not the doctor's, and is kept")
        if reason:
            raise ConfigError(f"{path}: the report cannot be written there ({reason}); choose another place")


def _is_report(path: Path) -> bool:
    try:
        value = read_json(path)
    except DataError:
        return False
    return isinstance(value, dict) and {"schema", "corpus", "findings", "drift"} <= set(value)


def _is_sheet(path: Path) -> bool:
    try:
        with open_picture(path, "picture") as image:
            return image.info.get("Software") == _SOFTWARE
    except DataError:
        return False


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    write_any_text()
    arguments = build_parser().parse_args(argv)
    options = Options(
        tuple(arguments.split) if arguments.split else None,
        tuple(arguments.video) if arguments.video else None,
        arguments.limit,
        arguments.fast,
    )
    sheet = arguments.sheet or Path(f"doctor_{ALIASES.get(arguments.corpus, arguments.corpus)}.png")
    try:
        _check_outputs(arguments.json, sheet if arguments.draw else None)
        examined = examine_corpus(arguments.corpus, arguments.folder, options, arguments.workers)
        print(as_text(examined, arguments.examples))
        if arguments.json is not None:
            write_json(arguments.json, as_json(examined))
            print(f"Everything found: {arguments.json}")
        if arguments.draw and write_sheet(examined, sheet, arguments.cells):
            print(f"Pictures of the worst: {sheet}")
    except MoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return examined.exit_code(arguments.strict)


if __name__ == "__main__":
    sys.exit(main())
