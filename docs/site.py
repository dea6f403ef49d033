"""The site holds docs/ alone: a link to another file of the repository keeps only its text
there."""

from __future__ import annotations

import re

from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    outside = r"\.\./" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]*)\]\({outside}[^)]*\)", r"\1", markdown)
