"""Mutants that change nothing that is promised, and why: module and line as it then reads.

A line that is written otherwise is no longer known, and the mutant is to be read again.
"""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "recipes/starts.py",
        "moved = x + self.rate * scale * length / x[ -1].numel() ** 0.5 * gradient / size",
    ): "all images of a batch have as many entries",
}
