"""Which of our modules a kernel needs: whatever its entry imports, and what that imports in turn.

Imports are read from the sources, wherever they stand; nothing is executed. Those under `if TYPE_CHECKING` never
run, so they are left out, and so is what `importlib.import_module` loads by a name made at run time.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imet_ray.errors import ConfigError

FORBIDDEN = frozenset({"ray", "optuna"})  # a kernel has neither, nor a network to fetch them


@dataclass(frozen=True)
class Closure:
    """The modules that a kernel is made of."""

    modules: dict[str, bytes]  # dotted name to source, sorted
    packages: frozenset[str]  # those of them that are packages
    foreign: frozenset[str]  # top-level names of what else they import; the standard library left out


def import_closure(entry: str, roots: Mapping[str, Path]) -> Closure:
    """Follow the imports of `entry` through our packages.

    Args:
        entry: the module to begin at, by its dotted name.
        roots: our packages: top-level name to folder.

    Raises:
        ConfigError: if one of our modules is missing or is no Python, or if something imports ray or optuna.
    """
    walk = _Walk(roots)
    walk.follow(entry)
    names = sorted(walk.sources)
    return Closure(
        {name: walk.sources[name] for name in names}, frozenset(walk.packages), frozenset(walk.foreign)
    )


class _Walk:
    """One walk through the imports: what was found so far, and who asked for it first."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = roots
        self.sources: dict[str, bytes] = {}
        self.trees: dict[str, ast.Module] = {}
        self.packages: set[str] = set()
        self.foreign: set[str] = set()
        self.importer: dict[str, str] = {}  # module to the one that it was first met in
        self.waiting: list[str] = []

    def follow(self, entry: str) -> None:
        self._add(entry, None)
        done = 0
        while done < len(self.waiting):  # in width, so that the chains told are the shortest
            module = self.waiting[done]
            done += 1
            for node in _imports(self.trees[module]):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        self._add(alias.name, module)
                else:
                    self._add_from(node, module)

    def _add_from(self, node: ast.ImportFrom, module: str) -> None:
        """`from base import a, b`, where a name may be a submodule."""
        base = self._base(node, module)
        self._add(base, module)
        if base not in self.packages:
            return
        for name in (alias.name for alias in node.names):
            if name == "*":
                raise ConfigError(f"{module} imports everything from package {base}: name what it needs")
            if self._locate(f"{base}.{name}") is not None:
                self._add(f"{base}.{name}", module)
            elif name not in _bound(self.trees[base]):
                raise ConfigError(
                    f"{module} imports {name} from {base}, which has no such name or module: correct it"
                )

    def _base(self, node: ast.ImportFrom, module: str) -> str:
        """The absolute name of what stands between `from` and `import`."""
        if node.level == 0:
            assert node.module is not None
            return node.module
        parts = module.split(".")
        up = node.level - (module in self.packages)  # a package's own first dot is itself
        if up >= len(parts):
            raise ConfigError(
                f"{module} imports from {'.' * node.level}, above its top package: name it in full"
            )
        return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])

    def _add(self, name: str, importer: str | None) -> None:
        """Note one imported module, with the packages that it lies in."""
        top = name.partition(".")[0]
        if top not in self.roots:
            self._add_foreign(top, importer)
            return
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            self._add_ours(".".join(parts[:depth]), importer)

    def _add_foreign(self, top: str, importer: str | None) -> None:
        if importer is None:
            raise ConfigError(
                f"the entry lies in {top}, which is none of {', '.join(sorted(self.roots))}: choose one"
            )
        if top in FORBIDDEN:
            chain = " -> ".join([*self._chain(importer), top])
            raise ConfigError(f"a kernel must do without {top}, but {chain}: take that import out")
        if top not in sys.stdlib_module_names:
            self.foreign.add(top)

    def _add_ours(self, name: str, importer: str | None) -> None:
        if name in self.sources:
            return
        path = self._locate(name)
        if path is None:
            place = self._path(name)
            needs = f"{importer} imports {name}" if importer else f"the entry needs {name}"
            raise ConfigError(
                f"{needs}, but there is neither {place}.py nor {place}/__init__.py: correct the name"
            )
        if path.name == "__init__.py":
            self.packages.add(name)
        if importer is not None:
            self.importer[name] = importer
        self.sources[name], self.trees[name] = _read(path)
        self.waiting.append(name)

    def _chain(self, module: str) -> list[str]:
        """The modules from the entry to this one, each importing the next."""
        chain = [module]
        while chain[0] in self.importer:
            chain.insert(0, self.importer[chain[0]])
        return chain

    def _path(self, name: str) -> Path:
        top, *rest = name.split(".")
        return self.roots[top].joinpath(*rest)

    def _locate(self, name: str) -> Path | None:
        """The file of one of our modules; a package comes before a module of the same name, as in Python."""
        place = self._path(name)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
        return None


def _read(path: Path) -> tuple[bytes, ast.Module]:
    try:
        source = path.read_bytes()
        return source, ast.parse(source, filename=str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except SyntaxError as error:
        raise ConfigError(f"{path} line {error.lineno} is no Python ({error.msg}): correct it") from None
    except ValueError as error:  # a null byte, on some versions
        raise ConfigError(f"{path} is no Python ({error}): correct it") from None


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports below a node that can run, in the order of the text."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    inside = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        inside = iter(node.orelse)
    for child in inside:
        yield from _imports(child)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _bound(tree: ast.Module) -> set[str]:
    """Names that a package's own source may bind, at any depth: only a name that stands nowhere is a mistake."""
    names = {"__doc__", "__file__", "__name__", "__package__", "__path__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return names
