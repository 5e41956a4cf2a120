"""Several processes of one run: who is who, how they meet, agree and end, and locks on what they share."""

from utils.processes.distributed import (
    Launch,
    World,
    agree,
    as_lost_peer,
    barrier,
    cores_per_process,
    find_launch,
    gather_objects,
    gpu_of,
    mean_over_processes,
    raise_together,
    read_integer,
    say_last_words,
    share_threads,
    start_world,
    stop_world,
)
from utils.processes.ending import ending_on_sigterm
from utils.processes.locks import LockedError, hold

__all__ = [
    "Launch", "LockedError", "World", "agree", "as_lost_peer", "barrier", "cores_per_process",
    "ending_on_sigterm", "find_launch", "gather_objects", "gpu_of", "hold", "mean_over_processes", "raise_together",
    "read_integer", "say_last_words", "share_threads", "start_world", "stop_world",
]  # fmt: skip
