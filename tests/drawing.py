"""How many examples Hypothesis draws, in the profiles `default` and `thorough`."""

from __future__ import annotations

from hypothesis import settings

DEFAULT, THOROUGH = 5, 100


def load_profiles(chosen: str) -> None:
    """Register both profiles and load one."""
    for name, count in (("default", DEFAULT), ("thorough", THOROUGH)):
        settings.register_profile(name, max_examples=count, deadline=None, derandomize=True)
    settings.load_profile(chosen)


def profile() -> str:
    """The profile of this run, for processes that a test starts."""
    return "thorough" if settings().max_examples == THOROUGH else "default"


def number(default: int, thorough: int) -> int:
    """How many of something a test goes through, where Hypothesis does not draw it."""
    return thorough if profile() == "thorough" else default


def examples(count: int) -> settings:
    """Draw `count` examples by default and ten times as many in a thorough run."""
    return settings(max_examples=number(count, 10 * count))
