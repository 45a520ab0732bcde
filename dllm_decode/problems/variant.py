"""Bundled families with other sizes, and in the form of infilling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dllm_decode.errors import ConfigError, require, require_in_range
from dllm_decode.problems.base import Family
from dllm_decode.problems.instructed import InstructedList, list_canvas
from dllm_decode.problems.lists import Labelled
from dllm_decode.problems.puzzles import Countdown, Sudoku
from dllm_decode.problems.words import NAMES

_BLOCK = 32  # canvases are whole blocks
_MOST = len(NAMES) - 1  # one name is kept for insertions


@dataclass(frozen=True)
class Variant:
    """What is changed about the families of an evaluation; None and False leave them as they are.

    Attributes:
        length: Names in the lists, 2 to 47: one number, or the shortest and the longest.
        clues: Cells given in sudokus, 4 to 15.
        numbers: Numbers of Countdown problems, 2 to 6.
        infill: Whether the labels of the answer stand on the canvas, so that only the names are to
            be filled in: ParallelBench's infilling form.

    Raises:
        ConfigError: A value is out of range.

    Examples:
        >>> from dllm_decode.problems import FAMILIES
        >>> Variant(length=5, infill=True).of(FAMILIES["copy"]).name
        'copy-5-infill'
    """

    length: int | list[int] | None = None
    clues: int | None = None
    numbers: int | None = None
    infill: bool = False

    def __post_init__(self) -> None:
        if self.length is not None:
            span = self._span()
            require(
                len(span) == 2 and 2 <= span[0] <= span[1] <= _MOST,
                f"task.problems.length must be a number of names in [2, {_MOST}], or the shortest "
                f"and the longest, got {self.length!r}",
            )
        if self.clues is not None:
            require_in_range("task.problems.clues", self.clues, 4, 15, unit="cells")
        if self.numbers is not None:
            require_in_range("task.problems.numbers", self.numbers, 2, 6)

    def _span(self) -> Sequence[int]:
        return [self.length, self.length] if isinstance(self.length, int) else self.length or []

    def of(self, family: Family) -> Family:
        """The family with these changes, and a name that says so.

        Args:
            family: One of the bundled ones.

        Raises:
            ConfigError: One of the changes means nothing to this family.
        """
        changed = family
        if self.length is not None:
            changed = self._longer(family)
        if self.clues is not None:
            if not isinstance(family, Sudoku):
                raise self._meaningless("clues", family, "sudokus of 4 x 4")
            changed = replace(family, name=f"{family.name}-{self.clues}", clues=self.clues)
        if self.numbers is not None:
            if not isinstance(family, Countdown):
                raise self._meaningless("numbers", family, "Countdown problems")
            changed = replace(family, name=f"{family.name}-{self.numbers}", count=self.numbers)
        if self.infill:
            if not isinstance(family, Labelled):
                raise self._meaningless("infill", family, "lists with labels")
            changed = replace(changed, name=f"{changed.name}-infill")
        return changed

    def _longer(self, family: Family) -> Family:
        """The family with lists of other lengths, and a canvas that holds them."""
        if not isinstance(family, Labelled | InstructedList):
            raise self._meaningless("length", family, "lists")
        shortest, longest = self._span()
        name = f"{family.name}-{'-'.join(map(str, dict.fromkeys((shortest, longest))))}"
        if isinstance(family, InstructedList):
            canvas = list_canvas(longest)
        else:
            canvas = _BLOCK * -(-(2 * longest + 3) // _BLOCK)
        return replace(family, name=name, shortest=shortest, longest=longest, canvas=canvas)

    def _meaningless(self, name: str, family: Family, things: str) -> ConfigError:
        return ConfigError(
            f"task.problems.{name} is for {things}, but task.families names {family.name!r}"
        )
