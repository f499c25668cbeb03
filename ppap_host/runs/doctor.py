"""What ``ppap doctor`` looks at: the environment, with a remedy for each finding."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ppap_host.plugins.entry_points import COMMANDS, LEFT_OUT, entry_points, left_out, owner
from ppap_host.plugins.registry import Registry

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at.
        status: "problem" makes `ppap doctor` exit with 1.
        detail: what was found.
        remedy: what to do about it; empty when there is nothing to do.
    """

    topic: str
    status: Status
    detail: str
    remedy: str = ""


def examine(registry: Registry, out: Path) -> Iterator[Finding]:
    """All findings, cheap ones first. Never raises: a check that breaks is itself a finding."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("torch and torchvision", lambda: torch_and_torchvision(_version_of, _requires_of)),
        ("torchvision operators", _torchvision_operators),
        ("devices", _devices),
        ("memory", _memory),
        ("plugins", lambda: plugins(registry)),
        ("write access", lambda: write_access(out)),
    ]
    for topic, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(topic, "problem", f"the check failed: {error!r}", "Report it as a bug.")


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _requires_of(distribution: str) -> list[str]:
    return metadata.requires(distribution) or []


def torch_and_torchvision(
    version_of: Callable[[str], str | None], requires_of: Callable[[str], list[str]]
) -> Iterator[Finding]:
    """Whether both are installed in builds made for each other.

    A torchvision built for another torch fails at import with `operator torchvision::nms does not
    exist`, and takes timm and segmentation-models-pytorch with it.

    Args:
        version_of: the installed version of a distribution, None if it is not installed.
        requires_of: its requirement strings.
    """
    topic = "torch and torchvision"
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch is None:
        yield Finding(topic, "problem", "torch is not installed", "pip install torch")
        return
    if vision is None:
        yield Finding(
            topic, "ok", f"torch {torch}; torchvision is not installed (only some plugins need it)"
        )
        return
    pinned = None
    for text in requires_of("torchvision"):
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name == "torch":
            pinned = requirement
    if pinned and not pinned.specifier.contains(Version(torch).public, prereleases=True):
        yield Finding(
            topic,
            "problem",
            f"torchvision {vision} was built for torch{pinned.specifier}, but torch is {torch}: "
            "importing timm or segmentation-models-pytorch then dies with "
            "`operator torchvision::nms does not exist`",
            "pip install --upgrade --force-reinstall torch torchvision  (both from one index)",
        )
    elif _build(torch) != _build(vision):
        yield Finding(
            topic,
            "warning",
            f"torch {torch} and torchvision {vision} are different builds",
            "Install both from the same index if importing torchvision fails.",
        )
    else:
        yield Finding(topic, "ok", f"torch {torch}, torchvision {vision}")


def _build(version: str) -> str:
    """The build tag behind the plus sign: cpu, cu128 ..."""
    return version.partition("+")[2]


def _torchvision_operators() -> Iterator[Finding]:
    if _version_of("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        yield Finding(
            "torchvision operators",
            "problem",
            f"importing torchvision fails: {error}",
            "pip install --upgrade --force-reinstall torch torchvision  (both from one index)",
        )
    else:
        yield Finding("torchvision operators", "ok", "load")


def _devices() -> Iterator[Finding]:
    import torch

    from ppap_host.files.errors import DeviceError
    from ppap_host.runs.devices import DTYPES, pick_dtype

    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        yield Finding(
            "cuda",
            "warning",
            "there is an NVIDIA driver, but torch sees no GPU",
            "Check that the driver is recent enough for this torch build (nvidia-smi).",
        )
    if torch.backends.mps.is_available():
        names.append("mps")
    for name in names:
        usable = []
        for dtype in DTYPES:
            try:
                pick_dtype(dtype, torch.device(name))
            except DeviceError:
                continue
            usable.append(dtype)
        label = torch.cuda.get_device_name(name) if name.startswith("cuda") else ""
        threads = f", {torch.get_num_threads()} threads" if name == "cpu" else ""
        yield Finding(name, "ok", f"{label} computes in {', '.join(usable)}{threads}".strip())


def _memory() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            yield Finding("memory", "ok", f"cuda:{i}: {_gb(free)} free of {_gb(total)}")
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    low = total < 4e9
    yield Finding(
        "memory",
        "warning" if low else "ok",
        f"main memory: {_gb(free)} free of {_gb(total)}",
        "Use a small --batch." if low else "",
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def plugins(registry: Registry) -> Iterator[Finding]:
    """Plugins that are broken, slow, ill-behaved or left out, and names claimed twice."""
    for plugin in registry.plugins:
        topic = f"plugin {plugin.name}"
        if plugin.unwanted:
            yield Finding(topic, "ok", f"{plugin.label} {plugin.problem}")
        elif plugin.problem:
            remedy = (
                f"pip install --upgrade --force-reinstall {plugin.distribution}, or uninstall it"
            )
            yield Finding(topic, "problem", f"{plugin.label} {plugin.problem}", remedy)
        elif plugin.warning:
            yield Finding(topic, "warning", f"{plugin.label} {plugin.warning}", "Tell its authors.")
        else:
            yield Finding(topic, "ok", plugin.label)
    for kind, name, owners in registry.collisions():
        yield Finding(
            f"{kind} {name}",
            "problem",
            f"claimed by {' and '.join(owners)}",
            "Uninstall one of them; until then the name cannot be used.",
        )
    known = {name for plugin in registry.plugins for name in (plugin.name, plugin.distribution)}
    known |= {name for point in entry_points(COMMANDS)[0] for name in (point.name, owner(point))}
    for name in sorted(left_out() - {str(canonicalize_name(name)) for name in known}):
        yield Finding(
            LEFT_OUT, "warning", f"{name!r} is no plugin that is installed", "Mend the variable."
        )


def write_access(out: Path) -> Iterator[Finding]:
    """Whether results can be written, and how much space there is."""
    folder = out
    while not os.path.exists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            "write access",
            "problem",
            f"cannot write to {str(folder)!r}: {error.strerror}",
            "Give another folder with `ppap run --out`.",
        )
        return
    free = shutil.disk_usage(folder).free
    low = free < 200_000_000
    yield Finding(
        "write access",
        "warning" if low else "ok",
        f"{str(folder)!r} is writable, {_gb(free)} free",
        "Free some space, or give another folder with `ppap run --out`." if low else "",
    )
