"""Keeps the site readable without a network: nothing on it may be loaded from elsewhere.

A hook of MkDocs, named in ``mkdocs.yml``. A reader on a cluster has no internet, so a script, a
style sheet, a font or a picture from another host is a warning, and so an error of the build.
Links that a reader may follow are left alone.
"""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_log = logging.getLogger("mkdocs.hooks.self_contained")

_LOADED = {
    "audio", "embed", "iframe", "image", "img", "input", "link", "object", "script", "source",
    "track", "use", "video",
}  # fmt: skip
_ADDRESS = {"data", "href", "poster", "src", "srcset", "xlink:href"}
_POINTERS = {"alternate", "author", "canonical", "license", "next", "prev"}
_REMOTE = re.compile(r"(?:https?:)?//")
_IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^\s"')]+)""")


class _Page(HTMLParser):
    """Collects what a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.found += _IN_STYLE.findall(values.get("style", ""))
        # Themes draw diagrams with a library that they fetch when a page has one.
        if "mermaid" in values.get("class", "").split():
            self.found.append("a mermaid diagram")
        if tag not in _LOADED or set(values.get("rel", "").split()) & _POINTERS:
            return
        for name in _ADDRESS & values.keys():
            addresses = values[name].split(",") if name == "srcset" else [values[name]]
            self.found += [a.strip() for a in addresses if _REMOTE.match(a.strip())]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.found += _IN_STYLE.findall(data)


def remote(page: str) -> list[str]:
    """What an HTML page makes a browser load from other hosts, in order."""
    reader = _Page()
    reader.feed(page)
    return reader.found


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Looks through a page when it is finished."""
    for address in remote(output):
        _log.warning("%s loads %s, which a reader without a network lacks", page.url, address)
    return output


def on_post_build(*, config: Any) -> None:
    """Looks through the style sheets of the finished site."""
    site = Path(config["site_dir"])
    for path in sorted(site.rglob("*.css")):
        for address in _IN_STYLE.findall(path.read_text(encoding="utf-8")):
            _log.warning("%s loads %s", path.relative_to(site), address)
