"""From a backbone alone to experts that guide, by the commands of the README, made small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ppap_host.cli import app
from ppap_host.files.errors import CheckpointError, OptionError, OutputError, UnknownNameError


def call(*arguments: str | Path) -> Any:
    """What a command prints as JSON; its error is raised."""
    outcome = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teaching") / "harvest"
    call(
        "harvest", "--out", folder, "--num", 8, "--shard", 8, "--batch", 8, "--steps", 2,
        "--device", "cpu",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tuned(harvested: Path) -> Path:
    folder = harvested.parent / "my-experts"
    record = call(
        "tune", "classifier", "--backbone", "shapes", "--harvest", harvested, "--out", folder,
        "--experts", 2, "--steps", 3, "--batch", 4, "--licence", "CC0-1.0", "--device", "cpu",
    )  # fmt: skip
    assert record["guide"] == "classifier"
    assert [row["step"] for row in record["history"]] == [0, 3]
    return folder


def strictly(path: Path) -> Any:
    """What a file of JSON holds; NaN and its kin are none."""

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_tuning_leaves_a_set_and_a_record_that_can_be_drawn(tuned: Path) -> None:
    names = {path.name for path in tuned.iterdir()}
    assert names == {"experts.safetensors", "tuning.json"}
    drawing = tuned.parent / "drawn.png"
    outcome = CliRunner().invoke(app, ["plot", str(tuned), "--out", str(drawing)])
    assert outcome.stdout == f"Plot: {drawing}\n"
    with Image.open(drawing) as plot:
        assert plot.width > 600
    nothing_yet, _ = strictly(tuned / "tuning.json")["history"]
    assert nothing_yet["loss"] == [None, None]
    shown = call("experts", "show", tuned)
    assert shown["guide"] == "classifier"
    assert shown["licence"] == "CC0-1.0"
    assert shown["harvest"]["num"] == 8
    call("experts", "verify", tuned)


def test_tuned_experts_guide_a_run_which_says_so_and_can_be_repeated(
    tuned: Path, tmp_path: Path
) -> None:
    made = call(
        "run", "--guide", "classifier", "--target", "red cube", "--experts", tuned, "--num", 1,
        "--steps", 2, "--out", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    (used,) = made["used"]["guides"]
    assert (used["recipe"], used["experts"]) == ("ppap", str(tuned))
    assert any(name.startswith("classifier-experts/") for name in made["model_files"])
    again = call("rerun", tmp_path / "run", "--out", tmp_path / "again")
    assert again["identical"] is True


def test_experts_tuned_on_predictions_guide_at_predictions_alone(
    harvested: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "of-predictions"
    record = call(
        "tune", "classifier", "--harvest", harvested, "--out", folder, "--view", "predicted",
        "--experts", 1, "--steps", 1, "--batch", 2, "--device", "cpu",
    )  # fmt: skip
    assert record["view"] == "predicted"
    assert call("experts", "show", folder)["view"] == "predicted"
    run = (
        "run", "--guide", "classifier", "--target", "red cube", "--experts", folder, "--num", 1,
        "--steps", 2, "--device", "cpu",
    )  # fmt: skip
    (used,) = call(*run, "--out", tmp_path / "run")["used"]["guides"]
    assert (used["recipe"], used["experts"]) == ("x0", str(folder))
    with pytest.raises(OptionError, match="predicted clean ones"):
        call(*run, "--recipe", "ppap", "--out", tmp_path / "noised")


def test_predictions_need_the_weights_that_made_the_harvest(
    harvested: Path, tmp_path: Path
) -> None:
    other = tmp_path / "harvest"
    shutil.copytree(harvested, other)
    described = json.loads((other / "harvest.json").read_text())
    described["model_files"] = {"other.safetensors": "0" * 64}
    (other / "harvest.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="other weights"):
        call(
            "tune", "classifier", "--harvest", other, "--out", tmp_path / "none",
            "--view", "predicted",
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_a_tuning_that_is_finished_is_only_looked_at(harvested: Path, tuned: Path) -> None:
    before = {path.name: path.read_bytes() for path in tuned.iterdir()}
    command = (
        "tune", "classifier", "--backbone", "shapes", "--harvest", harvested, "--out", tuned,
        "--experts", 2, "--steps", 3, "--batch", 4, "--licence", "CC0-1.0", "--device", "cpu",
    )  # fmt: skip
    assert call(*command) == strictly(tuned / "tuning.json")
    assert call(*command[:-2], "--lr", 0.005)["tuning"]["lr"] == 0.005  # what it had chosen
    for other in (
        ("--seed", 1), ("--model", "else"), ("--view", "predicted"), ("--steps", 4),
        ("--licence", "MIT"), ("--backbone", "adm"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match="of another tuning"):
            call(*command, *other)
    assert {path.name: path.read_bytes() for path in tuned.iterdir()} == before


def test_what_cannot_be_tuned_is_said_before_anything_is_done(
    harvested: Path, tuned: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "none")
    with pytest.raises(UnknownNameError, match="clasifier"):
        call("tune", "clasifier", "--harvest", harvested, *out)
    with pytest.raises(CheckpointError, match="no harvest"):
        call("tune", "classifier", "--harvest", tmp_path, *out)
    with pytest.raises(OptionError, match=r"made by the backbone 'shapes'"):
        call("tune", "classifier", "--harvest", harvested, "--backbone", "adm", *out)
    with pytest.raises(OptionError, match="takes no option 'vae'"):
        call("tune", "classifier", "--harvest", harvested, "--vae", "mine", *out)
    with pytest.raises(OptionError, match="'patience' in the command line is 0"):
        call("tune", "classifier", "--harvest", harvested, "--patience", 0, *out)
    with pytest.raises(OutputError, match="already holds"):
        call("tune", "classifier", "--harvest", harvested, "--out", tuned)
    with pytest.raises(UnknownNameError, match="view"):
        call("tune", "classifier", "--harvest", harvested, "--view", "clean", *out)
    with pytest.raises(UnknownNameError, match="method"):
        call("tune", "classifier", "--harvest", harvested, "--method", "lora", *out)
    assert not (tmp_path / "none").exists()


def test_several_options_belong_to_the_guide_in_their_place() -> None:
    outcome = CliRunner().invoke(
        app,
        [
            "run", "-g", "classifier", "-t", "red cube", "-g", "depth", "-t", "room.png",
            "-r", "ppap", "-r", "x0", "-e", "mine", "-e", "none", "--interval", "-4:6",
            "--interval", ":", "--balance", "sum", "--print-config",
        ],
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.count("[[guide]]") == 2
    for line in ('recipe = "x0"', 'experts = "mine"', 'interval = "-4:6"', 'balance = "sum"'):
        assert line in outcome.stdout
