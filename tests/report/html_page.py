"""Reads a page as a browser would, and as strictly as one should."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "path"}
ADDRESSES = {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}


class Page(HTMLParser):
    """Checks nesting while it reads; collects ids, addresses, text and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.scoped = True
        self.images_are_described = True
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert len(names) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.labels += [value or "" for name, value in attrs if name == "aria-labelledby"]
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        if tag == "th":
            self.scoped &= "scope" in names
        if tag == "svg":
            self.images_are_described &= bool(names.get("aria-label")) or "aria-hidden" in names

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)
