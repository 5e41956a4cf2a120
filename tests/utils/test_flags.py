"""A small program's flags are one dataclass: arguments by their place, a switch without positive form, all mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from utils.errors import ConfigError, Problems
from utils.flags import flag, parse_small


@dataclass
class Flags:
    source: str = flag(names=("source",), path=True, choices=("b", ""), metavar="FROM", help="read")
    target: str | None = flag(None, names=("target",), path=True, metavar="TO", help="written")
    draw: bool = flag(True, names=("--no-sheet",), help="draw no picture")
    sheet: str | None = flag(None, path=True, help="picture")
    size: int = flag(2, at_least=1, help="pixels (%(default)s)")
    video: list[str] | None = flag(None, help="may be repeated")

    def check(self, problems: Problems) -> None:
        """Note a target that is the source."""
        if self.target == self.source:
            problems.add("TO", "is FROM")


def read(*argv: str) -> Flags:
    return parse_small(Flags, "What it does.", argv, prog="python -m small", epilog="And then.")


def test_arguments_stand_in_their_places_and_may_be_left_out():
    assert read("b") == Flags(source="b")
    assert read("b", "x", "--video", "1", "--video", "2") == Flags(source="b", target="x", video=["1", "2"])


def test_a_switch_without_positive_form_leaves_its_word_to_another_flag():
    assert read("b", "--no-sheet", "--sheet", "x.png") == Flags(source="b", draw=False, sheet="x.png")


def test_every_mistake_is_told(capsys):
    with pytest.raises(ConfigError) as caught:
        read("b", "b", "--size", "0")
    assert "--size: 0 is too small; at least 1" in str(caught.value) and "TO: is FROM" in str(caught.value)
    with pytest.raises(ConfigError, match="source: is empty") as caught:
        read("", "--sheet", "")
    assert "--sheet: is empty" in str(caught.value)
    for wrong in ([], ["c"], ["b", "--no-no-sheet"], ["b", "--size", "x"]):
        with pytest.raises(SystemExit) as stop:
            read(*wrong)
        assert stop.value.code == 2
    assert "usage: python -m small" in capsys.readouterr().err


def test_help_names_the_places(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    said = capsys.readouterr().out
    assert "FROM [TO]" in said and "pixels (2)" in said and said.index("What it does.") < said.index("And then.")
