"""Merge trained weights into their base and save one model folder: ``--help`` shows how."""

from __future__ import annotations

import sys

from training.export import export, parse_arguments
from utils.errors import MoraError, write_any_text


def main() -> None:
    """Parse the flags and export; mistakes end with a message and status 1."""
    write_any_text()
    try:
        export(parse_arguments())
    except (MoraError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
