"""``ppap experts``: shows, verifies and joins sets."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Outcome, plain_environment
from torch import Tensor, nn
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.noise import NoiseLevel, uniform_ranges
from ppap_host.cli import experts as command
from ppap_host.cli.output import fail
from ppap_host.experts.patches import Patch, network_hash
from ppap_host.experts.sets import ExpertSet
from ppap_host.files.errors import PpapError
from ppap_host.guides.guide import Guide, default_patch_plan
from ppap_host.plugins.hookspecs import Entry
from ppap_host.plugins.registry import Registry

Call = Callable[..., Outcome]


class PaintGuide(QuadraticGuide):
    """A guide with a network that depends on the model asked for."""

    name = "paint"

    def __init__(self, model: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(int(model or 0))
        self.layer = nn.Conv2d(3, 16, 3).eval().requires_grad_(False)

    def network(self) -> nn.Module:
        return self.layer

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return Guide.see(self, x, level)


@dataclass(frozen=True)
class Made(Entry):
    """An entry whose thing is there already."""

    thing: Any = None

    def load(self) -> Any:
        return self.thing


def make_set(part: int | None = None, **metadata: Any) -> ExpertSet:
    """Two experts for the guide, or one of the two."""
    network = PaintGuide().network()
    ranges = uniform_ranges(GaussianBackbone().levels(), 2)
    patches = [Patch.fresh(network, default_patch_plan(network, 1), seed=i) for i in range(2)]
    quality = [
        {
            "range": ["-inf", "inf"],
            "expert": {"distance": 0.1 + i, "standard_error": 0.02, "abs-rel": 0.5},
            "off_the_shelf": {"distance": 0.9 + i, "standard_error": 0.03},
        }
        for i in range(2)
    ]
    chosen = slice(None) if part is None else slice(part, part + 1)
    counts = [patch.count() for patch in patches[chosen]]
    described = {
        "guide": "paint",
        "model": None,
        "network_sha256": network_hash(network),
        "image_size": [64, 64],
        "quality": quality[chosen],
        "trainable": {"per_expert": max(counts), "total": sum(counts), "network": 448},
        "licence": "Apache-2.0",
    }
    return ExpertSet(ranges[chosen], patches[chosen], described | metadata)


@pytest.fixture
def experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs ``ppap experts`` in an empty folder; the guide and the set "painted" are registered."""
    monkeypatch.chdir(tmp_path)
    make_set().save(tmp_path / "kept" / "set.safetensors")

    world = Registry([])
    for kind, name, thing in (
        ("guide", "paint", PaintGuide),
        ("expert set", "painted", lambda: tmp_path / "kept" / "set.safetensors"),
    ):
        world._claims[kind][name] = [(world.plugins[0], Made(name, "", "for tests", thing))]  # type: ignore[index]
    monkeypatch.setattr("ppap_host.plugins.registry.registry", lambda: world)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code: object = 0
        try:
            command.app(args=[*map(str, arguments)], prog_name="ppap experts")
        except PpapError as error:
            with pytest.raises(SystemExit) as stop:
                fail(error)
            code = stop.value.code
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return call


def refused(outcome: Outcome, *said: str) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    for part in said:
        assert part in outcome.err


@pytest.mark.parametrize("name", ["", "show", "verify", "merge"])
def test_help_comes_without_torch(name: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom ppap_host.cli.experts import app\n"
        "try: app(args=sys.argv[1:], prog_name='ppap experts')\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *filter(None, [name]), "--help"],
        cwd=tmp_path,
        env=plain_environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: ppap experts" in done.stdout


@pytest.mark.parametrize("name", ["painted", "kept/set.safetensors"])
def test_show_as_json(experts: Call, name: str) -> None:
    outcome = experts("show", name, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["guide"] == "paint"
    assert found["image_size"] == [64, 64]
    assert found["view"] == "noised"
    clean, noisy = found["experts"]
    assert clean["log_snr"][1] is None is noisy["log_snr"][0]
    assert clean["log_snr"][0] == noisy["log_snr"][1]
    assert clean["quality"]["expert"]["distance"] == 0.1
    assert noisy["quality"]["off_the_shelf"]["distance"] == 1.9
    assert clean["share"] == clean["trainable"] / 448
    assert found["trainable"]["total"] == clean["trainable"] + noisy["trainable"]


def test_show_as_a_table(experts: Call) -> None:
    text = experts("show", "painted").out
    cut = make_set().ranges[0].low
    for part in (
        f"[{cut:.2f}, inf)",
        f"[-inf, {cut:.2f})",
        "paint",
        "64, 64",
        "expert distance",
        "0.1 ± 0.02",
        "expert abs-rel",
        "off the shelf distance",
    ):
        assert part in text
    assert "%" in text
    assert experts("verify", "painted").out.startswith("OK: 2 experts fit the guide 'paint'")


@pytest.mark.parametrize("name", ["painted", "kept/set.safetensors"])
def test_a_sound_set_is_verified(experts: Call, name: str) -> None:
    outcome = experts("verify", name, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["ok"] is True
    assert (found["experts"], found["view"]) == (2, "noised")
    assert found["network_sha256"] == network_hash(PaintGuide().network())


def test_verify_uses_the_model_that_the_set_names(experts: Call) -> None:
    make_set(model="3", network_sha256=network_hash(PaintGuide("3").network())).save(
        Path("of3.safetensors")
    )
    assert json.loads(experts("verify", "of3.safetensors", "--json").out)["model"] == "3"
    refused(
        experts("verify", "of3.safetensors", "--model", "4"),
        network_hash(PaintGuide("3").network())[:12],
        network_hash(PaintGuide("4").network())[:12],
    )


def test_an_unsound_set_is_refused_and_the_fault_is_named(experts: Call) -> None:
    path = Path("bad.safetensors")
    bad = make_set()
    bad.patches[1].direct["bias"][3] = math.nan
    bad.save(path)
    refused(experts("verify", path), "Expert 1", "'bias'", "not finite")
    bad = make_set()
    bad.patches[0].direct["bias"] = torch.zeros(7)
    bad.save(path)
    refused(experts("verify", path), "'bias' (7,)", "(16,)")
    make_set(guide="watercolour").save(path)
    refused(experts("verify", path), "guide 'watercolour'")
    anonymous = make_set()
    del anonymous.metadata["guide"]
    anonymous.save(path)
    refused(experts("verify", path), "does not say which guide")
    path.write_bytes(b"nothing")
    refused(experts("verify", path), "no readable expert set")
    for name in ("show", "verify"):
        refused(experts(name, "none.safetensors"), "none.safetensors")


def test_an_unknown_name_is_an_error(experts: Call) -> None:
    refused(experts("show", "sketched"), "Unknown expert set 'sketched'")


def test_sets_are_joined_into_one_that_works(experts: Call) -> None:
    for part in (0, 1):
        make_set(part, tuning={"seed": part}).save(Path(f"{part}.safetensors"))
    outcome = experts("merge", "1.safetensors", "0.safetensors", "--out", "both.safetensors")
    path = Path.cwd() / "both.safetensors"
    assert outcome == Outcome(0, f"2 experts: {path}\n", "")
    both, whole = ExpertSet.load(Path("both.safetensors")), make_set()
    assert both.ranges == whole.ranges
    merged_from = both.metadata.pop("merged_from")
    assert [part["file"] for part in merged_from] == ["1.safetensors", "0.safetensors"]
    before = path.read_bytes()
    twice = experts("merge", "0.safetensors", "./0.safetensors", "--out", "twice.safetensors")
    refused(twice, "given twice")
    again = experts("merge", "1.safetensors", "0.safetensors", "--out", "both.safetensors")
    refused(again, "there already")
    assert path.read_bytes() == before
    assert both.metadata == whole.metadata
    assert json.loads(experts("verify", "both.safetensors", "--json").out)["ok"]


def test_sets_that_overlap_or_differ_are_not_joined(experts: Call) -> None:
    make_set(0).save(Path("0.safetensors"))
    refused(
        experts("merge", "0.safetensors", "painted", "--out", "x.safetensors"),
        "0.safetensors",
        "set.safetensors",
        "overlap",
    )
    make_set(1, image_size=[32, 32]).save(Path("1.safetensors"))
    refused(
        experts("merge", "0.safetensors", "1.safetensors", "--out", "x.safetensors"),
        "'0.safetensors' and '1.safetensors' differ in image_size: [64, 64] and [32, 32]",
    )
    make_set(1, view="predicted").save(Path("1.safetensors"))
    refused(
        experts("merge", "0.safetensors", "1.safetensors", "--out", "x.safetensors"),
        "'0.safetensors' and '1.safetensors' differ in view: noised and predicted",
    )
    assert not Path("x.safetensors").exists()


def test_experts_of_predictions_say_so(experts: Call) -> None:
    for part in (0, 1):
        make_set(part, view="predicted").save(Path(f"{part}.safetensors"))
    experts("merge", "0.safetensors", "1.safetensors", "--out", "both.safetensors")
    for asked in ("show", "verify"):
        described = json.loads(experts(asked, "both.safetensors", "--json").out)
        assert described["view"] == "predicted"
        assert "predicted" in experts(asked, "both.safetensors").out
