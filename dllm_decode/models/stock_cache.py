"""The positional key/value store in the form that transformers' attention classes take."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dllm_decode.models.key_value import KeyValueStore, PositionalLayer


class StockLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a store.

    Examples:
        >>> cache = stock_cache(KeyValueStore(layers=2, rows=1, columns=8))
        >>> len(cache.layers), cache.layers[0].get_max_length()
        (2, 8)
    """

    def __init__(self, layer: PositionalLayer) -> None:
        super().__init__()
        self.layer = layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store allocates itself."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of the pass; returns those of all columns in use."""
        return self.layer.update(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of columns attended to, and the first of them."""
        return self.layer.width, 0

    def get_seq_length(self) -> int:
        """Zero: positions are always given, never derived from what is stored."""
        return 0

    def get_max_length(self) -> int:
        """The number of columns of the canvas, which is all that can be stored."""
        return self.layer.columns


def stock_cache(store: KeyValueStore) -> Cache:
    """The store as transformers takes it, made once."""
    if store.for_transformers is None:
        store.for_transformers = Cache(layers=[StockLayer(layer) for layer in store.positional])
    return store.for_transformers
