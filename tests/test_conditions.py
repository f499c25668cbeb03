"""Classes, and what else a backbone is told, from the command line to the images."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from teaching import world
from typer.testing import CliRunner

from ppap_host.cli import app
from ppap_host.cli.options import backbone_options
from ppap_host.experts.harvest import HarvestConfig
from ppap_host.files.errors import OptionError, TargetError
from ppap_host.files.images import to_unit
from ppap_host.plugins.loading import load_backbone
from ppap_host.runs.batches import generate
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.harvesting import harvest
from ppap_host.runs.run import run
from ppap_host.runs.setup import set_up
from ppap_host.sampling.evaluator import Health

CONFIG = RunConfig(backbone="classes", steps=8, num=2, device="cpu")


def mean(config: RunConfig) -> float:
    return generate(set_up(config, found=world()), [0, 1], Health()).mean().item()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_class_decides_what_is_made(k: int) -> None:
    assert mean(replace(CONFIG, class_index=k, cfg=1.0)) == pytest.approx(0.3 * k - 0.3, abs=0.03)


def test_without_a_class_the_unconditional_branch_is_used_alone() -> None:
    assert mean(CONFIG) == pytest.approx(-0.9, abs=0.03)


def test_classifier_free_guidance_leads_away_from_the_unconditional_branch() -> None:
    plain, default = (mean(replace(CONFIG, class_index=0, cfg=cfg)) for cfg in (1.0, None))
    assert default > plain + 0.2  # the backbone's default is 2


def test_a_class_for_a_backbone_without_classes_is_refused() -> None:
    with pytest.raises(OptionError, match="knows no classes"):
        set_up(replace(CONFIG, backbone="gaussian", class_index=1), found=world())


def test_cfg_needs_something_to_strengthen() -> None:
    with pytest.raises(OptionError, match="a prompt or a class"):
        set_up(replace(CONFIG, cfg=3.0), found=world())


def test_a_negative_class_is_refused_by_the_name_of_its_option() -> None:
    with pytest.raises(OptionError, match=r"'class_index' in .* is -1"):
        replace(CONFIG, class_index=-1)


def test_options_reach_the_backbone_and_repeat_from_toml() -> None:
    config = replace(CONFIG, backbone_options={"shade": "0.25"})
    assert mean(config) == pytest.approx(-0.65, abs=0.03)
    assert RunConfig.from_dict(tomllib.loads(config.to_toml()), "toml") == config


def test_an_option_that_a_backbone_does_not_take_is_named_with_those_it_takes() -> None:
    with pytest.raises(OptionError) as caught:
        load_backbone(world(), "classes", None, {"shadow": "1"})
    assert "'shadow'" in caught.value.message
    assert "'shade'" in caught.value.remedy
    with pytest.raises(OptionError, match="takes no option 'vae'"):
        load_backbone(world(), "gaussian", None, {"vae": "here"})


def test_options_must_be_texts() -> None:
    with pytest.raises(OptionError, match="backbone_options"):
        RunConfig.from_dict({"backbone_options": {"shade": 1}}, "here")


def test_options_of_the_command_line() -> None:
    made = backbone_options(["tile-size=32"], vae="v", upsampler=None)
    assert made == {"vae": "v", "tile_size": "32"}
    with pytest.raises(OptionError, match="no value"):
        backbone_options(["tiles"])


def test_a_harvest_draws_a_class_for_each_image_from_its_number(tmp_path: Path) -> None:
    config = HarvestConfig("classes", num=30, shard=10, batch=5, steps=5, device="cpu", cfg=1.0)
    made = to_unit(harvest(config, tmp_path / "a", found=world()).pixels())
    drawn = (made.mean(dim=(1, 2, 3)) / 0.3 + 1).round()
    assert set(drawn.tolist()) == {0.0, 1.0, 2.0}
    fewer = harvest(replace(config, num=7, shard=7, batch=7), tmp_path / "b", found=world())
    assert torch.equal(to_unit(fewer.pixels()), made[:7])


def test_a_fetched_file_serves_where_no_checkpoint_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the backbone's own name, or by that of one of many files."""
    from ppap_host.files.weights import PublishedFile
    from ppap_host.plugins import loading

    found = world()
    (plugin, _), *_ = found.names("backbone")["classes"]
    files = {
        name: PublishedFile(name, f"https://example.org/{name}.pt", f"{name}.pt", "CC0", "")
        for name in ("classes", "classes-small", "absent")
    }
    monkeypatch.setattr(found, "_published", {n: [(plugin, f)] for n, f in files.items()})
    monkeypatch.setattr(loading, "default_folder", lambda file: tmp_path)
    for name in ("classes", "classes-small"):
        (tmp_path / f"{name}.pt").write_bytes(b"weights")
    seen: list[str | None] = []
    monkeypatch.setattr(
        "worlds.ClassBackbone.__init__", lambda self, checkpoint=None: seen.append(checkpoint)
    )
    for given in (None, "classes-small", "absent", "own.pt"):
        load_backbone(found, "classes", given)
    assert seen == [
        str(tmp_path / "classes.pt"), str(tmp_path / "classes-small.pt"), "absent", "own.pt",
    ]  # fmt: skip


@pytest.fixture
def filling(tmp_path: Path) -> RunConfig:
    """The right half of a bright picture is to be made anew."""
    picture = Image.new("RGB", (32, 32), (230, 230, 230))
    picture.save(tmp_path / "picture.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(tmp_path / "mask.png")
    return replace(
        CONFIG,
        backbone="filling", image=str(tmp_path / "picture.png"), mask=str(tmp_path / "mask.png"),
    )  # fmt: skip


def test_what_is_known_of_a_picture_stays_and_the_rest_is_made(filling: RunConfig) -> None:
    made = generate(set_up(filling, found=world()), [0, 1], Health())
    assert (made[..., :4] - (230 / 127.5 - 1)).abs().max() < 0.02
    assert made[..., 4:].mean().item() == pytest.approx(-0.5, abs=0.05)


def test_a_filled_in_picture_can_be_made_again_from_its_copies(
    filling: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppap_host.runs.setup.registry", world)
    monkeypatch.setattr("ppap_host.plugins.registry.registry", world)
    record = run(filling, tmp_path / "run").record
    assert [t["input"] for t in record["targets"]] == ["image", "mask"]
    for name in ("picture.png", "mask.png"):
        (tmp_path / name).unlink()
    result = CliRunner().invoke(app, ["rerun", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["identical"]


def test_picture_and_mask_belong_together_and_to_a_backbone_that_fills_in(
    filling: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="there is no `image`"):
        replace(filling, image=None)
    with pytest.raises(OptionError, match="`image` alone is where a pipeline"):
        set_up(replace(filling, mask=None), found=world())
    with pytest.raises(OptionError, match="cannot fill in"):
        set_up(replace(filling, backbone="gaussian"), found=world())
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(TargetError, match="nothing white"):
        set_up(replace(filling, mask=str(tmp_path / "black.png")), found=world())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"churn_range": "0.1:10", "sampler": "heun"}, "`churn"),
        ({"churn_noise": 1.01, "sampler": "heun"}, "`churn"),
        ({"guides": (GuideConfig("colour", "0.5", interval="90:91"),)}, "never be asked"),
    ],
)
def test_options_that_would_do_nothing_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        set_up(replace(CONFIG, **change), found=world())
