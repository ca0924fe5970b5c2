"""What a page would load, read off its HTML: it must be nothing but images inside the file."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

# elements and attributes by which a page takes in what is elsewhere, or sends something there
LOADING = {"script", "link", "iframe", "frame", "object", "embed", "base", "form", "audio", "video"}
ADDRESSES = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background")
VOID = {"meta", "img", "br", "link"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Outline(HTMLParser):
    """Collects what a page would load, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.alternatives = [], [], [], []
        self.policies = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.addresses += [attributes[name] for name in ADDRESSES if name in attributes]
        if tag == "img":
            self.alternatives.append(attributes.get("alt"))
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(attributes["content"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def outline(page):
    """Return the Outline of a page; AssertionError unless it loads nothing from elsewhere."""
    found = Outline()
    found.feed(page)
    assert not found.open
    assert found.policies == [POLICY]
    assert not LOADING & set(found.tags)
    assert not re.search(r"url\(|@import", page)
    for address in found.addresses:
        kind, _, data = address.partition(";base64,")
        assert kind in ("data:image/svg+xml", "data:image/jpeg"), address[:60]
        if kind.endswith("svg+xml"):
            _check_drawing(base64.b64decode(data, validate=True).decode())
    return found


def _check_drawing(svg):
    assert "<svg" in svg
    # parts of the drawing itself are named by #, and matrices are pictures inside it
    assert not re.search(r'url\((?!#)|@import|<script|href="(?!#|data:image/png;base64,)', svg)


def check_page(path):
    """Check a page's file and return its text."""
    page = Path(path).read_text(encoding="utf-8")
    outline(page)
    return page
