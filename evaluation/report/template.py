"""The report page's templates: every text in them is escaped unless it is marked as safe here."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ASSETS = Path(__file__).with_name("assets")


def render(template: str, **values: object) -> str:
    """Fill a template of the folder ``assets``.

    Raises:
        jinja2.UndefinedError: it asks for a value that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counted": lambda count, noun: f"{count} {noun}" if count == 1 else f"{count} {noun}s",
        "figure": _figure,
        "flat": _flat,
        "mean": lambda cell, form="": "–" if cell is None else _figure(cell["mean"], form),
        "source_hash": lambda source: f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}",
        "spread": _spread,
        "words": lambda name: name.replace("_", "-"),
    }
    return environment.get_template(template).render(values)


def sources(*names: str) -> Markup:
    """Scripts or styles of the folder ``assets``, joined."""
    return Markup("\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names))


def _figure(value: float, form: str = "") -> str:
    """Three decimals; with their sign ("+"); as a percentage ("%")."""
    text = f"{value:.0%}" if form == "%" else f"{value:{form}.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _spread(cell: dict | None, form: str = "") -> str:
    """The interval; the standard error where there is none; nothing with a single video."""
    if cell is None:
        return ""
    if cell["low"] is not None:
        return f"{_figure(cell['low'], form)} {'to' if form == '+' else '–'} {_figure(cell['high'], form)}"
    return "" if cell["stderr"] is None else f"± {_figure(cell['stderr'], form.strip('+'))}"


def _flat(pairs: Iterable[tuple[str, object]]) -> Iterable[tuple[str, object]]:
    """Names and values with nested values under dotted names; None is left out."""
    for name, value in pairs:
        if isinstance(value, dict):
            yield from _flat((f"{name}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif value is not None:
            yield name, value
