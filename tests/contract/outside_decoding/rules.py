"""Rules that edit, open again, probe and look inside; of the package only public names are used."""

from dataclasses import dataclass

import torch

from dllm_decode import Carry, ColumnMemory, Decision, Revisions, StopRule, Strategy
from dllm_decode.decoding.selection import best


@dataclass(frozen=True)
class OnlyTwice(Strategy):
    """Changes its mind about a column at most twice."""

    times: int = 2
    needs_window = True

    @property
    def progress(self):
        return Revisions(self.times)


@dataclass(frozen=True)
class Corrects(OnlyTwice):
    """Writes over what the model has come to see otherwise; rows of even seeds look once more."""

    revises = True

    def decide(self, view, memory):
        other = view.settled & (view.pred.token != view.tokens)
        return Decision(best(view.pred.confidence, view.open, 2) | other)

    def lingers(self, snapshot, view, change, memory):
        return view.noise.seeds % 2 == 0


@dataclass(frozen=True)
class Doubts(OnlyTwice):
    """Opens again what the model now gives less than a third to, also when the window is full."""

    revocable = True

    def begin(self, request, snapshot):
        return ColumnMemory.of(snapshot, 0)

    def decide(self, view, memory):
        own = view.pred.prob_of(view.tokens[..., None])[..., 0]
        doubted = view.settled & (own < 1 / 3)
        memory.write(view, memory.read(view) + doubted)
        return Decision(best(view.pred.confidence, view.open, 3), remask=doubted)

    def lingers(self, snapshot, view, change, memory):
        return torch.ones_like(view.live)


@dataclass(frozen=True)
class LooksAhead(Strategy):
    """Asks what would follow from one commit and from all, and goes on from the one."""

    needs_window = True

    def decide(self, view, memory):
        one = best(view.pred.confidence, view.open)
        alone = torch.where(one, view.pred.token, view.tokens)
        together = torch.where(view.open, view.pred.token, view.tokens)
        asks = (view.open.sum(1) > 1) & (view.noise.seeds % 3 > 0)
        first, last = view.probe([alone, together], rows=asks, ahead=1)
        agree = view.open & (first.token == last.token) & (first.confidence > 0.9)
        sure = torch.where((agree & asks[:, None]).any(1, keepdim=True), agree & ~one, one)
        carry = Carry([first], torch.where((sure == one).all(1), 0, -1))
        return Decision(sure, carry=carry)


@dataclass(frozen=True)
class LeavesOut(Strategy):
    """Opens again what the model does not repeat once it is masked; K questions in one pass."""

    most: int = 2
    revocable = True
    needs_window = True
    progress = Revisions(1)

    def decide(self, view, memory):
        own = view.pred.prob_of(view.tokens[..., None])[..., 0]
        mask = torch.full_like(view.tokens, view.snapshot.vocab.mask_id)
        weak = [best(-own, view.settled, k + 1) for k in range(self.most)]
        asked = torch.stack([torch.where(slots, mask, view.tokens) for slots in weak], 1)
        found = view.probe(asked, where=view.settled, rows=view.settled.any(1))
        last = weak[-1] & (found[-1].token != view.tokens)
        return Decision(best(view.pred.confidence, view.open, 2), remask=last)


@dataclass(frozen=True)
class Deep(Strategy):
    """Chooses by the states of the model, and asks its head about a mixture of them."""

    needs = frozenset({"hidden"})

    def decide(self, view, memory):
        score = view.hidden.float()[..., :3].sum(-1)
        mixed = view.head((view.hidden + view.hidden.flip(-1)) / 2)
        sure = view.open & (mixed.confidence > 0.5)
        return Decision(best(score, view.open) | sure, scores=score)


class Echo:
    """A drafter: what stands on the canvas, added to the states."""

    def __call__(self, model, states, tokens, live):
        return states + 3 * model.embed(tokens).to(states.dtype) * live[..., None]


@dataclass(frozen=True)
class Drafts(Strategy):
    """Commits the best position, and then what a drafter would commit next."""

    @property
    def drafter(self):
        return Echo()

    def decide(self, view, memory):
        one = best(view.pred.confidence, view.open)
        second = view.draft(torch.where(one, view.pred.token, view.tokens))
        two = best(second.confidence, view.open & ~one)
        return Decision(one | two, tokens=torch.where(two, second.token, view.pred.token))


@dataclass(frozen=True)
class Enough(StopRule):
    """Ends a row as soon as everything undecided has more than half of the probability."""

    sees_canvas = True

    def horizon(self, snapshot, view, change, memory):
        return snapshot.horizon

    def closes(self, view, memory):
        return ((view.pred.confidence > 0.5) | ~view.masked).all(1)
