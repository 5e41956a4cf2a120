"""Atomic writes: what a kill leaves, who clears it, and that a complete folder exists at every moment."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from utils import files
from utils.errors import DataError
from utils.files import atomic_directory, atomic_write, read_json, recover_directory, replace_directory


def in_a_process_that_dies(work: Callable[[], None]) -> None:
    """Run ``work`` in a fork that is killed as soon as it returns, if not before."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die_within(context) -> Callable[[], None]:
    def work() -> None:
        with context as where:
            (where.write if hasattr(where, "write") else (where / "big").write_bytes)(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    return work


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("name", ["export", "a [1] * name", ".hidden", "line\nbreak"])
def test_the_next_writer_clears_what_a_killed_one_left(tmp_path, name):
    in_a_process_that_dies(die_within(atomic_directory(tmp_path / name)))
    assert len(names(tmp_path)) == 1
    with atomic_directory(tmp_path / name) as folder:
        (folder / "big").write_bytes(b"whole")
    assert names(tmp_path) == [name]
    in_a_process_that_dies(die_within(atomic_write(tmp_path / "file")))
    with atomic_write(tmp_path / "file") as stream:
        stream.write(b"whole")
    assert names(tmp_path) == sorted([name, "file"])


def test_a_writer_that_lives_and_one_elsewhere_keep_theirs(tmp_path, monkeypatch):
    with atomic_directory(tmp_path / "export") as mine:
        child = os.fork()
        if child == 0:  # another process writes the same meanwhile
            with atomic_directory(tmp_path / "export") as other:
                (other / "who").write_text("child")
            os._exit(0)
        os.waitpid(child, 0)
        assert mine.is_dir()
    monkeypatch.setattr(files, "_here", lambda: "0123ab")
    in_a_process_that_dies(die_within(atomic_directory(tmp_path / "export")))
    monkeypatch.undo()
    with atomic_write(tmp_path / "file") as stream:
        stream.write(b"")
    assert len([name for name in names(tmp_path) if name.endswith(".tmp")]) == 1


def test_what_only_looks_like_a_leftover_stays(tmp_path):
    for name in (".notes.tmp", ".export.tmp", "export.old", ".export.12345.abcdef.tmp"):
        (tmp_path / name).write_text("the user's")
    before = names(tmp_path)
    with atomic_write(tmp_path / "file") as stream:
        stream.write(b"")
    assert names(tmp_path) == sorted([*before, "file"])


def test_many_writes_list_their_folder_seldom(tmp_path, monkeypatch):
    listed = []
    monkeypatch.setattr(files, "_sweep", listed.append)
    for number in range(100):
        with atomic_write(tmp_path / str(number)) as stream:
            stream.write(b"")
    assert len(listed) == 7


def complete(folder: Path, name: str) -> list[str]:
    """Contents of every complete folder that is called ``name`` or was moved aside from it."""
    found = [folder / name, *folder.glob(f".{name}.*.old")]
    return [(path / "b").read_text() for path in found if (path / "a").is_file() and (path / "b").is_file()]


STEPS = [(os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kill_at", range(1, 5))
def test_killed_at_any_step_of_a_replacement_a_complete_folder_is_there(tmp_path, monkeypatch, when, kill_at):
    for name, text in (("it", "old"), ("new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
        (tmp_path / name / "b").write_text(text)

    def work() -> None:
        steps = 0

        def dying(original):
            def call(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps == kill_at and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*args, **kwargs)
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for module, name in STEPS:
            setattr(module, name, dying(getattr(module, name)))
        replace_directory(tmp_path / "new", tmp_path / "it")

    in_a_process_that_dies(work)
    assert complete(tmp_path, "it"), names(tmp_path)
    recover_directory(tmp_path / "it")
    assert complete(tmp_path, "it") in (["old"], ["new"])
    assert [name for name in names(tmp_path) if name != "new"] == ["it"]


def test_a_folder_moved_aside_by_a_killed_export_comes_back(tmp_path):
    (tmp_path / "it").mkdir()
    (tmp_path / "new").mkdir()

    def work() -> None:
        rename = os.rename
        os.rename = lambda *args: (rename(*args), os.kill(os.getpid(), signal.SIGKILL))
        replace_directory(tmp_path / "new", tmp_path / "it")

    in_a_process_that_dies(work)
    assert not (tmp_path / "it").exists()
    with pytest.raises(OSError), atomic_directory(tmp_path / "it"):
        raise OSError("a full disk")
    assert names(tmp_path) == ["it", "new"]


def test_ctrl_c_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "it").mkdir()
    (tmp_path / "new").mkdir()
    rename = os.rename

    def interrupted(source, target):
        if source == tmp_path / "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_directory(tmp_path / "new", tmp_path / "it")
    assert names(tmp_path) == ["it", "new"]


def test_json_in_an_older_encoding(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"text": "a café’s sign"}'.encode("cp1252"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_json(path)
    assert read_json(path, fallback="cp1252") == {"text": "a café’s sign"}
    path.write_text('{"text": "a café’s sign"}', encoding="utf-8")
    assert read_json(path, fallback="cp1252") == {"text": "a café’s sign"}
    path.write_bytes(b'{"text": "\x81"}')
    with pytest.raises(DataError, match="a.json: not UTF-8"):
        read_json(path, fallback="cp1252")
