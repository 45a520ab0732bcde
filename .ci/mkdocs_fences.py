"""Code blocks of the pages carry words for their tests ("console elsewhere"); the site drops them."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with plain languages behind its fences."""
    return re.sub(r"(?m)^(\s*```[a-z]+) .*$", r"\1", markdown)
