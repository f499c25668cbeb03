"""Writes down what plugins may rely on: ``python docs/interface.py``.

The public names of the modules below, with their signatures, are the interface whose version is
``ppap_host.plugins.hookspecs.INTERFACE``. A test compares them with
``docs/interface-<version>.txt``, so that a change to them is made on purpose. What may change, and
when, is in ``docs/stability.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import griffe

from ppap_host.plugins.hookspecs import INTERFACE

DOCS = Path(__file__).parent
FILE = DOCS / f"interface-{INTERFACE}.txt"

MODULES: dict[str, tuple[str, ...]] = {
    "plugins.hookspecs": (),
    "guides.guide": (),
    "guides.operators": (),
    "guides.preprocessing": (),
    "guides.rewards": (),
    "guides.targets": (),
    "guides.temperatures": (),
    "backbones.backbone": (),
    "backbones.noise": (),
    "recipes.ascents": (),
    "recipes.blends": (),
    "recipes.chains": (),
    "recipes.energies": (),
    "recipes.estimate": (),
    "recipes.gradients": (),
    "recipes.places": (),
    "recipes.presets": (),
    "recipes.recipe": (),
    "recipes.selections": (),
    "recipes.starts": (),
    "recipes.strengths": (),
    "recipes.views": (),
    "sampling.solvers": ("Evaluate", "Solver"),
    "sampling.streams": ("Draw",),
    "files.images": (
        "contact_sheet", "fitted", "from_tensor", "means_file", "read_rgb", "shortened",
        "to_tensor",
    ),
    "files.decoding": ("Decoded", "has_alpha", "to_srgb"),
    "files.reading": ("Document", "read_bytes", "read_text"),
    "files.writing": ("write_file", "write_png"),
    "files.checkpoints": (),
    "files.models": (),
    "files.pickles": ("Call", "RefusedError", "STORAGE", "Tensors", "read_pickle"),
    "files.pretrained": (),
    "guides.labels": (),
    "pipelines.autoencoder": (),
    "files.weights": ("PublishedFile",),
    "plugins.registry": ("fetched",),
    "testing": (),
    "files.errors": (),
}  # fmt: skip
"""Below ``ppap_host``, with the names that count; none: all public ones. In a package, public is
what its ``__all__`` names."""


SPOKEN = ("__init__", "__call__")
"""Special methods that count."""


def package() -> griffe.Module:
    """The host as its source describes it; nothing is imported."""
    loaded = griffe.load(
        "ppap_host", search_paths=[DOCS.parent], resolve_aliases=True, docstring_parser="google"
    )
    assert isinstance(loaded, griffe.Module)
    return loaded


def public(host: griffe.Module, name: str) -> Iterator[griffe.Object]:
    """What counts of a module: what it defines, or what its ``__all__`` passes on."""
    module, wanted = host[name], MODULES[name]
    for name in sorted(wanted or module.members):
        member = module.members[name]
        if member.is_alias:
            if name in (module.exports or ()):
                yield member.final_target
        elif not name.startswith("_") and not member.is_module:
            yield member


def members(kind: griffe.Object) -> Iterator[griffe.Object]:
    """The public members of a class, its constructor, and what calling it does."""
    for name in sorted(kind.members):
        member = kind.members[name]
        if not member.is_alias and (name in SPOKEN or not name.startswith("_")):
            yield member


def line(thing: griffe.Object) -> str:
    """A name with what it takes and returns."""
    if isinstance(thing, griffe.Function):
        kinds = ("abstractmethod", "classmethod", "staticmethod")
        marks = [kind.removesuffix("method") for kind in kinds if kind in thing.labels]
        return " ".join([*marks, f"def {thing.signature()}"])
    if isinstance(thing, griffe.Class):
        bases = ", ".join(str(base) for base in thing.bases)
        return f"class {thing.name}({bases})" if bases else f"class {thing.name}"
    assert isinstance(thing, griffe.Attribute)
    return f"{thing.name}: {thing.annotation}" if thing.annotation else thing.name


def described() -> str:
    """The whole interface as text."""
    lines = [f"Interface {INTERFACE}. Written by docs/interface.py; see docs/stability.md."]
    host = package()
    for name in MODULES:
        lines += ["", f"ppap_host.{name}"]
        for thing in public(host, name):
            lines.append(f"    {line(thing)}")
            if isinstance(thing, griffe.Class):
                lines += [f"        {line(member)}" for member in members(thing)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(described(), encoding="utf-8")
    print(f"wrote {FILE.name}")
