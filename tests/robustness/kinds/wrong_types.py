"""Every value of every document that people can edit, replaced by everything that it is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save

from robustness import stock
from robustness.cases import Case
from robustness.kinds.models import _backbone, _guide, _saved, files_of, write_model

Write = Callable[..., None]
Reader = Callable[[Path], Any] | Sequence[str]


def cases() -> Iterator[Case]:
    """One case a place in a document; whatever is said is right if it is said in a line."""
    documents: tuple[tuple[str, Any, Write, Reader], ...] = (
        ("record", stock.RUN, stock.record, _rerun),
        ("harvest", stock.HARVEST, stock.harvest, _harvest),
        ("expert set", stock.SET, stock.expert_set, ("experts", "show", "set.safetensors")),
        ("calibration", stock.CALIBRATION, stock.calibration, _calibration),
        ("tuning", stock.TUNING, stock.tuning, ("plot", ".", "--out", "plot.png")),
        ("search", stock.SEARCH, stock.search, _search),
        ("guidance", _GUIDANCE, _write("guidance.json"), _guidance),
        ("palette", _PALETTE, _write("palette.json"), _palette),
        ("configuration", _TOML, _toml, _configured),
        ("familiarity", _FAMILIAR, _familiar, _familiarity),
        ("state", _STATE, _state, _tuning_state),
        ("frontier", _FRONTIER, _frontier, _quality),
        ("index", _INDEX, _pipeline, _backbone("diffusers", "m")),
        ("model", _of("config.json"), _model("config.json"), _guide("depth")),
        ("processor", _of("preprocessor_config.json"), _model("preprocessor_config.json"),
         _guide("depth")),
        ("flags of ADM", _FLAGS, _flags("x.pt.json"), _backbone("adm", "x.pt")),
        ("flags of DiT", _FLAGS, _flags("x.pt.json"), _backbone("dit", "x.pt")),
    )  # fmt: skip
    for name, sound, write, reader in documents:
        yield Case(f"{name}, sound", 14, write, reader, codes=(0, 2) if name in _PARTS else (0,))
        # Loading a model takes longer: of what can be wrong there, each place has some.
        every = islice(stock.spoilt(sound), None, None, 3 if name in _MODELS else 1)
        for place, group in groupby(every, key=lambda named: named[0].split(" ")[0]):
            spoilt = list(group)
            check = _each(spoilt, write, reader)
            label = f"{name}: {place}"
            yield Case(label, 14, _nothing, check, codes=(0,), seconds=120, inputs=len(spoilt))
        for what, text in _TEXTS.items():

            def spoil(folder: Path, text: bytes = text, write: Write = write) -> None:
                write(folder)
                for file in folder.rglob("*.json"):
                    file.write_bytes(text)

            if write not in (stock.expert_set, _toml, _familiar, _state):
                yield Case(f"{name}, {what}", 14, spoil, reader)


_PARTS = ("index", "flags of ADM", "flags of DiT", "state")
"""Documents whose networks are not beside them."""
_MODELS = ("model", "processor", *_PARTS)

_GUIDANCE: dict[str, Any] = {
    "guidance": [{"name": "classifier", "target": "red cube", "scale": 2.0}], "seed": 3,
    "balance": "project", "frames": 3, "start": 0.1, "stop": 0.9,
}  # fmt: skip
_PALETTE: list[Any] = [{"name": "cube", "color": [255, 0, 0], "id": 1}, {"name": "cone",
                       "color": [0, 255, 0], "id": 2}]  # fmt: skip
_TOML: dict[str, Any] = {
    "num": 2, "steps": 3, "seed": [1, 2], "prompt": ["a", "b"], "cfg": 2.0, "eta": 0.5,
    "churn": 0.0, "sampler": "ddim", "backbone_options": {"a": "b"},
    "pipeline": {"a": [1, {"b": 2.0}]},
    "guide": [{"name": "classifier", "target": ["red cube", "cone"], "scale": 1.0}],
}  # fmt: skip
_FAMILIAR: dict[str, Any] = {
    "layer": "maps", "limit": 1.5, "knows": "rooms", "measured": {"mean": [0.5]},
}  # fmt: skip
_STATE: dict[str, Any] = {
    "fingerprint": "", "step": 1, "losses": [0.5], "finished": [False], "waited": [0],
    "best": [0.5], "history": [{"step": 0, "loss": [None], "held_out": [0.5]}],
    "off_the_shelf": [0.5],
}  # fmt: skip
_FRONTIER: dict[str, Any] = {
    "format": 1, "guide": "pull", "backbone": "gaussian-world", "backbone_files": {},
    "recipe": "x0", "experts": None,
    "qualities": {"normal": {
        "scale": 2.0, "steps": "ddim8", "interval": "-4:6", "solver": "ddim:0.5", "every": 2,
    }},
}  # fmt: skip
_INDEX: dict[str, Any] = {
    "_class_name": "DDPMPipeline", "_diffusers_version": "0.30.0",
    "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"],
    "safety_checker": [None, None],
}  # fmt: skip
_FLAGS: dict[str, Any] = {
    "image_size": 64, "num_channels": 8, "num_heads": 2, "attention_resolutions": "32,16",
    "learn_sigma": True, "class_cond": False, "depth": 2, "patch_size": 2,
}  # fmt: skip


def _write(file: str) -> Write:
    def write(folder: Path, values: Any = None) -> None:
        sound = {"guidance.json": _GUIDANCE, "palette.json": _PALETTE}[file]
        (folder / file).write_bytes(stock.text_of(sound if values is None else values))

    return write


def _guidance(folder: Path) -> None:
    from ppap_host.pipelines.asking import saved

    saved(folder, "guidance.json")


def _palette(folder: Path) -> None:
    from ppap_plugin_segmentation.palettes import palette_named

    palette_named("palette.json", folder / "palette.json")


def _toml(folder: Path, values: Any = _TOML) -> None:
    try:
        (folder / "x.toml").write_text(tomli_w.dumps(values))
    except (TypeError, ValueError, AttributeError, RecursionError):
        (folder / "x.toml").write_text("a = [")  # what TOML cannot say


def _configured(folder: Path) -> None:
    from ppap_host.files.errors import OptionError
    from ppap_host.files.reading import read_toml
    from ppap_host.runs.config import RunConfig

    RunConfig.from_dict(read_toml(folder / "x.toml", OptionError, "Mend it."), "x.toml")


def _familiar(folder: Path, values: Any = _FAMILIAR) -> None:
    tensors = {"mean": torch.zeros(2), "whitening": torch.eye(2)}
    text = stock.text_of(values).decode()
    (folder / "f.safetensors").write_bytes(save(tensors, {"familiarity": text}))


def _familiarity(folder: Path) -> None:
    from ppap_host.guides.familiarity import load_familiarity

    load_familiarity(folder / "f.safetensors")


def _frontier(folder: Path, values: Any = _FRONTIER) -> None:
    (folder / "weights").write_bytes(b"")
    (folder / "frontier.json").write_bytes(stock.text_of(values))


def _quality(folder: Path) -> None:
    from ppap_host.runs.config import GuideConfig, RunConfig
    from ppap_host.runs.quality import with_quality
    from ppap_host.testing.worlds import GaussianWorld, PullGuide

    class Measured(PullGuide):
        def files(self) -> tuple[Path, ...]:
            return (folder / "weights",)

    config = RunConfig(guides=(GuideConfig("pull"),))
    _, said, _ = with_quality(config, GaussianWorld(), [Measured()])
    assert said is None or "measured" in said


def _state(folder: Path, values: Any = _STATE) -> None:
    (folder / "s").write_bytes(save({}, {"tuning": stock.text_of(values).decode()}))


def _tuning_state(folder: Path) -> None:
    from robustness.kinds.documents import _restore

    _restore(folder)


def _pipeline(folder: Path, values: Any = _INDEX) -> None:
    (folder / "m").mkdir()
    (folder / "m" / "model_index.json").write_bytes(stock.text_of(values))


def _of(file: str) -> Any:
    found = json.loads(files_of("depth")[file])
    return {key: value for key, value in found.items() if not key.startswith(("_", "transf"))}


def _model(file: str) -> Write:
    def write(folder: Path, values: Any = None) -> None:
        place = write_model("depth", folder)
        if values is not None:
            (place / file).write_bytes(stock.text_of(values))

    return write


def _flags(file: str) -> Write:
    def write(folder: Path, values: Any = _FLAGS) -> None:
        (folder / "x.pt").write_bytes(_saved({"a": torch.ones(1)}))
        (folder / file).write_bytes(stock.text_of(values))

    return write


_TEXTS = {
    "empty": b"", "cut": b'{"format": 1, "con', "no text": b"\xff\xfe\x00", "a list": b"[]",
    "a number": b"1", "deep": b"[" * 100_000, "binary": os.urandom(1000), "page": b"<html></html>",
}  # fmt: skip


def _nothing(folder: Path) -> None:
    """Each input makes its own."""


def _each(
    spoilt: Sequence[tuple[str, Any]], write: Write, reader: Reader
) -> Callable[[Path], None]:
    """Reads one document after the other; all but an error in a line is a fault."""

    def check(folder: Path) -> None:
        from ppap_host.cli import main
        from ppap_host.files.errors import PpapError

        base = folder.resolve()
        for number, (name, values) in enumerate(spoilt):
            own = base / str(number)
            own.mkdir()
            os.chdir(own)
            write(own, values)
            try:
                if callable(reader):
                    reader(own)
                else:
                    sys.argv = ["ppap", *reader]
                    main()
            except PpapError as error:
                print(f"Error: {error}", file=sys.stderr)
            except SystemExit as stop:
                if stop.code not in (None, 0, 1, 2):
                    raise RuntimeError(f"{name}: exit code {stop.code}") from None
            except BaseException:
                print(name, file=sys.stderr)
                raise

    return check


def _rerun(folder: Path) -> None:
    """All of ``ppap rerun`` but the images, whose making takes seconds."""
    from ppap_host.cli.rerun import _tell
    from ppap_host.runs.record import differences, read_record
    from ppap_host.runs.script import from_record

    before = read_record(folder / "run.json")
    from_record(before, folder)
    found = differences(before, stock.RUN)
    outcome = {"identical": False, "images": 1, "changed": [0], "differences": found}
    _tell(outcome)


def _harvest(folder: Path) -> None:
    from ppap_plugin_bench.calibration.material import from_harvest

    from ppap_host.experts.harvest import Harvest

    made = Harvest.open(folder / "h")
    from_harvest(made, 3)


def _calibration(folder: Path) -> None:
    from ppap_host.backbones.noise import NoiseLevel
    from ppap_host.experts.calibration import load_calibration

    found = load_calibration(folder)
    found.inverse_temperature(NoiseLevel(0.5, 0.5, 0.0))
    found.save(folder / "again.json")
    print([part.name for part in found.ranges])


def _search(folder: Path) -> None:
    from ppap_plugin_bench.search.session import _stored, trials_kept

    trials_kept(folder / "w")
    _stored(folder / "w", {"run": {"num": 4}})
