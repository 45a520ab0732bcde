"""One forward pass as lazy row statistics: each is computed at most once, most rules need few."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dllm_decode.decoding.renamed import renamed_names, say_renamed
from dllm_decode.errors import DecisionError
from dllm_decode.kernels import dispatch, reference
from dllm_decode.kernels.lazy import once
from dllm_decode.kernels.noise import Noise, gumbel
from dllm_decode.kernels.reference import RowStatistics, Slots
from dllm_decode.kernels.shards import VocabularyShard


class PredictionError(DecisionError):
    """A prediction was made of, or asked about, something that it cannot have."""


class DrawError(DecisionError):
    """A sampler's draw returned no token ids; found when a plugin first reads `token`."""


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32)


class Draw(Protocol):
    """How a proposal is drawn from a prediction; `None` in its place means the argmax.

    Examples:
        >>> def last(prediction):
        ...     return prediction.logits.argmax(dim=-1) * 0 + prediction.shape[2] - 1
        >>> Prediction.of(torch.zeros(1, 2, 5), draw=last).token
        tensor([[4, 4]])
    """

    def __call__(self, prediction: Prediction) -> Tensor:
        """The token ids that are drawn, (B, W) int64."""


@dataclass(frozen=True)
class GumbelDraw:
    """Draw from the tempered distribution by the Gumbel-max trick, where possible in one pass.

        token = argmax_v  l_v / T + g_v,   g_v standard Gumbel noise in float64

    Attributes:
        noise: random numbers of the step.
        temperature: T > 0.

    Examples:
        >>> import torch
        >>> from dllm_decode.kernels.noise import Noise
        >>> row = torch.zeros(1, dtype=torch.long)
        >>> noise = Noise(row, row, torch.tensor([[0, 1, 2]]))
        >>> draw = GumbelDraw(noise, temperature=1.0)
        >>> prediction = Prediction.of(torch.zeros(1, 3, 50), draw=draw)
        >>> bool((prediction.token == Prediction.of(torch.zeros(1, 3, 50), draw=draw).token).all())
        True
    """

    noise: Noise
    temperature: float

    def __call__(self, prediction: Prediction) -> Tensor:
        """Token ids (B, W), -1 where every token has been removed."""
        return prediction.gumbel_max(self).masked_fill(prediction._emptied, -1)


class _ProposalBelow:
    """Proposes what the prediction proposed before `deferring` took ids out of it."""

    def __call__(self, prediction: Prediction) -> Tensor:
        # what later transforms put on top hands this draw on; the lowest holder is what deferred
        while True:
            below = prediction._below
            assert below is not None
            if below._draw is not self:
                return below.token
            prediction = below


@dataclass(frozen=True)
class HiddenStates:
    """The logits of a forward pass that stopped before the output head: hidden @ weight.T.

    Attributes:
        hidden: (B, W, D) states.
        weight: (V, D) of the head, without gradient, or this process's part of it.

    Examples:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> states = HiddenStates(torch.tensor([[[1.0, 2.0]]]), weight)
        >>> states.logits
        tensor([[[1., 2., 3.]]])
    """

    hidden: Tensor
    weight: Tensor | VocabularyShard

    @once
    def logits(self) -> Tensor:
        """(B, W, V), float32 or better; made once, when somebody asks for it."""
        hidden, weight = self.hidden.flatten(0, 1), self.weight
        if isinstance(weight, VocabularyShard):
            flat = weight.logits(hidden)
        else:
            flat = reference.head_logits(hidden, weight)
        return flat.view(*self.hidden.shape[:2], -1)

    @property
    def has_logits(self) -> bool:
        """Whether somebody has asked for them."""
        return "logits" in vars(self)


class Prediction(ABC):
    """What the model predicts at the slots of a step (B rows, W slots, V token ids).

    `token` is the proposal (the argmax, or a draw where a sampler draws), `confidence` its
    probability; the other statistics describe the whole row of logits. Each is computed at most
    once, when somebody first asks, all in float32 or better, and from the untempered, unfiltered
    distribution, in which banned ids have probability 0. Nothing is ever written to the logits.

    Where every token has been removed there is no distribution: all probabilities are 0, the
    entropy is the largest there is, log V, and the most likely token is -1, which cannot be
    committed. So such a slot ranks last in every rule, and a proposal made before the removal
    (`DeferTokens`) can still be committed when nothing else is left.

    Examples:
        >>> logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]])
        >>> pred = Prediction.of(logits)
        >>> pred.token
        tensor([[0, 2]])
        >>> raised = pred.with_logit_bias(torch.tensor([[[1], [-1]]]), torch.full((1, 2, 1), 5.0))
        >>> raised.token
        tensor([[1, 2]])
        >>> pred.suppress(torch.tensor([2])).confidence
        tensor([[0.7311, 0.5000]])
    """

    _draw: Draw | None = None
    _below: Prediction | None = None  # that this one was made of, where anything depends on it

    # What the kinds of prediction define.

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Rows B, slots W, and the size of the vocabulary V."""

    @property
    @abstractmethod
    def _statistics(self) -> RowStatistics:
        """The row statistics, of B * W rows."""

    @property
    @abstractmethod
    def _dtype(self) -> torch.dtype:
        """The precision of what is public; inside it may be better."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Dense logits (B, W, V), banned ids at -inf. Materialised only when asked for."""

    @abstractmethod
    def _top(self, k: int) -> tuple[Tensor, Tensor]:
        """What `topk` returns, before it is rounded to the public precision."""

    @abstractmethod
    def _at(self, ids: Tensor) -> Tensor:
        """What `logit_of` returns, before it is rounded to the public precision."""

    @abstractmethod
    def _suppressed(self, ids: Tensor) -> Prediction:
        """What `suppress` returns."""

    def never_proposes(self, banned: Tensor | None, origin: Prediction) -> bool:
        """Whether `token`, though nobody has read it, is known to exist and to be none of some ids.

        Args:
            banned: (M,) the ids, the very tensor with which the origin was made.
            origin: the prediction of a pass, whose health somebody looks at.
        """
        return False

    # What follows from those.

    @staticmethod
    def of(
        logits: Tensor | HiddenStates, banned: Tensor | None = None, draw: Draw | None = None
    ) -> Prediction:
        """The prediction of a forward pass.

        Args:
            logits: (B, W, V), or the hidden states they would be made of; then they never exist on
                a GPU unless a plugin or a draw asks for them.
            banned: (M,) ids that must never be proposed (mask and control tokens), removed before
                the argmax.
            draw: how `token` is drawn, None for the argmax.

        Raises:
            PredictionError: for logits of another shape or type.
        """
        if isinstance(logits, HiddenStates):
            return HeadPrediction(logits, banned, draw)
        _check("logits", logits, None, floating=True)
        return DensePrediction(logits, banned, draw)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits and their ids, (B, W, k) each; lower id first on ties.

        Args:
            k: 1 or more; at most V are returned.
        """
        if not isinstance(k, int) or k < 1:
            raise PredictionError(f"topk needs a whole number >= 1, got {k!r}")
        values, ids = self._top(min(k, self.shape[-1]))
        return values.to(self._dtype), ids

    def logit_of(self, ids: Tensor) -> Tensor:
        """Logits at ids (B, W, K); -inf for banned ids and for empty slots (-1)."""
        return self._of_ids(ids).to(self._dtype)

    def _of_ids(self, ids: Tensor) -> Tensor:
        """`_at` for ids (B, W, K) that somebody gave."""
        _check("ids", ids, self.shape[:2], floating=False)
        try:
            return self._at(ids.long())
        except (IndexError, RuntimeError):
            _refuse_outside(ids, self.shape[-1], -1)
            raise

    def _shaped(self, values: Tensor) -> Tensor:
        if values.dtype != self._dtype and values.dtype.is_floating_point:
            values = values.to(self._dtype)
        rows, slots, _ = self.shape
        return values.reshape(rows, slots, *values.shape[1:])

    def _share(self, logits: Tensor) -> Tensor:
        """Probabilities of logits (B, W, K) of this prediction.

        Relative to the maximum: next to a large logit, log(total) would be rounded away.
        """
        maximum = self._statistics.maximum.reshape(*self.shape[:2], 1)
        total = self._statistics.total.reshape(*self.shape[:2], 1)
        share = (logits - maximum).exp() / total
        return reference.cast(share.masked_fill(self._emptied[..., None], 0.0), self._dtype)

    @once
    def _emptied(self) -> Tensor:
        """Slots where every token has been removed, (B, W) bool."""
        return self._shaped(self._statistics.maximum == float("-inf"))

    @once
    def _winner(self) -> tuple[Tensor, Tensor, Tensor]:
        """`top_token`, `top_certainty` and `top_confidence`: who asks for one asks for all."""
        statistics, emptied = self._statistics, self._emptied
        token, certainty = self._shaped(statistics.token), self._shaped(-statistics.rest)
        token = token.masked_fill(emptied, -1)
        certainty = certainty.masked_fill(emptied, float("-inf"))
        # 1 - certainty, without the detour through Python that a number in front takes
        return token, certainty, torch.rsub(certainty, 1.0).reciprocal()

    @once
    def top_token(self) -> Tensor:
        """The most likely token, lowest id on ties, -1 where all are removed, (B, W) int64."""
        return self._winner[0]

    @once
    def top_certainty(self) -> Tensor:
        """`certainty` of `top_token`, (B, W)."""
        return self._winner[1]

    @once
    def top_confidence(self) -> Tensor:
        """Probability of `top_token`, (B, W)."""
        return self._winner[2]

    @once
    def maximum(self) -> Tensor:
        """Largest logit of each slot, (B, W)."""
        return self._shaped(self._statistics.maximum)

    @once
    def logsumexp(self) -> Tensor:
        """Natural logarithm of the partition sum, (B, W)."""
        return self._shaped(self._statistics.logsumexp).masked_fill(self._emptied, float("-inf"))

    @once
    def entropy(self) -> Tensor:
        """Entropy in nats, (B, W)."""
        largest = math.log(self.shape[-1])
        return self._shaped(self._statistics.entropy).masked_fill(self._emptied, largest)

    @once
    def healthy(self) -> Tensor:
        """Whether a slot's logits can be used at all, (B, W): no NaN, no +inf, not all banned."""
        return self._shaped(self._statistics.healthy)

    @once
    def token(self) -> Tensor:
        """The proposal at each slot, (B, W) int64."""
        if self._draw is None:
            return self.top_token
        drawn = self._draw(self)
        if (
            not isinstance(drawn, Tensor)
            or tuple(drawn.shape) != self.shape[:2]
            or drawn.dtype not in _INTEGERS
        ):
            got = f"{tuple(drawn.shape)} {drawn.dtype}" if isinstance(drawn, Tensor) else drawn
            raise DrawError(
                f"sampler: the draw must return token ids of shape {self.shape[:2]}, got {got}"
            )
        return drawn.long()

    @once
    def confidence(self) -> Tensor:
        """Probability of `token`, (B, W)."""
        if self._draw is None:
            return self.top_confidence
        # ids outside the vocabulary are refused later, by the name of who drew them
        known = self.token.clamp(max=self.shape[-1] - 1)
        return self._share(self._at(known[..., None]))[..., 0]

    @once
    def certainty(self) -> Tensor:
        """By what slots are ranked: minus the odds against `token`, 0 at most, (B, W).

            -(1 - p) / p,   p = confidence

        It rises with the confidence and still tells slots apart where that is rounded to 1; -inf
        where the token has been removed.
        """
        if self._draw is None:
            return self.top_certainty
        known = self.token.clamp(max=self.shape[-1] - 1)
        statistics = self._statistics
        apart = statistics.maximum - self._at(known[..., None]).flatten()
        odds = statistics.total * apart.exp() - 1.0
        # of the winner, without the cancellation
        odds = torch.where(known.flatten() == statistics.token, statistics.rest, odds)
        return self._shaped(-odds).masked_fill(self._emptied, float("-inf"))

    @once
    def margin_certainty(self) -> Tensor:
        """By what slots are ranked by margin: -(1 - margin) / margin, 0 at most, (B, W)."""
        top = self._top_two
        # -0.0 where the two are equal, and so -inf below
        below = -(top[..., 0] - top[..., 1])
        rest = self._statistics.rest.reshape(self.shape[:2])
        odds = (rest + below.exp()) / below.expm1()
        return reference.cast(odds, self._dtype).masked_fill(self._emptied, float("-inf"))

    @once
    def _top_two(self) -> Tensor:
        values = self._top(2)[0]
        if values.shape[-1] == 2:
            return values
        return torch.cat([values, torch.full_like(values, float("-inf"))], -1)

    @once
    def margin(self) -> Tensor:
        """Probability of the most likely token minus that of the second, (B, W)."""
        top = self._share(self._top_two)
        return top[..., 0] - top[..., 1]

    def prob_of(self, ids: Tensor) -> Tensor:
        """Probabilities of ids (B, W, K); 0 for banned ids and empty slots (-1).

        Where transforms have removed every token, all of them are 0.
        """
        return self._share(self._of_ids(ids))

    @once
    def probs(self) -> Tensor:
        """Dense probabilities (B, W, V) for plugins that need them; nothing here does."""
        return self.logits.softmax(-1).masked_fill(self._emptied[..., None], 0.0)

    def kl_from(self, previous: Tensor) -> Tensor:
        """How far the prediction has moved: KL(this || previous) in nats, (B, W).

        It is infinite where `previous` holds nothing yet (-inf everywhere), and where this
        prediction gives probability to an id that the other excludes; see
        `kernels.reference.kl_divergence`.

        Args:
            previous: (B, W, V), the `logits` of another prediction, for example of the step
                before, as a `ColumnMemory` keeps them.
        """
        _check("previous", previous, self.shape[:2], floating=True)
        if previous.shape[-1] != self.shape[-1]:
            raise PredictionError(
                f"previous must have shape {self.shape}, got {tuple(previous.shape)}"
            )
        return reference.kl_divergence(self.logits, previous).to(self._dtype)

    def suppress(self, ids: Tensor) -> Prediction:
        """This prediction with ids (M,) banned at every slot: probability 0, never proposed."""
        if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.dtype not in _INTEGERS:
            got = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else repr(ids)
            raise PredictionError(f"suppress needs token ids of shape (M,), got {got}")
        if ids.device.type == "cpu":  # elsewhere reading them would make the host wait
            _refuse_outside(ids, self.shape[-1], 0)
        return self._suppressed(ids.long())

    def gumbel_max(self, draw: GumbelDraw) -> Tensor:
        """A draw from the tempered distribution, (B, W) int64."""
        flat = self.logits.reshape(-1, self.shape[-1])
        return self._shaped(_drawn(flat, draw, None))

    def with_logit_bias(
        self, ids: Tensor, delta: Tensor, *, never_negative: bool = False
    ) -> Prediction:
        """This prediction with sparse additions to its logits.

            l'[v] = l[v] + sum of delta over the entries that hold v

        Where all additions are 0 or more and the caller says so, every statistic follows exactly
        from this prediction's, and the V columns are not read again.

        Args:
            ids: (B, W, K) int64, -1 for an empty entry.
            delta: (B, W, K) floating point [nats]; -inf bans an id.
            never_negative: the caller's word that all additions are 0 or more. Without it the V
                columns are read again: nobody looks at the additions, since the host would have to
                wait for a GPU, and a row would be computed in another way for its neighbour's.

        Raises:
            PredictionError: for wrong shapes and types, and for ids beyond the vocabulary.
        """
        _check("ids", ids, self.shape[:2], floating=False)
        _check("delta", delta, ids.shape, floating=True)
        if ids.device.type == "cpu":  # elsewhere reading them would make the host wait
            _refuse_outside(ids, self.shape[-1], None)
        ids = ids.long().masked_fill(ids >= self.shape[-1], -1)
        return BiasedPrediction(self, ids, delta, self._draw, never_negative=never_negative)

    def with_logits(self, logits: Tensor) -> Prediction:
        """Other logits, drawn from in the same way; for rules that change every token's.

        Args:
            logits: (B, W, V) floating point [nats]; -inf bans an id.

        Raises:
            PredictionError: for another shape or type.
        """
        _check("logits", logits, self.shape, floating=True)
        made = DensePrediction(logits, None, self._draw)
        if isinstance(self._draw, _ProposalBelow):
            made._below = self
        return made

    def raised(self, ids: Tensor, delta: Tensor, *, never_negative: bool = False) -> Prediction:
        """The old name of `with_logit_bias`; warns."""
        say_renamed("Prediction.raised", "Prediction.with_logit_bias")
        return self.with_logit_bias(ids, delta, never_negative=never_negative)

    def without(self, ids: Tensor) -> Prediction:
        """The old name of `suppress`; warns."""
        say_renamed("Prediction.without", "Prediction.suppress")
        return self.suppress(ids)

    def deferring(self, ids: Tensor) -> Prediction:
        """The same proposals, with the statistics of the distribution without ids (M,).

        Ids that a later transform suppresses are not proposed any more, deferred or not.
        """
        return DeferringPrediction(self, ids)

    def credited(self, slots: Slots) -> Credited:
        """CreditDecoding's update and fusion; see `kernels.reference.credit_update`.

        Args:
            slots: the credit of every slot before the step, with (B, W) in the place of N: ids,
                credit (B, W, K), open (B, W); alpha, beta (B,), one per row, or one for all.
        """
        update = self._credit_update(
            Slots(
                ids=slots.ids.flatten(0, 1),
                credit=slots.credit.flatten(0, 1),
                alpha=self._per_slot(slots.alpha),
                beta=self._per_slot(slots.beta),
                gamma=slots.gamma,
                # nothing wins where every token has been removed, so nothing earns there
                open=(slots.open & self.healthy).flatten(),
            )
        )
        new_ids = self._shaped(update.ids)
        raised = BiasedPrediction(
            self, new_ids, update.delta.view(new_ids.shape), self._draw, statistics=update.fused
        )
        return Credited(raised, new_ids, update.credit.view(new_ids.shape))

    def _per_slot(self, strength: Tensor | float) -> Tensor | float:
        """A number per row as one per slot, (B * W,); kernels take no number for all."""
        rows, width, _ = self.shape
        if isinstance(strength, Tensor):
            return strength.repeat_interleave(width)
        maximum = self._statistics.maximum
        if not dispatch.uses_triton(maximum):
            return strength
        return maximum.new_full((rows * width,), strength, dtype=torch.float64)

    def _credit_update(self, slots: Slots) -> reference.CreditUpdate:
        """`kernels.reference.credit_update` on whatever logits this prediction has."""
        values = self._at(self._shaped(slots.ids)).flatten(0, 1)
        return dispatch.credit_from(values, self._statistics, slots)


@dataclass(frozen=True)
class Credited:
    """What CreditDecoding's update gives.

    Attributes:
        prediction: the prediction with the credit fused in.
        ids: (B, W, K) credited tokens to keep for the next step, -1 where empty.
        credit: (B, W, K) their credit.

    Examples:
        >>> ids = torch.tensor([[[2]]])
        >>> credited = Credited(Prediction.of(torch.zeros(1, 1, 3)), ids, torch.ones(1, 1, 1))
        >>> credited.ids.shape
        torch.Size([1, 1, 1])
    """

    prediction: Prediction
    ids: Tensor
    credit: Tensor


def _check(name: str, value: Tensor, shape: tuple[int, ...] | None, *, floating: bool) -> None:
    """Refuse what is no tensor of three dimensions, of the given leading ones, of a usable type."""
    kinds = _FLOATS if floating else _INTEGERS
    front = () if shape is None else tuple(shape)
    if not isinstance(value, Tensor):
        raise PredictionError(
            f"{name} must be a tensor of shape {_words(shape)}, got {type(value).__name__}"
        )
    if value.dim() != 3 or value.shape[: len(front)] != front:
        raise PredictionError(f"{name} must have shape {_words(shape)}, got {tuple(value.shape)}")
    if value.dtype not in kinds or value.layout != torch.strided:
        words = "floating-point numbers" if floating else "int64 or int32"
        raise PredictionError(f"{name} must be {words}, got {value.dtype} ({value.layout})")


def _words(shape: tuple[int, ...] | None) -> str:
    return "(B, W, V)" if shape is None else f"({', '.join(map(str, shape))}, ...)"


def check_tokens(who: str, tokens: Tensor, like: Tensor, vocabulary: int) -> None:
    """Refuse what cannot be token ids (B, W) beside those of `like`; values only on a CPU.

    Args:
        who: what gave them, for messages.
        tokens: what is to be checked.
        like: (B, W) int64 on the right device.
        vocabulary: number of ids, V.
    """
    fits = isinstance(tokens, Tensor) and tokens.shape == like.shape and tokens.dtype in _INTEGERS
    if not fits or tokens.device != like.device:
        got: object = tokens
        if isinstance(tokens, Tensor):
            got = f"{tokens.dtype} of shape {tuple(tokens.shape)} on {tokens.device}"
        raise PredictionError(
            f"{who} token ids (int64) of shape {tuple(like.shape)} on {like.device}, got {got}"
        )
    if tokens.device.type == "cpu":  # elsewhere reading them would make the host wait
        _refuse_outside(tokens, vocabulary, 0)


def check_flags(who: str, flags: Tensor, like: Tensor) -> None:
    """Refuse what are no flags of the shape and on the device of others.

    Args:
        who: what gave them, for messages.
        flags: what is to be checked.
        like: bool of the right shape on the right device.
    """
    fits = isinstance(flags, Tensor) and flags.shape == like.shape and flags.dtype == torch.bool
    if not fits or flags.device != like.device:
        got: object = flags
        if isinstance(flags, Tensor):
            got = f"{flags.dtype} of shape {tuple(flags.shape)} on {flags.device}"
        raise PredictionError(
            f"{who} flags (bool) of shape {tuple(like.shape)} on {like.device}, got {got}"
        )


def _refuse_outside(ids: Tensor, vocabulary: int, least: int | None) -> None:
    """Refuse ids beyond the vocabulary, or below `least`; asks the device."""
    wrong = ids >= vocabulary
    if least is not None:
        wrong = wrong | (ids < least)
    found = ids[wrong]
    if found.numel():
        low = -1 if least is None else least
        hint = "; -1 is an empty slot" if low < 0 else ""
        raise PredictionError(
            f"ids must lie in [{low}, {vocabulary - 1}], got {int(found[0])}{hint}"
        )


def _drawn(rows: Tensor, draw: GumbelDraw, banned: Tensor | None) -> Tensor:
    states = draw.noise.states().flatten()
    return dispatch.gumbel_argmax(rows, states, draw.temperature, banned)


class DensePrediction(Prediction):
    """A prediction that owns the logits of a forward pass.

    Examples:
        >>> prediction = Prediction.of(torch.tensor([[[2.0, 1.0, 0.0]]]))
        >>> type(prediction).__name__, prediction.shape
        ('DensePrediction', (1, 1, 3))
    """

    def __init__(self, logits: Tensor, banned: Tensor | None, draw: Draw | None) -> None:
        self._raw = logits
        self._banned = banned
        self._draw = draw

    @once
    def shape(self) -> tuple[int, int, int]:
        rows, slots, vocabulary = self._raw.shape
        return rows, slots, vocabulary

    @once
    def _rows(self) -> Tensor:
        """The logits as they came, (B * W, V)."""
        return self._raw.reshape(-1, self.shape[-1])

    @once
    def _pass(self) -> tuple[RowStatistics, Tensor | None]:
        """The one pass over the logits: the statistics and, where it is free there, the draw."""
        rows, draw = self._rows, self._draw
        if not dispatch.uses_triton(rows):
            return dispatch.row_statistics(rows, self._banned), None
        k = min(2, self.shape[-1])
        if isinstance(draw, GumbelDraw):
            states = draw.noise.states().flatten()
            return dispatch.gumbel_statistics(rows, states, draw.temperature, self._banned, k)
        return dispatch.row_statistics(rows, self._banned, k), None

    @property
    def _statistics(self) -> RowStatistics:
        return self._pass[0]

    @once
    def _dtype(self) -> torch.dtype:
        return reference.working_dtype(self._raw.dtype)

    @once
    def logits(self) -> Tensor:
        return self._shaped(reference.suppress(self._rows, self._banned))

    def _top(self, k: int) -> tuple[Tensor, Tensor]:
        values = ids = None
        if dispatch.uses_triton(self._rows):
            values, ids = self._statistics.top_values, self._statistics.top_ids
        if values is None or ids is None or values.shape[-1] < min(k, self.shape[-1]):
            values, ids = dispatch.top_k(self._rows, k, self._banned)
        return self._shaped(values[:, :k]), self._shaped(ids[:, :k])

    def _at(self, ids: Tensor) -> Tensor:
        return self._shaped(reference.logits_at(self._rows, ids.flatten(0, 1), self._banned))

    def never_proposes(self, banned: Tensor | None, origin: Prediction) -> bool:
        kind = type(self) in (DensePrediction, HeadPrediction)
        own = isinstance(self._draw, GumbelDraw | None)
        known = banned is not None and self._banned is banned
        return kind and own and known and self is origin

    def _suppressed(self, ids: Tensor) -> Prediction:
        made = DensePrediction(self._raw, self._more_banned(ids), self._draw)
        if self._below is not None:
            made._below = self._below._suppressed(ids)
        return made

    def _more_banned(self, ids: Tensor) -> Tensor:
        return ids if self._banned is None else torch.cat([self._banned, ids])

    def gumbel_max(self, draw: GumbelDraw) -> Tensor:
        if draw is self._draw and self._pass[1] is not None:
            return self._shaped(self._pass[1])
        return self._shaped(_drawn(self._rows, draw, self._banned))

    def _credit_update(self, slots: Slots) -> reference.CreditUpdate:
        return dispatch.credit_update(self._rows, slots, self._banned, self._statistics)


class HeadPrediction(DensePrediction):
    """A prediction that owns hidden states and the output head.

    On a GPU the head and the statistics are one kernel. Dense logits are made, once for all that is
    derived from the same pass, when a plugin or a draw asks for them; elsewhere at once.

    Examples:
        >>> source = HiddenStates(torch.ones(1, 2, 4), torch.eye(4))
        >>> prediction = Prediction.of(source)
        >>> type(prediction).__name__, prediction.shape
        ('HeadPrediction', (1, 2, 4))
    """

    def __init__(self, source: HiddenStates, banned: Tensor | None, draw: Draw | None) -> None:
        self._source = source
        self._banned = banned
        self._draw = draw

    @once
    def shape(self) -> tuple[int, int, int]:
        rows, slots, _ = self._source.hidden.shape
        return rows, slots, self._source.weight.shape[0]

    @once
    def _dtype(self) -> torch.dtype:
        return reference.working_dtype(self._source.hidden.dtype)

    @once
    def _rows(self) -> Tensor:
        return self._source.logits.flatten(0, 1)

    @property
    def _sparse(self) -> bool:
        """Whether the logits need not, and do not, exist."""
        shared = isinstance(self._source.weight, VocabularyShard)
        return not self._source.has_logits and (shared or dispatch.uses_triton(self._source.hidden))

    @once
    def _pass(self) -> tuple[RowStatistics, Tensor | None]:
        if self._sparse and self._draw is None:
            hidden = self._source.hidden.flatten(0, 1)
            return dispatch.head_statistics(hidden, self._source.weight, self._banned), None
        return super()._pass

    def _top(self, k: int) -> tuple[Tensor, Tensor]:
        if k == 1:
            # what the kernel knows without dense logits
            return self.maximum[..., None], self.top_token[..., None]
        return super()._top(k)

    def _at(self, ids: Tensor) -> Tensor:
        if not self._sparse:
            return super()._at(ids)
        hidden, weight = self._source.hidden.flatten(0, 1), self._source.weight
        at = dispatch.head_logits_at(hidden, weight, ids.flatten(0, 1), self._banned)
        # summed in another order than the head; the largest must not pass the maximum
        at = torch.minimum(at, self._statistics.maximum[:, None].to(at.dtype))
        return self._shaped(at)

    def _suppressed(self, ids: Tensor) -> Prediction:
        """Two predictions of one pass: the logits once are cheaper than the head twice."""
        return DensePrediction(self._source.logits, self._more_banned(ids), self._draw)

    def _credit_update(self, slots: Slots) -> reference.CreditUpdate:
        return Prediction._credit_update(self, slots)


class BiasedPrediction(Prediction):
    """A prediction with sparse additions, computed from the statistics of the one below it.

    The identity is stated at `kernels.reference.biased_statistics`. It is exact for additions that
    are 0 or more. A negative addition can cancel nearly all of the mass, so predictions that hold
    one compute their statistics densely.

    Examples:
        >>> base = Prediction.of(torch.tensor([[[2.0, 1.0, 0.0]]]))
        >>> raised = base.with_logit_bias(torch.tensor([[[2]]]), torch.tensor([[[5.0]]]))
        >>> type(raised).__name__, raised.token
        ('BiasedPrediction', tensor([[2]]))
    """

    def __init__(
        self,
        base: Prediction,
        ids: Tensor,
        delta: Tensor,
        draw: Draw | None,
        *,
        never_negative: bool = False,
        statistics: RowStatistics | None = None,
    ) -> None:
        self._base = self._below = base
        self._draw = draw
        self._ids = ids
        self._delta = delta
        self._never_negative = never_negative or statistics is not None
        self._known = statistics

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._base.shape

    @property
    def _dtype(self) -> torch.dtype:
        return self._base._dtype

    @once
    def _additions(self) -> tuple[Tensor, Tensor]:
        """Ids and float64 additions (B, W, K), one slot per id."""
        if self._known is not None:
            return self._ids, self._delta
        return reference.merged_additions(self._ids, self._delta)

    @once
    def _statistics(self) -> RowStatistics:
        if self._known is not None:
            return self._known
        # by the caller's word, not by a look: the numbers of one row must not decide how another's
        # are computed
        if not self._never_negative:
            return dispatch.row_statistics(self.logits.reshape(-1, self.shape[-1]))
        ids, delta = self._additions
        values = self._base._at(ids).flatten(0, 1)
        return reference.biased_statistics(
            self._base._statistics, values, ids.flatten(0, 1), delta.flatten(0, 1)
        )

    def _top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest: among the base's k + K largest and the K that moved, none is missed."""
        added, delta = self._additions
        # at most K of the base's best have moved, so that k of those that have not are left
        values, ids = self._base._top(min(k + added.shape[-1], self.shape[-1]))
        moved = (ids[..., :, None] == added[..., None, :]).any(-1)
        values = values.double().masked_fill(moved, float("-inf"))
        values = torch.cat([values, self._base._at(added) + delta], -1)
        # an entry that moved to the additions, or an empty slot, sorts behind every real id
        beyond = self.shape[-1]
        ids = torch.cat([ids.masked_fill(moved, beyond), added.masked_fill(added < 0, beyond)], -1)
        # sorted by id first, so that the stable sort by value leaves the lower id first on ties
        by_id = ids.sort(dim=-1, stable=True)
        values = values.gather(-1, by_id.indices)
        order = values.sort(dim=-1, descending=True, stable=True)
        picked = by_id.values.gather(-1, order.indices)[..., :k]
        return order.values[..., :k], picked.clamp(max=beyond - 1)

    def _at(self, ids: Tensor) -> Tensor:
        """In float64: next to a large logit, a small addition would be rounded away."""
        added, delta = self._additions
        same = (ids[..., :, None] == added[..., None, :]) & (ids >= 0)[..., None]
        zero = torch.zeros((), dtype=delta.dtype, device=ids.device)
        return self._base._at(ids) + torch.where(same, delta[..., None, :], zero).sum(-1)

    def never_proposes(self, banned: Tensor | None, origin: Prediction) -> bool:
        """An addition of 0 or more takes no id out and brings none back."""
        kind = type(self) is BiasedPrediction and isinstance(self._draw, GumbelDraw | None)
        return kind and self._never_negative and self._base.never_proposes(banned, origin)

    def _suppressed(self, ids: Tensor) -> Prediction:
        return BiasedPrediction(
            self._base._suppressed(ids),
            self._ids,
            self._delta,
            self._draw,
            never_negative=self._never_negative,
        )

    @once
    def logits(self) -> Tensor:
        ids, delta = self._additions
        # no number of nats makes a token certain, and a maximum of infinity would pass for that
        delta = delta.masked_fill(delta == float("inf"), float("nan"))
        dense = self._base.logits.clone()
        return dense.scatter_add_(-1, ids.clamp(min=0), delta.to(dense.dtype))

    def gumbel_max(self, draw: GumbelDraw) -> Tensor:
        """Additions >= 0 leave two kinds of winners: the one below, and the ids they raise."""
        if not self._never_negative:
            return super().gumbel_max(draw)
        below = self._base.gumbel_max(draw)[..., None]
        ids = torch.cat([below, self._additions[0]], -1)
        states = draw.noise.states()[..., None]
        scaled = reference.tempered(self._at(ids).to(self._dtype), draw.temperature)
        noisy = scaled.double() + gumbel(states, ids)
        best = noisy.amax(-1, keepdim=True)
        beyond = self.shape[-1]
        winner = ids.masked_fill((noisy < best) | (ids < 0), beyond).amin(-1)
        return torch.where(winner < beyond, winner, below[..., 0])


class DeferringPrediction(Prediction):
    """The proposals of one prediction with the statistics of the same without some ids.

    Examples:
        >>> pred = Prediction.of(torch.tensor([[[3.0, 1.0, 0.0]]])).deferring(torch.tensor([0]))
        >>> pred.token.tolist(), pred.confidence.tolist(), round(pred.entropy.item(), 2)
        ([[0]], [[0.0]], 0.58)
    """

    def __init__(self, base: Prediction, ids: Tensor) -> None:
        self._base = self._below = base
        self._ids = ids
        self._draw = _ProposalBelow()

    @once
    def _rest(self) -> Prediction:
        """The distribution without the ids; nobody asks what it would propose."""
        rest = self._base._suppressed(self._ids)
        rest._draw = None
        return rest

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._base.shape

    @property
    def _dtype(self) -> torch.dtype:
        return self._base._dtype

    @property
    def _statistics(self) -> RowStatistics:
        return self._rest._statistics

    @property
    def logits(self) -> Tensor:
        return self._rest.logits

    def _top(self, k: int) -> tuple[Tensor, Tensor]:
        return self._rest._top(k)

    def _at(self, ids: Tensor) -> Tensor:
        return self._rest._at(ids)

    def _suppressed(self, ids: Tensor) -> Prediction:
        return DeferringPrediction(self._base._suppressed(ids), self._ids)


__getattr__ = renamed_names(
    __name__,
    {"RaisedPrediction": "BiasedPrediction", "Unprojected": "HiddenStates"},
    globals(),
)
