"""Flags as fields: a settings dataclass says, once, what each flag is called, means, may be, and what it decides.

A program's settings are a dataclass of groups; a group is a dataclass of fields made by :func:`flag`, with a ``title``
for ``--help``. Functions receive the group that they need. Settings of a small program may be one group, without a
title (:func:`parse_small`). transformers' HfArgumentParser reads dataclasses, too, but
makes ``--x true`` of a switch and one list of a repeated flag, doubles every name and ends at the first mistake; so
argparse is filled here.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from utils.errors import ConfigError, Problems
from utils.paths import user_path

S = TypeVar("S")


@dataclass(frozen=True)
class Flag:
    """What a field says about its flag, beside name, type and default.

    Attributes:
        help: for ``--help``; ``%(default)s`` becomes the default.
        at_least: smallest value allowed.
        above: values must be larger than this.
        below: values must be smaller than this.
        choices: the only values allowed.
        metavar: the value's name in ``--help``.
        names: how the flag is spelled, if not ``--FIELD``. ``("FIELD",)``, the field's name, is an argument by its
            place; a switch called ``--no-X`` has no positive form.
        path: a file or folder, in which ``~`` is the home folder.
        written: a path that the program writes to; it reads the others.
        course: a run that is resumed with another value takes another course (it is warned about).
        network: part of the network that weights are of: a name of a field of the model's configuration, or True.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str | int, ...] | None = None
    metavar: str | None = None
    names: tuple[str, ...] = ()
    path: bool = False
    written: bool = False
    course: bool = True
    network: str | bool = False

    def spelling(self, name: str) -> str:
        """How the flag of the field ``name`` is written."""
        return self.names[0] if self.names else f"--{name}"

    def mistake(self, value: float) -> str | None:
        """What is wrong with a number, or None."""
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value} is no finite number"
        low, high = self.at_least, self.below
        if isinstance(value, float) and low is not None and high is not None and not low <= value < high:
            return f"{value} must be in [{low}, {high})"
        if low is not None and value < low:
            return f"{value} is too small; at least {low}"
        if high is not None and value >= high:
            return f"{value} is too large; below {high}"
        return f"{value} must be above {self.above}" if self.above is not None and value <= self.above else None


def flag(default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """A field of a group; without ``default`` the flag is required.

    Args:
        default: a list is copied for every instance.
        about: fields of :class:`Flag`.
    """
    metadata = {"flag": Flag(**about)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def flags_of(group: Any) -> Iterator[tuple[str, Flag]]:
    """(field's name, its flag) of a group or its class."""
    return ((field.name, field.metadata["flag"]) for field in dataclasses.fields(group) if "flag" in field.metadata)


def groups_of(settings: Any) -> Iterator[tuple[str, Any]]:
    """(field's name, group) of a program's settings; of their class, (field's name, the group's class)."""
    if any(flags_of(settings)):  # one group
        return iter([("", settings)])
    if isinstance(settings, type):
        kinds = typing.get_type_hints(settings)
        return ((field.name, kinds[field.name]) for field in dataclasses.fields(settings) if field.init)
    return ((field.name, getattr(settings, field.name)) for field in dataclasses.fields(settings) if field.init)


def each_flag(settings: Any) -> Iterator[tuple[str, Flag, Any]]:
    """(name, flag, value) of everything in a program's settings, whatever its group."""
    for _, group in groups_of(settings):
        yield from ((name, about, getattr(group, name)) for name, about in flags_of(group))


def values_of(settings: Any) -> dict[str, Any]:
    """Every flag's value by name: what a run notes about itself."""
    return {name: value for name, _, value in each_flag(settings)}


def inputs_of(settings: Any) -> dict[str, str | None]:
    """Flag -> value of every path that a program reads."""
    return {about.spelling(n): value for n, about, value in each_flag(settings) if about.path and not about.written}


def _add_group(parser: argparse.ArgumentParser, group: type) -> None:
    section = parser.add_argument_group(getattr(group, "title", "flags"))
    kinds = typing.get_type_hints(group)
    fields = {field.name: field for field in dataclasses.fields(group)}
    for name, about in flags_of(group):
        kind, field = kinds[name], fields[name]
        if isinstance(kind, types.UnionType):
            (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
        options: dict[str, Any] = {"dest": name, "help": about.help, "default": None}
        if field.default_factory is not dataclasses.MISSING:
            options["default"] = field.default_factory()
        elif field.default is dataclasses.MISSING:
            options["required"] = True
        else:
            options["default"] = field.default
        if kind is bool:
            off = about.spelling(name).startswith("--no-")
            options["action"] = "store_false" if off else argparse.BooleanOptionalAction
        else:
            options["metavar"] = about.metavar
            options |= {"action": "append"} if typing.get_origin(kind) is list else {
                "type": user_path if about.path else kind, "choices": about.choices
            }  # fmt: skip
        if about.names == (name,):  # argparse takes the field's name from the place
            del options["dest"]
            options["nargs"] = None if options.pop("required", False) else "?"
        section.add_argument(*(about.names or (f"--{name}",)), **options)


def make_parser(settings: type, description: str, **texts: str) -> argparse.ArgumentParser:
    """The parser of a program: ``--help`` shows the description, then every flag by group.

    Args:
        settings: its settings' class.
        description: above the flags.
        texts: ``prog``, the program's name if it is no script, and ``epilog``, below the flags.
    """
    parser = argparse.ArgumentParser(
        description=textwrap.dedent(description), formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    for _, group in groups_of(settings):
        _add_group(parser, group)
    return parser


def parse(settings: type[S], parser: argparse.ArgumentParser, headline: str, argv: Sequence[str] | None = None) -> S:
    """Settings from a command line; what is said is not checked yet, only that paths are no empty texts.

    Args:
        settings: the class that the parser was made for.
        parser: of :func:`make_parser`; its defaults may have been changed.
        headline: of the error.
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        ConfigError: naming every path that is empty.
        SystemExit: from argparse, on an unknown flag or a value of another type.
    """
    args = vars(parser.parse_args(argv))
    groups, problems = {}, Problems()
    for key, group in groups_of(settings):
        groups[key] = group(**{name: args[name] for name, _ in flags_of(group)})
        for name, about in flags_of(group):
            if about.path and args[name] == "":
                problems.add(about.spelling(name), "is empty; is a shell variable not set?")
    problems.raise_if_any(ConfigError, headline)
    return groups[""] if "" in groups else settings(**groups)


def parse_small(settings: type[S], description: str, argv: Sequence[str] | None = None, **texts: str) -> S:
    """Settings of a program whose mistakes are all in its groups.

    Args:
        settings: their class.
        description, texts: as for :func:`make_parser`.
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        ConfigError: with every mistake.
        SystemExit: as from :func:`parse`.
    """
    headline, problems = "the flags cannot be used", Problems()
    told = parse(settings, make_parser(settings, description, **texts), headline, argv)
    note_mistakes(told, problems)
    problems.raise_if_any(ConfigError, headline)
    return told


def note_mistakes(settings: Any, problems: Problems, without: Collection[str] = ()) -> None:
    """Note every number that is out of its range, and what each group's own ``check(problems)`` finds.

    Args:
        settings: a program's.
        problems: gets a line per mistake.
        without: fields of groups that are not looked at.
    """
    for key, group in groups_of(settings):
        if key in without:
            continue
        for name, about in flags_of(group):
            value = getattr(group, name)
            if type(value) in (int, float) and (mistake := about.mistake(value)):
                problems.add(about.spelling(name), mistake)
        if hasattr(group, "check"):
            group.check(problems)
