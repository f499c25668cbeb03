"""Search for a recipe's strength and parameters on targets to validate on.

:mod:`~ppap_host.search.space` says what can be varied, :mod:`~ppap_host.search.study` proposes and
tries, :mod:`~ppap_host.search.validation` makes images and has them judged, and
:mod:`~ppap_host.search.session` puts them together in a folder that can be gone on with.
"""

from __future__ import annotations

from ppap_host.search.session import Outcome, SearchConfig, search
from ppap_host.search.space import Dimension, Value, dimensions
from ppap_host.search.study import Judged, Trial, propose, ranked, run_trials

__all__ = [
    "Dimension", "Judged", "Outcome", "SearchConfig", "Trial", "Value", "dimensions", "propose",
    "ranked", "run_trials", "search",
]  # fmt: skip
