"""The draft layer: one transformer layer on a model's states that follows commits without a pass.

The network and its file format; `strategy=adjust` decodes with it, `task=train_drafter` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from dllm_decode import storage
from dllm_decode.decoding.denoiser import Capabilities
from dllm_decode.errors import CapabilityError, CheckpointError, require, require_count
from dllm_decode.models.files import FLOATS, StoredTensor, metadata, read_header
from dllm_decode.models.locate import Shelf

SHELF = Shelf("drafter", "drafters/{}.safetensors", "train_drafter", "strategy.select.weights")
_START = 0.5  # of the last norm's weights: 0 hardly learns, 1 has to be unlearned first
_THETA = 10_000.0  # base of the rotary positions


class DraftLayer(nn.Module):
    """New states from the last ones and from the tokens that stand now.

        u  = W [norm(E(x)); norm(h)] + b
        a  = u + attention(norm(u)),     g(u) = a + feed_forward(norm(a))
        h' = h + norm(g(u))

    with E the model's embeddings, h its states (or those of the last draft), norm a root mean
    square norm with weights of its own at each place, attention over all live columns with rotary
    positions counted from the row's first live column, and a SwiGLU feed-forward layer. The model's
    output head makes logits of h'.

    Source: ADJUST, arXiv 2509.22738 (there the layer has the sizes of the model's own layers).

    Args:
        width: D, of the states, a multiple of `2 * heads`.
        embedding: Width of the embeddings.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.

    Examples:
        >>> layer = DraftLayer(width=8, embedding=8, heads=2, hidden=16)
        >>> states, live = torch.ones(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
        >>> layer(torch.ones(1, 3, 8), states, live).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, width: int, embedding: int, heads: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("width", width), ("heads", heads), ("hidden", hidden)):
            require_count(f"{name} of the draft layer", value)
        require(
            width % (2 * heads) == 0,
            f"the states have width {width}, which must be a multiple of 2 * heads, got {heads} "
            "heads",
        )
        self.heads = heads
        self.norm_embedding = nn.RMSNorm(embedding, eps=1e-5)
        self.norm_state = nn.RMSNorm(width, eps=1e-5)
        self.join = nn.Linear(embedding + width, width)
        self.norm_attention = nn.RMSNorm(width, eps=1e-5)
        self.attention = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.norm_feed = nn.RMSNorm(width, eps=1e-5)
        self.feed = nn.Linear(width, 2 * hidden, bias=False)
        self.fed = nn.Linear(hidden, width, bias=False)
        self.norm_out = nn.RMSNorm(width, eps=1e-5)
        nn.init.constant_(self.norm_out.weight, _START)

    def forward(self, embedded: Tensor, states: Tensor, live: Tensor) -> Tensor:
        """The states h' in float32, (B, L, D).

        Args:
            embedded: (B, L, E), of the tokens that stand now.
            states: (B, L, D), of the pass or of the draft before.
            live: (B, L) bool, columns that exist for the row.
        """
        states = states.float()
        parts = self.norm_embedding(embedded.float()), self.norm_state(states)
        mixed = self.join(torch.cat(parts, -1))
        mixed = mixed + self._attend(self.norm_attention(mixed), live)
        gate, value = self.feed(self.norm_feed(mixed)).chunk(2, -1)
        mixed = mixed + self.fed(functional.silu(gate) * value)
        new: Tensor = states + self.norm_out(mixed)
        return new

    def _attend(self, values: Tensor, live: Tensor) -> Tensor:
        rows, columns, width = values.shape
        split = self.attention(values).view(rows, columns, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        query, key = rotated(query, live), rotated(key, live)
        seen = functional.scaled_dot_product_attention(query, key, value, live[:, None, None])
        attended: Tensor = self.attended(seen.transpose(1, 2).reshape(rows, columns, width))
        return attended


def rotated(values: Tensor, live: Tensor) -> Tensor:
    """Values turned by their column's rotary position, which counts from the first live column.

        (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position / 10000^(2 i / d)

    with a the first half of the d components and b the second.

    Args:
        values: (B, H, L, d), d even.
        live: (B, L) bool.
    """
    half = values.shape[-1] // 2
    columns = torch.arange(live.shape[1], device=live.device)
    places = (columns - live.int().argmax(1, keepdim=True)).float()
    # times, not divided by: CUDA would round that otherwise
    speeds = _THETA ** -(torch.arange(half, device=live.device) * (1 / half))
    turn = places[:, None, :, None] * speeds
    one, two = values.chunk(2, -1)
    return torch.cat((one * turn.cos() - two * turn.sin(), two * turn.cos() + one * turn.sin()), -1)


@dataclass(frozen=True, eq=False)
class LayerDrafter:
    """A draft layer as the loop's `Drafter`.

    Attributes:
        layer: The network.
        fingerprint: Of the model it was trained for, None where the file does not say.

    Examples:
        >>> drafter = LayerDrafter.load("bundled:llada-tiny")
        >>> drafter.layer.heads
        6
    """

    layer: DraftLayer
    fingerprint: str | None = None

    def __call__(self, model: Capabilities, states: Tensor, tokens: Tensor, live: Tensor) -> Tensor:
        """See `Drafter`; of the type of the states that came in."""
        assert model.embed is not None  # checked when the decoder was composed
        embedded = model.embed(tokens)
        found = states.shape[-1], embedded.shape[-1]
        if found != self.widths:  # of a model that did not say the width of its states
            raise CapabilityError(
                f"the draft layer is for states of width {self.widths[0]} and embeddings of "
                f"{self.widths[1]}, but the model has {found[0]} and {found[1]}"
            )
        new: Tensor = self.layer(embedded, states, live)
        return new.to(states.dtype)

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of the states and of the embeddings that the layer is for."""
        width, both = self.layer.join.weight.shape
        return width, both - width

    def to(self, device: torch.device) -> LayerDrafter:
        """This drafter, its weights moved to a device."""
        self.layer.to(device)
        return self

    @staticmethod
    def load(path: str | Path) -> LayerDrafter:
        """Read a safetensors file; `bundled:NAME` is one that ships with the package.

        Raises:
            CheckpointError: The file is missing, damaged, or not that of a draft layer.
        """
        file, stored = _header(path)
        try:
            with safe_open(str(file), framework="pt") as content:
                about: Mapping[str, str] = content.metadata() or {}
                layer = _empty(file, {n: t.shape for n, t in stored.items()}, about.get("heads"))
                tensors = {name: content.get_tensor(name).float() for name in layer.state_dict()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"drafter {file} cannot be read: {error}") from None
        for name, tensor in tensors.items():
            if stored[name].dtype not in FLOATS:
                raise CheckpointError(
                    f"drafter {file}: {name} must be stored as {', '.join(FLOATS)}, got "
                    f"{stored[name].dtype}"
                )
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"drafter {file}: {name} holds NaN or infinite numbers")
        layer.load_state_dict(tensors)
        return LayerDrafter(layer.requires_grad_(False).eval(), about.get("model_fingerprint"))

    @staticmethod
    def outline(path: str | Path) -> LayerDrafter:
        """What a file says of its layer, without the layer; raises `CheckpointError`.

        Args:
            path: As of `load`.
        """
        file, _ = _header(path)
        return LayerDrafter(None, metadata(file).get("model_fingerprint"))  # type: ignore[arg-type]

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write the weights in bfloat16 with heads, fingerprint and more metadata, all or nothing.

        Args:
            path: The file.
            about: Further metadata.
        """
        notes = {**about, "heads": str(self.layer.heads)}
        if self.fingerprint is not None:
            notes["model_fingerprint"] = self.fingerprint
        weights = self.layer.state_dict()
        tensors = {name: w.detach().cpu().bfloat16().contiguous() for name, w in weights.items()}
        with storage.replacing(path) as partial:
            partial.write_bytes(save(tensors, metadata=notes))


def _header(path: str | Path) -> tuple[Path, Mapping[str, StoredTensor]]:
    """The file of a drafter and what it holds."""
    file = SHELF.find(path)
    try:
        return file, read_header(file)
    except CheckpointError as error:
        raise CheckpointError(f"drafter {file} cannot be read: {error}") from None


def _empty(file: Path, shapes: Mapping[str, tuple[int, ...]], heads: str | None) -> DraftLayer:
    """A layer of the sizes that the tensors of a file have, which must be those of a layer."""
    absent = [name for name in ("join.weight", "fed.weight") if len(shapes.get(name, ())) != 2]
    if absent or heads is None or not heads.isdecimal() or not int(heads):
        missing = f"no matrix {absent[0]}" if absent else f"heads={heads} in its metadata"
        raise CheckpointError(f"drafter {file} is not a draft layer: it has {missing}")
    width, both = shapes["join.weight"]
    try:
        with torch.device("meta"):
            layer = DraftLayer(width, both - width, int(heads), shapes["fed.weight"][1])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"drafter {file} is not a draft layer: {error}") from None
    for name, wanted in layer.state_dict().items():
        if shapes.get(name) != tuple(wanted.shape):
            raise CheckpointError(
                f"drafter {file}: {name} must have shape {tuple(wanted.shape)}, got "
                f"{shapes.get(name, 'none')}"
            )
    return layer.to_empty(device="cpu")
