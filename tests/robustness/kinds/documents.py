"""Names in documents that lead elsewhere, and small files that eat memory or time."""

from __future__ import annotations

import copy
import json
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from robustness import stock
from robustness.cases import Case

Make = Callable[[Path], Any]
SECRET = "secret.png"


def cases() -> Iterator[Case]:
    """Kinds 8, 10 and 17."""
    yield from _names()
    yield from _odd_files()
    yield from _bombs()
    yield from _in_the_way()


def _names() -> Iterator[Case]:
    for name in (
        "../secret.png", "/etc/hostname", "targets/../../secret.png", "link/secret.png",
        "targets/out.png", "", ".", "\0", "~/x.png", "a" * 5000,
    ):  # fmt: skip

        def make(folder: Path, name: str = name) -> None:
            (folder / SECRET).write_bytes(stock.png())
            (folder / "run" / "targets").mkdir(parents=True)
            (folder / "run" / "link").symlink_to(folder)
            (folder / "run" / "targets" / "out.png").symlink_to(folder / SECRET)
            target = {"guide": 0, "given": "gone.png", "copy": name, "sha256": stock.HEX}
            stock.record(folder / "run", {**stock.RUN, "targets": [target]})

        says = "gone" if name in ("~/x.png", "a" * 5000) else "no file inside"
        yield Case(f"copy of a target {name[:30]!r}", 8, make, ("rerun", "run"), says)

    def given(folder: Path) -> None:
        (folder / SECRET).write_bytes(stock.png())
        target = {"guide": 0, "given": str(folder / SECRET), "copy": "no.png", "sha256": stock.HEX}
        stock.record(folder, {**stock.RUN, "targets": [target]})

    yield Case("a target elsewhere of another hash", 8, given, ("rerun", "run.json"), "another one")
    for key, value in (
        ("checkpoint", "someone/model"), ("checkpoint", "someone/model@main"),
    ):  # fmt: skip

        def hub(folder: Path, key: str = key, value: str = value) -> None:
            stock.record(folder, {**stock.RUN, "config": {**stock.RUN["config"], key: value}})

        yield Case(f"{key} {value} in a record", 8, hub, ("rerun", "run.json"), "hub")
    for model in ("timm:resnet18.a1_in1k", "timm:hf-hub:someone/model", "someone/model",
                  "torchvision:resnet18"):  # fmt: skip

        def model_of(folder: Path, model: str = model) -> None:
            values = copy.deepcopy(stock.RUN)
            values["config"]["guides"][0]["model"] = model
            stock.record(folder, values)

        yield Case(
            f"model {model} in a record",
            8,
            model_of,
            ("rerun", "run.json"),
            "not on this machine|no file here|--model",
        )
    for model in ("someone/model", "timm:resnet18.a1_in1k", "torchvision:resnet18"):

        def set_of(folder: Path, model: str = model) -> None:
            stock.expert_set(folder, {**stock.SET, "model": model})

        command = ("experts", "verify", "set.safetensors")
        said = "not on this machine|--model"
        yield Case(f"model {model} in an expert set", 8, set_of, command, said)

    def harvested(folder: Path) -> None:
        config = {**stock.HARVEST["config"], "checkpoint": "someone/model"}
        stock.harvest(folder, {**stock.HARVEST, "config": config})

    for command in (
        ("tune", "classifier", "--out", "t"),
        ("calibrate", "classifier", "--out", "c"),
    ):
        yield Case(f"{command[0]} with a harvest of someone/model", 8, harvested,
                   (*command, "--harvest", "h"), "hub|not on this machine")  # fmt: skip
    for code in ("./x.py:f", "x.py:f", "/tmp/x.py:f"):

        def named(folder: Path, code: str = code) -> None:
            (folder / "x.py").write_text(
                "open('EXECUTED', 'w')\ndef f(x): return x.mean((1, 2, 3))"
            )
            values = copy.deepcopy(stock.RUN)
            values["config"]["guides"][0] = {"name": "f", "what": code}
            stock.record(folder, values)

        yield Case(f"code {code} in a record", 8, named, ("rerun", "run.json"), "code")


def _without_its_last_shard(folder: Path) -> None:
    stock.harvest(folder)
    (folder / "h" / "images-00001.safetensors").unlink()


def _odd(folder: Path, name: str, kind: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        here = os.getcwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    return path


def _odd_files() -> Iterator[Case]:
    """Pipes, devices, folders, loops and sockets wherever a file is read."""
    run = ("run", "--num", "1", "--steps", "1", "--device", "cpu", "--out", "out")
    guided = (*run, "--guide", "classifier", "--target", "red cube", "--recipe", "x0")
    places: dict[str, tuple[str, tuple[str, ...], Make | None]] = {
        "record": ("x.json", ("rerun", "x.json"), None),
        "record in a picture": ("x.png", ("rerun", "x.png"), None),
        "configuration": ("x.toml", ("run", "--config", "x.toml"), None),
        "prompts": ("x.txt", ("harvest", "--out", "h2", "--prompts", "x.txt"), None),
        "expert set": ("x.safetensors", ("experts", "show", "x.safetensors"), None),
        "expert set of a run": (
            "x.safetensors", (*guided[:-2], "--experts", "x.safetensors"), None,
        ),
        "calibration": ("x.json", (*guided, "--experts", "none", "--calibration", "x.json"), None),
        "tuning": ("t/tuning.json", ("plot", "t"), None),
        "harvest": ("h/harvest.json", ("tune", "classifier", "--harvest", "h", "--out", "t"), None),
        "shard": (
            "h/images-00001.safetensors", ("tune", "classifier", "--harvest", "h", "--out", "t"),
            _without_its_last_shard,
        ),
        "search": (
            "w/search.json",
            ("search", "--guide", "classifier", "--work", "w", "--budget", "1", "--num", "2",
             "--target", "red cube", "--steps", "1"),
            None,
        ),
        "a plot": ("x.png", ("plot", "tuning.json", "--out", "x.png"), stock.tuning),
        "a joined set": (
            "x.safetensors", ("experts", "merge", "set.safetensors", "--out", "x.safetensors"),
            stock.expert_set,
        ),
        "a sheet": ("x.png", ("shapes", "evaluate", "unguided", "--num", "2", "--steps", "1",
                              "--out", "x.png"), None),
    }  # fmt: skip
    for what, (name, command, before) in places.items():
        for kind in ("pipe", "device", "folder", "loop", "socket"):
            if what == "record" and kind == "folder":
                continue  # the folder of a run

            def make(
                folder: Path, name: str = name, kind: str = kind, before: Make | None = before
            ) -> None:
                if before is not None:
                    before(folder)
                _odd(folder, name, kind)

            writes = ("w/.lock", "h/.lock", "t/.lock")
            yield Case(f"{what} is a {kind}", 10, make, command, writes=writes, seconds=90)


def _bombs() -> Iterator[Case]:
    """Documents of a few hundred kilobytes at most."""
    toml = {
        "dotted key": ".".join("a" * 50_000) + " = 1",
        "dotted table": "[" + ".".join("a" * 50_000) + "]",
        "long key": "a" * 100_000 + " = 1",
        "long quoted key": '"' + "a" * 100_000 + '" = 1',
        "quotes": '"\\"' * 80_000,
        "deep lists": "a = " + "[" * 100_000,
        "deep tables": "a = " + "{a=" * 50_000,
        "long number": "num = " + "9" * 100_000,
        "long hexadecimal": "num = 0x" + "f" * 100_000,
        "many guides": '[[guide]]\nname = "classifier"\ntarget = "red cube"\n' * 500,
        "many options": "".join(f"option{k} = {k}\n" for k in range(10_000)),
        "large": "# comment\n" * 10_000_000,
        "num": "num = 1000000000000",
        "steps": "steps = 1000000000000",
        "batch": "batch = 1000000000000",
        "long text as steps": f'steps = "{"1," * 50_000}1"',
        "not a number": "cfg = nan",
        "date": "cfg = 1979-05-27",
    }  # fmt: skip
    for what, text in toml.items():
        yield Case(
            f"TOML: {what}", 10, _text("x.toml", text), ("run", "--config", "x.toml"), seconds=20
        )
    record = json.dumps(stock.RUN)
    texts = {
        "deep": "[" * 1_000_000,
        "deep tables": '{"a":' * 200_000,
        "long number": record.replace('"index": 0', '"index": ' + "9" * 1_000_000),
        "many images": record.replace('"images": [', '"images": [' + "{}," * 3_000_000),
        "many lists": "[" + "[]," * 3_000_000 + "[]]",
        "long text": json.dumps({**stock.RUN, "format": "x" * 10_000_000}),
        "num": json.dumps({**stock.RUN, "config": {"num": 10**12}}),
        "steps": json.dumps({**stock.RUN, "config": {"steps": 10**12}}),
        "huge number": json.dumps({**stock.RUN, "config": {"seed": 10**4000}}),
    }  # fmt: skip
    for what, text in texts.items():
        yield Case(
            f"record: {what}", 10, _text("run.json", text), ("rerun", "run.json"), seconds=30
        )
    for what, change in {
        "num": {"num": 10**12}, "num with small shards": {"num": 10**8, "shard": 1, "batch": 1},
        "shard": {"shard": 10**12}, "steps": {"steps": 10**12},
        "prompts": {"prompts": ["x"] * 10**6},
        "nan": {"cfg": float("nan")}, "missing shards": {"num": 10**7, "shard": 100},
    }.items():  # fmt: skip

        def described(folder: Path, change: Any = change) -> None:
            stock.harvest(
                folder, {**stock.HARVEST, "config": {**stock.HARVEST["config"], **change}}
            )

        command = ("tune", "classifier", "--harvest", "h", "--out", "t", "--steps", "1")
        yield Case(f"harvest: {what}", 10, described, command, codes=(0, 2) if what == "prompts"
                   else (2,), seconds=60)  # fmt: skip
    headers: dict[str, Any] = {
        "deep": '{"format":1,"tuning":' + "[" * 100_000,
        "many ranges": json.dumps({**stock.SET, "ranges": [["0", "1"]] * 100_000,
                                   "scalings": [1.0] * 100_000, "quality": []}),
        "long number": json.dumps(stock.SET).replace('"rank": 4', '"rank": ' + "9" * 100_000),
        "wide range": {**stock.SET, "ranges": [["9" * 5000, "inf"], ["0", "1"]]},
        "empty": "",
        "no JSON": "EXECUTED",
    }  # fmt: skip
    for what, header in headers.items():

        def headed(folder: Path, header: Any = header) -> None:
            stock.expert_set(folder, header)

        yield Case(f"expert set: {what}", 10, headed, ("experts", "show", "set.safetensors"),
                   seconds=30)  # fmt: skip

    def many(folder: Path) -> None:
        tensors = {f"expert.{'9' * 4000}.{k}": torch.zeros(1) for k in range(100)}
        stock.expert_set(folder, stock.SET, tensors)

    yield Case("expert set: a number of 4,000 digits in a name", 10, many,
               ("experts", "show", "set.safetensors"))  # fmt: skip
    for what, data in {
        "promises more than it has": (2**40).to_bytes(8, "little") + b"{}",
        "header that is none": (2).to_bytes(8, "little") + b"[]",
        "of a hundred thousand tensors": save(
            {str(k): torch.zeros(0) for k in range(100_000)}, {"ppap": "{}"}
        ),
        "a pickle": b"\x80\x04\x95cposix\nsystem\n(S'touch EXECUTED'\ntR.",
    }.items():  # fmt: skip
        yield Case(
            f"safetensors that {what}", 10, _bytes("set.safetensors", data),
            ("experts", "show", "set.safetensors"), seconds=30,
        )  # fmt: skip
        yield Case(f"state of a tuning that {what}", 10, _bytes("s", data), _restore, seconds=30)


def _in_the_way() -> Iterator[Case]:
    """Files of the user's where results are to be written, and paths that are none."""

    def mine(folder: Path) -> None:
        stock.tuning(folder)
        stock.expert_set(folder)
        stock.record(folder)
        (folder / "x.txt").write_text("mine")
        (folder / "h").mkdir()
        for name in ("images-00000.safetensors", "latents-00007.safetensors"):
            (folder / "h" / name).write_text("mine")

    harvest = ("harvest", "--num", "1")
    for command, says in (
        (("plot", "tuning.json", "--out", "tuning.json"), "no PNG"),
        (("plot", "tuning.json", "--out", "x.txt"), "no PNG"),
        (("plot", "tuning.json", "--out", "h"), "a folder"),
        (("experts", "merge", "set.safetensors", "--out", "set.safetensors"), "there already"),
        (("experts", "merge", "set.safetensors", "--out", "x.txt"), "there already"),
        (("shapes", "evaluate", "unguided", "--num", "1", "--out", "x.txt"), "no PNG"),
        ((*harvest, "--steps", "1", "--device", "cpu", "--out", "h"), "another's file"),
        ((*harvest, "--out", ""), "--out is empty"),
        ((*harvest, "--out", "h", "--checkpoint="), "--checkpoint is empty"),
        ((*harvest, "--out", "h", "--prompts", ""), "--prompts is empty"),
        (("run", "--out", ""), "--out is empty"), (("rerun", ""), "is empty"),
        (("rerun", "run.json", "--out="), "--out is empty"), (("plot", ""), "is empty"),
        (("tune", "depth", "--model", ""), "--model is empty"),
        (("tune", "depth", "--harvest", ""), "--harvest is empty"),
        (("calibrate", "depth", "--out", ""), "--out is empty"),
        (("calibrate", "depth", "--out", "c", "--images", ""), "--images is empty"),
        (("search", "--guide", "depth", "--work", ""), "--work is empty"),
        (("experts", "verify", "set.safetensors", "--model", ""), "--model is empty"),
        (("experts", "show", ""), "is empty"), (("shapes", "render", "--out", ""), "is empty"),
        (("plugin", "new", "haze", "--out", ""), "--out is empty"),
        (("bench", "recipes", "--out", ""), "--out is empty"),
        (("bench", "capacity", "--out", "b", "--harvest", ""), "--harvest is empty"),
    ):  # fmt: skip
        yield Case(shlex.join(command), 17, mine, command, says)


def _restore(folder: Path) -> None:
    from ppap_host.experts.tuning import Tuning

    tuning = Tuning.__new__(Tuning)
    tuning.fingerprint, tuning.patches = "", []
    tuning.restore(folder / "s")


def _text(name: str, text: str) -> Make:
    return _bytes(name, text.encode())


def _bytes(name: str, data: bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return make
