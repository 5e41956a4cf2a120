"""How the processes of a run come together: nobody waits long for one that has come and died, or for an address that
leads nowhere, and two runs do not mix."""

from __future__ import annotations

import datetime
import os
import re
import socket
import time

import torch.distributed as dist

from utils.errors import ConfigError, MoraError

PATIENCE = "MORA_RENDEZVOUS_SECONDS"
"""Environment variable: how long a process waits for the others to start."""

_ON_ONE_MACHINE, _ON_SEVERAL = 45, 600
"""Seconds to wait unless the variable says otherwise; processes on one machine are started together."""

_SILENCE = 10.0
"""Seconds after which a process that was here and says nothing is gone; each says something ten times a second."""

_RESOLVE = 10.0
"""Seconds for a host name to become known."""

_POLL = 0.1

FAILURE = "failure"
"""Key of the shared store: what the first process that failed said."""


class RendezvousError(MoraError):
    """The processes of a run did not come together.

    Attributes:
        told: rank 0 found it out and says so itself.
    """

    told = False


def master_address() -> tuple[str, int]:
    """Host and port where the processes meet, by ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises:
        ConfigError: they are no address.
    """
    host, port = os.environ.get("MASTER_ADDR", "").strip(), os.environ.get("MASTER_PORT", "")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigError(f"environment variable MASTER_PORT={port!r} is no port (1 to 65535); unset it or correct it")
    if not host:
        raise ConfigError("environment variable MASTER_ADDR is empty; set it to the machine of rank 0, or unset it")
    return host, int(port)


def meet(rank: int, size: int) -> dist.Store:
    """Wait for all processes.

    Args:
        rank: of this process.
        size: how many there are.

    Returns:
        A store that all of them share.

    Raises:
        ConfigError: ``MASTER_ADDR``, ``MASTER_PORT`` or ``MORA_RENDEZVOUS_SECONDS`` cannot be used.
        RendezvousError: some did not come in time, one came and died, or two claim one rank.
    """
    host, port = master_address()
    place = f"{host}:{port}"
    seconds = _patience(host, size)
    end = time.monotonic() + seconds
    store = _open_or_find(rank, host, port, end, seconds)
    if size == 1:
        return store
    try:
        _take_seat(store, rank, size, place)
        if rank == 0:
            _call_the_roll(store, size, end, seconds, place)
        else:
            _answer(store, rank, place)
    except (dist.DistError, ConnectionError) as error:
        raise RendezvousError(f"rank {rank}: lost rank 0 at {place}; it has ended, and its own log says why") from error
    return store


def leave_word(rank: int, message: str, seconds: float) -> dist.Store:
    """Let the processes that wait in :func:`meet`, or will, know that this one has failed before.

    Args:
        rank: of this process.
        message: why.
        seconds: to wait for rank 0.

    Returns:
        The store that all share.

    Raises:
        MoraError: there is nobody to tell.
    """
    host, port = master_address()
    store = _open_or_find(rank, host, port, time.monotonic() + seconds, seconds)
    store.compare_set(FAILURE, "", message)
    if rank == 0:
        store.set("verdict", f"rank 0 has failed: {message}")
    return store


def _open_or_find(rank: int, host: str, port: int, end: float, seconds: float) -> dist.Store:
    _resolve(host, port)
    opens_it = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = _open_store(port) if opens_it else _find_store(host, port, rank, end, seconds)
    # torchrun may start a run anew beside the same store
    return dist.PrefixStore(f"meeting{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _patience(host: str, size: int) -> float:
    given = os.environ.get(PATIENCE)
    if given is not None:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", given) or float(given) <= 0:
            raise ConfigError(f"environment variable {PATIENCE}={given!r} is no number of seconds above 0")
        return float(given)
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    on_one = here == str(size) or host == "localhost" or host == "::1" or host.startswith("127.")
    return _ON_ONE_MACHINE if on_one else _ON_SEVERAL


def _resolve(host: str, port: int) -> None:
    """Raise if the name of a machine stays unknown."""
    end = time.monotonic() + _RESOLVE
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if isinstance(error, UnicodeError) or time.monotonic() > end:
                raise ConfigError(
                    f"environment variable MASTER_ADDR={host!r}: no machine of that name is known ({error}); set it to "
                    "the machine of rank 0"
                ) from None
        time.sleep(_POLL)


def _open_store(port: int) -> dist.TCPStore:
    """The store, on this machine."""
    try:
        return dist.TCPStore("localhost", port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except (dist.DistError, RuntimeError) as error:
        if "EADDRINUSE" in str(error):
            raise ConfigError(
                f"port {port} of this machine is in use, by another run perhaps; set MASTER_PORT to a free one "
                "(deepspeed --master_port, torchrun --master_port), the same for all processes"
            ) from None
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"port {port} of this machine cannot be opened ({reason}); set MASTER_PORT") from None


def _find_store(host: str, port: int, rank: int, end: float, seconds: float) -> dist.TCPStore:
    """The store of rank 0, once it is open."""
    while True:
        try:
            socket.create_connection((host, port), timeout=2).close()
            left = datetime.timedelta(seconds=max(1.0, end - time.monotonic()))
            return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=left)
        except (OSError, dist.DistError) as error:
            if time.monotonic() > end:
                raise RendezvousError(
                    f"rank {rank}: rank 0 did not open {host}:{port} within {seconds:g} s ({error}); see its log, and "
                    f"that MASTER_ADDR is its machine. {PATIENCE} sets the time"
                ) from None
        time.sleep(_POLL)


def _take_seat(store: dist.Store, rank: int, size: int, place: str) -> None:
    expected = store.compare_set("size", "", str(size)).decode()
    if expected != str(size):
        raise RendezvousError(
            f"rank {rank} was started as one of {size} processes, others at {place} as one of {expected}; two runs "
            "there? Give each its own MASTER_PORT"
        )
    if store.add(f"seat/{rank}", 1) > 1:
        raise RendezvousError(
            f"another process is rank {rank} at {place} already; two runs there? Give each its own MASTER_PORT"
        )


class _Pulse:
    """Whether a process that has come is still there.

    Args:
        store: where it says so.
        rank: which.
    """

    def __init__(self, store: dist.Store, rank: int):
        self.store, self.rank = store, rank
        self.count, self.since = 0, time.monotonic()

    def has_come(self) -> bool:
        return self.count > 0

    def is_gone(self) -> bool:
        """It had come, and has been silent since."""
        count = self.store.add(f"pulse/{self.rank}", 0)
        if count != self.count:
            self.count, self.since = count, time.monotonic()
        return self.has_come() and time.monotonic() - self.since > _SILENCE


def _call_the_roll(store: dist.Store, size: int, end: float, seconds: float, place: str) -> None:
    """On rank 0: wait until everybody is here, then say so; or say why not."""
    pulses = [_Pulse(store, rank) for rank in range(1, size)]
    while True:
        store.add("pulse/0", 1)
        gone = [pulse.rank for pulse in pulses if pulse.is_gone()]
        absent = [pulse.rank for pulse in pulses if not pulse.has_come()]
        problem = None
        if store.check([FAILURE]):
            problem = f"another process has failed: {store.get(FAILURE).decode(errors='replace')}"
        elif gone:
            problem = f"{_ranks(gone)} came to {place} and ended before the run began; see the log"
        elif absent and time.monotonic() > end:
            problem = (
                f"{_ranks(absent)} of {size} did not come to {place} within {seconds:g} s; {PATIENCE} sets the time"
            )
        if problem or not absent:
            store.set("verdict", problem or "")
        if problem:
            raise RendezvousError(problem)
        if not absent:
            return
        time.sleep(_POLL)


def _answer(store: dist.Store, rank: int, place: str) -> None:
    """On the others: say that this process is here until rank 0 has counted."""
    main = _Pulse(store, 0)
    while not store.check(["verdict"]):
        store.add(f"pulse/{rank}", 1)
        if main.is_gone():
            raise RendezvousError(f"rank 0 came to {place} and ended before the run began; see its log")
        time.sleep(_POLL)
    problem = store.get("verdict").decode()
    if problem:
        error = RendezvousError(problem)
        error.told = True
        raise error


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:10])) + (f" and {len(ranks) - 10} more" if len(ranks) > 10 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
