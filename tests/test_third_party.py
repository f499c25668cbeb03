"""A plugin of somebody else's, from its wheel to its removal, beside nothing but the host."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from examples import EXAMPLES
from installation import ROOT, Installation, build, copy_of_project
from processes import Outcome

from ppap_host.plugins.plugin import HOOKS
from ppap_host.plugins.registry import registry

NAME = "ppap-plugin-palette"
TARGET = ROOT / "docs" / "images" / "target.png"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its wheel, built from a copy of its folder."""
    folder = tmp_path_factory.mktemp("third")
    build(copy_of_project(EXAMPLES / NAME, folder), folder / "dist")
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def host_only(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An environment with the host's wheel and no plugin."""
    folder = tmp_path_factory.mktemp("host")
    offered = folder / "wheels"
    offered.mkdir()
    (wheel,) = wheelhouse.glob("ppap_host-*.whl")
    shutil.copy(wheel, offered)
    installation = Installation.make(folder / "env", offered)
    installation.pip("install", "ppap-host").success()
    assert plugins(installation) == {"ppap-host": "ok"}
    return installation


@pytest.fixture(scope="module")
def installed(host_only: Installation, wheel: Path) -> Installation:
    """The same with the plugin."""
    host_only.pip("install", str(wheel)).success()
    return host_only


def plugins(installation: Installation) -> dict[str, str]:
    """What ``ppap list`` says: distribution -> status."""
    rows = json.loads(installation.ppap("list", "--json").success().out)["plugin"]
    return {row["distribution"]: row["status"] for row in rows}


def run(installation: Installation, out: Path, *options: str) -> dict[str, Any]:
    """The record of a short run guided by two colours."""
    told = installation.ppap(
        "run", "--guide", "palette", "--target", "navy,orange", "--num", "2", "--steps", "10",
        "--json", "--out", str(out), *options,
    ).success()  # fmt: skip
    record: dict[str, Any] = json.loads(told.out)
    return record


@pytest.mark.slow
def test_it_is_found_beside_nothing_but_the_host(installed: Installation) -> None:
    assert plugins(installed) == {"ppap-host": "ok", NAME: "ok"}
    assert installed.pip("check").code == 0


@pytest.mark.slow
def test_it_passes_the_kit(installed: Installation) -> None:
    outcome = installed.ppap("plugin", "check", "palette", "--target", "navy,orange", "--json")
    rows = json.loads(outcome.success().out)
    assert {row["outcome"] for row in rows} <= {"passed", "not made"}
    assert sum(row["outcome"] == "passed" for row in rows) > 20


@pytest.mark.slow
def test_it_guides_and_supplies_pictures_and_measures(
    installed: Installation, tmp_path: Path
) -> None:
    guided = run(installed, tmp_path / "guided")
    free = run(installed, tmp_path / "free", "--scale", "0")
    assert (tmp_path / "guided" / "sheet.png").is_file()
    assert f"{NAME}" in guided["versions"]
    before, after = (
        [entry["measures"]["palette"] for entry in record["images"]] for record in (free, guided)
    )
    for unguided, nearer in zip(before, after, strict=True):
        assert set(nearer) == set(unguided)
        assert nearer["swd"] < unguided["swd"]
        # Not delta-e, which forgets the shares: grey is nearer to navy than many a colour.
        assert nearer["intersection"] > unguided["intersection"]


@pytest.mark.slow
def test_it_adds_a_command_whose_answer_is_a_target(installed: Installation) -> None:
    told = installed.ppap("palette", str(TARGET), "-n", "4", "--json").success()
    colours = re.findall(r"#[0-9a-f]{6}", told.out)
    assert len(colours) >= 4
    listed = json.loads(installed.ppap("list", "--json").out)["command"]
    assert [(row["name"], row["from"]) for row in listed] == [("palette", [NAME])]


@pytest.mark.slow
def test_it_leaves_nothing_behind(host_only: Installation, wheel: Path) -> None:
    host_only.pip("install", str(wheel)).success()
    host_only.pip("uninstall", "--yes", NAME).success()
    assert plugins(host_only) == {"ppap-host": "ok"}
    assert not list(host_only.packages.rglob("*plugin*palette*"))
    assert host_only.ppap("palette", str(TARGET)).code == 2
    refused: Outcome = host_only.ppap("run", "--guide", "palette", "--target", "navy")
    assert refused.code == 2
    assert "Unknown guide 'palette'" in refused.err


# Everything that a plugin can supply


def test_each_kind_of_thing_is_supplied_by_a_plugin() -> None:
    found = registry()
    # Tested where it is installed, and in test_samplers.py.
    examples = {"recipe": "ppap-plugin-signed", "sampler": "ppap-plugin-signed"}
    for kind in HOOKS:
        owners = {p.distribution for p in found.plugins if p.offers.get(kind)} - {"ppap-host"}
        assert owners or (EXAMPLES / examples[kind]).is_dir()
    assert {p.distribution for p in found.plugins if p.published} - {"ppap-host"}


def test_the_page_names_who_shows_what() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    table = page.split("## What a plugin can supply")[1].split("## ")[0]
    named = set(re.findall(r"ppap-plugin-[a-z]+", table))
    folders = (*ROOT.glob("plugins/*"), *EXAMPLES.iterdir())
    assert named <= {folder.name for folder in folders}
    for hook in HOOKS.values():
        assert f"`{hook}`" in table
