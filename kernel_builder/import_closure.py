"""The modules that a kernel needs: its entry, whatever that imports, and so on.

Imports are read from the sources, wherever they stand; nothing is executed. Imports under `if TYPE_CHECKING` never
run, so they are left out. What `importlib.import_module` loads is not seen.
"""

import ast
import importlib.util
import sys
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
    foreign: frozenset[str]  # top-level names of what else they import, without the standard library


def import_closure(entry: str, roots: Mapping[str, Path]) -> Closure:
    """Follow the imports of `entry` through our packages.

    Args:
        entry: the first module, by its dotted name.
        roots: our packages: top-level name to folder.

    Raises:
        ConfigError: if one of our modules is missing or is no Python, or if something imports ray or optuna.
    """
    walk = _Walk(roots)
    walk.follow(entry)
    return Closure(dict(sorted(walk.sources.items())), frozenset(walk.packages), frozenset(walk.foreign))


class _Walk:
    """One walk through the imports: what was found so far, and which module imported it first."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = roots
        self.sources: dict[str, str] = {}
        self.packages: set[str] = set()
        self.foreign: set[str] = set()
        self.importer: dict[str, str] = {}
        self.waiting: list[tuple[str, ast.Module]] = []

    def follow(self, entry: str) -> None:
        self._add(entry, "the entry")
        for module, tree in self.waiting:  # it grows: breadth first gives the shortest chains
            for node in _imports(tree):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        self._add(alias.name, module)
                else:
                    self._add_from(node, module)

    def _add_from(self, node: ast.ImportFrom, module: str) -> None:
        """`from base import a, b`, where a name may be a submodule."""
        package = module if module in self.packages else module.rpartition(".")[0]
        try:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        except ImportError as error:
            raise ConfigError(f"{module} has an import above its top package ({error}): correct it") from None
        self._add(base, module)
        for name in (alias.name for alias in node.names):
            if base in self.packages and self._locate(f"{base}.{name}") is not None:
                self._add(f"{base}.{name}", module)

    def _add(self, name: str, importer: str) -> None:
        """Note one imported module, with the packages that it lies in."""
        parts = name.split(".")
        if parts[0] in self.roots:
            for depth in range(1, len(parts) + 1):
                self._add_ours(".".join(parts[:depth]), importer)
        elif parts[0] in FORBIDDEN:
            chain = " -> ".join([*self._chain(importer), parts[0]])
            raise ConfigError(f"a kernel must do without {parts[0]}, but {chain}: remove that import")
        elif parts[0] not in sys.stdlib_module_names:
            self.foreign.add(parts[0])

    def _add_ours(self, name: str, importer: str) -> None:
        if name in self.sources:
            return
        path = self._locate(name)
        if path is None:
            raise ConfigError(f"{importer} imports {name}, which is not there: correct the name")
        if path.name == "__init__.py":
            self.packages.add(name)
        self.importer[name] = importer
        try:
            self.sources[name] = path.read_text(encoding="utf-8")
            self.waiting.append((name, ast.parse(self.sources[name], filename=str(path))))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        except (SyntaxError, ValueError) as error:  # ValueError: not UTF-8, or on some versions a null byte
            raise ConfigError(f"{path} is no Python in UTF-8 ({error}): correct it") from None

    def _chain(self, module: str) -> list[str]:
        """The modules from the entry to this one, each importing the next."""
        chain = [module]
        while chain[0] in self.importer:
            chain.insert(0, self.importer[chain[0]])
        return chain[1:]  # the first is no module: who imports the entry

    def _locate(self, name: str) -> Path | None:
        """The file of one of our modules; a package comes before a module of the same name, as in Python."""
        top, *rest = name.split(".")
        place = self.roots[top].joinpath(*rest)
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
