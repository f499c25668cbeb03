"""Model folders and checkpoints: code, names that lead elsewhere, bombs, and whose fault it is."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from robustness.cases import Case

Change = Callable[[Path], Any]
EVIL = "open('EXECUTED', 'w')\nraise SystemExit('run')\n"
GUIDES = ("depth", "segmentation", "classifier", "clip")


def cases() -> Iterator[Case]:
    """Kinds 6, 8, 10 and 16, as far as models are concerned."""
    yield from _code()
    yield from _elsewhere()
    yield from _pickles()
    yield from _numbers()
    yield from _odd_files()
    yield from _blame()


# Small models in the published formats


@cache
def files_of(kind: str) -> dict[str, bytes]:
    """The files of a tiny model, made once."""
    import transformers as t

    t.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    vit = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8,
    )  # fmt: skip
    processor: Any = t.ViTImageProcessor(size={"height": 32, "width": 32})
    if kind == "depth":
        model: Any = t.DPTForDepthEstimation(
            t.DPTConfig(
                **vit | {"num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
            )
        )  # fmt: skip
        processor = t.DPTImageProcessor(size={"height": 32, "width": 32})
    elif kind == "segmentation":
        model = t.SegformerForSemanticSegmentation(
            t.SegformerConfig(
                num_encoder_blocks=4, depths=[1] * 4, hidden_sizes=[8, 8, 16, 16],
                num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, num_labels=3,
            )
        )  # fmt: skip
        processor = t.SegformerImageProcessor(size={"height": 64, "width": 64})
    elif kind == "classifier":
        model = t.ViTForImageClassification(t.ViTConfig(**vit, num_labels=3))
    else:
        tower = {key: vit[key] for key in vit if key not in ("image_size", "patch_size")}
        model = t.CLIPModel(
            t.CLIPConfig(
                text_config=tower | {"vocab_size": 99}, projection_dim=8,
                vision_config=tower | {"image_size": 32, "patch_size": 8},
            )
        )  # fmt: skip
        processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        processor.save_pretrained(place)
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def write_model(kind: str, folder: Path) -> Path:
    place = folder / "m"
    place.mkdir()
    for name, data in files_of(kind).items():
        (place / name).write_bytes(data)
    return place


def _edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _timm(folder: Path, **config: Any) -> None:
    """A ResNet of timm with a changed configuration."""
    import timm

    place = folder / "m"
    place.mkdir()
    arguments = {"channels": [8, 8, 8, 8], "stem_width": 8}
    state = timm.create_model("resnet10t", num_classes=3, **arguments).state_dict()
    (place / "model.safetensors").write_bytes(save(state))
    described = {"architecture": "resnet10t", "num_classes": 3, "model_args": arguments}
    (place / "config.json").write_text(json.dumps(described | config))


def _guide(kind: str, model: str = "m") -> Change:
    """Loads the guide, and shows it an image."""

    def load(_: Path) -> None:
        from ppap_host.plugins.loading import load_guide
        from ppap_host.plugins.registry import registry

        with torch.no_grad():
            load_guide(registry(), kind, model).see(torch.zeros(1, 3, 64, 64))

    return load


def _backbone(name: str, checkpoint: str) -> Change:
    def load(_: Path) -> None:
        from ppap_host.plugins.loading import load_backbone
        from ppap_host.plugins.registry import registry

        load_backbone(registry(), name, checkpoint)

    return load


# Kind 6


def _code() -> Iterator[Case]:
    where = {
        "config": ("config.json", {"AutoConfig": "evil.C", "AutoModel": "evil.M"}),
        "processor": ("preprocessor_config.json", {"AutoImageProcessor": "evil.P"}),
    }
    for kind in GUIDES:
        auto = f"AutoModelFor{kind}"
        for place, (file, table) in where.items():
            for hub in ("", "someone/else--"):
                table = {key: hub + value for key, value in table.items()} | {auto: f"{hub}evil.M"}

                def known(folder: Path, k: str = kind, f: str = file, m: Any = table) -> None:
                    _edit(write_model(k, folder) / f, auto_map=m)
                    (folder / "m" / "evil.py").write_text(EVIL)

                name = f"{kind}: code in its {place}{' of a hub' if hub else ''}"
                yield Case(f"{name}, a known class", 6, known, _guide(kind), codes=(0,))

                def own(folder: Path, k: str = kind, f: str = file, m: Any = table) -> None:
                    change: Any = {"model_type": "evil"}
                    if f != "config.json":
                        change = {"image_processor_type": "EvilProcessor"}
                    _edit(write_model(k, folder) / f, auto_map=m, **change)
                    (folder / "m" / "evil.py").write_text(EVIL)

                says = "never run|is no CLIP"
                yield Case(f"{name}, a class of its own", 6, own, _guide(kind), says)

    def pipeline(folder: Path, **index: Any) -> None:
        (folder / "m" / "unet").mkdir(parents=True)
        (folder / "m" / "evil.py").write_text(EVIL)
        (folder / "m" / "unet" / "evil.py").write_text(EVIL)
        (folder / "m" / "unet" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.M"}}')
        usual = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
        (folder / "m" / "model_index.json").write_text(json.dumps(usual | index))

    for name, index in {
        "a class of its own": {"_class_name": ["evil", "Pipe"]},
        "a part of its own": {"unet": ["evil", "UNet"]},
        "a part that a library chooses": {"unet": ["transformers", "AutoModel"]},
    }.items():
        yield Case(
            f"pipeline: {name}",
            6,
            lambda folder, index=index: pipeline(folder, **index),
            _backbone("diffusers", "m"),
            "never run|not known",
        )


# Kind 8


def _elsewhere() -> Iterator[Case]:
    for name, change in {
        "an address": {"pretrained_cfg_overlay": {"url": "http://example.org/w.pth"}},
        "another file": {"pretrained_cfg_overlay": {"file": "../other.safetensors"}},
        "a checkpoint": {"checkpoint_path": "../other.pth"},
        "a cfg": {"pretrained_cfg": {"hf_hub_id": "someone/else"}},
    }.items():
        yield Case(
            f"timm: {name} in model_args",
            8,
            lambda folder, c=change: _timm(folder, model_args=c),
            _guide("classifier"),
            "elsewhere",
        )
    yield Case(
        "timm: a hub in pretrained_cfg", 8,
        lambda folder: _timm(
            folder,
            pretrained_cfg={"hf_hub_id": "someone/else", "source": "hf-hub", "url": "http://x/"},
        ),
        _guide("classifier"), codes=(0,),
    )  # fmt: skip
    for kind, change in (
        ("depth", {"backbone": "someone/else", "backbone_config": None}),
        ("segmentation", {"backbone": "hf-hub:someone/else"}),
    ):
        yield Case(
            f"{kind}: a backbone of the hub",
            8,
            lambda folder, k=kind, c=change: _edit(write_model(k, folder) / "config.json", **c),
            _guide(kind),
            "names the backbone",
        )

    def adapter(folder: Path) -> None:
        described = {"base_model_name_or_path": "someone/else", "peft_type": "LORA"}
        (write_model("depth", folder) / "adapter_config.json").write_text(json.dumps(described))

    yield Case("depth: an adapter of another model", 8, adapter, _guide("depth"), codes=(0,))

    def smp(folder: Path, encoder: str) -> None:
        (folder / "m").mkdir()
        config = {"_model_class": "Unet", "encoder_name": encoder, "classes": 3}
        (folder / "m" / "config.json").write_text(json.dumps(config))
        (folder / "m" / "model.safetensors").write_bytes(save({"a": torch.ones(1)}))

    for encoder in ("tu-hf-hub:someone/else", "tu-local-dir:/tmp", "hf-hub:someone/else"):
        yield Case(
            f"smp: the encoder {encoder}", 8,
            lambda folder, e=encoder: smp(folder, e), _guide("segmentation"), "elsewhere",
        )  # fmt: skip
    for part in ("../other.safetensors", "/etc/passwd", "\0", "a/b.safetensors", ""):

        def parts(folder: Path, part: str = part) -> None:
            place = write_model("depth", folder)
            (place / "model.safetensors").rename(folder / "other.safetensors")
            index = json.dumps({"weight_map": {"head": part}})
            (place / "model.safetensors.index.json").write_text(index)

        yield Case(
            f"weights in {part!r}", 8, parts, _guide("depth"), "does not say where the weights"
        )


# Kind 10


def _storage(numbers: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.zeros(numbers)._typed_storage(), buffer, _use_new_zipfile_serialization=False)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _edm(parameters: bytes) -> bytes:
    """An EDM pickle whose network has these parameters, as instructions that leave a table."""

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    state = b"}(" + text("_parameters") + parameters
    for key, value in (
        ("_buffers", b"}"), ("_modules", b"}"), ("_init_args", b")"),
        ("_init_kwargs", b"}(" + text("img_resolution") + b"K\x08"
         + text("img_channels") + b"K\x03u"),
    ):  # fmt: skip
        state += text(key) + value
    meta = b"}(" + text("type") + text("class") + text("class_name") + text("EDMPrecond")
    meta += text("state") + state + b"uu"
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + meta + b"\x85R"
    return b"\x80\x02}(" + text("ema") + call + b"u."


def _edm_shared(count: int, numbers: int) -> bytes:
    """Parameters that all refer to one storage, read from the memo."""
    blob = _storage(numbers)
    holder = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(blob)) + blob
    one = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(%s" + b"K\x00J" + struct.pack("<i", numbers)
        + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip
    items = b""
    for k in range(count):
        name = f"w{k}".encode()
        source = holder + b"\x85Rr\x00\x00\x01\x00" if k == 0 else b"j\x00\x00\x01\x00"
        items += b"X" + struct.pack("<I", len(name)) + name + one.replace(b"%s", source)
    return _edm(b"}(" + items + b"u")


def _zip(data: bytes, storages: dict[str, bytes], compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a/data.pkl", data)
        for key, numbers in storages.items():
            archive.writestr(f"a/data/{key}", numbers)
    return buffer.getvalue()


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _alike(count: int) -> bytes:
    """A table whose keys are numbers that hash alike."""
    numbers = ((k * (2**61 - 1)).to_bytes(12, "little") for k in range(1, count + 1))
    return b"\x80\x02}(" + b"".join(b"\x8a\x0c" + n + b"N" for n in numbers) + b"u."


def _again(pairs: int, times: int) -> bytes:
    """A table of pairs that is made again and again."""
    table = b"]q\x00(" + b"K\x01K\x02\x86" * pairs + b"e0"
    again = b"ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R0" * times
    return b"\x80\x02" + table + again + b"N."


def _nested(opening: bytes, closing: bytes, count: int) -> bytes:
    return b"\x80\x02" + opening * count + closing * count + b"."


def _pickles() -> Iterator[Case]:
    files: dict[str, Callable[[], bytes]] = {
        "one storage 20,000 times": lambda: _edm_shared(20_000, 250_000),
        "one storage 200 times": lambda: _edm_shared(200, 1_000_000),
        "keys that hash alike": lambda: _alike(60_000),
        "a table made 100,000 times": lambda: _again(60_000, 100_000),
        "lists within lists": lambda: _nested(b"]", b"a", 10**6),
        "tuples within tuples": lambda: b"\x80\x02)" + b"\x85" * 10**6 + b".",
        "marks": lambda: b"\x80\x02" + b"(" * 10**6 + b".",
        "a number of a million bytes": lambda: (
            b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."
        ),
        "a number of 5,000 digits": lambda: b"\x80\x02L" + b"9" * 5000 + b"L\n.",
        "a string of four gigabytes": lambda: b"\x80\x02X\xff\xff\xff\xffabc.",
        "eight million nothings": lambda: b"\x80\x02" + b"N0" * (4 * 10**6) + b"N.",
    }
    for name, made in files.items():

        def write(folder: Path, made: Callable[[], bytes] = made) -> None:
            (folder / "x.pkl").write_bytes(made())
            (folder / "x.pt").write_bytes(made())

        yield Case(f"EDM: {name}", 10, write, _backbone("edm", "x.pkl"), memory=1 << 30)
        yield Case(f"DiT: {name}", 10, write, _backbone("dit", "x.pt"), memory=1 << 30)
    archives: dict[str, Callable[[], bytes]] = {
        "one number as 10**12": lambda: _saved({"a": torch.zeros(1).expand(10**6, 10**6)}),
        "one storage 20,000 times": lambda: _shared(20_000, 250_000),
        "a gigabyte of zeros, packed": lambda: _zip(
            pickle.dumps({}, 2), {"0": bytes(10**9)}, compress=True
        ),
        "a table made 100,000 times": lambda: _zip(_again(60_000, 100_000), {}),
        "keys that hash alike": lambda: _zip(_alike(60_000), {}),
        "a hundred thousand entries": lambda: _zip(
            pickle.dumps({}, 2), {str(k): b"" for k in range(100_000)}
        ),
    }
    for name, made in archives.items():

        def store(folder: Path, made: Callable[[], bytes] = made) -> None:
            (folder / "x.pt").write_bytes(made())
            (folder / "x.pt.json").write_text('{"num_heads": 2}')

        for backbone in ("dit", "adm"):
            yield Case(
                f"{backbone}: {name}", 10, store, _backbone(backbone, "x.pt"), memory=1 << 30
            )
        for model in ("resnet18:x.pt", "torchvision:resnet18:x.pt"):
            yield Case(f"{model}: {name}", 10, store, _guide("classifier", model), memory=1 << 30)


def _shared(count: int, numbers: int) -> bytes:
    shared = torch.zeros(numbers)
    return _saved({f"w{k}": shared for k in range(count)})


def _numbers() -> Iterator[Case]:
    for name, change in {
        "num_classes 10**12": {"num_classes": 10**12},
        "num_classes 10**9": {"num_classes": 10**9},
        "a depth of a million": {"model_args": {"layers": [10**6, 1, 1, 1]}},
        "a width of a million": {"model_args": {"channels": [10**6] * 4}},
        "an image of a million": {"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}},
    }.items():
        yield Case(
            f"timm: {name}", 10,
            lambda folder, c=change: _timm(folder, **c), _guide("classifier"), memory=3 << 29,
        )  # fmt: skip
    for kind in GUIDES:
        for name, change in {
            "a width of 10**12": {"hidden_size": 10**12},
            "a width of ten million": {"hidden_size": 10**7, "fusion_hidden_size": 10**7,
                                       "projection_dim": 10**8, "decoder_hidden_size": 10**7},
            "a billion layers": {"num_hidden_layers": 10**9, "depths": [10**9] * 4},
            "ten million layers": {"num_hidden_layers": 10**7, "depths": [10**7] * 4},
            "ten million classes": {"id2label": {"10000000": "x"}, "projection_dim": 10**9},
        }.items():  # fmt: skip

            def described(folder: Path, kind: str = kind, change: Any = change) -> None:
                path = write_model(kind, folder) / "config.json"
                if kind == "clip":
                    old = json.loads(path.read_text())
                    both = {k: old[k] | change for k in ("text_config", "vision_config")}
                    _edit(path, **both, projection_dim=change.get("projection_dim", 8))
                else:
                    _edit(path, **change)

            # A key that the configuration does not have changes nothing.
            yield Case(f"{kind}: {name}", 10, described, _guide(kind), codes=(0, 2), memory=3 << 29)
    texts = {
        "deep": "[" * 10**6, "deep tables": '{"a":' * 10**5,
        "5,000 digits": '{"a": ' + "9" * 5000 + "}",
        "20 megabytes": '{"a": "' + "x" * (20 << 20) + '"}', "not text": "\udcff", "a list": "[1]",
        "three million values": "[" + "1," * 3_000_000 + "1]",
    }  # fmt: skip
    for name, text in texts.items():

        def document(folder: Path, file: str, text: str = text) -> None:
            write_model("depth", folder)
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode("utf-8", "surrogateescape"))

        for file in ("m/config.json", "m/preprocessor_config.json"):
            yield Case(
                f"{file}: {name}", 10, lambda f, file=file, d=document: d(f, file), _guide("depth")
            )

        def flags(folder: Path, text: str = text) -> None:
            (folder / "x.pt").write_bytes(_saved({"a": torch.ones(1)}))
            for beside in ("x.pt.json", "x.json"):
                (folder / beside).write_bytes(text.encode("utf-8", "surrogateescape"))
            (folder / "x.safetensors").write_bytes(save({"a": torch.ones(1)}))

        for backbone, file in (("adm", "x.pt"), ("dit", "x.pt"), ("edm", "x.safetensors")):
            yield Case(f"{backbone}: {name} beside", 10, flags, _backbone(backbone, file))

    def packed(folder: Path) -> None:
        (folder / "encoder.json.gz").write_bytes(gzip.compress(bytes(10**9), 1))
        (folder / "vocab.bpe.gz").write_bytes(gzip.compress(b"#version\n"))

    def read(folder: Path) -> None:
        from ppap_plugin_openai.tokens import PromptTokenizer

        PromptTokenizer.read(folder)

    yield Case("GLIDE: a vocabulary that unpacks to a gigabyte", 10, packed, read, "too large",
               memory=1 << 29)  # fmt: skip


def _odd_files() -> Iterator[Case]:
    def odd(folder: Path, kind: str, name: str = "x.pt") -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    for kind in ("pipe", "device"):
        for backbone in ("edm", "dit", "adm", "glide"):
            yield Case(
                f"{backbone}: its file is a {kind}", 10,
                lambda folder, k=kind: odd(folder, k), _backbone(backbone, "x.pt"), seconds=20,
            )  # fmt: skip
        for model in ("resnet18:x.pt", "torchvision:resnet18:x.pt"):
            yield Case(
                f"{model}: its file is a {kind}", 10,
                lambda folder, k=kind: odd(folder, k), _guide("classifier", model), seconds=20,
            )  # fmt: skip
        for file in ("config.json", "model.safetensors", "preprocessor_config.json"):

            def inside(folder: Path, k: str = kind, file: str = file) -> None:
                write_model("depth", folder)
                odd(folder, k, f"m/{file}")

            yield Case(f"{file} is a {kind}", 10, inside, _guide("depth"), seconds=40)


# Kind 16


def _blame() -> Iterator[Case]:
    """Whatever is wrong with a user's file, it is no fault of the plugin."""

    def never_blamed(kind: str) -> Change:
        def load(folder: Path) -> None:
            from ppap_host.files.errors import PluginError, PpapError

            try:
                _guide(kind)(folder)
            except PpapError as error:
                if isinstance(error, PluginError) or "fault of the plugin" in str(error):
                    raise AssertionError(f"the plugin is blamed: {error}") from error
                raise

        return load

    tables = {
        "from 1": ({"1": "a", "2": "b", "3": "c"}, (0,)), "a gap": ({"0": "a", "2": "c"}, (0,)),
        "one too many": ({str(k): "x" for k in range(4)}, (2,)), "words": ({"a": "b"}, (2,)),
        "a list": (["a", "b", "c"], (2,)), "a number": (3, (2,)), "nothing": ({}, (0,)),
    }  # fmt: skip
    for kind in ("segmentation", "classifier"):
        for name, (table, codes) in tables.items():
            yield Case(
                f"{kind}: id2label {name}", 16,
                lambda folder, k=kind, t=table: _edit(
                    write_model(k, folder) / "config.json", id2label=t
                ),
                never_blamed(kind), codes=codes,
            )  # fmt: skip
    for name, (file, change) in {
        "a network of 224 pixels": ("preprocessor_config.json", {"do_resize": False}),
        "sizes of words": ("preprocessor_config.json", {"size": {"height": "a", "width": "b"}}),
        "no deviation": ("preprocessor_config.json", {"image_std": [0, 0, 0]}),
        "a filter of its own": ("preprocessor_config.json", {"resample": 99}),
        "patches of 0": ("config.json", {"patch_size": 0}),
        "words for numbers": ("config.json", {"hidden_size": "16"}),
        "no layers": ("config.json", {"num_hidden_layers": 0}),
        "no type": ("config.json", {"model_type": None}),
    }.items():
        for kind in GUIDES:
            yield Case(
                f"{kind}: {name}", 16,
                lambda folder, k=kind, f=file, c=change: _edit(write_model(k, folder) / f, **c),
                never_blamed(kind), codes=(0, 2),
            )  # fmt: skip
    for name, change in {
        "another size": {"pretrained_cfg": {"input_size": [3, 7, 7]}},
        "words for sizes": {"pretrained_cfg": {"input_size": "abc"}},
        "names for others": {"label_names": ["a"]},
        "arguments of another": {"model_args": {"sparkle": 1}},
        "a table for a list": {"model_args": [1]},
    }.items():
        yield Case(
            f"timm: {name}", 16, lambda folder, c=change: _timm(folder, **c),
            never_blamed("classifier"), codes=(0, 2),
        )  # fmt: skip
