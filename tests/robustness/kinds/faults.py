"""Power cuts at any point, two jobs at once, seeds, and what must not grow."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from powercut import cuts

from robustness import stock
from robustness.cases import Case

_QUICK = ("--device", "cpu", "--steps", "1", "--seed", "5")
_JOBS: dict[str, tuple[str, ...]] = {
    "run": ("run", "--num", "2", "--batch", "1", "--out", "out", *_QUICK),
    "harvest": ("harvest", "--num", "3", "--shard", "1", "--batch", "1", "--out", "out", *_QUICK),
    "scenes": ("shapes", "render", "--num", "2", "--size", "16", "--out", "out"),
    "guided run": ("run", "--guide", "segmentation", "--target", "x.png", "--num", "1", "--out",
                   "out", "--unguided", *_QUICK),
    "tune": ("tune", "classifier", "--harvest", "h", "--steps", "2", "--batch", "1", "--experts",
             "1", "--out", "out", "--device", "cpu", "--seed", "5"),
    "merge": ("experts", "merge", "a.safetensors", "b.safetensors", "--out", "out/c.safetensors"),
    "plugin": ("plugin", "new", "haze", "--out", "out"),
    "plot": ("plot", ".", "--out", "out/p.png"),
}  # fmt: skip
_NOT_SAME = ("run.json", "tuning.json", ".lock")  # have the seconds that it took


def _material(folder: Path) -> None:
    """What the jobs read."""
    (folder / "x.png").write_bytes(stock.png())
    torch.manual_seed(0)
    stock.harvest(folder)
    stock.tuning(folder)
    for name, low, high in (("a", "-inf", "0.0"), ("b", "0.0", "inf")):
        one = {**stock.SET, "ranges": [[low, high]], "scalings": [1.0], "quality": []}
        stock.expert_set(folder, one, {"expert.0.head.bias": torch.zeros(8)})
        (folder / "set.safetensors").rename(folder / f"{name}.safetensors")


def cases() -> Iterator[Case]:
    """Kinds 2, 11, 12 and 15."""
    yield from _power()
    yield from _together()
    pairs = len(_keys()) * (len(_keys()) - 1) // 2
    yield Case("no two images share noise", 2, _nothing, _all_differ, codes=(0,), inputs=pairs)
    for seed in (2**32, 5 * 2**32, 2**64, 10**30):
        yield Case(f"seed {seed} is not a smaller one", 2, _nothing, _like(seed), codes=(0,))
    yield Case("a pipeline's large seeds", 2, _nothing, _of_a_pipeline, codes=(0,), inputs=4)
    yield Case("a sheet of 100,000 pictures", 15, _nothing, _large_sheet, codes=(0,))
    yield Case("a harvest of 2,000 images", 15, _nothing, _large_harvest, codes=(0,), seconds=120)


def _nothing(folder: Path) -> None:
    """Needs no file."""


# Power cuts


@cache
def _left(job: str) -> tuple[dict[str, bytes], list[tuple[str, Path]]]:
    """The undisturbed result, and what is left by a power cut at every point of the job."""
    scratch = Path(tempfile.mkdtemp(prefix="robust-cuts-"))
    (scratch / "disk").mkdir()
    here = Path.cwd()
    os.chdir(scratch / "disk")
    _material(Path())
    try:
        left = list(cuts(scratch / "disk", lambda: _ppap(_JOBS[job]), scratch / "cuts"))
    finally:
        os.chdir(here)
    return _files(scratch / "disk" / "out"), left


def _ppap(arguments: Sequence[str]) -> None:
    """``ppap`` in this process, in silence."""
    from ppap_host.cli import app

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        app(args=list(arguments), prog_name="ppap", standalone_mode=False)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _NOT_SAME and not path.name.endswith(".unfinished")
    }


def _power() -> Iterator[Case]:
    for job in _JOBS:
        whole, left = _left(job)
        for where, path in left:

            def make(folder: Path, path: Path = path) -> None:
                shutil.copytree(path, folder, dirs_exist_ok=True)

            command = _goes_on if job in ("harvest", "tune") else _is_sound
            yield Case(
                f"{job}, {where}", 11, make, command(job, whole), codes=(0,), writes=("*",)
            )  # fmt: skip


def _goes_on(job: str, whole: dict[str, bytes]) -> Callable[[Path], None]:
    """The same command ends with the bytes of one that was never disturbed."""

    def check(folder: Path) -> None:
        _ppap(_JOBS[job])
        found = _files(folder / "out")
        assert found == whole, sorted(set(found.items()) ^ set(whole.items()))[:1]

    return check


def _is_sound(job: str, whole: dict[str, bytes]) -> Callable[[Path], None]:
    """Every file under its own name is whole, and what a record names is there."""

    def check(folder: Path) -> None:
        if not (folder / "out").exists():
            return
        found = _files(folder / "out")
        wrong = [name for name, data in found.items() if name in whole and data != whole[name]]
        assert not wrong, wrong
        record = folder / "out" / "run.json"
        if record.exists():
            named = {entry["file"] for entry in json.loads(record.read_text())["images"]}
            assert named <= found.keys(), named - found.keys()

    return check


# Two at once


def _together() -> Iterator[Case]:
    run = ("run", "--num", "1", *_QUICK)
    harvest = ("harvest", "--num", "2", "--shard", "1", "--batch", "1", "--out", "h", *_QUICK[:-1])
    tune = (
        "tune", "classifier", "--harvest", "h", "--out", "t", "--steps", "2", "--batch", "1",
        "--experts", "1", "--device", "cpu", "--seed",
    )  # fmt: skip
    in_x = (*run, "--out", "x")
    table: tuple[tuple[str, Any, list[tuple[str, ...]], list[int], str, int], ...] = (
        ("three runs without --out", _nothing, [run] * 3, [0] * 3, "ppap-out/*/00000.png", 3),
        ("two runs in one folder", _nothing, [in_x] * 2, [0, 2], "x/00000.png", 1),
        ("two harvests in one folder", _nothing, [(*harvest, "1"), (*harvest, "2")], [0, 2],
         "h/images-*", 2),
        ("two tunings in one folder", stock.harvest, [(*tune, "1"), (*tune, "2")], [0, 2],
         "t/experts.safetensors", 1),
    )  # fmt: skip
    for name, make, commands, codes, pattern, count in table:
        check = _at_once(commands, codes, pattern, count)
        yield Case(name, 12, make, check, codes=(0,), seconds=180)


def _at_once(
    commands: Sequence[Sequence[str]], codes: list[int], pattern: str, count: int
) -> Callable[[Path], None]:
    """These commands begin together and end with these codes, in any order."""

    def check(folder: Path) -> None:
        from ppap_host.cli import main

        children = []
        for arguments in commands:
            pid = os.fork()
            if pid == 0:
                sys.argv = ["ppap", *arguments]
                code: Any = 70
                try:
                    main()
                    code = 0
                except SystemExit as stop:
                    code = stop.code or 0
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            children.append(pid)
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sorted(ended) == codes, ended
        assert len(list(folder.glob(pattern))) == count

    return check


# Seeds


def _keys() -> list[tuple[int, int, int]]:
    edges = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**64 - 1, 2**64, 2**65, 10**30]
    return list(itertools.product(edges, (0, 1, 2, 3, 99), (0, 1, 2)))


def _all_differ(folder: Path) -> None:
    from ppap_host.sampling.streams import ImageNoise

    seen: dict[bytes, Any] = {}
    for seed, index, stage in _keys():
        noise = ImageNoise(seed, [index], (1, 4, 4), stage)().numpy().tobytes()
        assert noise not in seen, (seen[noise], (seed, index, stage))
        seen[noise] = (seed, index, stage)


def _like(seed: int) -> Callable[[Path], None]:
    """A run of this seed has none of the pictures of a small one's."""

    def check(folder: Path) -> None:
        for name, value, num in (("a", seed, 1), ("b", 0, 6)):
            _ppap(("run", "--num", str(num), "--steps", "1", "--device", "cpu", "--seed",
                   str(value), "--out", name))  # fmt: skip
        mine, others = (json.loads((folder / n / "run.json").read_text()) for n in ("a", "b"))
        hashes = [entry["pixels_sha256"] for entry in others["images"]]
        assert mine["images"][0]["pixels_sha256"] not in hashes

    return check


def _of_a_pipeline(folder: Path) -> None:
    """Seeds that torch's generator takes for one another, or does not take."""
    from pipelines import tiny

    import ppap_host as ppap

    pipe, seeds = tiny("sd"), (7, 7 + 2**32, 2**64, 10**30)
    made = [ppap.sample(pipe, prompt="a", seed=seed, num=1, steps=1) for seed in seeds]
    assert len({done.record["images"][0]["pixels_sha256"] for done in made}) == len(seeds)


# Growth


def _large_sheet(folder: Path) -> None:
    from PIL import Image

    from ppap_host.files.images import contact_sheet

    picture = Image.new("RGB", (8, 8))
    sheet = contact_sheet([("", [("", picture)] * 100)] * 1000)
    assert max(sheet.size) <= 12_000, sheet.size


def _large_harvest(folder: Path) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import save

    from ppap_host.experts.harvest import Harvest
    from ppap_host.runs.harvesting import _write_sheet

    config = {**stock.HARVEST["config"], "num": 2000, "shard": 500, "batch": 2}
    stock.harvest(folder, {**stock.HARVEST, "config": config})
    for i in range(4):
        data = save({"rgb": torch.zeros(500, 3, 64, 64, dtype=torch.uint8)})
        (folder / "h" / f"images-{i:05d}.safetensors").write_bytes(data)
    _write_sheet(Harvest.open(folder / "h"))
    assert max(Image.open(folder / "h" / "sheet.png").size) < 3000
