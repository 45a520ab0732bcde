"""Kernels that cannot start fall back one by one; a lost device is nobody's to hide."""

import logging

import pytest
import torch

from dllm_decode.kernels import dispatch, reference
from dllm_decode.kernels.dispatch import lost_device

LOGITS = torch.tensor([[0.0, 1.0, 3.0]])


class Fused:
    """Stands in for the module of Triton kernels."""

    class Unsupported(Exception):
        pass

    def __init__(self, error):
        self.error = error
        self.calls = 0

    def row_statistics(self, *arguments):
        self.calls += 1
        raise self.error

    def top_k(self, logits, k, banned=None):
        return "the kernel"


@pytest.fixture
def broken(monkeypatch):
    def install(error):
        fused = Fused(error)
        monkeypatch.setattr(dispatch, "_triton", lambda: fused)
        monkeypatch.setattr(dispatch, "_said", set())
        monkeypatch.setattr(dispatch, "_broken", set())
        return fused

    with dispatch.using("triton"):
        yield install


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: out of resource: shared memory\nsecond line"),
        TypeError("unexpected keyword"),
        OSError("no C compiler"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_does_not_start_is_replaced_for_good_and_the_others_stay(
    broken, caplog, error
):
    fused = broken(error)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            stats = dispatch.row_statistics(LOGITS)
            assert dispatch.top_k(LOGITS, 1) == "the kernel"
    assert torch.equal(stats.token, reference.row_statistics(LOGITS).token)
    assert fused.calls == 1
    (message,) = caplog.messages
    assert message.startswith(
        "row_statistics runs in plain torch: its kernel does not start on cpu"
    )
    assert "\n" not in message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuBLAS: CUBLAS_STATUS_EXECUTION_FAILED"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=["illegal access", "cublas", "out of memory"],
)
def test_what_plain_torch_cannot_mend_is_raised(broken, error):
    broken(error)
    with pytest.raises(type(error)):
        dispatch.row_statistics(LOGITS)


def test_a_lost_device_is_told_from_other_faults():
    assert lost_device(RuntimeError("CUDA error: device-side assert triggered"))
    assert not lost_device(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_device(torch.OutOfMemoryError("CUDA error: out of memory"))
    assert not lost_device(ValueError("CUDA error"))
