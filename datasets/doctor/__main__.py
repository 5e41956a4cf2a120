"""Examine a corpus before training or evaluating on it: every mistake at once, grouped, with pictures of the worst.

python -m datasets.doctor groundmore ./dataset/GroundMoRe
python -m datasets.doctor refer_youtube_vos ./dataset --fast
python -m datasets.doctor mevis ./dataset/MeViSv2 --split valid_u --json mevis.json --sheet mevis.png
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from datasets.doctor.examination import Options
from datasets.doctor.report import as_json, as_text, is_report
from datasets.doctor.run import NAMES, examine_corpus, name_of
from datasets.doctor.sheet import is_sheet, write_sheet
from utils.errors import ConfigError, MoraError, write_any_text
from utils.files import not_a_file, unusable_folder, write_json
from utils.flags import flag, parse_small
from utils.paths import is_same

_EPILOG = """\
exit status
  0: no error (and, with --strict, no warning); 1: errors were found (with --strict: or warnings);
  2: the examination could not be run (no such folder, unknown split, a report that cannot be written)

docs/data.md lists every kind of finding, the JSON's keys, and how and how well masks that drift are found.
"""


@dataclass
class DoctorFlags:
    """Every flag of this program."""

    corpus: str = flag(names=("corpus",), choices=tuple(NAMES), metavar="CORPUS", help="which corpus")
    folder: str = flag(
        names=("folder",), path=True, metavar="DIR", help="the corpus's folder, or the one that holds it"
    )
    split: list[str] | None = flag(None, metavar="NAME", help="examine this one alone (may be repeated): a split's "
        "folder, for groundmore an annotation file without .json (default: all)")  # fmt: skip
    video: list[str] | None = flag(None, metavar="ID", help="examine this one alone (may be repeated)")
    limit: int | None = flag(None, at_least=1, metavar="N", help="examine the first N videos of each split")
    fast: bool = flag(False, help="headers and names only: no ids, no truncated files, no drift")
    examples: int = flag(5, at_least=1, metavar="N", help="printed of each kind (default 5)")
    json: str | None = flag(None, path=True, written=True, metavar="FILE", help="write everything found as JSON, too")
    sheet: str | None = flag(None, path=True, written=True, metavar="FILE",
                             help="picture of the worst (default doctor_CORPUS.png)")  # fmt: skip
    draw: bool = flag(True, names=("--no-sheet",), help="draw no picture")
    cells: int = flag(36, at_least=1, metavar="N", help="pictures on the sheet (default 36)")
    strict: bool = flag(False, help="exit with 1 for warnings, too")
    workers: int = flag(os.cpu_count() or 1, at_least=1, metavar="N",
                        help="processes (default: all CPU cores); the report does not depend on it")  # fmt: skip


def _check_outputs(report: Path | None, sheet: Path | None) -> None:
    """See that both can be written, and that they replace nothing but what this program wrote.

    Raises:
        ConfigError: they do not.
    """
    if report is not None and sheet is not None and is_same(report, sheet):
        raise ConfigError(f"--json and --sheet are both {report}; give each a file of its own")
    for path, is_ours in ((report, is_report), (sheet, is_sheet)):
        if path is None:
            continue
        reason = unusable_folder(path.absolute().parent)
        if not reason and os.path.lexists(path):
            reason = not_a_file(path) or ("" if is_ours(path) else "that file is not the doctor's, and is kept")
        if reason:
            raise ConfigError(f"{path}: the report cannot be written there ({reason}); choose another place")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    write_any_text()
    try:
        flags = parse_small(DoctorFlags, __doc__, argv, prog="python -m datasets.doctor", epilog=_EPILOG)
        options = Options(flags.split, flags.video, flags.limit, flags.fast)
        report, sheet = flags.json and Path(flags.json), Path(flags.sheet or f"doctor_{name_of(flags.corpus)}.png")
        _check_outputs(report, sheet if flags.draw else None)
        examined = examine_corpus(flags.corpus, Path(flags.folder), options, flags.workers)
        print(as_text(examined, flags.examples))
        if report is not None:
            write_json(report, as_json(examined))
            print(f"Everything found: {report}")
        title = f"{examined.corpus}: the worst of {examined.folder}"
        if flags.draw and write_sheet(examined.findings, title, sheet, flags.cells):
            print(f"Pictures of the worst: {sheet}")
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return examined.exit_code(flags.strict)


if __name__ == "__main__":
    sys.exit(main())
