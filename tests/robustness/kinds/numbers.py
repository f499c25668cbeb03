"""What is not finite, numbers that mean nothing, options that do nothing, pictures that are none,
words that steer a terminal, and jobs that are stopped or starved."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from robustness import stock
from robustness.cases import Case
from robustness.doors import ppap

Make = Callable[[Path], Any]
_RUN = ("run", "--num", "1", "--steps", "2", "--device", "cpu", "--out", "out")
_GUIDED = (*_RUN, "--guide", "classifier", "--target", "red cube", "--no-unguided")


def cases() -> Iterator[Case]:
    """Kinds 1, 3, 4, 7, 9 and 13."""
    yield from _not_finite()
    yield from _meaningless()
    yield from _idle()
    yield from _no_pictures()
    yield from _words()
    yield from _stopped()


def _nothing(folder: Path) -> None:
    """Needs no file."""


def _check_remedy(error: Any) -> None:
    assert error.remedy, error


# Kind 1


def _not_finite() -> Iterator[Case]:
    for what, spoil in _SPOILT.items():
        yield Case(what, 1, _nothing, _one_of_two(spoil), codes=(0,))
    for name in ("heun", "ddpm", "dpm++", "ddim"):
        yield Case(f"noise without bounds, {name}", 1, _nothing, _all_lost(name), says="finite")
    yield Case("a pipeline's decoder without bounds", 1, _nothing, _decoded, says="decoded")
    for option, value in (("--cfg", "nan"), ("--cfg", "inf"), ("--scale", "nan"),
                          ("--churn-noise", "1e38")):  # fmt: skip
        command = (*_GUIDED, "--prompt", "a red cube", option, value)
        if option == "--churn-noise":
            command = (*_RUN, "--sampler", "heun", "--churn", "5", option, value)
        yield Case(f"{option} {value}", 1, _nothing, command, says="finite")

    def prompts(folder: Path) -> None:
        (folder / "p.txt").write_text("a red cube\n" + "a blue cone\n" * 200_000)

    yield Case("a harvest with a cfg of 1e30", 1, prompts,
               ("harvest", "--out", "o", "--num", "1", "--steps", "1", "--device", "cpu",
                "--prompts", "p.txt", "--cfg", "1e30"),
               says="first 1 of 200001 prompts.*at the bounds", codes=(0,))  # fmt: skip


def _world(spoil: Callable[[Any, int], Any]) -> Any:
    from ppap_host.backbones.backbone import Prediction
    from ppap_host.testing.worlds import GaussianWorld

    class Spoilt(GaussianWorld):
        steps = 0

        def predict(self, x: Any, level: Any, condition: Any) -> Any:
            self.steps += 1
            eps = super().predict(x, level, condition).eps
            return Prediction(spoil(eps.clone(), self.steps))

    return Spoilt()


def _filled(value: float, after: int = 0) -> Callable[[Any, int], Any]:
    def spoil(eps: Any, step: int) -> Any:
        if step > after:
            eps[1, 0, 3, 4] = value
        return eps

    return spoil


_SPOILT = {
    "NaN in one image of two": _filled(math.nan),
    "infinity at the last step": _filled(math.inf, 3),
    "minus infinity": _filled(-math.inf, 1),
    "an overflow": lambda eps, step: eps * 1e38 if step > 9 else _filled(math.inf)(eps, step),
}


def _one_of_two(spoil: Callable[[Any, int], Any]) -> Make:
    """The other image is what it is alone, and the record names backbone, step, dtype and cfg."""

    def check(folder: Path) -> None:
        import ppap_host as ppap

        done = ppap.sample(_world(spoil), num=2, batch=2, steps=4, out=folder / "out")
        assert done.record["status"] == "failed", done.record["status"]
        assert list(done.record["failed"]) == ["1"], done.record["failed"]
        reason = done.record["failed"]["1"]
        for word in ("gaussian-world", "step", "float32", "cfg"):
            assert word in reason, reason
        alone = ppap.sample(_world(lambda eps, _: eps), num=1, steps=4)
        assert [e["pixels_sha256"] for e in done.record["images"]] == [
            e["pixels_sha256"] for e in alone.record["images"]
        ]
        json.loads((folder / "out" / "run.json").read_text(), parse_constant=_no_constant)

    return check


def _decoded(folder: Path) -> None:
    """diffusers cuts infinity to white; here the image is none."""
    import torch
    from pipelines import tiny

    import ppap_host as ppap

    pipe = tiny("sd")
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(math.inf)
    ppap.sample(pipe, prompt="a", num=2, batch=2, steps=2)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} in a record")


def _all_lost(sampler: str) -> Make:
    def check(folder: Path) -> None:
        import ppap_host as ppap

        ppap.sample(_world(lambda eps, _: eps / 0), sampler=sampler, num=2, steps=3)

    return check


# Kind 3

_ODD: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, 0, 2.5, 10**30, 1e308, True, "x", "", None, [], [math.nan],
    {}, -0.5, 10**400, "nan", b"1", 1j,
)  # fmt: skip


def _meaningless() -> Iterator[Case]:
    for kind in _settings():
        count = len(_ODD) * len(dataclasses.fields(kind))
        name = f"{kind.__module__}.{kind.__name__}"
        yield Case(name, 3, _nothing, _every_field(kind), codes=(0,), inputs=count)
    from ppap_host.plugins.registry import registry

    for name in registry().names("recipe"):
        yield Case(f"recipe {name}", 3, _nothing, _every_parameter(name), codes=(0,), seconds=300,
                   inputs=20)  # fmt: skip
    for option, value in (
        ("--steps", ""), ("--steps", "0"), ("--steps", "1e18"), ("--num", "2.5"), ("--seed", "-1"),
        ("--upsampler-steps", "0"), ("--eta", "nan"), ("--churn", "inf"), ("--batch", "0"),
        ("--class", "1e3"), ("--interval", "nan:1"), ("--churn-range", "2:1"),
    ):  # fmt: skip
        yield Case(f"{option} {value!r}", 3, _nothing, (*_RUN, "--churn", "1", option, value))

    teach = ("tune", "classifier", "--harvest", "h", "--out", "t", "--device", "cpu")
    for words in (
        "--lr 1e30", "--lr nan", "--weight-decay 1e308", "--weight-decay nan", "--held-out 0",
        "--held-out 0.999999999", "--experts 100000", "--rank 0", "--patience 0",
        f"--seed {'9' * 400}", "--batch 1000000000",
    ):  # fmt: skip
        yield Case(f"tune {words[:40]}", 3, stock.harvest, (*teach, *words.split()))
    make = ("harvest", "--out", "o", "--device", "cpu")
    for words in (f"--seed {'9' * 400}", "--shard 0", "--num 1000000000000", "--eta 1e300"):
        yield Case(f"harvest {words[:40]}", 3, _nothing, (*make, *words.split()))


def _settings() -> tuple[Any, ...]:
    from ppap_plugin_bench import shapes
    from ppap_plugin_bench.benchmarks import arms, capacity, elucd, ppap, recipes, strength
    from ppap_plugin_bench.calibration.measurement import CalibrationConfig
    from ppap_plugin_bench.evaluation import Search
    from ppap_plugin_bench.search.score import Weights
    from ppap_plugin_bench.search.session import SearchConfig

    from ppap_host.experts.harvest import HarvestConfig
    from ppap_host.experts.tuning import TuningConfig
    from ppap_host.pipelines.steering import SteeringOptions
    from ppap_host.runs.config import GuideConfig, RunConfig

    benchmarks = (capacity, elucd, ppap, recipes, strength, shapes)
    return (
        RunConfig, GuideConfig, HarvestConfig, TuningConfig, SteeringOptions, CalibrationConfig,
        Search, Weights, SearchConfig, arms.Sampling, *(each.Settings for each in benchmarks),
    )  # fmt: skip


def _every_field(kind: Any) -> Make:
    """Every field takes a value that means something, or refuses it in a line."""

    def check(folder: Path) -> None:
        from ppap_host.files.errors import PpapError
        from ppap_host.files.reading import beyond
        from ppap_host.runs.config import RunConfig

        needs = {"GuideConfig": {"name": "depth"}, "SearchConfig": {"run": RunConfig()}}
        needed: dict[str, Any] = needs.get(kind.__name__, {})
        for field in (part.name for part in dataclasses.fields(kind)):
            for value in _ODD:
                try:
                    made = kind(**needed | {field: value})
                except PpapError as error:
                    _check_remedy(error)
                    continue
                kept = getattr(made, field)
                if field in ("backbone", "target", "what"):  # any object, known when it is used
                    continue
                assert not (isinstance(kept, int | float) and beyond(kept)), (field, value)

    return check


def _every_parameter(name: str) -> Make:
    """Every parameter refuses a value in a line, or makes an image with it in time."""

    def check(folder: Path) -> None:
        import ppap_host as ppap
        from ppap_host.files.errors import PpapError, SamplingError
        from ppap_host.plugins.loading import load_recipe
        from ppap_host.plugins.registry import registry
        from ppap_host.testing.worlds import GaussianWorld, PullGuide

        recipe = load_recipe(registry(), name)
        world = GaussianWorld(size=(8, 8))
        made = 0
        for parameter in recipe.tunable():
            for value in ("nan", "inf", "-1", "0", "1", "1e18", "1e300", "1e-300", "100", "0.5",
                          "1e400", "x", "", "2.5", "-inf", "10" * 400):  # fmt: skip
                try:
                    recipe.with_values({parameter: value})
                except PpapError as error:
                    _check_remedy(error)
                    continue
                guidance = ppap.guidance(
                    PullGuide(world), "0.5", recipe=f"{name}:{parameter}={value}",
                    experts="none" if not recipe.needs_experts else None,
                )  # fmt: skip
                try:
                    made += len(ppap.sample(world, guidance, num=1, steps=2))
                except (SamplingError, PpapError) as error:
                    print(f"{parameter}={value}: {error}")
        assert made or recipe.needs_experts or recipe.guideless

    return check


# Kind 4


def _idle() -> Iterator[Case]:
    for words in (
        "--interval 100:200", "--interval 30:", "--interval :-30", "--recipe pigdm",
        "--recipe ppap --experts none", "--stage upsampler", "--calibration no.json",
        "--recipe best-of-n:every=2", "--recipe dno:every=2", "--recipe x0:every=2,every=3",
    ):  # fmt: skip
        yield Case(words, 4, _nothing, (*_GUIDED, *words.split()))
    for begun, words in (
        (_RUN, "--recipe mpgd"), (_RUN, "--balance sum"), (_RUN, "--unguided"),
        (_GUIDED, "--balance sum"), (_GUIDED, "--scale 0"), (_GUIDED, "--scale 1e-60"),
        (_GUIDED, "--recipe best-of-n:particles=2 --scale 3"),
        (_GUIDED, "--recipe svdd:branches=2 --scale 3"),
        (_GUIDED, "--recipe best-of-n:particles=2 --interval -3:3"),
    ):  # fmt: skip
        command = (*begun, *words.split())
        says = "nothing|any other|unguided"
        yield Case(f"{words}, {len(begun)}", 4, _nothing, command, says, codes=(0,))
    tune = ("tune", "classifier", "--device", "cpu", "--harvest", "h", "--out", "t")
    evaluate, estimate = ("shapes", "evaluate"), (*tune[:4], "--estimate")
    for command, words in (
        (tune, "--num 3"), (tune, "--harvest-steps 9"), (tune, "--harvest-cfg"),
        (tune, "--method full --rank 2"), (tune, "--vae x"), (tune, "--backbone-option a=b"),
        (estimate, "--harvest h"), (estimate, "--out t"),
        (evaluate, "prompts --scale 2"), (evaluate, "prompts --out x.png"),
        (evaluate, "unguided --cfg 2"), (evaluate, "spoiled --steps 3"),
        (evaluate, "depth --cfg 2"), (evaluate, "pairs --experts none"),
    ):  # fmt: skip
        yield Case(f"{command[0]} {words}", 4, stock.harvest, (*command, *words.split()))
    for words in (
        "--churn-range 1:2", "--churn-noise 1.1", "--churn 5 --sampler ddim",
        "--churn 5 --sampler heun --churn-range 1e8:1e9", "--eta 0.5 --sampler heun", "--cfg 3",
        "--class 3", "--upsampler-steps 5", "--mask x.png", "--image x.png", "--vae x",
        "--scale 2", "--target x", "--experts none",
    ):  # fmt: skip
        yield Case(words, 4, _nothing, (*_RUN, *words.split()))
    for sampler in ("ddim", "ddpm", "dpm++", "heun"):
        yield Case(f"one step of {sampler} starts from noise", 4, _nothing, _from_noise(sampler),
                   codes=(0,))  # fmt: skip


def _from_noise(sampler: str) -> Make:
    def check(folder: Path) -> None:
        import ppap_host as ppap
        from ppap_host.testing.worlds import GaussianWorld

        first = next(ppap.trajectory(GaussianWorld(), num=1, steps=1, sampler=sampler))
        assert first.level.log_snr < 0, first.level

    return check


# Kind 7

_MAGIC = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PDF": b"%PDF-1.7\n",
    "EPS with a preview": b"\xc5\xd0\xd3\xc6" + bytes(60), "Photoshop": b"8BPS\x00\x01" + bytes(60),
    "a pickle": b"\x80\x04cposix\nsystem\n(S'touch EXECUTED'\ntR.", "HDF5": b"\x89HDF\r\n\x1a\n",
    "a web page": b"<!doctype html>", "an SVG": b"<svg onload='x'/>", "nothing": b"",
    "a FITS": b"SIMPLE  =                    T" + bytes(60), "a GRIB": b"GRIB" + bytes(60),
    "a WMF": b"\xd7\xcd\xc6\x9a" + bytes(60), "a film": b"\0\0\0\x18ftypmp42" + bytes(60),
    "Python": b"open('EXECUTED', 'w')\n",
}  # fmt: skip


def _others() -> dict[str, bytes]:
    """What Pillow writes and is not promised, under its own magic."""
    found = dict(_MAGIC)
    for name in ("TGA", "ICO", "PCX", "SGI", "IM", "MSP", "DDS", "JPEG2000", "ICNS", "EPS", "PDF",
                 "XBM", "SPIDER", "BLP", "QOI"):  # fmt: skip
        buffer = io.BytesIO()
        mode = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}.get(name, "RGB")
        try:
            Image.new("RGB", (64, 64), "red").convert(mode).save(buffer, name)
        except (KeyError, OSError, ValueError):
            continue  # this Pillow does not write it
        found[name] = buffer.getvalue()
    return found


def _no_pictures() -> Iterator[Case]:
    for name, data in _others().items():

        def make(folder: Path, data: bytes = data) -> None:
            for file in ("x.png", "x.jpg", "x.npy", "x.txt"):
                (folder / file).write_bytes(data)

        yield Case(f"{name} as a target", 7, make, (*_RUN, "--guide", "depth", "--target", "x.png"))
        yield Case(f"{name} as a record", 7, make, ("rerun", "x.png"))
        yield Case(f"{name} in every other place", 7, make, _everywhere, codes=(0,), inputs=6)


def _everywhere(folder: Path) -> None:
    """As a map, a mask, a picture to fill in, a palette and an array."""
    from ppap_plugin_segmentation.guide import SegmentationGuide

    from ppap_host.files.errors import TargetError
    from ppap_host.guides.targets import Given, read_known

    Image.new("L", (64, 64)).save("map.png")
    guide = SegmentationGuide()
    for text in (
        "labels:x.png",
        "cone=x.jpg",
        "photo:x.jpg",
        "x.npy",
        "labels,palette=x.txt:map.png",
    ):
        try:
            guide.read_target(text, (64, 64))
        except TargetError as error:
            _check_remedy(error)
        else:
            raise AssertionError(f"{text} was read")
    try:
        read_known(Given.of("x.png"), Given.of("x.jpg"), (64, 64))
    except TargetError:
        return
    raise AssertionError("it was filled in")


# Kind 9

_EVIL = ("\x1b[31mred", "a\nb", "[/red]", "[bold]x[/bold]", "\x9b31m", "\u202eabc", "\x07", "x\r")
_CLEAN = r"\A[^\x1b\x9b\x07\r\u202e]*\Z"


def _words() -> Iterator[Case]:
    for text in _EVIL:
        shown = ascii(text)
        for option in ("--checkpoint", "--recipe", "--sampler", "--prompt", "--interval"):
            yield Case(f"{option} {shown}", 9, _nothing, (*_GUIDED, option, text), says=_CLEAN)
        yield Case(f"--target {shown}", 9, _nothing,
                   (*_RUN, "--guide", "depth", "--target", f"{text}.png"), says=_CLEAN)  # fmt: skip
        yield Case(f"a guide {shown}", 9, _nothing, (*_RUN, "--guide", text, "--target", "x"),
                   says=_CLEAN)  # fmt: skip

        def key(folder: Path, text: str = text) -> None:
            (folder / "x.toml").write_text(f"{json.dumps(text)} = 1\n")

        yield Case(f"a key {shown}", 9, key, ("run", "--config", "x.toml"), says=_CLEAN)

        def file(folder: Path, text: str = text) -> None:
            (folder / f"{text.replace('/', '')}.png").write_bytes(stock.png()[:70])

        name = f"{text.replace('/', '')}.png"
        yield Case(f"a file {shown}", 9, file,
                   (*_RUN, "--guide", "depth", "--target", name), says=_CLEAN)  # fmt: skip


# Kind 13


_PLACE = ("--device", "cpu", "--out", "out")
_TUNE = ("tune", "classifier", "--harvest", "h", "--steps", "200", "--batch", "1", "--experts", "2",
         "--device", "cpu", "--out", "out")  # fmt: skip
_SEARCH = ("search", "--guide", "classifier", "--target", "red cube", "--work", "out", "--budget",
           "50", "--num", "2", "--steps", "2", "--device", "cpu")  # fmt: skip


def _stopped() -> Iterator[Case]:
    jobs: dict[str, tuple[str, ...]] = {
        "run": ("run", "--num", "40", "--batch", "1", "--steps", "20", *_PLACE),
        "harvest": ("harvest", "--num", "40", "--shard", "1", "--batch", "1", *_PLACE),
        "tune": _TUNE, "search": _SEARCH,
        "scenes": ("shapes", "render", "--num", "20000", "--out", "out"),
    }  # fmt: skip
    for job, command in jobs.items():
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):
            yield Case(f"{job}, {name}", 13, stock.harvest, _ended_by(command, name), codes=(0,),
                       writes=("*",), seconds=180)  # fmt: skip
    guided = ("run", "--guide", "classifier", "--target", "red cube", "--no-unguided")
    starved: dict[str, tuple[str, ...]] = {
        "a batch of 512": ("run", "--num", "512", "--batch", "512", "--steps", "2"),
        "a batch of 4096": ("run", "--num", "4096", "--batch", "4096", "--steps", "2"),
        "a guided batch": (*guided, "--num", "1024", "--batch", "1024", "--steps", "2"),
        "a harvest": ("harvest", "--num", "4096", "--shard", "4096", "--batch", "4096"),
        "going back": (*guided, "--recipe", "dps", "--experts", "none", "--num", "512", "--batch",
                       "512", "--steps", "2"),
        "particles": (*guided, "--recipe", "fk:particles=100", "--num", "64", "--batch", "6400",
                      "--steps", "2"),
    }  # fmt: skip
    for what, words in starved.items():
        yield Case(f"no memory for {what}", 13, _nothing, (*words, *_PLACE), says="(?i)memory",
                   memory=300 << 20, seconds=120)  # fmt: skip
    run = (*_RUN, "--num", "2", "--guide", "depth", "--target", "x.png")
    limits: dict[str, tuple[str, int, tuple[str, ...]]] = {
        "a run, files of 2 kB": ("FSIZE", 2000, run),
        "a run, files of nothing": ("FSIZE", 0, run),
        "a harvest, files of 2 kB": ("FSIZE", 2000, ("harvest", "--num", "2", "--steps", "1",
                                                     "--device", "cpu", "--out", "out")),
        "a tuning, files of 2 kB": ("FSIZE", 2000, (*_TUNE, "--steps", "1")),
        "scenes, files of 100 bytes": ("FSIZE", 100, ("shapes", "render", "--num", "2", "--out",
                                                      "out")),
        "a plot, files of 100 bytes": ("FSIZE", 100, ("plot", ".", "--out", "p.png")),
        "a run, 3 files more": ("NOFILE", 3, run),
        "a harvest, 3 files more": ("NOFILE", 3, ("harvest", "--num", "2", "--out", "out")),
        "a record, 3 files more": ("NOFILE", 3, ("rerun", "run.json")),
        "a list, 1 file more": ("NOFILE", 1, ("list",)),
    }  # fmt: skip
    for what, (limit, value, words) in limits.items():
        yield Case(f"no room: {what}", 13, _material, _within(limit, value, words),
                   codes=(0,), writes=("h/*.safetensors",))  # fmt: skip

    def again(folder: Path) -> None:
        from robustness.kinds.faults import _ppap

        bad = ("run", "--guide", "depth", "--target", "no.png", "--out", "out")
        try:
            _ppap(bad)
        except Exception as error:
            print(error)
        _ppap(("run", "--num", "1", "--steps", "1", "--device", "cpu", "--out", "out"))
        assert (folder / "out" / "00000.png").exists()

    yield Case("the folder of a failed run is used again", 13, _nothing, again, codes=(0,))


def _material(folder: Path) -> None:
    (folder / "x.png").write_bytes(stock.png())
    for write in (stock.harvest, stock.tuning, stock.record):
        write(folder)


def _within(limit: str, value: int, command: tuple[str, ...]) -> Make:
    """A command with less of what the system gives; it says so in a line."""

    def check(folder: Path) -> None:
        import resource

        number, most = getattr(resource, f"RLIMIT_{limit}"), value
        if limit == "NOFILE":  # so many more than there are
            most += (lowest := os.open(".", os.O_RDONLY))
            os.close(lowest)
        usual = resource.getrlimit(number)
        resource.setrlimit(number, (most, usual[1]))
        code = ppap(command)
        resource.setrlimit(number, usual)
        assert code in (0, 1, 2), code

    return check


def _ended_by(command: tuple[str, ...], name: str) -> Make:
    """Ends as Ctrl-C does, in a line, and leaves what is whole."""

    def check(folder: Path) -> None:
        from ppap_host.cli import main

        pid = os.fork()
        if pid == 0:
            # Whoever started all this may ignore it, as nohup and a shell in the background do.
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(getattr(signal, name), usual)
            sys.argv = ["ppap", *command]
            code = 0
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            finally:
                os._exit(code)
        for _ in range(1500):
            time.sleep(0.1)
            if (folder / "out").is_dir() and any((folder / "out").iterdir()):
                time.sleep(2)
                break
        os.kill(pid, getattr(signal, name))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 130, code
        for path in (folder / "out").rglob("*.png"):
            Image.open(path).load()

    return check
