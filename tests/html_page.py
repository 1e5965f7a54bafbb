"""A page taken apart, for tests of what stands on it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page taken apart: elements, what they load, their texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.rows: list[list[str]] = []  # of tables, the text of their cells
        self.captions: list[str] = []
        self.explanations: list[str] = []  # the first paragraph after each heading
        self._open: list[str] = []
        self.spans: list[tuple[str | None, str]] = []  # class and text
        self._class: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.elements.append(tag)
        self._open = [*self._open, tag]
        if tag in ("h2", "h3"):
            self.headings.append("")
            self.explanations.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "figcaption":
            self.captions.append("")
        self.loaded += [found[key] for key in ("src", "href", "srcset", "data") if key in found]
        self._class = found.get("class") if tag == "span" else None
        if tag == "span":
            self.spans.append((self._class, ""))

    def handle_endtag(self, tag):
        self._class = None
        if tag in self._open:  # some elements, such as pictures, have no end
            self._open = self._open[: len(self._open) - 1 - self._open[::-1].index(tag)]

    def handle_data(self, data):
        self.text += data
        for tags, texts in (
            (("h2", "h3"), self.headings),
            (("td", "th"), self.rows[-1] if self.rows else []),
            (("figcaption",), self.captions),
        ):
            if set(tags) & set(self._open):
                texts[-1] += data
        if self.explanations and self._open[-1:] == ["p"]:
            self.explanations[-1] += data
        if self._class is not None:
            self.spans[-1] = (self._class, self.spans[-1][1] + data)
