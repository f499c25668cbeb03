"""``ppap doctor`` finds what is wrong with an environment and says what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppap_host.plugins.hookspecs import Entry
from ppap_host.plugins.plugin import Plugin
from ppap_host.plugins.registry import Registry
from ppap_host.runs import doctor
from ppap_host.runs.doctor import Finding, examine, torch_and_torchvision, write_access


def look(torch: str | None, vision: str | None, *requires: str) -> Finding:
    versions = {"torch": torch, "torchvision": vision}
    (finding,) = torch_and_torchvision(versions.get, lambda name: list(requires))
    return finding


@pytest.mark.parametrize(
    ("torch", "vision", "requires"),
    [
        ("2.15.0", "0.30.0", ["numpy", "torch==2.15.0"]),
        ("2.15.0+cpu", "0.30.0+cpu", ["torch==2.15.0"]),
        ("2.15.0", "0.30.0", ["torch"]),
        ("2.15.0", "0.30.0", ["not ! a requirement", "torch==2.15.0"]),
        ("2.16.0.dev20260101", "0.31.0.dev20260101", ["torch>=2.15"]),
        ("2.15.0", "0.30.0", ["torch==2.15.0", "scipy; extra == 'scipy'"]),
    ],
)
def test_builds_made_for_each_other_are_fine(torch: str, vision: str, requires: list[str]) -> None:
    finding = look(torch, vision, *requires)
    assert finding.status == "ok"
    assert finding.remedy == ""


def test_a_torchvision_for_another_torch_is_a_problem() -> None:
    finding = look("2.13.0", "0.30.0", "numpy", "torch==2.15.0")
    assert finding.status == "problem"
    for part in ("0.30.0", "2.13.0", "torch==2.15.0", "torchvision::nms"):
        assert part in finding.detail
    assert finding.remedy.startswith("pip install")


def test_the_build_of_a_mismatch_does_not_hide_it() -> None:
    assert look("2.13.0+cu128", "0.30.0+cu128", "torch==2.15.0").status == "problem"


def test_builds_for_different_devices_are_worth_a_warning() -> None:
    finding = look("2.15.0+cu128", "0.30.0+cpu", "torch==2.15.0")
    assert finding.status == "warning"
    assert finding.remedy


def test_torchvision_may_be_missing() -> None:
    assert look("2.15.0", None).status == "ok"


def test_torch_may_not_be_missing() -> None:
    finding = look(None, "0.30.0", "torch==2.15.0")
    assert (finding.status, finding.remedy) == ("problem", "pip install torch")


def test_a_folder_that_is_yet_to_be_made_is_judged_by_its_parent(tmp_path: Path) -> None:
    (finding,) = write_access(tmp_path / "a" / "b")
    assert finding.status == "ok"
    assert str(tmp_path) in finding.detail
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    (finding,) = write_access(tmp_path / "out")
    assert finding.status == "problem"
    assert "--out" in finding.remedy


def test_a_path_that_cannot_be_is_judged_by_its_parent(tmp_path: Path) -> None:
    (finding,) = write_access(tmp_path / ("x" * 300))
    assert finding.status == "ok"


@pytest.mark.usefixtures("as_user")
def test_a_read_only_folder_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    (finding,) = write_access(folder / "out")
    assert finding.status == "problem"
    assert str(folder) in finding.detail
    assert "--out" in finding.remedy


def test_a_full_disk_is_worth_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    (finding,) = write_access(tmp_path)
    assert (finding.status, bool(finding.remedy)) == ("warning", True)


def test_a_check_that_breaks_is_itself_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("oh")

    for name in ("_torchvision_operators", "_devices", "_memory"):
        monkeypatch.setattr(doctor, name, broken)
    findings = {f.topic: f for f in examine(Registry([]), tmp_path)}
    assert findings["devices"].status == "problem"
    assert "ZeroDivisionError" in findings["devices"].detail
    assert findings["write access"].status == "ok"


def test_two_owners_of_a_name_are_both_named() -> None:
    registry = Registry([])
    for letter in "ab":
        plugin = Plugin(letter, f"ppap-plugin-{letter}", "1.0", letter)
        claims = registry._claims["guide"].setdefault("twin", [])
        claims.append((plugin, Entry("twin", "x:y", "")))
    (finding,) = [f for f in doctor.plugins(registry) if f.topic == "guide twin"]
    assert finding.status == "problem"
    assert "ppap-plugin-a 1.0 and ppap-plugin-b 1.0" in finding.detail
    assert "Uninstall" in finding.remedy


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_only_a_problem_fails_the_command(
    status: Any, code: int, ppap_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("moon", status, "it [bold]shines[/]", "look up")
    monkeypatch.setattr(doctor, "examine", lambda registry, out: iter([finding]))
    outcome = ppap_here("doctor", "--json")
    assert (outcome.code, outcome.err) == (code, "")
    assert json.loads(outcome.out) == [
        {"topic": "moon", "status": status, "detail": "it [bold]shines[/]", "remedy": "look up"}
    ]


@pytest.mark.slow
def test_this_environment(ppap: Callable[..., Any]) -> None:
    """Real: imports torch, and torchvision where it is installed."""
    outcome = ppap("doctor", "--json")
    findings = json.loads(outcome.out)
    topics = {f["topic"] for f in findings}
    assert {"python", "torch and torchvision", "cpu", "plugin host", "write access"} <= topics
    assert all(f["remedy"] for f in findings if f["status"] != "ok")
    assert outcome.code == any(f["status"] == "problem" for f in findings)
    assert "Traceback" not in outcome.err
