"""What a stranger would try next, of kinds 6, 7, 9 and 10: each input through every door."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from robustness import stock
from robustness.cases import Case
from robustness.doors import DOORS, QUICK, Make, command_line, guided, in_python, through_all
from robustness.kinds.models import EVIL, _edit, _timm, write_model
from robustness.kinds.numbers import _check_remedy
from robustness.running import CANARY

CLASSES = {"depth": "x.png", "segmentation": "x.png", "classifier": "LABEL_1", "clip": "a dog"}
_PICKLE = f"cposix\nsystem\n(S'touch {CANARY}'\ntR.".encode()


def cases() -> Iterator[Case]:
    """Kinds 6, 7, 9 and 10."""
    yield from _folders()
    yield from _pipelines()
    yield from _pictures()
    yield from _marks()
    yield from _small()
    yield from _names()


# Kind 6


def _picture(folder: Path) -> None:
    _picture_at(folder / "x.png")


def _model(kind: str, change: Callable[[Path], Any]) -> Make:
    """A model in ``m``, changed, and code wherever somebody might look for it."""

    def make(folder: Path) -> None:
        _picture(folder)
        place = write_model(kind, folder)
        change(place)
        for where in (folder, place):
            for name in ("evil.py", "__init__.py", "sitecustomize.py", f"modeling_{kind}.py"):
                (where / name).write_text(EVIL)

    return make


def _pickled(place: Path) -> None:
    (place / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack"):
        (place / name).write_bytes(b"\x80\x02" + _PICKLE)


def _disguised(place: Path) -> None:
    (place / "model.safetensors").write_bytes(b"\x80\x02" + _PICKLE)


def _config(file: str = "config.json", **change: Any) -> Callable[[Path], Any]:
    def edit(place: Path) -> None:
        if not (place / file).exists():
            (place / file).write_text("{}")
        _edit(place / file, **change)

    return edit


_CODE: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "a pickle alone": (_pickled, False),
    "a pickle called safetensors": (_disguised, False),
    "its own permission": (
        _config(trust_remote_code=True, auto_map={"AutoModel": "evil.M"}, resolve_trust=True), True,
    ),
    "a kernel of a hub": (_config(_attn_implementation="someone/kernel"), True),
    "a kernel by another key": (_config(attn_implementation="someone/kernel:forward"), True),
    "a quantiser": (_config(quantization_config={"quant_method": "evil", "module": "evil"}), True),
    "a number format": (_config(torch_dtype="evil.x", dtype="__import__('evil')"), True),
    "an activation": (_config(hidden_act="evil.Act"), True),
    "another home": (_config(_name_or_path="someone/else", _commit_hash="0" * 40,
                             auto_map={"AutoConfig": "someone/else--evil.C"}), True),
    "a class by path": (_config(architectures=["evil.M"], model_type="../evil"), False),
    "a type with dots": (_config(model_type="evil.evil"), False),
    "a processor of a path": (
        _config("preprocessor_config.json", image_processor_type="../evil.P",
                feature_extractor_type="evil.P"), True,
    ),
    "a processor of processors": (
        _config("processor_config.json", processor_class="EvilProcessor",
                auto_map={"AutoProcessor": "evil.P"}), True,
    ),
    "a tokenizer": (
        _config("tokenizer_config.json", tokenizer_class="EvilTokenizer",
                auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}), True,
    ),
    "an adapter of a library": (
        _config("adapter_config.json", peft_type="LORA", auto_mapping={
            "base_model_class": "M", "parent_library": "evil"}), True,
    ),
    "a place for weights": (
        _config("model.safetensors.index.json", weight_map={"a": "evil.py"}, metadata={}), True,
    ),
    "its own generation": (_config("generation_config.json", custom_generate="evil.py"), True),
}  # fmt: skip


def _folders() -> Iterator[Case]:
    for kind, target in CLASSES.items():
        for name, (change, may_work) in _CODE.items():
            # Where nothing needs the code, the model may be loaded without it.
            codes = (0, 2) if may_work else (2,)
            values = guided(kind, target, model="m")
            # All doors lead to the same loader; once is enough to see that they do.
            doors = DOORS if kind == "depth" else DOORS[-2:]
            yield through_all(
                f"{kind}: {name}", 6, _model(kind, change), values, codes=codes, doors=doors
            )
    for name, change in {
        "an architecture of a module": {"architecture": "evil.resnet"},
        "an architecture of a hub": {"architecture": "hf-hub:someone/else"},
        "an activation of a module": {"model_args": {"act_layer": "evil.Act"}},
        "a norm of a module": {"model_args": {"norm_layer": "evil:Norm"}},
        "a file of code": {"custom_load": "evil.py", "pretrained_cfg": {"custom_load": True}},
    }.items():

        def timm(folder: Path, change: Any = change) -> None:
            _timm(folder, **change)
            (folder / "m" / "evil.py").write_text(EVIL)
            (folder / "evil.py").write_text(EVIL)

        values = guided("classifier", "0", model="m")
        yield through_all(f"timm: {name}", 6, timm, values, codes=(0, 2))


def _pipelines() -> Iterator[Case]:
    parts: dict[str, dict[str, Any]] = {
        "a file beside it": {"_class_name": ["evil", "Pipe"]},
        "a path": {"_class_name": "../evil.Pipeline"},
        "the base class": {"_class_name": "DiffusionPipeline"},
        "no class": {"_class_name": None},
        "a function": {"_class_name": "is_torch_availablePipeline"},
        "a module as library": {"unet": ["os", "system"]},
        "a module of diffusers": {"unet": ["diffusers_modules.local.evil", "UNet"]},
        "a module of transformers": {"text_encoder": ["transformers_modules.evil", "M"]},
        "a name with dots": {"scheduler": ["diffusers", "utils.import_utils"]},
        "a function of diffusers": {"scheduler": ["diffusers", "is_torch_available"]},
        "a part outside": {"../../evil": ["diffusers", "UNet2DModel"]},
        "an absolute part": {"/tmp/evil": ["diffusers", "UNet2DModel"]},
        "a part of numbers": {"unet": [1, 2]},
        "code for a part": {"unet": ["unet", "UNet"]},
    }
    for name, change in parts.items():

        def make(folder: Path, change: Any = change) -> None:
            (folder / "m" / "unet").mkdir(parents=True)
            for place in (folder, folder / "m", folder / "m" / "unet"):
                for file in ("evil.py", "pipeline.py", "unet.py", "__init__.py"):
                    (place / file).write_text(EVIL)
            usual = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"],
                     "unet": ["diffusers", "UNet2DModel"]}  # fmt: skip
            (folder / "m" / "model_index.json").write_text(json.dumps(usual | change))

        values = {**QUICK, "backbone": "diffusers", "checkpoint": "m"}
        yield through_all(f"pipeline: {name}", 6, make, values)
    for option, what in (("lora", "m"), ("controlnet", "m"), ("ip_adapter", "m")):
        values = {**QUICK, "backbone": "diffusers", "checkpoint": "m",
                  "backbone_options": {option: what}}  # fmt: skip

        def empty(folder: Path) -> None:
            (folder / "m").mkdir()
            (folder / "m" / "config.json").write_text('{"_class_name": "__version__"}')
            (folder / "m" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')

        yield through_all(f"pipeline: {option} of something else", 6, empty, values)


# Kind 7


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _png(width: int, height: int, *chunks: bytes, data: bytes = b"") -> bytes:
    """A picture that says it is so large."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + _chunk(b"IEND", b"")


def _npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def _tiff(*tags: tuple[int, int, int, int]) -> bytes:
    body = struct.pack("<H", len(tags))
    for tag in sorted(tags):
        body += struct.pack("<HHII", *tag)
    return b"II*\x00" + struct.pack("<I", 8) + body + struct.pack("<I", 0)


def _saved(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, kind, **options)
    return buffer.getvalue()


_SIZE = ((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (262, 3, 1, 1))
_FALSE: dict[str, Callable[[], bytes]] = {
    "PNG with PostScript for pixels": lambda: _png(64, 64, data=b"%!PS-Adobe-3.0 EPSF-3.0\n" * 99),
    "PNG whose header is PostScript": lambda: stock.png()[:8] + b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9,
    "PNG without pixels": lambda: _png(64, 64),
    "PNG of no width": lambda: _png(0, 64),
    "PNG cut": lambda: stock.png()[:60],
    "zip that begins as PNG": lambda: stock.png()[:8] + _npz(a=b"x"),
    "JPEG that ends in PDF": lambda: b"\xff\xd8\xff\xe0\x00\x10JFIF\x00%PDF-1.7\n",
    "JPEG cut": lambda: _saved("JPEG")[:200],
    "GIF that is a script": lambda: b"GIF89a=1;open('EXECUTED','w')//",
    "BMP of minus sizes": lambda: b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -64, -64, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF without strips": lambda: _tiff(*_SIZE),
    "TIFF packed as JPEG 2000": lambda: _tiff(*_SIZE, (259, 3, 1, 34712), (273, 4, 1, 8),
                                             (278, 4, 1, 64), (279, 4, 1, 99)),
    "TIFF that points to itself": lambda: b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    "WebP that is a sound": lambda: b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(60),
    "AVIF that is a film": lambda: b"\0\0\0\x20ftypavis" + bytes(200),
    "HEIC that is nothing": lambda: b"\0\0\0\x18ftypheic" + bytes(200),
    "JPEG XL": lambda: b"\xff\x0a" + bytes(60),
    "JPEG XR": lambda: b"II\xbc\x01" + bytes(60),
    "PNM of words": lambda: b"P6\nsixty four\n255\n",
    "PNM of comments": lambda: b"P6\n" + b"#x\n" * 300_000,
    "PAM": lambda: b"P7\nWIDTH 64\nHEIGHT 64\nDEPTH 3\nMAXVAL 255\nENDHDR\n" + bytes(64 * 64 * 3),
    "XPM": lambda: b"/* XPM */\nstatic char *x[] = {\"1 1 1 1\", \"a c #f00\", \"a\"};",
    "Sun raster": lambda: struct.pack(">8I", 0x59A66A95, 64, 64, 24, 12288, 1, 0, 0) + bytes(12288),
    "FLI": lambda: struct.pack("<IHHHHH", 128, 0xAF11, 1, 64, 64, 8) + bytes(120),
    "OLE": lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "EXR of attributes without end": lambda: b"v/1\x01\x02\x00\x00\x00" + b"a\x00b\x00" * 9999,
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(60),
    "XML of entities": lambda: b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaa'>]><svg>&a;",
    "npy of objects": lambda: _npy("'|O'", "(1,)", b"\x80\x02" + _PICKLE),
    "npy of code": lambda: _npy("__import__('os').system('touch EXECUTED')", "(1,)"),
    "npy of names": lambda: _npy("[('a', '|O')]", "(1,)", b"\x80\x02" + _PICKLE),
    "npy of 10**12 numbers": lambda: _npy("'<f4'", "(1000000, 1000000)"),
    "npy of minus numbers": lambda: _npy("'<f4'", "(-1, 64)"),
    "npy of version 9": lambda: b"\x93NUMPY\x09\x00" + bytes(60),
    "npz of objects": lambda: _npz(**{"a.npy": _npy("'|O'", "(1,)", b"\x80\x02" + _PICKLE)}),
    "npz of two": lambda: _npz(**{"a.npy": _npy("'<f4'", "(1,)"), "b.npy": b"x"}),
    "npz of a path": lambda: _npz(**{"..__..__EXECUTED": b"x"}),
}  # fmt: skip


def _pictures() -> Iterator[Case]:
    for name, made in _FALSE.items():

        def make(folder: Path, made: Callable[[], bytes] = made) -> None:
            for file in ("x.png", "x.npy", "y.jpg"):
                (folder / file).write_bytes(made())

        yield through_all(f"{name} as a target", 7, make, guided("depth"))
        yield Case(f"{name} in every other place", 7, make, _elsewhere, codes=(0,), inputs=5)


def _elsewhere(folder: Path) -> None:
    """As a map, labels, a class, a picture to fill in, and a mask."""
    from ppap_host.files.errors import PpapError

    _picture_at(folder / "whole.png")
    for values in (
        guided("depth", "x.npy"), guided("segmentation", "labels:x.png"),
        guided("segmentation", "cone=x.npy"), {**QUICK, "image": "y.jpg", "mask": "whole.png"},
        {**QUICK, "image": "whole.png", "mask": "x.npy"},
    ):  # fmt: skip
        try:
            in_python(values)
        except PpapError as error:
            _check_remedy(error)
        else:
            raise AssertionError(f"{values} was read")


def _picture_at(path: Path) -> None:
    path.write_bytes(stock.png())


# Kind 9

_STEERS = (
    "\x1b]8;;http://x\x07", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x1bP+q\x1b\\", "\x9b2J",
    "\x9d0;x\x9c",
    "a\r\x1b[Kb", "\u202egnp", "\u2066x\u2069", "\u2028x", "\x85x", "\x00x", "\x7f", "\x0e",
    "[link=http://x]y[/link]", "[red]", "[/]", "\\[x", "[@click=app.quit]x[/]", ":bomb:", "\ufeffx",
    "\U000e0041x", "\udcff",
)  # fmt: skip
CLEAN = r"\A[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]*\Z"
"""What a terminal may be sent: no controls but tabs and ends of lines."""


_MARK = "".join(_STEERS)
_NAME = _MARK.translate({ord(sign): None for sign in "/\x00\udcff"})
"""The same as far as files and arguments can be called so."""


def _spoilt(values: Any) -> Any:
    """Every text of a document begins with what steers."""
    if isinstance(values, dict):
        return {_MARK + str(key): _spoilt(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_spoilt(value) for value in values]
    return _MARK + values if isinstance(values, str) else values


def _spoil_record(folder: Path) -> None:
    words = {key: _spoilt("x") for key in ("status", "device", "machine")}
    files = {"versions": _spoilt({"torch": "x"}), "model_files": _spoilt({"a.json": "x"})}
    stock.record(folder, {**stock.RUN, **words, **files, "warnings": [_spoilt("x")]})


def _spoil_set(folder: Path) -> None:
    free = ("guide", "model", "licence", "method", "tuning", "harvest", "versions")
    values = {key: _spoilt(v) if key in free else v for key, v in stock.SET.items()}
    values["backbone"] = {"name": _spoilt("x"), "files": _spoilt({"x": stock.HEX})}
    values["quality"] = [{_spoilt("x"): 0.5, **row} for row in stock.SET["quality"]]
    stock.expert_set(folder, {**values, _spoilt("new"): _spoilt("x")})


def _spoil_search(folder: Path) -> None:
    trial = {**stock.SEARCH["trials"][0], "problem": _spoilt("x")}
    words = {"command": _spoilt("ppap run"), "settings": _spoilt({"a": "b"})}
    stock.search(folder, {**stock.SEARCH, **words, "trials": [trial]})


def _spoil_tuning(folder: Path) -> None:
    stock.tuning(folder, {**stock.TUNING, "guide": _spoilt("x"), "experts": _spoilt("x")})


def _spoil_harvest(folder: Path) -> None:
    config = {**stock.HARVEST["config"], "backbone": _spoilt("x"), "prompts": [_spoilt("x")]}
    stock.harvest(folder, {**stock.HARVEST, "config": config})


def _spoil_calibration(folder: Path) -> None:
    words = {key: _spoilt("x") for key in ("guide", "experts", "truth")}
    stock.calibration(folder, {**stock.CALIBRATION, **words})


def _spoil_labels(folder: Path) -> None:
    names = [f"{_MARK}{k}" for k in range(3)]
    table = {str(k): name for k, name in enumerate(names)}
    _edit(write_model("classifier", folder) / "config.json", id2label=table,
          label2id={name: k for k, name in enumerate(names)})  # fmt: skip


def _spoil_folder(folder: Path) -> None:
    write_model("classifier", folder).rename(folder / _NAME)


def _spoil_picture(folder: Path) -> None:
    told = PngInfo()
    told.add_itxt("ppap", json.dumps({**stock.RUN, "format": _MARK}))
    Image.new("RGB", (8, 8)).save(folder / "x.png", pnginfo=told)


def _spoil_target(folder: Path) -> None:
    (folder / f"{_NAME}.png").write_bytes(stock.png())


def _marks() -> Iterator[Case]:
    show = ("experts", "show", "set.safetensors")
    search = ("search", "--guide", "classifier", "--target", "red cube", "--work", "w",
              "--budget", "1", "--num", "2", "--steps", "1")  # fmt: skip
    tune = ("tune", "classifier", "--harvest", "h", "--out", "t", "--steps", "1")
    calibrated = guided("classifier", "red cube", experts="none", calibration="calibration.json")
    table: dict[str, tuple[Make, tuple[str, ...]]] = {
        "a record": (_spoil_record, ("rerun", "run.json")),
        "a record, as JSON": (_spoil_record, ("rerun", "run.json", "--json")),
        "an expert set": (_spoil_set, show),
        "an expert set, as JSON": (_spoil_set, (*show, "--json")),
        "an expert set that is verified": (_spoil_set, ("experts", "verify", show[-1])),
        "an expert set at work": (_spoil_set, command_line(
            guided("classifier", "red cube", experts="set.safetensors"))),
        "a search": (_spoil_search, search),
        "a tuning": (_spoil_tuning, ("plot", ".", "--out", "p.png")),
        "a harvest": (_spoil_harvest, tune),
        "a calibration": (_spoil_calibration, command_line(calibrated)),
        "labels": (_spoil_labels, command_line(guided("classifier", "none", model="m"))),
        "a label that is meant": (_spoil_labels, (
            *command_line(guided("classifier", "0", model="m")), "--verbose")),
        "a model's folder": (_spoil_folder, command_line(
            guided("classifier", "LABEL_0", model=f"./{_NAME}"))),
        "the folder of results": (_picture, (*command_line(QUICK, _NAME), "--verbose")),
        "the folder of results, as JSON": (_picture, (*command_line(QUICK, _NAME), "--json")),
        "a picture": (_spoil_picture, ("rerun", "x.png")),
        "a target that is read": (_spoil_target, (
            *command_line(guided("depth", f"{_NAME}.png")), "--verbose")),
        "the name of a plugin": (_picture, ("plugin", "new", _NAME)),
        "a list": (_picture, ("list", _NAME)),
        "a command": (_picture, (_NAME,)),
        "an option": (_picture, ("run", f"--{_NAME}")),
        "an expert set's name": (_picture, ("experts", "show", _NAME)),
        "weights": (_picture, ("weights", _NAME)),
    }  # fmt: skip
    steers: dict[str, Any] = {
        "says": CLEAN, "prints": CLEAN, "codes": (0, 1, 2), "inputs": len(_STEERS),
        "writes": ("w/.lock",),
    }  # fmt: skip
    for place, (make, command) in table.items():
        yield Case(f"all that steers in {place}", 9, make, command, **steers)
    for option in ("backbone", "device", "dtype", "balance", "sampler", "image", "steps", "recipe",
                   "checkpoint", "interval", "churn_range"):  # fmt: skip
        values = {**QUICK, option: _NAME}
        if option == "interval":
            values = guided("classifier", "red cube", interval=_NAME)
        # Python's errors are Python's to show.
        yield through_all(
            f"all that steers as {option}", 9, _picture, values, doors=DOORS[:3],
            says=CLEAN, prints=CLEAN, inputs=3 * len(_STEERS),
        )  # fmt: skip


# Kind 10


def _small() -> Iterator[Case]:
    pictures: dict[str, Callable[[], bytes]] = {
        "PNG of 60,000 x 60,000": lambda: _png(60_000, 60_000, data=bytes(1000)),
        "PNG of 2**31 x 1": lambda: _png(2**31 - 1, 1, data=bytes(1000)),
        "PNG whose words unpack to a gigabyte": lambda: _png(
            64, 64, _chunk(b"zTXt", b"ppap\x00\x00" + zlib.compress(bytes(10**9), 1)),
            data=bytes(64 * 193)),
        "PNG whose profile unpacks to a gigabyte": lambda: _png(
            64, 64, _chunk(b"iCCP", b"x\x00\x00" + zlib.compress(bytes(10**9), 1)),
            data=bytes(64 * 193)),
        "PNG whose pixels unpack to a gigabyte": lambda: _png(64, 64, data=bytes(10**9)),
        "PNG of a hundred thousand chunks": lambda: _png(
            64, 64, _chunk(b"tEXt", b"a\x00b") * 100_000, data=bytes(64 * 193)),
        "JPEG of 65,500 x 65,500": lambda: _large_jpeg(),
        "GIF of 65,535 x 65,535": lambda: b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6)
        + b"," + bytes(4) + b"\xff\xff\xff\xff\x00\x08\x01\x00\x00;",
        "BMP of 2**31": lambda: b"BM" + struct.pack(
            "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 1, 0, 0, 0, 0, 0),
        "PNM of 10**9": lambda: b"P6\n1000000000 1000000000\n255\n",
        "PNM of a number of a million digits": lambda: b"P6\n" + b"9" * 10**6 + b" 1\n255\n",
        "PFM of 10**6": lambda: b"PF\n1000000 1000000\n-1.0\n",
        "TIFF of 2**32": lambda: _tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1),
                                      (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8),
                                      (278, 4, 1, 2**32 - 1), (279, 4, 1, 9)),
        "TIFF of a tag of 4 GB": lambda: _tiff(*_SIZE, (273, 4, 2**30, 8), (279, 4, 2**30, 8)),
        "WebP of 16,383 x 16,383": lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X"
        + struct.pack("<I", 10) + b"\0\0\0\0\xfe\x3f\0\xfe\x3f\0" + bytes(8),
        "npy of 10**9 numbers": lambda: _npy("'<f8'", "(1000, 1000000)"),
        "npy of a header of a megabyte": lambda: b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**6)
        + b"{" * 10**6,
        "npy of a deep header": lambda: _npy("'<f4'", "(" * 5000),
        "npz that unpacks to a gigabyte": lambda: _npz(**{"a.npy": _npy(
            "'|u1'", "(31622, 31622)", bytes(31622**2))}),
        "npz of 50,000 arrays": lambda: _npz(**{f"{k}.npy": b"" for k in range(50_000)}),
    }  # fmt: skip
    for name, made in pictures.items():

        def make(folder: Path, made: Callable[[], bytes] = made) -> None:
            for file in ("x.png", "x.npy"):
                (folder / file).write_bytes(made())

        # What is too much is refused; what is only odd is read within bounds.
        for words, target in (("a target", "x.png"), ("a map", "x.npy")):
            values = guided("depth", target)
            yield through_all(
                f"{name} as {words}", 10, make, values, codes=(0, 2), memory=3 << 29
            )  # fmt: skip
        yield Case(f"{name} as a record", 10, make, ("rerun", "x.png"), memory=1 << 30)

    texts = {
        "steps": "1," * 40_000 + "1", "sampler": " " * 100_000, "prompt": "x" * 10**7,
        "device": "cuda:" + "9" * 100_000, "recipe": "x0:" + "a=1," * 50_000,
        "balance": "p" * 10**6, "churn_range": "9" * 10**5 + ":" + "9" * 10**5,
        "backbone": "s" * 10**6, "checkpoint": "a/" * 50_000, "dtype": "f" * 10**5,
        "image": "x" * 10**5, "negative_prompt": "(" * 10**5,
    }  # fmt: skip
    for option, text in texts.items():
        values = {**QUICK, option: text}
        yield through_all(f"{option} of {len(text):,} characters", 10, _picture, values)
    of_guide = {
        "interval": ":".join(["9" * 40_000] * 2), "recipe": "dps:" + "rho=" + "9" * 40_000,
        "target": "a" + ",a=" * 20_000, "model": "a:" * 30_000, "experts": "e" * 70_000,
        "calibration": "c" * 70_000, "name": "n" * 70_000, "stage": "s" * 70_000,
    }  # fmt: skip
    for option, text in of_guide.items():
        row = {"name": "classifier", "target": "red cube", option: text}
        name = f"a guide's {option} of {len(text):,} characters"
        yield through_all(name, 10, _picture, {**QUICK, "guides": [row]})
    for name, change in {
        "a million seeds": {"seed": [1] * 10**6},
        "steps 10**6": {"steps": 10**6 + 1},
        "a class of 10**12": {"class_index": 10**12},
        "width 10**9": {"width": 10**9},
        "a batch of 10**9": {"batch": 10**9},
        "num 10**9": {"num": 10**9},
        "an argument within arguments": {"pipeline": {"a": stock.nested(300)}},
        "an argument of 10**6 values": {"pipeline": {"a": [0] * 10**6}},
    }.items():
        written = name not in ("a million seeds", "an argument within arguments")
        doors = [d for d in DOORS if written or d in ("record", "Python")]
        yield through_all(name, 10, _nothing_made, {**QUICK, **change}, doors=doors)
    for name, text in {
        "a prompt of a gigabyte": "x" * (1 << 26),
        "ten million prompts": "x\n" * 10**7,
        "no ends of lines": "\r" * 10**7,
        "half characters": "\x00" * 10**6,
    }.items():

        def prompts(folder: Path, text: str = text) -> None:
            (folder / "p.txt").write_text(text)

        yield Case(f"prompts: {name}", 10, prompts,
                   ("harvest", "--num", "2", "--steps", "1", "--out", "h", "--prompts", "p.txt"),
                   memory=1 << 30)  # fmt: skip
    for name, palette in {
        "deep": "[" * 10**5,
        "10**6 rows": "0 0 0\n" * 10**6,
        "long": "9" * 10**6,
        "minus": "-1 0 0",
        "words": "red\n" * 10**5,
        "blanks": "0 0 0 a\nred" + " " * 10**5 + "x",
        "fractions": "[[0.5, 0.2, 1.0]]",
    }.items():

        def with_palette(folder: Path, palette: str = palette) -> None:
            _picture(folder)
            for file in ("p.txt", "p.json"):
                (folder / file).write_text(palette)

        for file in ("p.txt", "p.json"):
            values = guided("segmentation", f"labels,palette={file}:x.png")
            yield through_all(f"palette {file}: {name}", 10, with_palette, values)

    def familiar(folder: Path) -> None:
        _picture(folder)
        place = write_model("depth", folder)
        data = save({"mean": torch.zeros(3)}, {"familiarity": "[" * 10**5})
        (place / "familiarity.safetensors").write_bytes(data)

    yield through_all("what a network knows, deep", 10, familiar, guided("depth", model="m"))


def _nothing_made(folder: Path) -> None:
    """Needs no file."""


def _large_jpeg() -> bytes:
    """A JPEG that says 65,500 pixels a side and has those of 64."""
    data = bytearray(_saved("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


_NO_NAMES = ("a" * 5000, "./" + "a" * 300, "a/" * 3000, "\x00", "./a\x00b", "\udcff", "~nobody/x",
             "/dev/null/x", "con\n", "https://x", "", ".", "..", "/", "a:b:c", "::", "@", "a@", "#",
             "?", "*", "%s", "{}", "$HOME", "file:///etc/passwd", "\\\\x\\y", "C:\\x")  # fmt: skip
"""What names no file of ours, or none at all."""


def _names() -> Iterator[Case]:
    for name in ("diffusers", "adm", "glide", "dit", "edm", "shapes"):
        for option in ("checkpoint", "vae", "upsampler", "lora", "controlnet", "ip_adapter"):

            def of_backbone(text: str, name: str = name, option: str = option) -> None:
                import ppap_host as ppap

                ppap.load_backbone(name, **{option: text})

            yield _no_name(f"{option} of {name}", of_backbone)
    for name in ("classifier", "segmentation", "super-resolution"):
        for option in ("model", "target", "experts", "calibration", "recipe", "interval", "stage"):

            def of_guide(text: str, name: str = name, option: str = option) -> None:
                usual = {"target": CLASSES.get(name, "x.png"), "recipe": "x0"}
                in_python({**QUICK, "guides": [{"name": name, **usual, option: text}]})

            yield _no_name(f"{option} of {name}", of_guide)
    for option in ("image", "mask", "sampler", "steps", "device", "churn_range", "negative_prompt"):

        def of_run(text: str, option: str = option) -> None:
            in_python({**QUICK, "image": "x.png", option: text})

        yield _no_name(option, of_run)


def _no_name(where: str, give: Callable[[str], Any]) -> Case:
    def check(folder: Path) -> None:
        from ppap_host.files.errors import PpapError

        for text in _NO_NAMES:
            try:
                give(text)
            except PpapError as error:
                _check_remedy(error)
            except BaseException:
                print(ascii(text[:60]), file=sys.stderr)
                raise

    return Case(f"names that no file has as {where}", 10, _picture, check, codes=(0,),
                inputs=len(_NO_NAMES), seconds=200)  # fmt: skip
