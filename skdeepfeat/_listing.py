"""Lists that print as aligned tables, and as HTML in a notebook."""

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, SupportsIndex

GAP = "  "
RIGHT = ' style="text-align: right"'


class Field(NamedTuple):
    """One field of the items: its title, its cell of an item, how a cell is written."""

    title: str
    value: Callable[[Any], Any]  # None leaves the cell empty
    format: str = ""


class TableCell(NamedTuple):
    """What a cell shows, and whether it is a number, which is aligned to the right."""

    text: str
    number: bool


class Listing(list):
    """A list that prints as a table, with a row for each of its items.

    Parameters
    ----------
    items : iterable
        What the list holds.
    columns : sequence of Field
        What is shown of each item.

    Notes
    -----
    It is a list in all else: it equals one of the same items. Slices are tables;
    copies and pickles are plain lists.

    Examples
    --------
    >>> Listing([("ant", 6), ("centipede", 30)], [
    ...     Field("animal", lambda item: item[0]),
    ...     Field("legs", lambda item: item[1]),
    ... ])
    animal     legs
    ant           6
    centipede    30
    """

    def __init__(self, items: Iterable = (), columns: Iterable[Field] = ()):
        super().__init__(items)
        self._columns = tuple(columns)

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        found = super().__getitem__(index)
        return Listing(found, self._columns) if isinstance(index, slice) else found

    def __reduce__(self):
        return list, (list(self),)

    def __repr__(self) -> str:
        return as_text(self._titles(), self._cells())

    def _repr_html_(self) -> str:
        return as_html(self._titles(), self._cells())

    def _titles(self) -> list[str]:
        return [column.title for column in self._columns]

    def _cells(self) -> list[list[TableCell]]:
        return [[_cell(column, item) for column in self._columns] for item in self]


def _cell(column: Field, item: Any) -> TableCell:
    value = column.value(item)
    text = "" if value is None else format(value, column.format)
    return TableCell(text, isinstance(value, (int, float)))


def as_text(titles: list[str], rows: list[list[TableCell]]) -> str:
    """Titles and rows as lines of aligned columns, numbers on the right."""
    columns = list(zip(*rows, strict=True)) or [()] * len(titles)
    aligned = [_align(t, c) for t, c in zip(titles, columns, strict=True)]
    return "\n".join(GAP.join(line).rstrip() for line in zip(*aligned, strict=True))


def _align(title: str, cells: tuple[TableCell, ...]) -> list[str]:
    """The lines of one column, all of one width."""
    texts = [title, *(cell.text for cell in cells)]
    width = max(map(len, texts))
    on_the_right = any(cell.number for cell in cells)
    return [t.rjust(width) if on_the_right else t.ljust(width) for t in texts]


def as_html(titles: list[str], rows: list[list[TableCell]], caption: str = "") -> str:
    """Titles and rows as an HTML table, with all text escaped."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows)
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    first = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<table>{above}{first}<tbody>{body}</tbody></table>"


def _html_cell(cell: TableCell) -> str:
    return f"<td{RIGHT if cell.number else ''}>{html.escape(cell.text)}</td>"


def facts_as_html(caption: str, facts: Mapping[str, Any]) -> str:
    """Named facts as an HTML table; those of a mapping follow its name."""
    return as_html([], list(_fact_rows(facts)), caption)


def _fact_rows(facts: Mapping[str, Any]) -> Iterable[list[TableCell]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield [TableCell(name, False), TableCell("", False)]
            yield from _fact_rows(value)
        else:
            number = isinstance(value, (int, float))
            text = f"{value:,}" if number else str(value)
            yield [TableCell(name, False), TableCell(text, number)]
