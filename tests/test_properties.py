"""What is promised in general: of names that several plugins claim, and of fixed seeds."""

from __future__ import annotations

import re
import sys
import types
from collections import defaultdict
from importlib import import_module, metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppap_host.files.errors import PluginError, UnknownNameError
from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_host.plugins.registry import Registry

ROOT = Path(__file__).parents[1]

# Seeds

SHARED = {
    202: "the three shipped guides learn from the same scenes",
    909: "all shipped networks are measured on the same scenes",
}


def fixed_seeds() -> dict[int, set[str]]:
    """Every seed that a module names, and by whom it is named; an imported name counts once."""
    found: dict[int, set[str]] = defaultdict(set)
    for folder in (ROOT / "ppap_host", *ROOT.glob("plugins/*/src/*")):
        for path in folder.rglob("*.py"):
            names = re.findall(r"^(_?[A-Z_]*SEEDS?) *=", path.read_text(encoding="utf-8"), re.M)
            if not names:
                continue
            module = import_module(".".join(path.relative_to(folder.parent).with_suffix("").parts))
            for name in names:
                value = getattr(module, name)
                values = value.values() if isinstance(value, dict) else [value]
                for one in values:
                    found[one].add(f"{module.__name__}.{name}")
    return found


def test_no_seed_of_a_judge_a_guide_or_a_benchmark_is_another_ones() -> None:
    seeds = fixed_seeds()
    assert {101, 11, 12, 13, 303} <= seeds.keys(), "the judges' and the labelled renders'"
    twice = {seed: who for seed, who in seeds.items() if len(who) > 1 and seed not in SHARED}
    assert not twice
    assert all(len(seeds[seed]) > 1 for seed in SHARED)


# Names

NAMES = st.sampled_from(["one", "two", "three"])
CLAIMS = st.dictionaries(st.sampled_from("abcd"), st.sets(NAMES, max_size=3), min_size=1)


@settings(max_examples=40, deadline=None)
@given(CLAIMS)
def test_a_name_is_its_owners_or_nobodys_and_all_claimants_are_named(
    claims: dict[str, set[str]],
) -> None:
    points = []
    for key, names in claims.items():
        module = types.ModuleType(f"claims_{key}")
        entries = [Entry(name, f"claims_{key}:made", f"by {key}") for name in sorted(names)]
        module.ppap_interface = 1  # type: ignore[attr-defined]
        module.ppap_guides = hookimpl(lambda entries=entries: entries)  # type: ignore[attr-defined]
        module.made = key  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        points.append(metadata.EntryPoint(f"claims-{key}", module.__name__, "ppap"))
    found = Registry(points)
    for name in ("one", "two", "three"):
        owners = [key for key, names in claims.items() if name in names]
        if len(owners) == 1:
            assert found.load("guide", name) == owners[0]
        elif owners:
            with pytest.raises(PluginError) as caught:
                found.load("guide", name)
            assert all(f"claims_{key}" in caught.value.message for key in owners)
        else:
            with pytest.raises(UnknownNameError):
                found.load("guide", name)
