"""Step views made by hand, for tests of single parts."""

import torch

from dllm_decode.decoding.canvas import Canvas
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.types import Request, StepView, Vocab
from dllm_decode.kernels.noise import Noise


def view_of(logits, *, prompts=None, lengths=None, fixed=None, eot=None, step=0):
    """A step with the whole canvas as window; logits: (B, W, V), id V - 1 is the mask."""
    rows, width, size = logits.shape
    vocab = Vocab(size, size - 1, () if eot is None else (eot,))
    prompts = ((),) * rows if prompts is None else prompts
    lengths = (width,) * rows if lengths is None else lengths
    snapshot = Canvas.of(Request(prompts, lengths, fixed=fixed), vocab).snapshot()
    index = snapshot.columns[snapshot.start :].expand(rows, -1)
    index = torch.where(index < snapshot.horizon[:, None], index, -1)
    real = index >= 0
    steps = torch.full((rows,), step)
    masked = snapshot.undecided[:, snapshot.start :] & real
    return StepView(
        step=steps,
        index=index,
        pred=Prediction.of(logits, snapshot.never_generated),
        tokens=snapshot.tokens[:, snapshot.start :],
        active=real,
        open=masked,
        masked=masked,
        settled=torch.zeros_like(masked),
        fresh=steps == 0,
        window_step=steps,
        window_open=masked.sum(1),
        steps_left=masked.sum(1),
        snapshot=snapshot,
        noise=Noise(torch.arange(rows), steps, index - snapshot.start),
    )
