"""The learned filter: what it accepts, how progress is forced, and what it refuses to do."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from changing_model import ChangingModel, a_request
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.schedule import Blocks, Schedule, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, Strategy
from dllm_decode.errors import CapabilityError, CheckpointError, ConfigError
from dllm_decode.models.acceptance import AcceptanceFilter
from dllm_decode.models.locate import ASSETS
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.eot import AcceptedEot, PredictedEot
from dllm_decode.strategies.fixed import FixedSchedule, TopK
from dllm_decode.strategies.learn2pd import Learn2PD

decodes = examples(4)
SEEDS = st.integers(0, 500)
WIDTH = 6


def network(width: int = WIDTH, seed: int = 0, fingerprint: str | None = None) -> AcceptanceFilter:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((width, width), (width,), (width, width), (width,))
    one, two, three, four = (2 * torch.randn(shape, generator=generator) for shape in shapes)
    return AcceptanceFilter(one, two, three, four, fingerprint)


def threshold_network(threshold: float, width: int = WIDTH) -> AcceptanceFilter:
    """Accepts a column, at any tau in (0, 1), iff its own confidence exceeds the threshold."""
    eye = torch.eye(width)
    return AcceptanceFilter(
        eye, torch.zeros(width), 1e4 * eye, torch.full((width,), -1e4 * threshold)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filters")


@pytest.fixture(scope="module")
def weights(folder: Path) -> str:
    network().save(folder / "random.safetensors", {})
    return str(folder / "random.safetensors")


@pytest.fixture(scope="module")
def half(folder: Path) -> str:
    threshold_network(0.5).save(folder / "half.safetensors", {})
    return str(folder / "half.safetensors")


def decode(seed: int, select: Strategy, **options: Any) -> Result:
    schedule: Schedule = options.pop("schedule", Blocks(WIDTH))
    request = options.pop("request", a_request(2, 15))
    model = options.pop("model", ChangingModel(seed=seed))
    pipeline = Pipeline(select, **options)
    return Decoder(model, pipeline, schedule, record=True).decode(request)


def outcome(result: Result) -> tuple[object, ...]:
    return result.sequences, result.step_of, result.forwards


# What is committed.


@decodes
@given(SEEDS, st.sampled_from([0.3, 0.5, 0.8]), st.integers(1, 6))
def test_commits_are_the_accepted_positions_and_the_schedule(
    weights: str, seed: int, tau: float, steps: int
) -> None:
    """Recomputed from the trace: the network on the confidences of the block, zeros behind it."""
    result = decode(seed, Learn2PD(weights, tau, steps))
    filled: dict[int, int] = {}
    for change in result.trace:
        for row in range(change.rows.numel()):
            confidence = torch.where(change.index[row] >= 0, change.probability[row], 0.0)
            accept = network().logits(confidence[None].float()).sigmoid()[0] > tau
            open_now = change.notes["accepted"][row] | change.commit[row]
            assert torch.equal(change.notes["accepted"][row], accept & open_now)
            rest = change.commit[row] & ~change.notes["accepted"][row]
            assert int(rest.sum()) <= -(-WIDTH // steps)
            filled[int(change.rows[row])] = filled.get(int(change.rows[row]), 0) + int(
                change.commit[row].sum()
            )
    assert set(filled.values()) == {15}


def test_a_threshold_written_as_a_filter_decodes_as_the_threshold(half: str) -> None:
    from dllm_decode.strategies.threshold import ConfidenceThreshold

    for seed in range(4):
        plain = decode(seed, ConfidenceThreshold(0.5, strict=True))
        assert outcome(decode(seed, Learn2PD(half, 0.5))) == outcome(plain)


@decodes
@given(SEEDS, st.integers(1, 6))
def test_a_tau_of_one_is_the_plain_schedule(weights: str, seed: int, steps: int) -> None:
    assert outcome(decode(seed, Learn2PD(weights, 1.0))) == outcome(decode(seed, TopK(1)))
    scheduled = decode(seed, FixedSchedule(steps))
    assert outcome(decode(seed, Learn2PD(weights, 1.0, steps))) == outcome(scheduled)


@decodes
@given(SEEDS)
def test_a_tau_of_zero_takes_one_forward_per_block(weights: str, seed: int) -> None:
    assert decode(seed, Learn2PD(weights, 0.0)).forwards == (3, 3)


@decodes
@given(SEEDS, st.integers(1, 6))
def test_a_block_takes_at_most_the_steps_of_its_schedule(
    weights: str, seed: int, steps: int
) -> None:
    result = decode(seed, Learn2PD(weights, 0.9, steps), request=a_request(2, 12))
    assert all(forwards <= 2 * steps for forwards in result.forwards)


def test_acceptance_has_to_exceed_tau(folder: Path) -> None:
    zero = torch.zeros(WIDTH)
    AcceptanceFilter(zero.diag(), zero, zero.diag(), zero).save(folder / "zero.safetensors", {})
    accepted = [
        decode(0, Learn2PD(str(folder / "zero.safetensors"), tau)).trace[0].notes["accepted"]
        for tau in (0.5, 0.4999)
    ]
    assert [int(flags.sum()) for flags in accepted] == [0, 2 * WIDTH]


@decodes
@given(SEEDS)
def test_a_higher_tau_accepts_no_more_at_the_first_step(weights: str, seed: int) -> None:
    accepted = [
        decode(seed, Learn2PD(weights, tau)).trace[0].notes["accepted"] for tau in (0.2, 0.5, 0.9)
    ]
    assert not (accepted[1] & ~accepted[0]).any()
    assert not (accepted[2] & ~accepted[1]).any()


@decodes
@given(SEEDS)
def test_a_row_decodes_alike_alone_and_in_a_batch(weights: str, seed: int) -> None:
    request = a_request(3, (15, 7, 12))
    together = decode(seed, Learn2PD(weights, 0.6), request=request)
    for row in range(3):
        alone = decode(seed, Learn2PD(weights, 0.6), request=request.take([row]))
        assert alone.sequences[0] == together.sequences[row]
        assert alone.step_of[0] == together.step_of[row]


@decodes
@given(SEEDS)
def test_the_block_is_found_in_a_view_of_the_whole_canvas(weights: str, seed: int) -> None:
    """A part that looks at the canvas widens the view; what the filter sees must not change."""
    plain = decode(seed, Learn2PD(weights, 0.6))
    never = PredictedEot(scope="canvas", threshold=1.0, ids=(0,))
    wide = decode(seed, Learn2PD(weights, 0.6), stop={"stop": never})
    assert wide.trace[0].index.shape[1] == 15
    assert outcome(wide) == outcome(plain)


def test_credit_raises_what_the_filter_reads(weights: str) -> None:
    """At open positions only: decided ones keep the model's fresh probability."""
    raised = decode(1, Learn2PD(weights, 0.6), transforms={"credit": TraceCredit(alpha=3.0)})
    plain = decode(1, Learn2PD(weights, 0.6))
    assert (raised.trace[0].confidence > plain.trace[0].confidence).any()
    assert torch.equal(raised.trace[0].probability, plain.trace[0].probability)


def test_an_accepted_end_of_text_cuts_the_row_behind_it(half: str) -> None:
    model = ChangingModel(favourite=10)
    result = decode(0, Learn2PD(half), stop={"eot": AcceptedEot()}, model=model)
    assert result.sequences == ((10,), (10,))
    assert result.forwards == (1, 1)


# The network and its file.


@given(st.integers(1, WIDTH), st.integers(0, 100))
def test_a_short_block_counts_as_one_with_zeros_behind(length: int, seed: int) -> None:
    confidence = torch.rand(3, WIDTH, generator=torch.Generator().manual_seed(seed))
    confidence[:, length:] = 0.0
    filtered = network(seed=seed)
    by_hand = [
        sum(
            float(filtered.weight2[0, h])
            * max(0.0, float(filtered.weight1[h, :length] @ row[:length] + filtered.bias1[h]))
            for h in range(WIDTH)
        )
        + float(filtered.bias2[0])
        for row in confidence
    ]
    assert filtered.logits(confidence)[:, 0].tolist() == pytest.approx(by_hand, abs=1e-4)


def test_a_filter_survives_its_file(tmp_path: Path) -> None:
    saved = network(5, fingerprint="abc")
    saved.save(tmp_path / "filter.safetensors", {"model": "tiny"})
    read = AcceptanceFilter.load(tmp_path / "filter.safetensors")
    assert (read.block_length, read.fingerprint) == (5, "abc")
    for mine, theirs in zip(saved.weights(), read.weights(), strict=True):
        assert torch.equal(mine, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["filter.safetensors"]


def test_a_filter_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "filter.safetensors"
    network(5, fingerprint="old").save(file, {})

    def full(path: Path, data: bytes) -> int:
        path.open("wb").write(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left"):
        disk.setattr(Path, "write_bytes", full)
        network(5, fingerprint="new").save(file, {})
    assert AcceptanceFilter.load(file).fingerprint == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["filter.safetensors"]


def test_a_filter_that_is_no_improvement_says_so_once(
    tmp_path: Path, weights: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "doubted.safetensors"
    replace(network(), doubt="AUC 0.9 against 0.95").save(path, {})
    warnings.simplefilter("always")
    for file in (weights, str(path), str(path)):
        decode(0, Learn2PD(file, 0.5))
    (said,) = (str(w.message) for w in recwarn if "filter" in str(w.message))
    assert f"the filter {path} is no better than the plain confidence" in said
    assert "(AUC 0.9 against 0.95); strategy=threshold is the rule to compare with" in said


def test_published_weights_without_metadata_are_read(tmp_path: Path) -> None:
    names = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
    tensors = dict(zip(names, network(8).weights(), strict=True))
    save_file(tensors, tmp_path / "l2p.safetensors")
    select = Learn2PD(str(tmp_path / "l2p.safetensors"))
    assert (select.window_width, select.model_fingerprint) == (8, None)


# What is refused.


def test_another_block_length_is_refused(weights: str) -> None:
    for schedule in (Blocks(5), WholeCanvas()):
        with pytest.raises(CapabilityError, match=r"strategy\.select \(Learn2PD\).*6 columns"):
            decode(0, Learn2PD(weights), schedule=schedule)


def test_the_filter_of_another_model_is_refused_by_name(folder: Path) -> None:
    network(fingerprint="aaaa").save(folder / "named.safetensors", {})
    select = Learn2PD(str(folder / "named.safetensors"))
    for model in (ChangingModel(fingerprint="bbbb"), ChangingModel()):
        with pytest.raises(CapabilityError, match=r"Learn2PD.*aaaa.*(bbbb|none)"):
            decode(0, select, model=model)
    own = decode(0, select, model=ChangingModel(fingerprint="aaaa"))
    forced = decode(0, replace(select, match_model=False), model=ChangingModel(fingerprint="b"))
    assert own.sequences == forced.sequences


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 1.2}, r"tau must lie in \[0.0, 1.0\], got 1.2"),
        ({"steps_per_block": 0}, r"steps_per_block must be .* got 0"),
        ({"weights": ""}, r"weights must be a safetensors file .* got ''"),
    ],
)
def test_values_that_cannot_work_are_refused(
    weights: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Learn2PD(**{"weights": weights, **options})


def test_files_that_hold_no_filter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"filter .*none\.safetensors was not found"):
        Learn2PD(str(tmp_path / "none.safetensors"))
    with pytest.raises(CheckpointError, match="filter bundled:none was not found"):
        Learn2PD("bundled:none")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors cannot be read"):
        Learn2PD(str(damaged))
    save_file({"linear1.weight": torch.ones(2, 2)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tensor linear1\.bias, linear2\.weight"):
        Learn2PD(str(tmp_path / "part.safetensors"))
    names = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
    odd = dict(zip(names, network(4).weights(), strict=True))
    save_file({**odd, "linear2.bias": torch.ones(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"has tensors of shapes .*\(3,\); a two-layer"):
        Learn2PD(str(tmp_path / "odd.safetensors"))
    save_file(odd, tmp_path / "says.safetensors", metadata={"block_length": "32"})
    with pytest.raises(CheckpointError, match="says block_length=32, but its weights are for 4"):
        Learn2PD(str(tmp_path / "says.safetensors"))


def test_the_page_says_first_whether_the_bundled_filter_is_an_improvement() -> None:
    """And its figures are those of the report beside the filter."""
    page = (Path(__file__).parents[2] / "docs/strategies/learn2pd.md").read_text("utf-8")
    report = json.loads((ASSETS / "filters" / "llada-tiny.json").read_text("utf-8"))
    first = " ".join(page.split("\n\n")[1].split())
    doubt = AcceptanceFilter.load("bundled:llada-tiny").doubt
    assert doubt == report["doubt"] and ("no better than" in first) is (doubt is not None)
    auc = report["compared"]["auc"]
    assert f"{auc['filter']:.3f}" in first and f"{auc['confidence']:.3f}" in first
    for left_out in report["transfer"]:
        found = left_out["auc"]
        if found["filter"] is not None:
            row = f"{found['filter']:.3f} | {found['confidence']:.3f}"
            assert row in page, left_out["left_out"]
