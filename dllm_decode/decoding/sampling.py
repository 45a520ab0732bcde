"""How a token is proposed at each position: greedy, or drawn from a tempered, truncated row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.prediction import GumbelDraw, HiddenStates, Prediction
from dllm_decode.errors import require_choice, require_count, require_in_range
from dllm_decode.kernels import dispatch
from dllm_decode.kernels.noise import Noise
from dllm_decode.kernels.reference import COLDEST, COLUMNS, FLOOR, tempered


class Sampler(ABC):
    """Turns the logits of a forward pass into a prediction whose `token` is the proposal.

    Examples:
        >>> from dataclasses import dataclass
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> @dataclass(frozen=True)
        ... class Flat(Sampler):
        ...     def predict(self, logits, banned, noise):
        ...         return Prediction.of(logits / 2, banned)
        >>> Copy(n=4).answer(TopK(2), "abcd", sampler=Flat())
        ('abcd', 3)
    """

    @property
    def reshapes(self) -> bool:
        """Whether the prediction's distribution is tempered or truncated, and not the model's."""
        return False

    @property
    def draws(self) -> bool:
        """Whether the proposals depend on random numbers, and so on a row's seed."""
        return False

    @property
    def takes_hidden(self) -> bool:
        """Whether `predict` also takes a pass that stopped before the output head."""
        return False

    @abstractmethod
    def predict(self, logits: Any, banned: Tensor, noise: Noise) -> Prediction:
        """The prediction of a step.

        Args:
            logits: (B, W, V), or `HiddenStates` where `takes_hidden`.
            banned: (M,) ids that must never be proposed.
            noise: random numbers of the step.
        """


@dataclass(frozen=True)
class Greedy(Sampler):
    """Propose the most likely token, the lowest id on ties.

    Examples:
        >>> from dllm_decode.models.toy import Copy
        >>> from dllm_decode.strategies.fixed import TopK
        >>> Copy(n=4).answer(TopK(2), "abcd", sampler=Greedy())
        ('abcd', 3)
    """

    @property
    def takes_hidden(self) -> bool:
        """True: an argmax and its probability do not need the logits themselves."""
        return True

    def predict(self, logits: Tensor | HiddenStates, banned: Tensor, noise: Noise) -> Prediction:
        """The prediction that proposes the most likely token of every slot."""
        return Prediction.of(logits, banned)


@dataclass(frozen=True)
class Categorical(Sampler):
    """Draw each token from the tempered and truncated distribution by the Gumbel-max trick.

        token = argmax_v l_v / T + g_v,   g_v standard Gumbel noise in float64

    Truncation acts on the tempered distribution, in the order k, p, min-p, top-H.

    Args:
        temperature: T, 0 or more; 0 is greedy, what is above 0 and below 1e-20 counts as 1e-20.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set with at least this probability, (0, 1].
        min_p: keep tokens with at least this share of the top probability, [0, 1).
        top_h: grow the nucleus while its entropy is at most this share of the row's, (0, 1]; 1
            switches it off (Top-H decoding, arXiv 2509.02510).
        top_h_rule: `bound` (the entropy of the renormalised nucleus, as the paper bounds it) or
            `released` (the nucleus's terms in the entropy of the row, -sum p log p, as the
            published code adds them up, which can pass the paper's bound).
        confidence_from: `untempered` (the model's own distribution) or `sampled` (the tempered,
            truncated one feeds the confidence as well, as Dream and SDAR do).

    Raises:
        ConfigError: for values out of range.

    Examples:
        >>> from dllm_decode.models.toy import Shuffle
        >>> from dllm_decode.strategies.fixed import TopK
        >>> text, forwards = Shuffle(n=4).answer(TopK(1), "abcd", sampler=Categorical(0.8))
        >>> sorted(text), forwards
        (['a', 'b', 'c', 'd'], 5)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_h: float = 1.0
    top_h_rule: str = "bound"
    confidence_from: str = "untempered"

    def __post_init__(self) -> None:
        require_in_range("temperature", self.temperature, 0.0, 1e6)
        require_count("top_k", self.top_k, minimum=0)
        require_in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        require_in_range("min_p", self.min_p, 0.0, 1.0, open_high=True)
        require_in_range("top_h", self.top_h, 0.0, 1.0, open_low=True)
        require_choice("top_h_rule", self.top_h_rule, ("bound", "released"))
        require_choice("confidence_from", self.confidence_from, ("untempered", "sampled"))

    def predict(self, logits: Tensor, banned: Tensor, noise: Noise) -> Prediction:
        """A prediction whose `token` is drawn when it is first asked for."""
        if self.confidence_from == "untempered" and self.temperature > 0.0 and not self.truncates:
            return Prediction.of(logits, banned, GumbelDraw(noise, max(self.temperature, COLDEST)))
        if self.confidence_from == "untempered":
            return Prediction.of(logits, banned, lambda pred: self._draw(pred.logits, noise))
        plain = Prediction.of(logits, banned).logits
        return self._proposing(self.truncated(plain), noise)

    @property
    def draws(self) -> bool:
        """Whether the temperature is above 0."""
        return self.temperature > 0.0

    @property
    def reshapes(self) -> bool:
        """Whether confidences come from the sampled distribution."""
        return self.confidence_from == "sampled"

    @property
    def truncates(self) -> bool:
        """Whether any token is ever removed."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.top_h < 1.0

    def _draw(self, logits: Tensor, noise: Noise) -> Tensor:
        return self._proposing(self.truncated(logits), noise).token

    def _proposing(self, logits: Tensor, noise: Noise) -> Prediction:
        """A prediction that draws from logits that are tempered already."""
        draw = GumbelDraw(noise, 1.0) if self.temperature > 0.0 else None
        return Prediction.of(logits, None, draw)

    def truncated(self, logits: Tensor) -> Tensor:
        """Tempered logits with -inf at every token that the truncations remove, (B, W, V)."""
        scaled = tempered(logits, self.temperature) if self.temperature > 0.0 else logits
        if 0 < self.top_k < logits.shape[-1]:
            scaled = scaled.masked_fill(~_in_top_k(scaled, self.top_k), float("-inf"))
        if self.top_p < 1.0:
            scaled = scaled.masked_fill(~_in_nucleus(scaled, self.top_p), float("-inf"))
        if self.min_p > 0.0:
            floor = scaled.amax(-1, keepdim=True) + torch.tensor(self.min_p).log().item()
            scaled = scaled.masked_fill(scaled < floor, float("-inf"))
        if self.top_h < 1.0:
            inside = _in_top_h(scaled, self.top_h, self.top_h_rule == "released")
            scaled = scaled.masked_fill(~inside, float("-inf"))
        return scaled


def _in_top_k(logits: Tensor, k: int) -> Tensor:
    _, ids = dispatch.top_k(logits.flatten(0, 1), k)
    return _places(logits, ids.view(*logits.shape[:2], -1), True)


def _places(logits: Tensor, ids: Tensor, inside: Tensor | bool) -> Tensor:
    """What holds at ids, as a plane over the vocabulary, bool."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, ids, inside)


def _sorted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in falling order, lower id first on ties, and their ids."""
    order = logits.sort(dim=-1, descending=True, stable=True)
    return order.values, order.indices


def _in_nucleus(logits: Tensor, top_p: float) -> Tensor:
    values, ids = _sorted(logits)
    probs = values.softmax(-1)
    before = probs.cumsum(-1) - probs
    return _places(logits, ids, before < top_p)


def _in_top_h(logits: Tensor, share: float, released: bool) -> Tensor:
    """The longest prefix of the sorted tokens whose entropy is at most share x the row's entropy.

    With the prefix mass P and s = -sum p log p over it, its renormalised entropy is s / P + log P.
    It only grows along the prefix, so what is inside is one. The entropy of one token is 0, so at
    least one is kept. The released code bounds s instead. The sums are float64, of `COLUMNS` tokens
    at a time.
    """
    values, ids = _sorted(logits)
    total = moment = mass = surprise = values.new_zeros((), dtype=torch.float64)
    for below in _below_the_first(values):
        weights = below.exp()
        total = total + weights.sum(-1, keepdim=True)
        moment = moment + (weights * below).sum(-1, keepdim=True)
    scale = total.log()
    bound = share * (scale - moment / total) + 1e-12
    inside = []
    for below in _below_the_first(values):
        probs = (below - scale).exp()
        mass = mass + probs.cumsum(-1)
        surprise = surprise + (probs * (scale - below)).cumsum(-1)
        inside.append((surprise if released else surprise / mass + mass.log()) <= bound)
        mass, surprise = mass[..., -1:], surprise[..., -1:]
    kept = torch.cat(inside, -1)
    kept[..., 0] = True
    return _places(logits, ids, kept)


def _below_the_first(values: Tensor) -> Iterator[Tensor]:
    """How far each value of a sorted row lies below the first, float64, `COLUMNS` at a time."""
    for part in values.split(COLUMNS, -1):
        yield (part.double() - values[..., :1].double()).clamp_(min=FLOOR)
