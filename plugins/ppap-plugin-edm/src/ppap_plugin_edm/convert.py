"""Turns a file of NVlabs/edm into safetensors: ``python -m ppap_plugin_edm.convert IN.pkl OUT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ppap_host.files.errors import PpapError
from ppap_plugin_edm import checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ppap_plugin_edm.convert", description=__doc__)
    parser.add_argument("source", type=Path, help="edm-*.pkl; nothing in it is run")
    parser.add_argument(
        "target", type=Path, help="the .safetensors file; its configuration goes beside it (.json)"
    )
    args = parser.parse_args(arguments)
    try:
        if args.target.suffix != ".safetensors":
            parser.error(f"{args.target} does not end with .safetensors")
        snapshot = checkpoint.read(args.source)
        checkpoint.build(snapshot)
        checkpoint.save(snapshot, args.target)
    except PpapError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
