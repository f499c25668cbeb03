"""Choosing the device and the number format."""

from __future__ import annotations

import torch

from ppap_host.files.errors import DeviceError, unknown_name

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def pick_device(name: str) -> torch.device:
    """The device called ``name``: auto (the best there is), cpu, cuda, cuda:N or mps.

    Raises:
        DeviceError: this machine or this build of torch does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(
            f"Unknown device {name!r}.", remedy="Give auto, cpu, cuda, cuda:N or mps."
        )
    missing = {
        "cuda": not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count(),
        "mps": not torch.backends.mps.is_available(),
    }
    if missing.get(device.type, False):
        raise DeviceError(
            f"The device {name!r} is not available here.",
            remedy="Use --device auto; `ppap doctor` says which devices there are and why.",
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called ``name``.

    Raises:
        UnknownNameError: there is none of this name.
        DeviceError: the device cannot compute in it.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    dtype = DTYPES[name]
    try:
        probe = torch.ones(1, 1, 3, 3, device=device, dtype=dtype)
        torch.nn.functional.conv2d(probe, probe)
    except RuntimeError as error:
        raise DeviceError(
            f"The device {device} cannot compute in {name} ({error}).",
            remedy="Use --dtype float32.",
        ) from None
    return dtype
