"""Calibration: is a guide as sure as it is right, at every noise level? And if not, make it so.

Guo et al. (2017, "On Calibration of Modern Neural Networks") measure calibration and mend it with a
temperature; EluCD (Ma et al., 2024) takes its integral over noise levels as the criterion for
choosing a classifier that is to guide.
"""

from __future__ import annotations

from ppap_host.experts.calibration import (
    Calibrated,
    Calibration,
    RangeCalibration,
    load_calibration,
)
from ppap_plugin_bench.calibration.material import Material, from_folder, from_harvest, from_renders
from ppap_plugin_bench.calibration.measurement import CalibrationConfig, calibrate
from ppap_plugin_bench.calibration.measures import (
    calibration_error,
    expected_error,
    integral_over_noise,
    maximum_error,
    mean_over_noise,
    reliability,
    smooth_calibration_error,
    smooth_error_at,
)
from ppap_plugin_bench.calibration.temperature import cross_entropy, fit_inverse_temperature

__all__ = [
    "Calibrated",
    "Calibration",
    "CalibrationConfig",
    "Material",
    "RangeCalibration",
    "calibrate",
    "calibration_error",
    "cross_entropy",
    "expected_error",
    "fit_inverse_temperature",
    "from_folder",
    "from_harvest",
    "from_renders",
    "integral_over_noise",
    "load_calibration",
    "maximum_error",
    "mean_over_noise",
    "reliability",
    "smooth_calibration_error",
    "smooth_error_at",
]
