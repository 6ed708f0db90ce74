"""A page, taken apart for the tests."""

from __future__ import annotations

from html.parser import HTMLParser

LOADING = ("src", "srcset", "href", "data", "action", "background", "poster")


class Page(HTMLParser):
    """Attributes that load something, the text of every element, and the rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.cells: list[list[str]] = []
        self.text: list[str] = []
        self.verdict = ""
        self._inside: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.loads += [
            values[n] for n in ("src", "srcset", "href", "data", "action") if n in values
        ]
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")
        if tag not in ("meta", "img", "source"):
            self._inside.append((tag, values.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        tag, name = self._inside[-1] if self._inside else ("", "")
        if tag in ("th", "td"):
            self.cells[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")
        if name.startswith("verdict"):
            self.verdict += data
        if tag != "style":
            self.text.append(data)

    def row(self, name: str) -> list[str]:
        """The first table row with this name."""
        return next(row for row in self.cells if row[0] == name)
