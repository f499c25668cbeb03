"""Whole runs with the shipped backbone and the depth plugin: images, records, reruns, failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ppap_host.cli import app
from ppap_host.files.errors import OptionError, OutputError, PpapError, TargetError
from ppap_host.files.hashes import sha256_file, sha256_pixels
from ppap_host.files.images import to_tensor
from ppap_host.files.writing import read_png_record, write_png
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.record import differences, read_record
from ppap_host.runs.run import run
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import sample_scenes

STEPS = 4


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of odd size, rotated by EXIF, with transparency: a room, rendered."""
    path = tmp_path_factory.mktemp("target") / "room photo.png"
    pixels = render(sample_scenes(77, 3, 1), 96).rgb[0]
    image = Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).convert(
        "RGBA"
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).crop((0, 0, 96, 90)).save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def settings(target: Path) -> RunConfig:
    return RunConfig(
        guides=(GuideConfig("depth", str(target)),), steps=STEPS, num=3, batch=2, device="cpu"
    )


@pytest.fixture(scope="module")
def done(settings: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(settings, folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png"))}


def test_a_run_leaves_images_a_sheet_and_a_complete_record(
    done: Path, settings: RunConfig, target: Path
) -> None:
    record = json.loads((done / "run.json").read_text())
    assert record["status"] == "complete"
    assert RunConfig.from_dict(record["given"], "record") == settings
    decided = RunConfig.from_dict(record["config"], "record")
    assert (decided.sampler, decided.eta, decided.steps) == ("dpm++", 1.0, STEPS)
    assert decided.guides[0].recipe and decided.guides[0].experts and decided.guides[0].scale
    assert [entry["index"] for entry in record["images"]] == [0, 1, 2]
    for entry in record["images"]:
        with Image.open(done / entry["file"]) as image:
            assert image.size == (64, 64)
            assert sha256_pixels(image) == entry["pixels_sha256"]
        assert all(np.isfinite(v) for v in entry["measures"]["depth"].values())
        assert entry["measures"]["depth"]
    assert record["targets"][0]["sha256"] == sha256_file(target)
    assert {"load", "hash", "sample", "measure", "write"} <= set(record["seconds"])
    assert {"python", "torch", "ppap-host", "ppap-plugin-depth"} <= set(record["versions"])
    hashed = record["model_files"]
    assert any(name.startswith("shapes/unet") for name in hashed)
    assert any(name.startswith("depth/") for name in hashed)
    assert all(len(digest) == 64 for digest in hashed.values())
    with Image.open(done / "sheet.png") as sheet:
        assert sheet.width > 3 * 128


def test_each_png_carries_the_record(done: Path) -> None:
    whole = json.loads((done / "run.json").read_text())
    for entry in whole["images"]:
        carried = read_png_record(done / entry["file"])
        assert carried["images"] == [entry]
        for key in ("config", "used", "versions", "model_files", "targets"):
            assert carried[key] == whole[key]
    assert read_png_record(done / "sheet.png")["config"] == whole["config"]


def test_the_same_run_makes_the_same_bytes(done: Path, settings: RunConfig, tmp_path: Path) -> None:
    run(settings, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(done)


def gap_between(a: Path, b: Path) -> np.ndarray[Any, Any]:
    """Absolute difference of two pictures, in 8-bit steps."""
    with Image.open(a) as first, Image.open(b) as second:
        return np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int))


def test_image_k_does_not_depend_on_batch_or_number(settings: RunConfig, tmp_path: Path) -> None:
    """Up to float rounding, with the bounds that docs/records.md states.

    Unguided: one 8-bit step in any pixel. Guided: half a step on average over an image; guidance
    can enlarge a rounding error where an image could turn out one way or the other.
    """
    unguided = replace(settings, guides=(), steps=20)
    guided = replace(settings, steps=20)
    for name, config in (("unguided", unguided), ("guided", guided)):
        few, many = tmp_path / f"{name}-few", tmp_path / f"{name}-many"
        run(config, few)
        run(replace(config, num=5, batch=5), many)
        for k in range(3):
            gap = gap_between(few / f"{k:05d}.png", many / f"{k:05d}.png")
            if name == "unguided":
                assert gap.max() <= 1
            assert gap.mean() <= 0.5


def test_guidance_moves_the_depth_towards_the_target(
    done: Path, settings: RunConfig, tmp_path: Path
) -> None:
    plain = replace(settings.guides[0], scale=0.0)
    unguided = run(replace(settings, guides=(plain,)), tmp_path / "unguided").record
    guided = json.loads((done / "run.json").read_text())

    def error(record: dict[str, Any]) -> float:
        return float(np.mean([e["measures"]["depth"]["abs-rel"] for e in record["images"]]))

    assert error(guided) < 0.8 * error(unguided)


def test_what_was_understood_is_said_before_the_first_step(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And read from a table of a TOML file as from text."""

    def stopped(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ppap_host.runs.run.Run.finish", stopped)
    table = f'[[guide]]\nname = "depth"\ntarget = {{path = "{target}", as = "photo"}}\n'
    (tmp_path / "run.toml").write_text(table)
    command = ["run", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 130
    assert "Target: photograph from" in result.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["guides"][0]["target"] == {"path": str(target), "as": "photo"}
    assert record["targets"][0]["understood"].startswith("photograph")


@pytest.mark.parametrize("form", ["run.json", "", "00001.png"])
def test_rerun_says_that_the_images_are_the_same(done: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "kept"
    result = CliRunner().invoke(app, ["rerun", str(done / form), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["identical"]
    assert files_of(out) == files_of(done)


def test_rerun_says_what_differs(done: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(done, moved)
    record = json.loads((moved / "run.json").read_text())
    record["images"][1]["pixels_sha256"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    name = next(iter(record["model_files"]))
    record["model_files"][name] = "f" * 64
    (moved / "run.json").write_text(json.dumps(record))
    write_png(moved / record["targets"][0]["copy"], Image.new("RGB", (64, 64), "grey"))
    result = CliRunner().invoke(app, ["rerun", str(moved), "--json"])
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert not said["identical"]
    assert 1 in said["changed"]
    text = "\n".join(said["differences"])
    assert "torch: was 1.0" in text
    assert name in text
    assert "target" in text


def test_a_record_names_a_missing_plugin_as_a_difference() -> None:
    before = {"versions": {"ppap-plugin-depth": "0.1.0"}, "targets": []}
    found = differences(before, {"versions": {}, "targets": []})
    assert found == ["version of ppap-plugin-depth: was 0.1.0, is absent"]


@pytest.mark.parametrize("key", ["device", "machine", "threads"])
def test_a_record_names_where_it_was_made_as_a_difference(key: str) -> None:
    assert differences({key: "a"}, {key: "b"}) == [f"{key}: was a, is b"]
    assert differences({key: "a"}, {key: "a"}) == []


def test_an_edited_picture_without_record_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "edited.png")
    with pytest.raises(PpapError, match="carries no record"):
        read_record(tmp_path / "edited.png")


def test_a_folder_with_a_run_is_never_overwritten(done: Path, settings: RunConfig) -> None:
    before = files_of(done)
    with pytest.raises(OutputError, match="already holds a run"):
        run(settings, done)
    assert files_of(done) == before


def test_bad_input_leaves_nothing_behind(settings: RunConfig, tmp_path: Path) -> None:
    bad = replace(settings, guides=(GuideConfig("depth", str(tmp_path / "missing.png")),))
    with pytest.raises(TargetError, match=r"missing\.png"):
        run(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a red zebra"}, "zebra"),
        ({"cfg": 3.0}, "prompt"),
        ({"sampler": "heun", "eta": 0.5}, "eta"),
        ({"steps": "ddim7000"}, "steps"),
        ({"device": "cuda:99"}, "cuda"),
        ({"dtype": "float12"}, "dtype"),
        ({"sampler": "eular"}, "sampler"),
        ({"backbone": "shape"}, "backbone"),
        ({"recipe": "x-0"}, "recipe"),
        ({"checkpoint": "no/such/folder"}, "backbone"),
    ],
    ids=str,
)
def test_contradictory_and_unknown_options_are_refused_with_a_remedy(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PpapError, match=message) as caught:
        run(RunConfig(**({"num": 1, "steps": 2} | change)), tmp_path / "o")
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("change", [{"num": 0}, {"batch": -1}, {"seed": -5}], ids=str)
def test_numbers_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="It must be greater"):
        RunConfig(**change)  # type: ignore[arg-type]


def test_a_full_disk_is_one_clear_error_and_keeps_what_was_written(
    settings: RunConfig, tmp_path: Path, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    out = small_disk / "run"

    def fill(what: str, done: int, total: int) -> None:
        if what == "sampling" and done == total:
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()

    with pytest.raises(OutputError, match="No space left") as caught:
        run(replace(settings, num=2, batch=1), out, fill)
    assert "--out" in caught.value.remedy
    record = json.loads((out / "run.json").read_text())
    assert record["status"] in ("running", "failed")
    for entry in record["images"]:
        with Image.open(out / entry["file"]) as image:
            assert sha256_pixels(image) == entry["pixels_sha256"]
    assert not list(out.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process says that is told to stop as people do it: once more if it goes on."""
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        # While libraries are imported, one of them may swallow it.
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=40)
    pytest.fail("it cannot be stopped")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["first image", "start"])
def test_ctrl_c_leaves_finished_images_and_a_valid_record(
    tmp_path: Path, target: Path, when: str, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "ppap_host", "run", "-g", "depth", "-t", str(target),
            "--steps", "5", "--num", "500", "--batch", "1", "--out", str(out),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background has SIGINT ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 240
    sign = out / ("00001.png" if when == "first image" else "run.json")
    while not sign.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stdout, stderr = interrupted(process)
    assert process.returncode == 130
    assert "Interrupted" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "interrupted"
    if when == "first image":
        assert len(record["images"]) >= 1
    assert (out / "sheet.png").exists() == bool(record["images"])
    for entry in record["images"]:
        with Image.open(out / entry["file"]) as image:
            assert sha256_pixels(image) == entry["pixels_sha256"]


def test_nan_gradients_are_counted_in_the_record_and_told_once(
    settings: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppap_plugin_depth.guide import DepthGuide

    plain = DepthGuide.loss

    def broken(self: DepthGuide, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return plain(self, output, target) * float("nan")

    monkeypatch.setattr(DepthGuide, "loss", broken)
    options = ["run", "-g", "depth", "-t", settings.guides[0].target, "--steps", "3", "-n", "2"]
    result = CliRunner().invoke(app, [*options, "--json", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["skipped_guidance"] == {"depth": 6}
    assert result.stderr.count("not finite") == 1


def test_prompts_change_the_picture_and_cfg_strengthens_them(tmp_path: Path) -> None:
    def first(name: str, **change: Any) -> torch.Tensor:
        result = run(RunConfig(num=1, steps=STEPS, device="cpu", **change), tmp_path / name)
        return to_tensor(result.images[0])

    none = first("none")
    one = first("one", prompt="a red cube", cfg=1.0)
    three = first("three", prompt="a red cube", cfg=3.0)
    assert (none - one).abs().max() > 0.05
    assert (one - three).abs().max() > 0.05


def test_half_precision_networks_run(settings: RunConfig, tmp_path: Path) -> None:
    result = run(replace(settings, dtype="bfloat16", num=1, steps=2), tmp_path / "bf16")
    assert result.record["status"] == "complete"
    assert result.record["skipped_guidance"] == {}


def test_the_environment_decides_nothing(
    done: Path, settings: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the configuration does: global random state and working directory don't matter."""
    torch.manual_seed(1234)
    np.random.seed(4321)
    monkeypatch.chdir(tmp_path)
    run(settings, tmp_path / "elsewhere")
    assert files_of(tmp_path / "elsewhere") == files_of(done)
    assert os.listdir(tmp_path / "elsewhere" / "targets") == ["0-0.png"]
