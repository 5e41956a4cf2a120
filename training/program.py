"""How a program of several processes ends: with one message, and one exit code, whatever happened."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TypeVar

from utils.errors import MoraError, write_any_text
from utils.processes import as_lost_peer, barrier, ending_on_sigterm, say_last_words, stop_world

S = TypeVar("S")

GOODBYE = "ended before its time; checkpoints are whole, and the same command goes on from the last one"


def run_program(parse: Callable[[], S], work: Callable[[S], object]) -> int:
    """Parse the flags and work; what goes wrong is printed once, not by every process.

    Args:
        parse: reads the command line.
        work: may open a process group, which is closed when it returns.

    Returns:
        Exit code: 0; 1 after a message; argparse's 2; 130 after Ctrl-C, 143 after SIGTERM.
    """
    write_any_text()
    try:
        with ending_on_sigterm():
            work(_parse_once(parse))
            with contextlib.suppress(RuntimeError):
                barrier()  # gloo's threads may abort a process whose peer hangs up while they still listen
            stop_world()
            return 0
    except KeyboardInterrupt as ending:
        say_last_words(GOODBYE)
        return getattr(ending, "exit_code", 130)
    except (MoraError, OSError) as error:
        say_last_words(error)
        return 1
    except RuntimeError as error:
        lost = as_lost_peer(error)
        if lost is None:
            raise
        say_last_words(lost)
        return 1


def _parse_once(parse: Callable[[], S]) -> S:
    """Parse; argparse's message about a wrong flag goes the way of all other messages."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as ending:
        if ending.code:
            say_last_words(said.getvalue().rstrip())
        raise
