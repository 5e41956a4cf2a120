"""The one reader of pickles: plain data of any protocol; whatever else is in the file is refused, not run."""

from __future__ import annotations

import collections
import os
import pickle

import numpy as np
import pytest

from utils.errors import DataError
from utils.pickles import read_plain_pickle

PLAIN = [{"ref_id": 3, "box": (1.5, -2), "words": ["a", "café"], "raw": b"\x00\xff", "on": True, "no": None}, 1 << 70]


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "refs(unc).p"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_data_of_every_protocol(file, protocol):
    value = [*PLAIN, {1, 2}, frozenset({"x"})]
    assert read_plain_pickle(file(pickle.dumps(value, protocol))) == value


def test_a_pickle_of_python_2(file):
    # pickle.dump([{"sent": "the dog", "raw": u"caf\xe9", "ids": set([1]), "n": 1L}], f, 2) under Python 2
    content = (
        b"\x80\x02]q\x00}q\x01(U\x04sentq\x02U\x07the dogq\x03U\x03rawq\x04X\x05\x00\x00\x00caf\xc3\xa9q\x05"
        b"U\x03idsq\x06"
        b"c__builtin__\nset\nq\x07]q\x08K\x01a\x85q\tRq\nU\x01nq\x0b\x8a\x01\x01ua."
    )
    assert read_plain_pickle(file(content)) == [{"sent": "the dog", "raw": "café", "ids": {1}, "n": 1}]
    text = b"(lp0\n(dp1\nS'sent'\np2\nS'a \"b\"'\np3\nsS'n'\nI7\nsa."  # protocol 0
    assert read_plain_pickle(file(text)) == [{"sent": 'a "b"', "n": 7}]


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(file, tmp_path, protocol):
    path = file(pickle.dumps([{"n": 1}, Runs(tmp_path / "made")], protocol))
    name = "posix.mkdir" if os.name == "posix" else "mkdir"
    with pytest.raises(DataError, match=rf"refs\(unc\)\.p: this pickle asks for {name}, which could run code"):
        read_plain_pickle(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content, name",
    [
        (pickle.dumps(collections.OrderedDict(a=1)), "collections.OrderedDict"),
        (pickle.dumps(np.float32(1)), "numpy"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0bset.__new__\x93.", r"builtins.set\.__new__"),
        (b"(S'1'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02\x82\x01.", "not a pickle"),  # a number of copyreg's table
        (b"\x80\x02U\x01aQ.", "not a pickle"),  # a persistent id
    ],
    ids=str,
)
def test_names_are_refused(file, content, name):
    with pytest.raises(DataError, match=name):
        read_plain_pickle(file(content))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a pickle, or damaged"),
        (b"<html>", "not a pickle, or damaged"),
        (pickle.dumps(PLAIN)[:-9], "not a pickle, or damaged"),
        (b"\x80\x02U\x01\xff.", "not a pickle, or damaged"),
        (b"\x80\x04h\x05.", "not a pickle, or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    ],
    ids=str,
)
def test_damage_names_the_file(file, content, message):
    with pytest.raises(DataError, match=rf"refs\(unc\)\.p: .*{message}"):
        read_plain_pickle(file(content))


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.p"):
        with pytest.raises(DataError, match="check the path"):
            read_plain_pickle(path)


def test_every_cut_is_an_error(file):
    content = pickle.dumps(PLAIN, 4)
    for end in range(len(content)):
        with pytest.raises(DataError, match="damaged"):
            read_plain_pickle(file(content[:end]))
