"""Calibration errors and their integral against an independent definition of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppap_plugin_bench.calibration.measures import (
    expected_error,
    integral_over_noise,
    maximum_error,
    mean_over_noise,
    reliability,
)
from safetensors.numpy import load_file

VECTORS = Path(os.environ.get("PPAP_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))


def cases() -> list[Any]:
    """Case folders of binned calibration errors."""
    found = []
    for path in sorted(VECTORS.glob("**/case.json")):
        case = json.loads(path.read_text())
        binned = "n_bins" in (case.get("config") or {})
        if binned and {"confidence", "correct"} <= (case.get("inputs") or {}).keys():
            found.append(pytest.param(path.parent, id=path.parent.name))
    reason = f"no such vectors in {VECTORS}; set PPAP_VECTORS"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


@pytest.mark.parametrize("folder", cases())
def test_vector_calibration_errors(folder: Path, record_property: Any) -> None:
    case, io = json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")
    bins, exact = case["config"]["n_bins"], case["tolerance"]["float64"]
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
    assert case["outputs"].keys() <= found.keys()
    for name in case["outputs"]:
        np.testing.assert_allclose(found[name], io[name], **exact, err_msg=name)
    record_property("ice_mean", float(found["ice_mean"][0]))
