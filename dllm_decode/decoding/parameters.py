"""Parameters of a strategy that the rows of a request set for themselves (`Request.parameters`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dllm_decode.decoding.strategy import Strategy
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError, did_you_mean


def parameters_of_strategy(strategy: Strategy) -> dict[str, tuple[Any, str]]:
    """Full keys that rows may set, each with the part that declares it and the field's name."""
    return {
        f"strategy{'.' + place if place else ''}.{name}": (part, name)
        for place, part in strategy.parts()
        for name in part.request_parameters
    }


def check_parameters(strategy: Strategy, request: Request, sources: Sequence[str] = ()) -> None:
    """Raise `ConfigError` for names that rows cannot set, and for values that a part refuses.

    Args:
        strategy: whose parts know the names.
        request: with the parameters of each row.
        sources: what rows are called in messages, by default `row 0`, `row 1`, ...
    """
    known = parameters_of_strategy(strategy)
    for row, own in enumerate(request.parameters or ()):
        for key, value in (own or {}).items():
            where = f"parameters of {sources[row] if sources else f'row {row}'}"
            if key not in known:
                raise ConfigError(
                    f"{where}: unknown name {key!r}{did_you_mean(key, list(known))}; rows of this "
                    f"strategy may set {', '.join(known) or 'nothing'}"
                )
            part, name = known[key]
            try:
                replace(part, **{name: value})  # the part's own check of the field
            except ConfigError as error:
                place = key.removesuffix(name)
                raise ConfigError(f"{where}: {place}{error}") from None


def columns_of_parameters(
    strategy: Strategy, request: Request, rows: Sequence[int], device: torch.device
) -> Mapping[str, Tensor]:
    """The parameters that any row of the request sets: full key to the values of some rows, (B, 1).

    A row that does not set a parameter has the value of the strategy, so that rows can join.

    Args:
        strategy: which names its `request_parameters`.
        request: all rows.
        rows: those of the batch.
        device: where the columns lie.
    """
    given = request.parameters or ()
    names = {key for own in given for key in own or {}}
    if not names:
        return {}
    return {
        key: torch.tensor(
            [[(given[row] or {}).get(key, getattr(part, name))] for row in rows],
            dtype=torch.float64,
        ).to(device)
        for key, (part, name) in parameters_of_strategy(strategy).items()
        if key in names
    }
