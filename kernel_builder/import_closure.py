"""The modules that a kernel needs: its entry, whatever that imports, and so on.

Imports are read from the sources, wherever they stand; nothing is executed. Imports under `if TYPE_CHECKING` never
run, so they are left out. What `importlib.import_module` loads is not seen.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imet_ray.errors import ConfigError

FORBIDDEN = frozenset({"ray", "optuna"})  # a kernel has neither, nor a network to download them


@dataclass(frozen=True)
class Closure:
    """The modules that a kernel is made of."""

    modules: dict[str, str]  # dotted name to source, sorted
    packages: frozenset[str]  # those of them that are packages


def import_closure(entry: str, roots: Mapping[str, Path]) -> Closure:
    """Follow the imports of `entry` through our packages.

    Args:
        entry: the first module, by its dotted name.
        roots: our packages: top-level name to folder.

    Raises:
        ConfigError: if one of our modules is missing, or something imports ray or optuna.
    """
    sources: dict[str, str] = {}
    packages = set()
    waiting = [(entry, "the entry")]
    for name, importer in waiting:  # it grows
        top = name.partition(".")[0]
        if top in FORBIDDEN:
            raise ConfigError(f"a kernel must do without {top}, which {importer} imports: remove that import")
        if top not in roots or name in sources:
            continue
        path = _file(name, roots)
        if path is None:
            raise ConfigError(f"{importer} imports {name}, which is not there: correct the name")
        sources[name] = path.read_text(encoding="utf-8")
        package = name.rpartition(".")[0]
        if package:
            waiting.append((package, importer))
        if path.name == "__init__.py":
            packages.add(name)
            package = name
        for node in _imports(ast.parse(sources[name], filename=str(path))):
            if isinstance(node, ast.Import):
                waiting += [(alias.name, name) for alias in node.names]
                continue
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            waiting.append((base, name))
            submodules = [f"{base}.{alias.name}" for alias in node.names]  # or other names of the base
            waiting += [(one, name) for one in submodules if _file(one, roots)]
    return Closure(dict(sorted(sources.items())), frozenset(packages))


def _file(name: str, roots: Mapping[str, Path]) -> Path | None:
    """The file of one of our modules; a package comes before a module of the same name, as in Python."""
    top, *rest = name.split(".")
    if top in roots:
        place = roots[top].joinpath(*rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports below a node that can run, in the order of the text."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _imports(child)
