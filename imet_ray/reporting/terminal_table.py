"""Tables for terminals of any width: words and numbers stay whole, only names are folded."""

import textwrap
from collections.abc import Container, Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

NAME = 20  # columns that a name gets at least
GAP = 2  # between columns


def terminal_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    texts: int,
    title: str | None = None,
    dim: Container[int] = (),
) -> RenderableType:
    """The rows as a table, or below each other where the terminal is too narrow for one.

    Args:
        rows: their first cells are names.
        width: of the terminal, in columns.
        texts: how many columns, from the left, are no numbers.
        dim: rows that matter less.
    """
    by_column = list(zip(columns, *rows, strict=True))
    least = [max(map(len, " ".join(cells).split())) for cells in by_column]
    least[0] = min(NAME, least[0])
    styles = ["dim" if i in dim else "" for i in range(len(rows))]
    room = width - GAP * (len(columns) - 1)
    if sum(least) > room:
        blocks = [_block(columns, row, width, style) for row, style in zip(rows, styles, strict=True)]
        return Group(*([title] if title else []), *blocks)
    widths = [max(map(len, cells)) for cells in by_column]
    while sum(widths) > room:  # Rich's own way would go below the least
        widths[max(range(len(widths)), key=lambda i: widths[i] - least[i])] -= 1
    table = Table(title=title, box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        justify: JustifyMethod = "left" if i < texts else "right"
        table.add_column(column, justify=justify, width=widths[i], overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*row, style=style)
    return table


def _block(columns: Sequence[str], row: Sequence[str], width: int, style: str) -> Text:
    """One row: its name, and a line for each other cell."""
    named = [f"  {column}: {cell}" for column, cell in zip(columns[1:], row[1:], strict=True) if cell]
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    lines = [line for text in (row[0], *named) for line in wrapper.wrap(text)]
    return Text("\n".join(lines), style=style, no_wrap=True, overflow="ignore")
