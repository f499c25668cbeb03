"""Calibration errors and their integral against an independent definition of them."""

from __future__ import annotations

import numpy as np
import torch
import vectors
from ppap_plugin_bench.calibration.measures import (
    expected_error,
    integral_over_noise,
    maximum_error,
    mean_over_noise,
    reliability,
)


@vectors.take(lambda case: "n_bins" in case.config and case.holds("confidence", "correct"))
def test_vector_calibration_errors(case: vectors.Case) -> None:
    io, bins = {k: v.numpy() for k, v in case.recorded.items()}, case.config["n_bins"]
    tables = [reliability(p, h, bins) for p, h in zip(io["confidence"], io["correct"], strict=True)]
    errors = [expected_error(table) for table in tables]
    found = {
        "ece": np.array(errors),
        "mce": np.array([maximum_error(table) for table in tables]),
        "bins": np.stack(tables),
        "ice_mean": np.array([mean_over_noise(errors)]),
    }
    if "timesteps" in io:
        found["ice_trap"] = np.array([integral_over_noise(errors, io["timesteps"])])
    if "edge.confidence" in io:
        edge = reliability(io["edge.confidence"], io["edge.correct"], bins)
        found |= {"edge.ece": np.array([expected_error(edge)])}
        found |= {"edge.mce": np.array([maximum_error(edge)]), "edge.bins": edge}
    for name in case.outputs:
        case.compare(name, torch.from_numpy(np.asarray(found[name])), torch.float64)
