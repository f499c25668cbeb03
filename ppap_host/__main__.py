"""The command ``ppap``, also as ``python -m ppap_host``: that of this very interpreter.

Nothing is imported here but what can be interrupted without a traceback.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it in silence, from the first import to the last exit."""
    try:
        from ppap_host.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # What there was to write is written; libraries may take a while to end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(130))


if __name__ == "__main__":
    main()
