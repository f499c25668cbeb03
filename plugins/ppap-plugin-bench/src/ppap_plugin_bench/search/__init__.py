"""Search for a recipe's strength and parameters on targets to validate on.

:mod:`~ppap_plugin_bench.search.space` says what can be varied,
:mod:`~ppap_plugin_bench.search.study` proposes and tries,
:mod:`~ppap_plugin_bench.search.score` says what a trial is worth,
:mod:`~ppap_plugin_bench.search.validation` makes images and has them judged, and
:mod:`~ppap_plugin_bench.search.session` puts them together in a folder that can be gone on with.
"""

from __future__ import annotations

from ppap_plugin_bench.search.score import Measured, Weights, frontier
from ppap_plugin_bench.search.session import Outcome, SearchConfig, search
from ppap_plugin_bench.search.space import Dimension, Value, dimensions
from ppap_plugin_bench.search.study import Judged, Trial, propose, ranked, run_trials

__all__ = [
    "Dimension", "Judged", "Measured", "Outcome", "SearchConfig", "Trial", "Value", "Weights",
    "dimensions", "frontier", "propose", "ranked", "run_trials", "search",
]  # fmt: skip
