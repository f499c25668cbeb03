"""What tells files, pictures and packages apart in records."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from PIL import Image

_PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "peft", "timm", "numpy", "pillow")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of these bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_pixels(image: Image.Image) -> str:
    """SHA-256 of an 8-bit RGB picture's size and pixels, hexadecimal."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def package_versions(plugins: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, of what computes the images, and of the host and given plugins."""
    versions = {"python": platform.python_version()}
    for name in ("ppap-host", *sorted(set(plugins) - {"ppap-host"}), *_PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def file_hashes(files: Iterable[Path], known_as: str) -> dict[str, str]:
    """SHA-256 by name, each named ``known_as/<path below the common folder>``."""
    paths = sorted({path.absolute() for path in files})
    if not paths:
        return {}
    base = paths[0].parent
    while not all(p.is_relative_to(base) for p in paths):
        base = base.parent
    return {f"{known_as}/{p.relative_to(base).as_posix()}": sha256_file(p) for p in paths}
