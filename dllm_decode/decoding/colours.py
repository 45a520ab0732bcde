"""Confidence as colour, the same in terminal, player and pictures.

From ColorBrewer's RdBu, which stays readable with every common colour blindness. A cell brings its
own dark ink, so that it reads on light and on dark backgrounds.
"""

from __future__ import annotations

# (confidence below which a colour is used, colour), from unsure to sure
SCALE: tuple[tuple[float, str], ...] = (
    (0.5, "#f4a582"),
    (0.7, "#fddbc7"),
    (0.9, "#d1e5f0"),
    (0.99, "#92c5de"),
    (1.01, "#4393c3"),
)
INK = "#101010"
GIVEN = "#bdbdbd"  # tokens that were given in advance


def colour_of(confidence: float | None) -> str:
    """The colour behind a token.

    Args:
        confidence: In [0, 1], None for a token that was given in advance.
    """
    if confidence is None:
        return GIVEN
    return next((colour for bound, colour in SCALE if confidence < bound), SCALE[-1][1])


def legend() -> list[tuple[str, str]]:
    """(what it says, colour) per step of the scale."""
    bounds = [0.0, *(bound for bound, _ in SCALE[:-1])]
    return [
        (f"< {SCALE[0][0]:g}" if number == 0 else f">= {bounds[number]:g}", colour)
        for number, (_, colour) in enumerate(SCALE)
    ]
