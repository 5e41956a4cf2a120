"""Which source files a result depends on: those that a module imports, and what they import, within the project."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from pathlib import Path

_DOTTED = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)+")

ROOT = Path(__file__).resolve().parent.parent


def source_files(module: str, root: Path = ROOT) -> list[Path]:
    """The module's file and those of all project modules that it imports, directly or not, sorted.

    Late imports count, too, those by a name in quotes among them, and so do the packages on the way. All is read from
    the source, so nothing has to be listed.

    Args:
        module: dotted name; one that lies outside the project counts if it is loaded.
        root: folder in which the project's packages lie.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    elsewhere = getattr(sys.modules.get(module), "__file__", None)
    if _file_of(module, root) is None and elsewhere is not None:  # a benchmark of somebody's own
        found[module] = Path(elsewhere)
        waiting = _imports(found[module])
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imports(path)]
    return sorted(found.values())


def sources_digest(module: str, root: Path = ROOT) -> str:
    """Digest of the bytes of :func:`source_files`."""
    contents = (path.read_bytes() for path in source_files(module, root))
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def _file_of(name: str, root: Path) -> Path | None:
    """Where a project module lies; None for other modules."""
    base = root.joinpath(*name.split("."))
    candidates = (base.with_name(f"{base.name}.py"), base / "__init__.py") if name else ()
    return next((path for path in candidates if path.is_file()), None)


def _imports(path: Path) -> list[str]:
    """Names of what a file imports; of ``from a import b`` both "a" and "a.b", which may be a module."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            names.append(node.value)  # what importlib may be asked for
    return names
