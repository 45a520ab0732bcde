"""Colours of rules: one hue per kind, in pages and figures alike."""

from __future__ import annotations

from collections.abc import Sequence

from dllm_decode.evaluation.reporting.factors import CONTROL, ORACLE, Traits

# Okabe and Ito's palette, told apart with every common colour vision, by rising lightness in
# print; the first kinds that a report has take the first hues.
HUES = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#5B3FA0",
    "#8A5A00",
    "#B5A300",
)
GREY, BLACK = "#8C8C8C", "#000000"
# Kinds that most reports have keep their hue from one report to the next.
_PREFERRED = (
    "confidence threshold",
    "credit",
    "whole canvas",
    "learned",
    "fixed number per pass",
    "other confidence bounds",
    "revising",
    "what has stopped moving",
    "by position",
)


def colours(traits: Sequence[Traits]) -> dict[str, str]:
    """Kind of rule to colour, for the kinds that are there."""
    kinds = list(
        dict.fromkeys(trait.kind for trait in traits if trait.role not in (CONTROL, ORACLE))
    )
    fixed = {kind: HUES[i] for i, kind in enumerate(_PREFERRED)}
    free = [hue for hue in HUES if hue not in {fixed.get(kind) for kind in kinds}]
    others = [kind for kind in kinds if kind not in fixed]
    own = {kind: (free or list(HUES))[i % len(free or HUES)] for i, kind in enumerate(others)}
    return {kind: fixed.get(kind) or own[kind] for kind in kinds}


def colour(trait: Traits, by_kind: dict[str, str]) -> str:
    """Controls are grey and the oracle black, whatever their kind.

    Args:
        trait: Of a run.
        by_kind: Colours of the kinds of rules.
    """
    if trait.role == ORACLE:
        return BLACK
    return GREY if trait.role == CONTROL else by_kind[trait.kind]
