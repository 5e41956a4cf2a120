"""Examine a corpus before training or evaluating on it: every mistake at once, grouped, with pictures of the worst.

python -m datasets.doctor groundmore ./dataset/GroundMoRe
python -m datasets.doctor refer_youtube_vos ./dataset --fast
python -m datasets.doctor mevis ./dataset/MeViSv2 --split valid_u --json mevis.json --sheet mevis.png
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from datasets.doctor.examination import Options
from datasets.doctor.report import as_json, as_text, is_report
from datasets.doctor.run import NAMES, examine_corpus, name_of
from datasets.doctor.sheet import is_sheet, write_sheet
from utils.errors import ConfigError, MoraError, write_any_text
from utils.files import not_a_file, unusable_folder, write_json
from utils.paths import is_same, user_path

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
    parser.add_argument("corpus", choices=NAMES, help="which corpus", metavar="CORPUS")
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
    arguments = build_parser().parse_args(argv)
    options = Options(arguments.split, arguments.video, arguments.limit, arguments.fast)
    sheet = arguments.sheet or Path(f"doctor_{name_of(arguments.corpus)}.png")
    try:
        _check_outputs(arguments.json, sheet if arguments.draw else None)
        examined = examine_corpus(arguments.corpus, arguments.folder, options, arguments.workers)
        print(as_text(examined, arguments.examples))
        if arguments.json is not None:
            write_json(arguments.json, as_json(examined))
            print(f"Everything found: {arguments.json}")
        title = f"{examined.corpus}: the worst of {examined.folder}"
        if arguments.draw and write_sheet(examined.findings, title, sheet, arguments.cells):
            print(f"Pictures of the worst: {sheet}")
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return examined.exit_code(arguments.strict)


if __name__ == "__main__":
    sys.exit(main())
