"""Check what Sphinx built, offline: ``python docs/check_html.py docs/_build/html``.

Every link and picture of a page leads to a file that is there, every anchor to an element of that page, every
picture has a text for those who do not see it, and no page loads anything from elsewhere.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.problems: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical",) and "href" in values:
            self.loads.append(values["href"])
        elif tag in ("img", "script", "iframe", "source") and "src" in values:
            self.loads.append(values["src"])
            if tag == "img" and not values.get("alt", "").strip():
                self.problems.append(f"picture without alternative text: {values['src']}")


def check(folder: Path) -> list[str]:
    """What is wrong with the pages of a folder, in sentences."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    problems = [] if pages else [f"{folder} has no pages"]
    for path, page in pages.items():
        found = list(page.problems)
        for target in page.links + page.loads:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                if target in page.loads and url.scheme != "data":
                    found.append(f"loaded from elsewhere: {target}")
                continue
            where = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not where.exists():
                found.append(f"leads nowhere: {target}")
            elif url.fragment and where in pages and unquote(url.fragment) not in pages[where].anchors:
                found.append(f"no such place on that page: {target}")
        problems += [f"{path.relative_to(folder.resolve())}: {text}" for text in dict.fromkeys(found)]
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or "every link, anchor and picture is there")
    sys.exit(bool(found))
