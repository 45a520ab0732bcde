"""What another rule would have committed at each state of a trace, without a model.

Read from the candidates that the trace recorded. It is exact for each state by itself; a decode by
the other rule would have seen the same states only up to the first step at which the two part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dllm_decode.decoding.trace import Trace
from dllm_decode.errors import require_in_range

# one open column: (token, probability), the likeliest first
Offers = Mapping[int, Sequence[tuple[int, float]]]


class Judge(ABC):
    """A rule on its way through one row.

    Examples:
        >>> Threshold(0.8).begin().confidence({4: [(7, 0.75), (9, 0.2)]}, fresh=True)
        {4: 0.75}
    """

    @abstractmethod
    def confidence(self, offers: Offers, fresh: bool) -> dict[int, float]:
        """How sure the rule is of its token at each open column.

        Args:
            offers: The candidates of each open column.
            fresh: Whether the row has just entered this window.
        """


@dataclass(frozen=True)
class Threshold:
    """`strategy=threshold`: everything that is at least so likely, and the best column.

    Attributes:
        threshold: Probability, [0, 1].

    Examples:
        >>> Threshold(0.8).name
        'threshold 0.8'
    """

    threshold: float

    def __post_init__(self) -> None:
        require_in_range("threshold", self.threshold, 0.0, 1.0)

    @property
    def name(self) -> str:
        """The rule and its setting."""
        return f"threshold {self.threshold:g}"

    def begin(self) -> Judge:
        """A threshold remembers nothing."""
        return _AsTheModel()


class _AsTheModel(Judge):
    def confidence(self, offers: Offers, fresh: bool) -> dict[int, float]:
        """The model's own probability of the likeliest token."""
        return {column: found[0][1] for column, found in offers.items()}


@dataclass(frozen=True)
class Credit(Threshold):
    """`strategy=credit`: the threshold on probabilities that credit has raised.

    The formula and the settings are those of `dllm_decode.strategies.credit.TraceCredit`. A token
    that has credit but is no longer among the recorded candidates counts as impossible.

    Attributes:
        alpha: Strength [nats per nat], 0 or more.
        beta: Share of the credit kept per step, [0, 1].
        gamma: Exponent of the winner's probability, 0 or more.
        slots: Tokens remembered per column, 1 or more.

    Examples:
        >>> judge = Credit().begin()
        >>> offers = {4: [(7, 0.75), (9, 0.2)]}
        >>> [round(judge.confidence(offers, fresh=step == 0)[4], 3) for step in range(3)]
        [0.822, 0.848, 0.861]
    """

    threshold: float = 0.9
    alpha: float = 0.65
    beta: float = 0.70
    gamma: float = 0.20
    slots: int = 8

    @property
    def name(self) -> str:
        """The rule, and its threshold where it is not the usual one."""
        return "credit" if self.threshold == 0.9 else f"credit {self.threshold:g}"

    def begin(self) -> Judge:
        """No token has credit yet."""
        return _WithCredit(self)


@dataclass
class _WithCredit(Judge):
    rule: Credit
    credit: dict[int, dict[int, float]] = field(default_factory=dict)

    def confidence(self, offers: Offers, fresh: bool) -> dict[int, float]:
        """The raised probability of the token that is likeliest then."""
        if fresh:
            self.credit = {}
        return {column: self._raised(column, found) for column, found in offers.items()}

    def _raised(self, column: int, found: Sequence[tuple[int, float]]) -> float:
        rule, (winner, sure) = self.rule, found[0]
        own = {token: rule.beta * c for token, c in self.credit.get(column, {}).items()}
        if winner not in own and len(own) == rule.slots:
            del own[min(own, key=lambda token: own[token])]
        own[winner] = own.get(winner, 0.0) + math.pow(sure, rule.gamma)
        self.credit[column] = own
        factor = {token: math.pow(1.0 + c, rule.alpha) for token, c in own.items()}
        mass = 1.0 + sum(p * (factor.get(token, 1.0) - 1.0) for token, p in found)
        return max(p * factor.get(token, 1.0) for token, p in found) / mass


USUAL: tuple[Threshold, ...] = (Threshold(0.7), Threshold(0.8), Threshold(0.9), Credit())


def would_commit(trace: Trace, row: int, rule: Threshold) -> list[list[int]]:
    """The columns that a rule would have committed at each step of a row.

    Args:
        trace: With candidates.
        row: Of its request.
        rule: Which one is asked.

    Returns:
        One list of columns, ascending, per step that the row took part in.
    """
    judge, steps = rule.begin(), []
    for record in trace.steps:
        if row not in record.rows:
            continue
        fresh = bool(record.fresh) and record.fresh[record.rows.index(row)]
        offers = {offer.column: offer.pairs for offer in record.candidates if offer.row == row}
        sure = judge.confidence(offers, fresh)
        chosen = [column for column in sorted(sure) if sure[column] >= rule.threshold]
        if sure and not chosen:
            chosen = [max(sorted(sure), key=lambda column: sure[column])]
        steps.append(chosen)
    return steps
