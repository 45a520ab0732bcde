"""`python -m dllm_decode`: see `dllm_decode.cli`."""

from __future__ import annotations

import sys

from dllm_decode.cli import main

if __name__ == "__main__":
    sys.exit(main())
