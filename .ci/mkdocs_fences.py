"""Code blocks carry words for their tests ("console elsewhere"), which the site drops."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with plain languages behind its fences."""
    return re.sub(r"(?m)^(\s*```[a-z]+) .*$", r"\1", markdown)
