"""A harvest is the same whoever makes it, in however many pieces."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from processes import plain_environment, run_process
from safetensors.torch import load_file
from teaching import world
from typer.testing import CliRunner
from worlds import ColourGuide, GaussianBackbone

from ppap_host.cli import app
from ppap_host.cli.harvest import _usual_batch
from ppap_host.experts.harvest import Harvest, HarvestConfig
from ppap_host.files.errors import (
    CheckpointError,
    DamageWarning,
    GuidanceWarning,
    OptionError,
    OutputError,
    PpapError,
)
from ppap_host.runs.harvesting import harvest

PROGRAM = Path(__file__).with_name("teaching.py")
CONFIG = HarvestConfig("gaussian", num=22, shard=4, batch=2, steps=5, seed=3, device="cpu", eta=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Harvest:
    return harvest(CONFIG, tmp_path_factory.mktemp("harvest") / "whole", found=world())


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.parent.name.startswith("teacher-")
    }


def test_a_harvest_holds_every_image_once_and_something_to_look_at(made: Harvest) -> None:
    assert len(made) == 22
    assert made.pixels().shape == (22, 3, 8, 8)
    assert made.pixels().dtype == torch.uint8
    assert (made.folder / "sheet.png").exists()
    assert made.identity()["num"] == 22


def test_what_is_left_out_is_the_backbones_own_and_kept_as_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("steps", 4), ("eta", 1.0)):
        monkeypatch.setattr(GaussianBackbone, f"default_{name}", value)
    left = HarvestConfig("gaussian", num=2, shard=2, batch=2, device="cpu")
    plain = harvest(left, tmp_path / "plain", found=world())
    config = plain.description["config"]
    assert (config["steps"], config["sampler"], config["eta"]) == (4, "ddim", 1.0)
    for sampler, eta in (("ddim", 1.0), ("ddpm", None)):
        named = replace(left, steps=4, sampler=sampler, eta=eta)
        there = harvest(named, tmp_path / sampler, found=world())
        again = harvest(replace(left, sampler=sampler), tmp_path / sampler, found=world())
        assert again.description == there.description
        assert torch.equal(there.pixels(), plain.pixels()) == (sampler == "ddim")


def test_an_image_depends_on_the_seed_and_its_number_alone(made: Harvest, tmp_path: Path) -> None:
    more = harvest(replace(CONFIG, num=9, shard=6), tmp_path / "more", found=world())
    assert torch.equal(more.pixels(), made.pixels()[:9])
    other = harvest(replace(CONFIG, num=9, seed=4), tmp_path / "other", found=world())
    assert not torch.equal(other.pixels(), more.pixels())


def test_a_killed_harvest_goes_on_to_the_same_bytes(made: Harvest, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    environment = plain_environment()
    for shards in (1, 3):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "harvest", str(folder), "0.05"], env=environment
        )
        try:
            until = time.monotonic() + 120
            while len(list(folder.glob("images-*"))) < shards and time.monotonic() < until:
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(list(folder.glob("images-*"))) < made.shards
        with pytest.raises(CheckpointError, match="not complete"):
            Harvest.open(folder)
    (folder / ".images-00005.safetensors.0a.unfinished").write_bytes(b"half")
    harvest(CONFIG, folder, found=world())
    assert bytes_of(folder) == bytes_of(made.folder)


def test_two_processes_make_the_same_bytes_as_one(made: Harvest, tmp_path: Path) -> None:
    launched = run_process(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
            str(PROGRAM), "harvest", str(tmp_path / "two"),
        ],
        tmp_path,
    )  # fmt: skip
    assert launched.code == 0, launched.err
    assert bytes_of(tmp_path / "two") == bytes_of(made.folder)


def test_the_teacher_is_asked_once(made: Harvest) -> None:
    guide = ColourGuide()
    asked = []
    see = guide.see

    def counted(x: torch.Tensor, level: None = None) -> torch.Tensor:
        asked.append(len(x))
        return see(x, level)

    guide.see = counted  # type: ignore[method-assign]
    first = made.lesson(guide)
    assert sum(asked) == 22
    again = made.lesson(guide)
    assert sum(asked) == 22
    assert torch.equal(first.teacher, again.teacher)
    expected = see(first.images(slice(None)))
    torch.testing.assert_close(first.teacher, expected, rtol=2e-3, atol=1e-4)
    other = made.lesson(ColourGuide("1"))
    assert not torch.allclose(other.teacher, first.teacher, atol=1e-2)


def test_outputs_too_large_for_half_precision_are_kept_whole(tmp_path: Path) -> None:
    small = harvest(replace(CONFIG, num=2), tmp_path / "h", found=world())
    guide = ColourGuide()
    see = guide.see
    guide.see = lambda x, level=None: 1e6 * see(x, level)  # type: ignore[method-assign]
    teacher = small.lesson(guide).teacher
    torch.testing.assert_close(teacher, 1e6 * see(small.lesson(guide).images(slice(None))))


def test_two_harvests_are_never_mixed(made: Harvest) -> None:
    with pytest.raises(OptionError, match="seed: 3 there, 4 now") as caught:
        harvest(replace(CONFIG, seed=4), made.folder, found=world())
    assert "--out" in caught.value.remedy
    with pytest.raises(OptionError, match="other settings"):
        harvest(replace(CONFIG, checkpoint="0.2"), made.folder, found=world())


def test_a_damaged_shard_is_named_and_made_anew(made: Harvest, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    harvest(CONFIG, folder, found=world())
    path = folder / "images-00002.safetensors"
    whole = path.read_bytes()
    blocks_of_zeros = whole[:-64] + bytes(64)
    for damaged in (
        b"damaged",
        b"",
        whole[:-1],
        blocks_of_zeros,
        (folder / "images-00005.safetensors").read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="images-00002"):
            Harvest.open(folder).pixels()
        with pytest.warns(DamageWarning, match="images-00002"):
            harvest(CONFIG, folder, found=world())
        assert bytes_of(folder) == bytes_of(made.folder)


def test_damaged_lessons_are_made_anew(made: Harvest) -> None:
    guide = ColourGuide("2")
    teacher = made.lesson(guide).teacher
    for path in made.folder.glob("teacher-colour-*/outputs-00001.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.warns(DamageWarning, match="outputs-00001"):
        assert torch.equal(made.lesson(guide).teacher, teacher)


def test_two_jobs_do_not_share_a_folder(made: Harvest, tmp_path: Path) -> None:
    folder = tmp_path / "held"
    with FileLock(_made(folder) / ".lock"), pytest.raises(OutputError, match="at work"):
        harvest(CONFIG, folder, found=world())
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num": 0}, "'num'"),
        ({"seed": -1}, "'seed'"),
        ({"shard": 5}, "does not divide"),
        ({"batch": 0}, "'batch'"),
        ({"num": 10**12}, "'num'"),
        ({"num": 10**8, "shard": 2}, "files"),
        ({"cfg": float("nan")}, "'cfg'"),
        ({"eta": float("nan")}, "'eta'"),
        ({"steps": ""}, "'steps'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        replace(CONFIG, **changes)
    assert caught.value.remedy


def test_what_the_backbone_cannot_do_is_said_before_anything_is_made(tmp_path: Path) -> None:
    for changes in ({"prompts": ("a cat",)}, {"cfg": 3.0}, {"backbone": "gausian"}):
        with pytest.raises(PpapError) as caught:
            harvest(replace(CONFIG, **changes), tmp_path / "none", found=world())
        assert caught.value.remedy
        assert not (tmp_path / "none").exists()


def test_a_folder_that_is_no_harvest_is_refused(tmp_path: Path) -> None:
    for content in (None, "", "[]", '{"format": 99}', "[" * 10_000, "1" * 5_000):
        if content is not None:
            (tmp_path / "harvest.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"harvest\.json"):
            Harvest.open(tmp_path)


def test_files_of_somebody_else_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "images-00000.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"no harvest\.json"):
        harvest(CONFIG, tmp_path, found=world())
    assert (tmp_path / "images-00000.safetensors").read_bytes() == b"mine"


@pytest.mark.usefixtures("as_user")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        harvest(CONFIG, tmp_path / "inner", found=world())


def test_the_command_makes_prompted_images_of_the_built_in_world(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cube\n\na blue cone\n")
    call = [
        "harvest", "--out", str(tmp_path / "h"), "--num", "3", "--shard", "2", "--batch", "2",
        "--steps", "2", "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu", "--json",
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, call)
    assert outcome.exit_code == 0, outcome.output
    described = json.loads(outcome.stdout)
    assert described["images"] == 3
    assert described["identity"]["prompts"] == ["a red cube", "a blue cone"]
    assert load_file(tmp_path / "h" / "images-00000.safetensors")["rgb"].shape == (2, 3, 64, 64)
    (tmp_path / "empty.txt").write_text("\n")
    for path in ("empty.txt", "missing.txt"):
        outcome = CliRunner().invoke(app, [*call[:-5], "--prompts", str(tmp_path / path)])
        assert isinstance(outcome.exception, OptionError)


def test_prompts_that_are_left_over_and_saturated_images_are_told(tmp_path: Path) -> None:
    prompts = ("a red cube", *("a blue cone", "a green sphere") * 1000)
    config = HarvestConfig(
        num=1, shard=1, batch=1, steps=1, prompts=prompts, cfg=1e30, device="cpu"
    )
    with pytest.warns(GuidanceWarning) as told:
        harvest(config, tmp_path)
    said = " ".join(str(warning.message) for warning in told)
    assert "first 1 of 2001 prompts" in said
    assert "at the bounds" in said


@pytest.mark.parametrize(
    ("shard", "batch"), [(100, 20), (20, 20), (4, 4), (30, 15), (37, 1), (0, 20)]
)
def test_the_usual_batch_divides_a_shard(shard: int, batch: int) -> None:
    assert _usual_batch(shard) == batch
