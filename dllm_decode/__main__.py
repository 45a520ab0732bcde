"""`python -m dllm_decode`: see `dllm_decode.cli`."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line of this process; returns the exit code, for Ctrl-C at any time 130."""
    try:
        # half a second in which nothing else could answer Ctrl-C
        from dllm_decode.cli import main

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
