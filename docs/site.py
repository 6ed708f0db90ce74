"""MkDocs' hooks: the site also holds README, CHANGELOG, CONTRIBUTING and the benches' pictures.

Pages link as they do in the repository; here such links are turned to where the site has a file,
and to plain text where it has none (configurations, examples).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "kernels/README.md": "library.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def _source(page: str) -> str:
    """The path in the repository of a page of the site."""
    back = {there: here for here, there in PAGES.items()}
    return back.get(page, f"docs/{page}")


def _place(path: str) -> str | None:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/") if (ROOT / path).is_file() else None
    return path if path.startswith("bench/results/") and path.endswith(".png") else None


def on_files(files: Files, config: Any) -> Files:
    """Add what stands outside docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for picture in sorted((ROOT / "bench" / "results").rglob("*.png")):
        place = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the page's links."""
    here = page.file.src_uri
    folder = posixpath.dirname(_source(here))

    def turned(match: re.Match[str]) -> str:
        picture, text, target, part = match.groups()
        place = _place(posixpath.normpath(posixpath.join(folder, target)))
        if place is None:
            return text
        link = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{picture}[{text}]({link}{part or ''})"

    return LINK.sub(turned, markdown)
