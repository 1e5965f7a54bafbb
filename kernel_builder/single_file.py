"""The kernel's text: one Python file with its manifest, its sources, and a loader that imports them from memory.

The file has a docstring for people, a check that it is whole, the loader, and the content compressed (zlib, base85). It
depends on what is packed and on nothing else, so the same input gives the same bytes.
"""

import base64
import hashlib
import json
import zlib
from typing import Any

from kernel_builder.import_closure import Closure

WIDTH = 100  # characters per line: editors and diffs choke on one line of 100,000

# Python runs what is left of a file that was cut off between two statements, without an error.
END = "# the end of the kernel"
CHECK = f'''
try:
    with open(__file__, encoding="utf-8") as _file:
        if not _file.read().rstrip().endswith("{END}"):
            raise SystemExit("error: kernel.py was cut off: build it again")
except (NameError, OSError):  # run from memory
    pass
'''

# The modules of this file come before installed ones, and those already imported leave sys.modules: a notebook may run
# two kernels in one process. A notebook takes even sys.exit(0) for an error. Before Python 3.13 the interpreter's own
# traceback shows only lines of files on disk, hence the excepthook.
LOADER = '''
import base64
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import traceback
import zlib


class _KernelImporter(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Imports the modules of this file from memory."""

    def __init__(self, modules, packages):
        self.modules = modules
        self.packages = set(packages)

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        place, package = self.get_filename(name), self.is_package(name)
        spec = importlib.machinery.ModuleSpec(name, self, origin=place, is_package=package)
        spec.has_location = True  # sets __file__
        return spec

    def is_package(self, name):
        return name in self.packages

    def get_filename(self, name):
        return "<kernel>/" + name.replace(".", "/") + ("/__init__.py" if name in self.packages else ".py")

    def get_source(self, name):
        return self.modules[name]


def _install(importer):
    """Put our modules before installed ones of the same name."""
    ours = {name.partition(".")[0] for name in importer.modules}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    sys.meta_path[:] = [one for one in sys.meta_path if type(one).__name__ != "_KernelImporter"]
    sys.meta_path.insert(0, importer)


def _start(digest, packed):
    """Install the modules of this file, and run it if it is the program and not one of its loader processes."""
    try:
        data = zlib.decompress(base64.b85decode("".join(packed.split())))
    except (ValueError, zlib.error):
        data = b""
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit("error: kernel.py was altered or cut off: build it again")
    content = json.loads(data)
    _install(_KernelImporter(content["modules"], content["packages"]))
    if __name__ != "__main__":
        return
    sys.excepthook = traceback.print_exception  # shows lines from memory
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    try:
        main = importlib.import_module(content["entry"]).main
    except ModuleNotFoundError as error:
        sys.exit(f"error: this machine lacks the package {error.name}, which the kernel needs: install it")
    status = main(content["manifest"])
    if "ipykernel" not in sys.modules:  # an exit that hangs would cost the submission
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # nobody listens
                pass
        os._exit(status or 0)
    if status:
        sys.exit(status)


'''


def kernel_text(closure: Closure, manifest: dict[str, Any], *, entry: str, header: str) -> str:
    """The kernel's text.

    Args:
        closure: the modules to pack.
        manifest: what `entry` is run with; anything that JSON can hold.
        entry: one of the modules; its `main(manifest)` gives the exit code.
        header: what a reader should know; a line about the content is added.
    """
    assert entry in closure.modules
    content = {
        "entry": entry,
        "manifest": manifest,
        "modules": closure.modules,
        "packages": sorted(closure.packages),
    }
    data = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    docstring = (
        f"{header.strip()}\n\nEntry: {entry}\n"
        f"Packed: {len(closure.modules)} modules, {len(data):,} bytes, sha256 {digest}\n"
    )
    packed = base64.b85encode(zlib.compress(data, 9)).decode()  # base85 has neither quotes nor backslashes
    lines = "\n".join(packed[start : start + WIDTH] for start in range(0, len(packed), WIDTH))
    # A file that was cut off in the content is no Python.
    return f'"""{_escaped(docstring)}"""\n{CHECK}{LOADER}_start({digest!r}, """\n{lines}\n""")\n{END}\n'


def _escaped(text: str) -> str:
    """The text as it may stand between triple quotes: quotes and unprintable characters are escaped."""
    plain = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in plain
    )
