"""What the rules of the house are measured with: who imports whom, what is private, and how long everything is."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import grimp
import networkx
from vulture import Vulture

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("utils", "datasets", "model", "evaluation", "training")
NOT_PRODUCT = ("tests", "benchmarks", "scripts")
_DOTTED = re.compile(r"([a-z_]\w*(?:\.[a-z_]\w*)+)(?::(\w+))?")


@cache
def product_files() -> tuple[Path, ...]:
    """Every Python file of the checkout that is no test."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return tuple(ROOT / name for name in sorted(listed) if not name.startswith("tests/") and (ROOT / name).is_file())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def module_name(path: Path) -> str:
    """Dotted name of a file of the checkout."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def file_of(module: str) -> Path | None:
    """Where a module of the project lies; None for other modules."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names taken from it) of every import statement of a file, late and type-checking ones included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, tuple(alias.name for alias in node.names)


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or not."""
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    arrows = networkx.DiGraph((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))
    return sorted(sorted(group) for group in networkx.strongly_connected_components(arrows) if len(group) > 1)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses() -> list[str]:
    """ "file: module._name" for every private name that one module takes from another."""
    found = set()
    for path in product_files():
        modules = {}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module and file_of(node.module):
                for alias in node.names:
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    if _is_private(alias.name):
                        found.add(f"{path.relative_to(ROOT)}: {node.module}.{alias.name}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                if module and file_of(module):
                    found.add(f"{path.relative_to(ROOT)}: {module}.{node.attr}")
    return sorted(found)


def sub_folders() -> dict[str, Path]:
    """Packages inside a room, by dotted name."""
    packages = (path.parent for path in product_files() if path.name == "__init__.py")
    return {module_name(folder): folder for folder in packages if len(folder.relative_to(ROOT).parts) > 1}


def past_the_face() -> list[str]:
    """ "file: module" where a sub-folder's module is imported from outside, or its face from inside."""
    found = set()
    for path in product_files():
        for module, names in imported(path):
            for package, folder in sub_folders().items():
                inside = folder in path.parents
                targets = [module, *(f"{module}.{name}" for name in names if file_of(f"{module}.{name}"))]
                reached = [target for target in targets if target.startswith(f"{package}.") and file_of(target)]
                if not inside and reached:
                    found.update(f"{path.relative_to(ROOT)}: {target}" for target in reached)
                if inside and module == package and path.name != "__init__.py":
                    if any(not file_of(f"{module}.{name}") for name in names):
                        found.add(f"{path.relative_to(ROOT)}: {module} (its own face)")
    return sorted(found)


def modules_per_folder() -> dict[str, int]:
    """Number of modules of every product folder; ``__init__.py`` is the folder itself."""
    counts: dict[str, int] = {}
    for path in product_files():
        folder = path.parent.relative_to(ROOT)
        if folder.parts and folder.parts[0] not in NOT_PRODUCT and path.name != "__init__.py":
            counts[str(folder)] = counts.get(str(folder), 0) + 1
    return counts


def unused_definitions() -> list[str]:
    """ "file: name" of every definition of a room that no product file uses."""
    scanner = Vulture()
    scanner.scavenge([str(path) for path in product_files()])
    opened = {quoted[2] for path in product_files() for quoted in quoted_names(path) if quoted[2]}
    items = [item for item in scanner.get_unused_code(min_confidence=60) if item.name not in opened]
    named = {f"{Path(item.filename).relative_to(ROOT)}: {item.name}" for item in items}
    return sorted(name for name in named if not name.startswith(NOT_PRODUCT))


def quoted_names(path: Path) -> Iterator[re.Match]:
    """What stands in quotes in a file and may name a module, "a.b", or something in it, "a.b:c"."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if quoted := _DOTTED.fullmatch(node.value):
                yield quoted


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    lines -= set(range(first.lineno, first.end_lineno + 1))
    return len(lines)


def closure(starts: Iterable[str], leaves: Iterable[str] = ()) -> list[Path]:
    """Files that some modules import, directly or not, and the modules that they open by a name in quotes.

    Args:
        starts: dotted names.
        leaves: modules and packages that are opened by name only when asked for, and are left out.
    """
    left_out = tuple(f"{leaf}." for leaf in leaves)
    found: dict[str, Path] = {}
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None or name in found or f"{name}.".startswith(left_out):
            continue
        found[name] = path
        waiting.append(name.rpartition(".")[0])
        for module, names in imported(path):
            waiting += [module, *(f"{module}.{each}" for each in names)]
        for quoted in quoted_names(path):
            waiting += [quoted[1], quoted[1].rpartition(".")[0]]
    return sorted(set(found.values()))


def leaf_files(leaves: Iterable[str]) -> list[Path]:
    """Files of modules and packages."""
    starts = tuple(f"{leaf}." for leaf in leaves)
    return [path for path in product_files() if f"{module_name(path)}.".startswith(starts)]


def table(starts: Iterable[str], leaves: Iterable[str] = ()) -> str:
    """Code lines and files of every folder on the path of ``starts``, and those of the leaves apart."""
    groups: dict[str, list[int]] = {}
    for path in closure(starts, leaves):
        groups.setdefault(str(path.parent.relative_to(ROOT)), []).append(code_lines(path))
    rows = [*sorted(groups.items()), ("together", [count for counts in groups.values() for count in counts])]
    rows += [(f"leaf {leaf}", list(map(code_lines, leaf_files([leaf])))) for leaf in leaves]
    return "\n".join(f"{name:40} {sum(counts):6} {len(counts):4}" for name, counts in rows)
