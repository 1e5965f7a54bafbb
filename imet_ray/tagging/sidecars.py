"""XMP sidecars: labels as keywords (dc:subject) in a small file beside a picture, which itself is never touched.

A sidecar that is there keeps all that it has, as it has it. Beside the keywords stand, in a namespace of our own, which
of them are ours and what made them: another ensemble's labels take the place of ours, and of nobody else's.
"""

import errno
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.dom import Node, minidom
from xml.parsers import expat

from imet_ray.errors import DataError, StoreError
from imet_ray.storage.files import writing

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
OURS = "urn:imet-ray:tags:1/"
XMLNS = "http://www.w3.org/2000/xmlns/"
PREFIXES = {RDF: "rdf", DC: "dc", OURS: "imetray"}
CONTAINERS = ("Bag", "Seq", "Alt")
LARGEST = 1 << 26  # bytes: what has more is no sidecar
DEEPEST = 200  # elements in one another; Python's own parser recurses
HIDDEN = {ord("\n"): "\x01", ord("\t"): "\x02", ord("\r"): "\x03"}  # by what no XML has in it
OF_ONE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)  # why one cannot be written, and others may
EMPTY = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta>'
)


class Sidecars:
    """The sidecars of pictures."""

    def __init__(self, prefix: str = "") -> None:
        """
        Args:
            prefix: stands before each label that is written.
        """
        self.prefix = prefix
        self._stems = functools.cache(_stems)  # as folders were when they were first looked at

    def path_of(self, picture: Path) -> Path:
        """`a.jpg.xmp`, as darktable and digiKam have it; or Adobe's `a.xmp`, if it alone is there and of no other.

        Raises:
            DataError: if that cannot be looked at, as where the name is too long.
        """
        own, adobe = picture.with_name(f"{picture.name}.xmp"), picture.with_suffix(".xmp")
        try:
            if not own.exists() and adobe.exists() and self._stems(picture.parent)[picture.stem] == 1:
                return adobe
        except OSError as error:
            raise DataError(f"{own}: cannot be read: {error.strerror or error}") from None
        return own

    def tagged_by(self, picture: Path) -> str | None:
        """What made the labels that are there; None: nothing of ours did.

        Raises:
            DataError: if there is a sidecar that is none.
        """
        path = self.path_of(picture)
        if not path.exists():
            return None
        for one in _descriptions(_read(path), path):
            if one.hasAttributeNS(OURS, "TaggedBy"):
                return one.getAttributeNS(OURS, "TaggedBy")
        return None

    def write(self, picture: Path, labels: Sequence[str], tagged_by: str) -> None:
        """Put labels into the picture's sidecar, in place of those that we put there before.

        Raises:
            DataError: if there is a sidecar that cannot be understood, or none can be put there; what is there stays.
            StoreError: if none can be written at all, as on a full disk.
        """
        path = self.path_of(picture)
        document = _read(path) if path.exists() else minidom.parseString(EMPTY)
        descriptions = _descriptions(document, path)
        ours = {word for one in descriptions for word in _words(_child(one, OURS, "Labels"))}
        home = next((one for one in descriptions if _has_subject(one)), descriptions[0])
        if (subject := _child(home, DC, "subject")) is not None and not _is_list_or_text(subject):
            raise DataError(f"{path}: its dc:subject is neither a list nor a text, and left alone")
        bag = _bag(home, DC, "subject")
        wanted = [_printable(self.prefix + label) for label in labels]
        for item in _items(bag):
            if (word := _text(item)) in ours and word not in wanted:
                bag.removeChild(item)
        there = set(_words_of(bag))
        added = [word for word in dict.fromkeys(wanted) if word not in there]
        for word in added:
            _add(bag, word)
        kept = [word for word in dict.fromkeys(wanted) if word in ours and word in there]
        for one in descriptions:
            if one is not home and one.hasAttributeNS(OURS, "TaggedBy"):
                one.removeAttributeNS(OURS, "TaggedBy")
            if (old := _child(one, OURS, "Labels")) is not None:
                one.removeChild(old)
        mine = _bag(home, OURS, "Labels")
        for word in (*kept, *added):
            _add(mine, word)
        home.setAttributeNS(OURS, f"{_prefix(home, OURS)}:TaggedBy", tagged_by)
        _write(path, document)


def _stems(folder: Path) -> Counter[str]:
    """How many files of a folder have a stem, sidecars left out."""
    return Counter(Path(name).stem for name in os.listdir(folder) if not name.lower().endswith(".xmp"))  # noqa: PTH208


def _read(path: Path) -> minidom.Document:
    """A sidecar. What could make a parser read other files, or grow without end, is refused.

    Raises:
        DataError: naming it, if it is no sidecar.
    """

    def refuse(*what: object) -> None:
        raise DataError(f"{path}: it has a document type, which no sidecar needs: it is not read")

    def opened(name: str, attributes: object) -> None:
        levels.append(name)
        if len(levels) > DEEPEST:
            raise DataError(f"{path}: its elements are nested more than {DEEPEST} deep, as in no sidecar")

    levels: list[str] = []
    try:
        if not path.is_file():  # a pipe could be read for ever
            raise DataError(f"{path}: it is no file")
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are too many for a sidecar")
        data = path.read_bytes()
        first = expat.ParserCreate()
        first.StartDoctypeDeclHandler = refuse
        first.StartElementHandler, first.EndElementHandler = opened, lambda name: levels.pop()
        first.Parse(data, True)
        return minidom.parseString(data)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"{path}: no XML: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _write(path: Path, document: minidom.Document) -> None:
    _hide_breaks(document)
    data = document.toxml(encoding="utf-8")
    for code, hidden in HIDDEN.items():
        data = data.replace(hidden.encode(), f"&#{code};".encode())
    path = path.resolve()  # a link stays one
    mode = path.stat().st_mode & 0o7777 if path.exists() else None
    if mode is not None and not mode & 0o222:
        raise DataError(f"{path}: it is read-only, and left alone")
    try:
        with writing(path) as temporary:
            temporary.write_bytes(data)
            if mode is not None:
                temporary.chmod(mode)
    except StoreError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in OF_ONE:
            raise DataError(str(error)) from error
        raise


def _hide_breaks(parent: minidom.Document | minidom.Element) -> None:
    """What a parser would make spaces or line feeds of is written as numbers, as it was."""
    for node in parent.childNodes:
        if isinstance(node, minidom.Element):
            for attribute in node.attributes.values():
                attribute.value = attribute.value.translate(HIDDEN)
            _hide_breaks(node)
        elif isinstance(node, minidom.Text):
            node.data = node.data.replace("\r", HIDDEN[ord("\r")])


def _descriptions(document: minidom.Document, path: Path) -> list[minidom.Element]:
    """The rdf:Description elements of the picture, of which there is one at least."""
    found = document.getElementsByTagNameNS(RDF, "RDF")
    if not found:
        raise DataError(f"{path}: no XMP: it has no rdf:RDF")
    root = found[0]
    tops = [one for one in _elements(root) if (one.namespaceURI, one.localName) == (RDF, "Description")]
    if not tops:
        made = document.createElementNS(RDF, f"{root.prefix or 'rdf'}:Description")
        made.setAttributeNS(RDF, f"{root.prefix or 'rdf'}:about", "")
        root.appendChild(made)
        tops = [made]
    return tops


def _is_list_or_text(whole: minidom.Element) -> bool:
    """RDF has other ways to say a value."""
    lists = (one.namespaceURI == RDF and one.localName in CONTAINERS for one in _elements(whole))
    return all(lists) and all(one.namespaceURI != RDF for one in whole.attributes.values())


def _bag(home: minidom.Element, space: str, name: str) -> minidom.Element:
    """The list of a property, which is made where there is none; a plain value becomes its first item."""
    document, rdf = home.ownerDocument, _prefix(home, RDF)
    assert document is not None
    plain = []
    if home.hasAttributeNS(space, name):
        plain.append(home.getAttributeNS(space, name))
        home.removeAttributeNS(space, name)
    whole = _child(home, space, name)
    if whole is None:
        whole = document.createElementNS(space, f"{_prefix(home, space)}:{name}")
        home.appendChild(whole)
    for one in _elements(whole):
        if one.namespaceURI == RDF and one.localName in CONTAINERS:
            bag = one
            break
    else:
        if text := _text(whole).strip():
            plain.append(text)
        for node in list(whole.childNodes):
            whole.removeChild(node)
        bag = whole.appendChild(document.createElementNS(RDF, f"{rdf}:Bag"))
    for word in plain:
        _add(bag, word)
    return bag


def _add(bag: minidom.Element, word: str) -> None:
    document = bag.ownerDocument
    assert document is not None
    item = document.createElementNS(RDF, f"{bag.prefix}:li" if bag.prefix else "li")
    item.appendChild(document.createTextNode(word))
    bag.appendChild(item)


def _prefix(element: minidom.Element, space: str) -> str:
    """The prefix of a namespace here; it is declared on the element where it has none."""
    node: Node | None = element
    hidden = set()
    while isinstance(node, minidom.Element):
        for attribute in node.attributes.values():
            if (
                attribute.namespaceURI == XMLNS
                and attribute.prefix == "xmlns"
                and attribute.localName not in hidden
            ):
                if attribute.value == space:
                    return str(attribute.localName)
                hidden.add(str(attribute.localName))
        node = node.parentNode
    prefix = PREFIXES[space]
    while prefix in hidden:
        prefix += "_"
    element.setAttributeNS(XMLNS, f"xmlns:{prefix}", space)
    return prefix


def _has_subject(one: minidom.Element) -> bool:
    return one.hasAttributeNS(DC, "subject") or _child(one, DC, "subject") is not None


def _elements(parent: minidom.Element) -> list[minidom.Element]:
    return [node for node in parent.childNodes if isinstance(node, minidom.Element)]


def _child(parent: minidom.Element, space: str, name: str) -> minidom.Element | None:
    found = (one for one in _elements(parent) if (one.namespaceURI, one.localName) == (space, name))
    return next(found, None)


def _items(bag: minidom.Element) -> list[minidom.Element]:
    return [one for one in _elements(bag) if (one.namespaceURI, one.localName) == (RDF, "li")]


def _words_of(bag: minidom.Element) -> list[str]:
    return [_text(item) for item in _items(bag)]


def _words(whole: minidom.Element | None) -> list[str]:
    """The items of a property's list."""
    return [] if whole is None else [word for bag in _elements(whole) for word in _words_of(bag)]


def _text(element: minidom.Element) -> str:
    texts = (Node.TEXT_NODE, Node.CDATA_SECTION_NODE)
    return "".join(node.data for node in element.childNodes if node.nodeType in texts)  # type: ignore[union-attr]


def _printable(text: str) -> str:
    """Without what XML 1.0 cannot say."""
    return "".join(c for c in text if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff")
