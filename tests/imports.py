"""The map of imports, read from the source: `python tests/imports.py [CHECKOUT]` prints it.

Imports by name count, and so do `import_module` calls, whatever their string is put together from.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "imet_ray"
# From the ground up. Folders of one row know nothing of each other.
ROWS = (
    (PACKAGE,),  # the modules that lie in the package itself
    ("storage",),
    ("data", "models"),
    ("prediction",),
    ("training", "reporting", "tagging"),
    ("blending", "serving"),
    ("cluster",),
    ("commands",),
    ("cli",),
)
RANK = {folder: rank for rank, row in enumerate(ROWS) for folder in row}


def modules(root: Path) -> dict[str, Path]:
    """All modules of the package by their dotted names; a folder's is its `__init__.py`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def folder(module: str) -> str:
    """The row's folder that a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else PACKAGE


def imports(root: Path) -> dict[str, set[str]]:
    """What each module imports of the package, wherever in its code. But for the front door, `imet_ray.load`."""
    known = modules(root)
    return {
        module: set(_imported(ast.parse(path.read_text(encoding="utf-8")), known)) - {module}
        if module != PACKAGE
        else set()
        for module, path in known.items()
    }


def _imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [name for name in (whole, node.module) if name in known][:1]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            text = "".join(
                part.value
                for argument in node.args[:1]
                for part in ast.walk(argument)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            if text in known:
                yield text


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports of a folder that lies higher, or beside."""
    return [
        (module, target)
        for module, targets in graph.items()
        for target in sorted(targets)
        if RANK[folder(target)] >= RANK[folder(module)] and folder(target) != folder(module)
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches itself through the others."""
    reach = {module: _reached(graph, module) for module in graph}
    found = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in graph
        if module in reach[module]
    }
    return [list(circle) for circle in sorted(found)]


def _reached(graph: dict[str, set[str]], module: str) -> set[str]:
    found: set[str] = set()
    wanted = set(graph[module])
    while wanted:
        target = wanted.pop()
        found.add(target)
        wanted |= graph.get(target, set()) - found
    return found


def main(root: Path) -> None:
    """Print folders with their lines, arrows between them, and what runs the wrong way."""
    graph, paths = imports(root), modules(root)
    lines = Counter({name: 0 for row in ROWS for name in row})
    files = Counter(lines)
    for module, path in paths.items():
        lines[folder(module)] += len(path.read_text(encoding="utf-8").splitlines())
        files[folder(module)] += 1
    arrows = Counter((folder(module), folder(t)) for module, targets in graph.items() for t in targets)
    for row in reversed(ROWS):
        for name in row:
            below = ", ".join(
                f"{target} {arrows[name, target]}"
                for target in sorted(RANK, key=RANK.__getitem__, reverse=True)
                if arrows[name, target] and target != name
            )
            print(f"{name:<12}{files[name]:>4} files{lines[name]:>7} lines   imports {below or 'nothing'}")
    print(f"lines {sum(lines.values())}, imports {sum(arrows.values())}")
    print(f"upward {len(upward(graph))}: {upward(graph)}")
    print(f"circles {len(circles(graph))}: {circles(graph)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
