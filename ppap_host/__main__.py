"""``python -m ppap_host``: the command ``ppap`` of this very interpreter."""

from __future__ import annotations

from ppap_host.cli import main

main()
