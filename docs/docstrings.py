"""Lets mkdocstrings read the docstrings: Sphinx's roles become links, shapes stay as written.

A griffe extension, named in ``mkdocs.yml``. The docstrings say :class:`Guide` because editors and
``help()`` show that well. On the site it is a link where the thing has a page, and code where it
has none. A role that names nothing is a warning, and so an error of the build. What is said of
several arguments or attributes at once is said of each, beside its own type.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_log = griffe.get_logger("docstrings")

PACKAGES = ("ppap_host", "ppap_plugin_bench")
"""Of the project, with pages of their own."""

_ROLE = re.compile(
    r":(?:attr|class|data|exc|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`",
)

_SEVERAL = re.compile(
    r"^ {4}(?P<names>\w+(?:, \w+)+)(?P<told>: .*(?:\n {5,}\S.*)*)$",
    re.MULTILINE,
)

_TAG = re.compile(r"``.*?``|`[^`]*`|(?P<tag><(?=[A-Za-z/]))", re.DOTALL)


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package when all of it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrites ``pkg`` and all that is in it."""
        self._rewrite(pkg)

    def _rewrite(self, parent: griffe.Object) -> None:
        if parent.docstring is not None:
            parent.docstring.value = rewritten(parent.docstring.value, parent)
        for member in parent.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)


def rewritten(text: str, parent: griffe.Object) -> str:
    """The docstring of ``parent`` as Markdown, still with the sections of Google's style."""
    return linked(as_written(one_by_one(text)), parent)


def as_written(text: str) -> str:
    """A docstring in which ``<word>`` is no tag of HTML; code is left alone."""
    return _TAG.sub(lambda found: found[0].replace("<", "&lt;") if found["tag"] else found[0], text)


def one_by_one(text: str) -> str:
    """A docstring with an entry for each name where several share one (``low, high: bounds``)."""
    return _SEVERAL.sub(
        lambda entry: "\n".join(f"    {n}{entry['told']}" for n in entry["names"].split(", ")),
        text,
    )


def linked(text: str, parent: griffe.Object) -> str:
    """A docstring with its roles as optional cross-references of mkdocs-autorefs."""

    def link(role: re.Match[str]) -> str:
        name = role["name"]
        shown = name.rpartition(".")[2] if role["short"] else name
        target = resolved(name, parent)
        if target is None:
            # Names of other packages are code: their documentation cannot be reached offline.
            if name.partition(".")[0] not in _others(parent):
                _log.warning("%s: %s names nothing", parent.path, role[0])
            return f"`{shown}`"
        return f'<autoref identifier="{target}" optional>`{shown}`</autoref>'

    return _ROLE.sub(link, text)


def _others(parent: griffe.Object) -> set[str]:
    """What the module imports from outside the package, by the names it has there."""
    imports = parent.module.imports
    return {"torch", "diffusers"} | {
        name for name, path in imports.items() if path.partition(".")[0] not in PACKAGES
    }


def resolved(name: str, parent: griffe.Object) -> str | None:
    """Where the documentation of ``name``, used in the docstring of ``parent``, is to be found.

    Names are looked up as Python does: in the class, then in its module; or they are absolute. An
    attribute that its class documents under ``Attributes:`` is found with its class.
    """
    scope: griffe.Object | None = parent
    while scope is not None:
        found = _member(scope, name)
        if found is not None:
            return found
        scope = None if scope.is_module else scope.parent
    package, _, path = name.partition(".")
    if package in PACKAGES:
        root: griffe.Object = parent.package
        if package != root.name:
            if package not in parent.modules_collection:
                return name  # read later
            root = parent.modules_collection[package]
        return _member(root, path) if path else root.path
    return None


def _member(scope: griffe.Object, path: str) -> str | None:
    """The documented path of what lies at ``path`` below ``scope``."""
    found: griffe.Object | griffe.Alias = scope
    for part in path.split("."):
        if part not in found.all_members:
            # Set in __init__, or told of under "Attributes:".
            return found.canonical_path if _attribute(found, part) else None
        owner, found = found, found.all_members[part]
        if isinstance(found, griffe.Alias):
            try:
                found = found.final_target
            except (griffe.AliasResolutionError, griffe.CyclicAliasError):
                return None
    if found.is_attribute and not found.has_docstring and owner.is_class:
        return owner.canonical_path
    return found.canonical_path


def _attribute(owner: griffe.Object | griffe.Alias, name: str) -> bool:
    told = "" if owner.docstring is None else owner.docstring.value
    return re.search(rf"^ +(?:\w+, )*{name}(?:, \w+)*: ", told, re.MULTILINE) is not None
