"""Several decodes of one prompt, and the answer that most of them give; outside of the loop."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from dllm_decode.decoding.batching import check_voting
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.observer import Interrupted
from dllm_decode.decoding.outcome import Outcome, Result
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError

Answer = Callable[[Outcome], Hashable | None]
Decode = Callable[[Decoder, Request], Result]


@dataclass(frozen=True)
class Voting:
    """Decodes every row n times and delivers the answer with the most votes.

    Candidate k of row i has the seed of row i plus k times the rows of the request, so it differs
    where the sampler draws or the strategy is random. The winner is the earliest candidate with the
    winning answer; of several answers with the most votes, the one that came first wins. Its
    forwards are those of all candidates.

    * `majority`: all candidates vote.
    * `longer_half`: only the ceil(n / 2) candidates with the most delivered tokens vote
      (complexity-based consistency, arXiv 2210.00720, where the n / 2 with the most steps vote).
    * `block_lengths`: candidate k is decoded in blocks of the k-th length, and all vote (HEX,
      arXiv 2510.05040, where each length is decoded with several seeds).
    * `agreed`: ceil(n / 2) + 1 candidates are decoded; then, one by one, further ones, in which the
      tokens on which all before agree are fixed, except in the last quarter and behind the first
      end of text. A row with an answer of more than n / 2 votes is done (dVoting, arXiv
      2602.12153).

    Attributes:
        n: decodes per row, 1 or more; 1 is a plain decode.
        how: one of `dllm_decode.decoding.batching.VOTES`.
        block_lengths: of `block_lengths`, n of them; None for 8, 16, 32, ...

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> world = Copy(n=3)
        >>> prompt = tuple(world.tokenizer.encode("cab"))
        >>> vote = Voting(3, "block_lengths", (1, 2, 4))
        >>> decoder, request = Decoder(world, TopK(2)), Request((prompt,), 4)
        >>> [row] = vote.decode(decoder, request, Decoder.decode, lambda row: row.tokens)
        >>> row.votes, [candidate.forwards for candidate in row.candidates], row.forwards
        (3, [4, 2, 2], 8)
    """

    n: int = 5
    how: str = "majority"
    block_lengths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_voting(self.n, self.how, self.block_lengths)

    def decode(
        self, decoder: Decoder, request: Request, run: Decode, answer: Answer
    ) -> tuple[Outcome, ...]:
        """The winner of each row, with its candidates and the votes for it.

        Args:
            decoder: the parts.
            request: one row per prompt.
            run: decodes a request with a decoder.
            answer: what an outcome votes for, None to abstain; errors always do.

        Raises:
            ConfigError: where the schedule has no block length to vary.
        """
        if self.how == "block_lengths":
            found = self._in_blocks(decoder, request, run)
        elif self.how == "agreed":
            found = self._agreed(decoder, request, run, answer)
        else:
            found = _columns(run(decoder, _repeated(request, range(self.n))), request.rows)
        alike = all(len({row.tokens for row in rows}) == 1 for rows in found)
        # where the sampler draws, alike means that the model was sure
        if alike and self.n > 1 and not (self.how == "block_lengths" or decoder.sampler.draws):
            warnings.warn(
                f"all {self.n} decodes of every prompt came out the same, so there was nothing to "
                "vote on; let the sampler draw (a temperature above 0) or use vote=block_lengths",
                RuntimeWarning,
                stacklevel=2,
            )
        return tuple(self._winner(candidates, answer) for candidates in found)

    def _in_blocks(self, decoder: Decoder, request: Request, run: Decode) -> list[list[Outcome]]:
        schedule = decoder.schedule
        if not isinstance(schedule, Blocks):
            raise ConfigError(
                "vote=block_lengths needs schedule=blocks, whose length it changes; got "
                f"{type(schedule).__name__}"
            )
        lengths = self.block_lengths or [2 ** (3 + place) for place in range(self.n)]
        found: list[list[Outcome]] = [[] for _ in range(request.rows)]
        for place, length in enumerate(lengths):
            own = replace(decoder, schedule=replace(schedule, length=length))
            rows = _further(own, _repeated(request, [place]), run, found)
            for candidates, row in zip(found, rows, strict=True):
                candidates.append(row)
        return found

    def _agreed(
        self, decoder: Decoder, request: Request, run: Decode, answer: Answer
    ) -> list[list[Outcome]]:
        first = min(self.n, (self.n + 1) // 2 + 1)
        found = _columns(run(decoder, _repeated(request, range(first))), request.rows)
        for place in range(first, self.n):
            going = [
                row
                for row, candidates in enumerate(found)
                if 2 * max(Counter(_answers(candidates, answer)).values(), default=0) <= self.n
            ]
            if not going:
                break
            fixed = tuple(_agreement(request, row, found[row]) for row in going)
            again = replace(_repeated(request, [place]).take(going), fixed=fixed)
            for row, outcome in zip(going, _further(decoder, again, run, found), strict=True):
                found[row].append(outcome)
        return found

    def _winner(self, candidates: Sequence[Outcome], answer: Answer) -> Outcome:
        """The earliest candidate with the answer that most of those entitled to vote give."""
        voters = list(candidates)
        if self.how == "longer_half":
            half = (len(candidates) + 1) // 2
            voters = sorted(candidates, key=lambda row: -len(row.delivered))[:half]
        answers = Counter(_answers(voters, answer))
        # the first to come is the first in the order of the candidates, not of their lengths
        order = [own for own in _answers(candidates, answer) if own in answers]
        best = max(order, key=lambda own: answers[own], default=None)
        winner = next(
            (row for row in candidates if not row.error and answer(row) == best), candidates[0]
        )
        spent = ("forwards", "surplus_forwards", "probes", "passes", "drafts")
        return replace(
            winner,
            **{name: sum(getattr(row, name) for row in candidates) for name in spent},
            candidates=tuple(candidates),
            votes=answers[best] if best is not None else 0,
        )


def _further(
    decoder: Decoder, request: Request, run: Decode, found: Sequence[Sequence[Outcome]]
) -> tuple[Outcome, ...]:
    """The outcomes of further decodes; on Ctrl-C, of each prompt the first that it has."""
    try:
        return run(decoder, request).rows
    except Interrupted as stop:
        if not all(found):
            raise
        first = tuple(candidates[0] for candidates in found)
        raise Interrupted(replace(stop.result, rows=first)) from None


def _answers(rows: Sequence[Outcome], answer: Answer) -> Iterator[Hashable]:
    """What the rows vote for, without those that abstain."""
    given = (answer(row) for row in rows if not row.error)
    return (own for own in given if own is not None)


def _repeated(request: Request, places: Sequence[int] | range) -> Request:
    """The request once for each place, one after the other, every place with its own seeds."""
    again = request.take([*range(request.rows)] * len(places))
    seeds = [seed + place * request.rows for place in places for seed in request.row_seeds]
    half = 2**63  # behind the largest seed comes the smallest
    return replace(again, seeds=tuple((seed + half) % (2 * half) - half for seed in seeds))


def _columns(result: Result, rows: int) -> list[list[Outcome]]:
    """Candidates of each row, of a request that was repeated."""
    return [list(result.rows[row::rows]) for row in range(rows)]


def _agreement(request: Request, row: int, candidates: Sequence[Outcome]) -> dict[int, int]:
    """What is fixed for one more candidate of a row: what was given, and what all agree on."""
    given = dict((request.fixed or (None,) * request.rows)[row] or {})
    good = [candidate for candidate in candidates if not candidate.error]
    reach = min([request.lengths[row] * 3 // 4, *(candidate.end for candidate in good)])
    for column in range(reach if good else 0):
        tokens = {candidate.tokens[column] for candidate in good}
        if len(tokens) == 1:
            given[column] = tokens.pop()
    return given
