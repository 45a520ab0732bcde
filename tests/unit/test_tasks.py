"""What tasks share: `tasks.Context`."""

import re

import pytest

from dllm_decode import Observer, Request, load
from dllm_decode.config.compose import compose_checked
from dllm_decode.console.display import make_display
from dllm_decode.console.runfolder import RunFolder
from dllm_decode.errors import DllmDecodeError
from dllm_decode.tasks import Context


class FailsAt(Observer):
    """Raises in the batch that holds a row."""

    def __init__(self, row):
        self.row = row

    def step(self, change, snapshot):
        if self.row in change.rows.tolist():
            raise ValueError(f"row {self.row} is unwanted")


def decoded(tmp_path, *observers):
    decoder = load("toy_copy", "topk")
    request = Request(tuple(tuple(decoder.encode(text)) for text in ("abc", "cab", "bca")), 8)
    context = Context(compose_checked([]), (), {}, RunFolder(tmp_path), make_display("none"))
    return context.decoded(
        "teacher's answers",
        request.lengths,
        lambda progress: decoder.decode(request, batch_size=1, observers=(*observers, progress)),
    )


def test_a_task_that_needs_every_row_says_how_many_failed_and_why(tmp_path):
    said = "teacher's answers: 1 of 3 prompts failed, the first: ValueError('row 1 is unwanted')"
    with pytest.raises(DllmDecodeError, match=re.escape(said)):
        decoded(tmp_path, FailsAt(1))
