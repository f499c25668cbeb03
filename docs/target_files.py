"""Files as people have them, read by the guides: ``python docs/target_files.py``.

Each case writes one file of known content and says what reading it should give. All are read as
``ppap run`` reads a target, and the answers go to ``docs/results/targets.json``, from which the
table of ``docs/targets.md`` is made. ``tests/test_target_files.py`` reads them all again.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from ppap_plugin_depth.guide import DepthGuide
from ppap_plugin_restore.guide import inpainting
from ppap_plugin_segmentation.guide import SegmentationGuide
from ppap_plugin_segmentation.palettes import CITYSCAPES_IDS, CITYSCAPES_NAMES, PALETTES
from ppap_plugin_segmentation.targets import APART

from ppap_host.files.errors import TargetError
from ppap_host.guides.functions import FunctionGuide
from ppap_host.guides.guide import Guide
from ppap_host.shapes.renderer import Render, render
from ppap_host.shapes.scenes import SEGMENTS, sample_scenes

RESULTS = Path(__file__).parent / "results" / "targets.json"
Array = NDArray[Any]
SIZE = (64, 64)
OPEN = -1


@dataclass(frozen=True)
class Case:
    """A file and what is to be understood of it.

    Attributes:
        file: its name.
        about: what it is, for people.
        reader: which guide reads it (:func:`guide`).
        target: what the guide is given, ``{}`` being the file's name.
        write: makes the file at a path.
        wanted: what reading it gives: an array, or text that the error holds.
        doubted: whether a doubt is told with it.
        needs: a module of the extra ``formats``.
    """

    file: str
    about: str
    reader: str
    target: str
    write: Callable[[Path], object]
    wanted: Array | str
    doubted: bool = False
    needs: str = ""


# What is in the files


@cache
def scene() -> Render:
    """A room of the built-in world: colours, depth in metres, and classes."""
    return render(sample_scenes(7001, 0, 1))


def photograph() -> NDArray[np.uint8]:
    """The room with a camera's noise, uint8 [h, w, 3]."""
    rgb = (scene().rgb[0].permute(1, 2, 0).numpy() + 1) * 127.5
    noise = np.random.default_rng(0).normal(0, 3, rgb.shape)
    return np.clip(rgb + noise, 0, 255).round().astype(np.uint8)


def metres() -> NDArray[np.float64]:
    """Its depth."""
    return scene().depth[0, 0].double().numpy()


def holed() -> NDArray[np.float64]:
    """Its depth with holes of zero, NaN and infinity."""
    depth = metres().copy()
    depth[:8, :8], depth[8:16, :8], depth[16:24, :8] = 0, np.nan, np.inf
    return depth


def holes() -> NDArray[np.bool_]:
    """Where :func:`holed` knows nothing."""
    return ~(np.isfinite(holed()) & (holed() > 0))


def segments() -> NDArray[np.uint8]:
    """Its classes."""
    return scene().segmentation[0].numpy().astype(np.uint8).reshape(SIZE)


def regions(count: int, seed: int = 0, pieces: int = 24) -> NDArray[np.uint8]:
    """A map of several of ``count`` classes in pieces (a Voronoi diagram)."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, SIZE[0], (pieces, 2))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    nearest = ((points[:, 0, None, None] - y) ** 2 + (points[:, 1, None, None] - x) ** 2).argmin(0)
    return rng.integers(0, count, pieces).astype(np.uint8)[nearest]


def disc() -> NDArray[np.bool_]:
    """Where a disc is."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray((y - 24) ** 2 + (x - 40) ** 2 < 14**2)


def stretched(values: Array, top: int) -> Array:
    """To all of 0..top, as MiDaS and ControlNet save inverse depth."""
    unit = (values - values.min()) / (values.max() - values.min())
    return np.asarray((unit * top).round().astype(np.uint8 if top == 255 else np.uint16))


def coloured(labels: Array, palette: str) -> NDArray[np.uint8]:
    """A label map in the colours of a palette."""
    table = {n: colour for colour, _, n in reversed(PALETTES[palette].entries) if n >= 0}
    return np.array([table[int(k)] for k in labels.flat], np.uint8).reshape(*labels.shape, 3)


# Writing files


def image(values: Array, mode: str | None = None, **options: Any) -> Callable[[Path], object]:
    """Writes an array as a picture."""

    def write(path: Path) -> None:
        made = Image.fromarray(values)
        (made.convert(mode) if mode else made).save(path, **options)

    return write


def array(values: Array) -> Callable[[Path], object]:
    """Writes ``.npy`` or ``.npz``."""
    return lambda path: (np.savez if path.suffix == ".npz" else np.save)(path, values)


def content(data: bytes) -> Callable[[Path], object]:
    """Writes bytes."""
    return lambda path: path.write_bytes(data)


def png(values: Array, bits: int, colour: int = 0) -> bytes:
    """A PNG with less than 8 bits a pixel, or 16 in three channels, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    rows = b""
    for row in values:
        if bits == 16:
            rows += b"\0" + row.astype(">u2").tobytes()
        else:
            wide = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
            rows += b"\0" + np.packbits(wide).tobytes()
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def with_palette(labels: Array, palette: list[int], **options: Any) -> Callable[[Path], object]:
    """Writes indices with a palette."""

    def write(path: Path) -> None:
        made = Image.fromarray(labels.astype(np.uint8))
        made.putpalette(palette)
        made.save(path, **options)

    return write


def layer(mask: Array, colour: tuple[int, int, int]) -> Callable[[Path], object]:
    """Writes what is painted in one colour on transparency."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = (*colour, 255)
    return image(pixels)


def exr(channels: dict[str, Array]) -> Callable[[Path], object]:
    """Writes an OpenEXR file."""

    def write(path: Path) -> None:
        import OpenEXR

        kept = {name: values.astype(np.float32) for name, values in channels.items()}
        OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION}, kept).write(str(path))

    return write


def heic(path: Path) -> None:
    """Writes the photograph as HEIC, without loss of colour resolution."""
    import pillow_heif

    made = pillow_heif.from_pillow(Image.fromarray(photograph()))
    made.save(path, quality=-1, chroma=444)


def pfm(values: Array) -> bytes:
    """A PFM: its rows begin at the bottom."""
    return b"Pf\n%d %d\n-1.0\n" % values.shape[::-1] + values[::-1].astype("<f4").tobytes()


def pgm(values: Array, most: int) -> bytes:
    """A PGM with its own largest value."""
    kind = "u1" if most < 256 else ">u2"
    return b"P5\n%d %d\n%d\n" % (*values.shape[::-1], most) + values.astype(kind).tobytes()


# Primaries of Adobe RGB (1998) and Display P3, adapted to D50, columns of XYZ.
ADOBE = np.array([
    [0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]
])  # fmt: skip
P3 = np.array([
    [0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]
])  # fmt: skip
SRGB = np.array([
    [0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]
])  # fmt: skip


def icc(primaries: Array | None, gamma: float, name: str) -> bytes:
    """A small ICC profile: three primaries and one gamma; of None, for greys."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(column: Array) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in column)

    text = name.encode() + b"\0"
    said = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"desc": said, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(np.array([0.9642, 1, 0.8249])),
    }  # fmt: skip
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for k, channel in enumerate((b"r", b"g", b"b")):
            tags |= {channel + b"XYZ": xyz(primaries[:, k]), channel + b"TRC": curve}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[0:4] = struct.pack(">I", at + len(body))
    head[8:12], head[12:24], head[36:40] = b"\x02\x40\0\0", b"mntrRGB XYZ ", b"acsp"
    if primaries is None:
        head[16:20] = b"GRAY"
    head[68:80] = fixed(0.9642) + fixed(1) + fixed(0.8249)
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


def grey_icc(gamma: float) -> bytes:
    """A small ICC profile of greys."""
    return icc(None, gamma, f"Grey at {gamma}")


def with_chunk(values: Array, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk, which Pillow does not write."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    data, check = buffer.getvalue(), struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + struct.pack(">I", len(body)) + kind + body + check + data[33:]


def tiff(values: Array, photometric: int, reduced: int = 0) -> bytes:
    """A TIFF of one strip, also in ways that Pillow does not write."""
    height, width = values.shape
    tags = [(254, reduced), (256, width), (257, height), (258, 8 * values.itemsize), (259, 1),
            (262, photometric), (273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height),
            (279, values.nbytes)]  # fmt: skip
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + values.tobytes()


def hdr(path: Path) -> None:
    """An AVIF that names BT.2020 and PQ where Pillow writes those of sRGB."""
    Image.fromarray(photograph()).save(path, quality=100, subsampling="4:4:4")
    before, named, after = path.read_bytes().partition(b"colrnclx")
    path.write_bytes(before + named + struct.pack(">HH", 9, 16) + after[4:])


def in_srgb(values: Array, primaries: Array, gamma: float) -> Array:
    """8-bit colours of other primaries in sRGB, by the formulas of the standards."""
    light = (values / 255.0) ** gamma @ primaries.T @ np.linalg.inv(SRGB).T
    light = np.clip(light, 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(curve * 255)


def broken_exif(path: Path) -> None:
    """A JPEG whose EXIF holds a rational of another sign than EXIF knows, turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(exif.tobytes())
    # One more entry: an exposure bias, a rational, whose value is -1 / 0.
    count = struct.unpack_from("<H" if data[6:8] == b"II" else ">H", data, 14)[0]
    order = "<" if data[6:8] == b"II" else ">"
    struct.pack_into(f"{order}H", data, 14, count + 1)
    end = 16 + 12 * count
    entry = struct.pack(f"{order}HHII", 0x9204, 5, 1, end + 16 - 6)
    data[end:end] = entry
    data += struct.pack(f"{order}ii", -1, 0)
    Image.fromarray(photograph()).transpose(Image.Transpose.ROTATE_90).save(
        path, quality=100, subsampling=0, exif=bytes(data)
    )


# Who reads them


def guide(name: str) -> Guide:
    """The guide that reads a case; networks without weights are made small and at random."""
    # One that fills holes keeps to the holes of its first target.
    return inpainting("measure=yes") if name == "hole" else _kept(name)


@cache
def _kept(name: str) -> Guide:
    if name == "depth":
        return DepthGuide()
    if name == "metres":
        return DepthGuide(_saved(_metric))
    if name == "photo":
        return FunctionGuide(lambda x, y: (x - y).square().mean((1, 2, 3)), name, targeted=True)
    if name == "shapes":
        return SegmentationGuide()
    return SegmentationGuide(_saved(lambda folder: _segformer(folder, name)))


def _saved(make: Callable[[str], None]) -> str:
    folder = tempfile.mkdtemp(prefix="ppap-network-")
    make(folder)
    return folder


def _metric(folder: str) -> None:
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    torch.manual_seed(0)
    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )  # fmt: skip
    GLPNForDepthEstimation(config).save_pretrained(folder)
    GLPNImageProcessor().save_pretrained(folder)


def _segformer(folder: str, name: str) -> None:
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    torch.manual_seed(0)
    counts = {"ade20k": 150, "ade20k from 1": 150, "cityscapes": 19, "voc": 21, "coco": 133}
    names = {i: f"LABEL_{i}" for i in range(counts[name])}
    if name == "cityscapes":
        names = dict(enumerate(CITYSCAPES_NAMES))
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8, id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(do_reduce_labels=name == "ade20k from 1").save_pretrained(folder)


# The cases


def _labels() -> list[Case]:
    seg, many = segments(), regions(150)
    city, voc, coco = regions(19, 3), regions(21, 4), regions(133, 5)
    opened = np.where(disc(), OPEN, seg.astype(int))
    with_255 = np.where(disc(), 255, seg).astype(np.uint8)
    rgba = np.dstack([coloured(voc, "voc"), np.where(disc(), 0, 255).astype(np.uint8)])
    ids = np.array([i for i, (_, train, _) in enumerate(CITYSCAPES_IDS) if train >= 0])
    bits = [int(k) for c in range(256) for k in PALETTES["voc"].entries[c][0]]
    order = np.random.default_rng(2).permutation(256)
    shuffled = np.argsort(order)[voc]
    own = {
        "void": (9, 9, 9), "floor": (10, 200, 10), "wall": (200, 10, 10), "sphere": (10, 10, 200),
        "cube": (200, 200, 10), "cylinder": (10, 200, 200), "cone": (200, 10, 200),
    }  # fmt: skip
    painted = np.array([own[SEGMENTS[k]] for k in seg.flat], np.uint8).reshape(*SIZE, 3)
    painted[disc()] = own["void"]
    rows = "name,r,g,b\n" + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in own.items())

    def with_classes(path: Path) -> None:
        path.with_name("classes.csv").write_text(rows)
        Image.fromarray(painted).save(path)

    noisy = np.random.default_rng(1).permutation(np.arange(256)).astype(np.uint8)
    pieces, full = regions(24, 9).astype(int), many.astype(int) * 9
    things = np.isin(ids[city], [24, 25, 26, 27, 28, 31, 32, 33])
    instances = np.where(things, ids[city] * 1000 + 3, ids[city]).astype(np.uint16)
    annotation = np.where(disc(), 0, many + 1).astype(np.uint8)
    highest = np.where(many == many[0, 0], 150, annotation).astype(np.uint8)
    flat = painted.repeat(4, 0).repeat(4, 1)
    scores = (np.arange(6)[:, None, None] == seg).astype(np.float32)
    return [
        Case("grey.png", "8-bit grey, 255 is open", "shapes", "{}", image(with_255), opened),
        Case("labels.tif", "8-bit TIFF", "shapes", "{}", image(seg), seg),
        Case("labels.bmp", "BMP", "shapes", "{}", image(seg), seg),
        Case("labels.gif", "GIF: Pillow orders its palette anew", "shapes", "{}", image(seg), seg),
        Case("labels.webp", "lossless WebP", "shapes", "{}", image(seg, lossless=True), seg),
        Case("labels.pgm", "PGM, its largest value 5", "shapes", "{}", content(pgm(seg, 5)), seg),
        Case("equal.png", "three equal channels", "shapes", "{}", image(seg, "RGB"), seg),
        Case("la.png", "grey with alpha", "shapes", "{}", image(seg, "LA"), seg),
        Case("bits.png", "4-bit grey", "ade20k", "{}", content(png(seg, 4)), seg,
             doubted=True),
        Case("wide.png", "16-bit grey", "ade20k", "{}", image(many.astype(np.uint16)), many,
             doubted=True),
        Case("channels.png", "16 bits in three channels", "shapes", "{}",
             content(png(np.repeat(seg[..., None], 3, 2), 16, 2)), "only 8 can be read"),
        Case("minus.npy", "int64, -1 for what is open", "shapes", "{}", array(opened), opened),
        Case("floats.npy", "whole numbers in floats", "shapes", "{}", array(seg / 1.0), seg),
        Case("labels.npz", ".npz with one array", "shapes", "{}", array(seg), seg),
        Case("voc.png", "PASCAL VOC's palette", "voc", "{}", with_palette(voc, bits), voc),
        Case("again.png", "the same colours, another order of the palette", "voc", "{}",
             with_palette(shuffled, [bits[3 * int(k) + c] for k in order for c in range(3)]), voc),
        Case("ade.png", "ADE20K's colours", "ade20k", "{}", image(coloured(many, "ade20k")), many),
        Case("city.png", "Cityscapes' colours", "cityscapes", "{}",
             image(coloured(city, "cityscapes")), city),
        Case("coco.png", "COCO's colours of things and stuff", "coco", "{}",
             image(coloured(coco, "coco")), coco),
        Case("own.png", "colours of one's own, from a table", "shapes",
             "labels,palette=classes.csv:{}", with_classes, opened),
        Case("hole.png", "VOC's colours, transparent in part", "voc", "{}", image(rgba),
             np.where(disc(), OPEN, voc.astype(int))),
        Case("aachen_labelIds.png", "Cityscapes' label ids", "cityscapes", "{}",
             image(ids[city].astype(np.uint8)), city),
        Case("aachen_trainIds.png", "Cityscapes' train ids", "cityscapes", "{}", image(city), city),
        Case("nineteen.png", "train ids with 19 for what is open", "cityscapes", "{}",
             image(np.where(disc(), 19, city).astype(np.uint8)), "index 19, but the network has"),
        Case("void.png", "the same, said to be so", "cityscapes", "labels,ignore=19:{}",
             image(np.where(disc(), 19, city).astype(np.uint8)),
             np.where(disc(), OPEN, city.astype(int))),
        Case("ids.png", "label ids under another name", "cityscapes", "labels,ids=cityscapes:{}",
             image(ids[city].astype(np.uint8)), city),
        Case("annotation.png", "an annotation for do_reduce_labels", "ade20k from 1", "{}",
             image(annotation), np.where(disc(), OPEN, many.astype(int)), doubted=True),
        Case("all.png", "the same with its highest class, which tells", "ade20k from 1", "{}",
             image(highest), np.where(disc(), OPEN, highest.astype(int) - 1)),
        Case("own-answer.png", "what the same network answered, from 0", "ade20k from 1",
             "labels,reduce=no:{}", image(many), many),
        Case("from-one.png", "the annotation, and a processor that does not count from 1",
             "ade20k", "{}", image(annotation), annotation, doubted=True),
        Case("from-one-said.png", "the same, said to be so", "ade20k", "labels,reduce=yes:{}",
             image(annotation), np.where(disc(), OPEN, many.astype(int))),
        Case("geo-labels.tif", "a GeoTIFF that says 0 is where nothing is known", "ade20k", "{}",
             image(annotation, tiffinfo={0xA481: "0"}),
             np.where(disc(), OPEN, annotation.astype(int))),
        Case("ignore.png", "254 for what is open", "shapes", "labels,ignore=254:{}",
             image(np.where(disc(), 254, seg).astype(np.uint8)), opened),
        Case("high.png", "one index too high", "shapes", "{}",
             image(np.where(disc(), 6, seg).astype(np.uint8)), "index 6, but the network has 6"),
        Case("unknown.png", "colours of no palette", "shapes", "{}", image(painted), "no palette"),
        Case("dark.jpg", "a label map saved as JPEG", "ade20k", "{}", image(seg), "saved as JPEG"),
        Case("bright.jpg", "one of 150 classes", "ade20k", "{}", image(many, quality=95),
             "photograph", doubted=True),
        Case("colours.jpg", "colours saved as JPEG", "voc", "{}",
             image(coloured(voc, "voc"), quality=95), "saved as JPEG"),
        *[Case(f"flat.{kind}", f"colours of one's own, saved with loss ({how})", "shapes", "{}",
               image(flat, quality=80), "photograph", doubted=True)
          for kind, how in (("jpg", "JPEG"), ("webp", "WebP"), ("avif", "AVIF"))],
        Case("flat-smooth.png", "the same, resized with smoothing", "shapes", "{}",
             lambda path: Image.fromarray(flat).resize((200, 200), 2).save(path),
             "looks like a label map in colours"),
        Case("flat-grey.jpg", "greys of one's own, saved as JPEG", "shapes", "{}",
             image((50 * seg).repeat(4, 0).repeat(4, 1), quality=80), "photograph", doubted=True),
        Case("white.png", "a mask without its class", "shapes", "{}",
             image(np.where(disc(), 255, 0).astype(np.uint8)), "of a class it does not name"),
        Case("eight.png", "a photograph in 64 colours", "ade20k", "{}",
             lambda path: Image.fromarray(photograph()).quantize(64).save(path), "photograph"),
        Case("night.png", "a dark grey photograph", "ade20k", "{}",
             image(np.asarray(Image.fromarray(photograph()).convert("L")) // 2), "photograph",
             doubted=True),
        Case("shuffle.png", "noise with numbers of classes", "ade20k", "labels,reduce=no:{}",
             image((noisy.repeat(16).reshape(SIZE) % 150).astype(np.uint8)),
             (noisy.repeat(16).reshape(SIZE) % 150)),
        Case("panoptic.png", "COCO's panoptic ids in the bytes of colours", "coco", "{}",
             image(np.dstack([pieces + 1, 0 * pieces, 0 * pieces]).astype(np.uint8)),
             "label map or a photograph"),
        Case("ADE_seg.png", "ADE20K's full set: class in red and green, instance in blue",
             "ade20k", "{}",
             image(np.dstack([full // 256 * 10, full % 256, pieces]).astype(np.uint8)),
             "label map or a photograph"),
        Case("aachen_instanceIds.png", "Cityscapes' instance ids", "cityscapes", "{}",
             image(instances), city),
        Case("opencv.png", "colours that OpenCV wrote as blue, green, red", "voc", "{}",
             image(coloured(voc, "voc")[..., ::-1].copy()), "red and blue exchanged"),
        Case("smooth.png", "colours resized with smoothing", "voc", "{}",
             lambda path: Image.fromarray(coloured(voc, "voc")).resize((48, 48), 2).save(path),
             "smoothed or resized"),
        Case("smooth-numbers.png", "numbers resized with smoothing", "shapes", "{}",
             lambda path: Image.fromarray(regions(6, 9)).resize((90, 90), 2).save(path),
             "mostly numbers between theirs"),
        Case("multiplied.png", "numbers times 20, to be seen", "ade20k", "{}",
             image(regions(6, 9) * np.uint8(20)), regions(6, 9) * 20, doubted=True),
        Case("ones.npy", "one of three things is 1, in floats", "ade20k", "{}",
             array(np.eye(3)[seg % 3]), "one number a pixel"),
        Case("hole.npy", "VOC's colours and transparency in an array", "voc", "{}", array(rgba),
             np.where(disc(), OPEN, voc.astype(int))),
        Case("scores.npy", "a score for each class", "shapes", "{}", array(scores),
             "one number a pixel"),
        Case("masks.npy", "masks as SAM gives them, [3, h, w]", "shapes", "{}",
             array(np.stack([disc()] * 3)), "one number a pixel"),
        Case("rle.json", "run lengths in JSON", "shapes", "labels:{}",
             content(b'{"size": [64, 64], "counts": "ab"}'), "it is JSON"),
    ]  # fmt: skip


def _masks() -> list[Case]:
    white = np.where(disc(), 255, 0).astype(np.uint8)
    inside = disc().astype(float)
    red = np.zeros((*SIZE, 3), np.uint8)
    red[disc()] = (220, 20, 30)
    picture = np.dstack([photograph(), 255 - white])
    opaque = np.dstack([photograph(), white])
    return [
        Case("mask.png", "white on black", "shapes", "cone={}", image(white), inside),
        Case("layer.png", "white on transparency", "shapes", "cone={}",
             layer(disc(), (255, 255, 255)), inside),
        Case("black.png", "black on transparency", "shapes", "cone={}", layer(disc(), (0, 0, 0)),
             inside),
        Case("red.png", "red on transparency", "shapes", "cone={}", layer(disc(), (230, 20, 20)),
             inside),
        Case("brush.png", "a brush of half its strength", "shapes", "cone={}",
             image(np.dstack([red, white // 2])), inside),
        Case("empty.png", "nothing is marked", "shapes", "cone={}", image(0 * white), 0 * inside,
             doubted=True),
        Case("light.png", "254 and 255", "shapes", "cone={}", image(white // 255 + 254),
             np.ones(SIZE), doubted=True),
        Case("on-black.png", "red on black", "shapes", "cone={}", image(red), inside),
        Case("small.png", "16 bits, 0 and 100", "shapes", "cone={}",
             image((disc() * 100).astype(np.uint16)), inside),
        Case("small-colours.png", "the same in three channels of 16 bits", "shapes", "cone={}",
             content(png(np.repeat(100 * disc()[..., None], 3, 2), 16, 2)), "only 8 can be read"),
        Case("one.png", "8 bits, 0 and 1", "shapes", "cone={}", image(disc().astype(np.uint8)),
             inside),
        Case("mask.npy", "truth values", "shapes", "cone={}", array(disc()), inside),
        Case("share.npy", "floats from 0 to 1", "shapes", "mask,of=cone:{}",
             array(0.75 * disc()), 0.75 * inside),
        Case("mask.jpg", "JPEG", "shapes", "cone={}", image(white, quality=95), inside),
        Case("inverted.png", "black where it is meant", "shapes", "cone={}", image(255 - white),
             1 - inside, doubted=True),
        Case("invert.png", "the same, said to be so", "shapes", "mask,of=cone,invert=yes:{}",
             image(255 - white), inside),
        Case("classes.png", "a label map in place of a mask", "shapes", "cone={}",
             image(segments()), "no white pixel"),
        Case("picture.png", "a picture with a transparent hole", "shapes", "cone={}",
             image(picture), "not clear what of it is meant"),
        Case("edit.png", "the same, for inpainting", "hole", "{}", image(picture),
             np.where(disc()[..., None], 127.5, photograph())),
        Case("inverse-edit.png", "all but a disc is transparent", "hole", "photo:{}",
             image(opaque), np.where(disc()[..., None], photograph(), 127.5)),
        Case("border.png", "a label map in place of a mask, 255 is open", "shapes", "cone={}",
             image(np.where(disc(), 255, segments()).astype(np.uint8)), "as label maps do"),
        Case("layers.npy", "masks of several things", "shapes", "cone={}",
             array(np.dstack([inside] * 4)), "one number a pixel"),
        Case("faint.png", "white on black, the same alpha everywhere", "shapes", "cone={}",
             lambda path: Image.merge("LA", [Image.fromarray(white), Image.new("L", SIZE, 254)])
             .save(path), inside),
    ]  # fmt: skip


def _depths() -> list[Case]:
    depth, near = metres(), 1 / metres()
    unit = (near - near.min()) / np.ptp(near)
    known = np.where(holes(), np.nan, holed())
    millimetres = (depth * 1000).round()
    disparity = np.where(holes(), np.inf, 100 * near)
    colours = np.repeat(stretched(near, 255)[..., None], 3, 2)
    colours[..., 2] = 255 - colours[..., 2]
    turned = Image.Exif()
    turned[0x0112] = 6
    sideways = np.rot90(depth).astype(np.float32)
    slope = np.repeat(np.linspace(2, 4, 64)[:, None], 64, 1)
    laser = np.zeros((256, 256), np.uint16)
    laser[2::4, 2::4] = (slope * 256).astype(np.uint16)
    border = np.pad(np.zeros((56, 56), bool), 4, constant_values=True)
    average = (1 - unit) * 0.9977 + 0.0003
    ramp = unit[..., None] * [255, 200, 40] + (1 - unit[..., None]) * [10, 0, 120]
    packed = (np.kron(slope, np.ones((8, 8))) / 1000 * (2**24 - 1)).astype(int)
    packed += np.arange(512) * 300
    bytes_ = np.dstack([packed % 256, packed // 256 % 256, packed // 65536]).astype(np.uint8)

    def parts(path: Path) -> None:
        import OpenEXR

        colour = OpenEXR.Part({"name": "view"}, {"RGB": np.zeros((*SIZE, 3), np.float32)})
        z = OpenEXR.Part({"name": "depth"}, {"Z": depth.astype(np.float32)})
        OpenEXR.File([colour, z]).write(str(path))

    return [
        Case("room.png", "a photograph", "depth", "{}", image(photograph()), "photograph"),
        Case("room.npy", "metres", "depth", "{}", array(depth), near, doubted=True),
        Case("said.npy", "metres, said to be depth", "depth", "depth:{}", array(depth), near),
        Case("holes.npy", "zero, NaN and infinity", "depth", "depth:{}", array(holed()), 1 / known),
        Case("midas.png", "16 bits as MiDaS writes them", "depth", "{}",
             image(stretched(near, 65535)), "depth as often as its inverse"),
        Case("inverse.png", "the same, said to be inverse", "depth", "inverse:{}",
             image(stretched(near, 65535)), near),
        Case("control.png", "8 bits as ControlNet takes them", "depth", "{}",
             image(stretched(near, 255), "RGB"), "photograph", doubted=True),
        Case("control-said.png", "the same, said to be disparity", "depth", "disparity:{}",
             image(stretched(near, 255), "RGB"), near),
        Case("control.jpg", "the same as JPEG", "depth", "disparity:{}",
             image(stretched(near, 255), quality=98), near),
        Case("unit.npy", "floats stretched to 0 and 1", "depth", "{}", array(unit),
             "depth as often as its inverse"),
        Case("unit-said.npy", "the same, said to be inverse", "depth", "inverse:{}", array(unit),
             near),
        Case("below.npy", "depth with numbers below zero", "depth", "depth:{}", array(depth - 3),
             1 / np.where(depth > 3, depth - 3, np.nan), doubted=True),
        Case("far.png", "8 bits, far is white", "depth", "depth:{}",
             image(stretched(depth, 255)), -depth),
        Case("grey-photo.png", "a grey photograph, said to be one", "depth", "photo:{}",
             image(photograph(), "L"), "photograph", doubted=True),
        Case("stereo.pfm", "PFM, infinite where unknown", "depth", "disparity:{}",
             content(pfm(disparity)), 1 / known),
        Case("guess.pfm", "PFM of no kind", "depth", "{}", content(pfm(disparity)),
             "depth as often as its inverse"),
        Case("stereo.npz", ".npz", "depth", "disparity:{}", array(disparity), 1 / known),
        Case("blender.exr", "OpenEXR, 1e10 for the sky", "depth", "depth:{}",
             exr({"Z": np.where(holes(), 1e10, depth)}), 1 / known, needs="OpenEXR"),
        Case("inferno.png", "colours for people", "depth", "depth:{}", image(colours),
             "a map has one number a pixel"),
        Case("turned.tiff", "floats with an EXIF orientation", "depth", "depth:{}",
             image(sideways, exif=turned), near),
        Case("kinect.png", "16 bits, millimetres", "metres", "{}",
             image(millimetres.astype(np.uint16)), depth, doubted=True),
        Case("mm.png", "the same, said to be so", "metres", "depth,unit=mm:{}",
             image(millimetres.astype(np.uint16)), depth),
        Case("kitti.png", "KITTI, 256 a metre, 0 unknown", "metres", "depth,unit=kitti:{}",
             image((np.nan_to_num(known) * 256).round().astype(np.uint16)), known),
        Case("tum.png", "TUM RGB-D, 5000 a metre", "metres", "depth,unit=tum:{}",
             image((depth * 5000).round().astype(np.uint16)), depth),
        Case("mm.npy", "whole millimetres", "metres", "depth:{}", array(millimetres.astype(int)),
             depth, doubted=True),
        Case("mm.pgm", "PGM of 13 bits, millimetres", "metres", "depth,unit=mm:{}",
             content(pgm(millimetres.astype(int), 8191)), depth),
        Case("mm.tiff", "millimetres in floats", "metres", "depth:{}",
             image((depth * 1000 + 0.25).astype(np.float32)), "does not say its unit"),
        Case("unit-metres.npy", "floats stretched to 0 and 1", "metres", "depth:{}", array(unit),
             "does not say its unit"),
        Case("metres.npy", "metres", "metres", "depth:{}", array(depth), depth),
        Case("pixels.npy", "disparity with its camera", "metres",
             "disparity,focal=500,baseline=0.2:{}", array(100 / depth), depth),
        Case("pixels-only.npy", "disparity without its camera", "metres", "disparity:{}",
             array(100 / depth), "compares metres"),
        Case("one-over.npy", "1 / metres", "metres", "inverse,unit=m:{}", array(near), depth),
        Case("laser.png", "KITTI's laser: one pixel of sixteen is known", "depth", "depth:{}",
             image(laser), 1 / slope, doubted=True),
        Case("average.npy", "Marigold: the mean of estimates in [0, 1]", "depth", "{}",
             array(average), "depth as often as its inverse"),
        Case("average-said.npy", "the same, said to be depth", "depth", "depth:{}",
             array(average), -average),
        Case("average-metres.npy", "the same, for metres", "metres", "depth:{}", array(average),
             "does not say its unit"),
        Case("cm.png", "centimetres, 65535 for the sky, 0 unknown", "metres", "depth,unit=cm:{}",
             image(np.where(disc(), 65535, np.nan_to_num(100 * known)).astype(np.uint16)),
             np.where(disc(), np.nan, np.floor(100 * known) / 100)),
        Case("camera.npy", "a baseline in millimetres", "metres",
             "disparity,focal=500,baseline=200:{}", array(100 / depth), "away with this camera"),
        Case("inverse-mm.npy", "1 / metres with a unit that it does not have", "metres",
             "inverse,unit=mm:{}", array(1 / depth), "inverse depth in 1 / (mm)", doubted=True),
        Case("marker.npy", "99999 where nothing is known", "metres", "depth:{}",
             array(np.where(holes(), 99999, depth)), "depth in metres", doubted=True),
        Case("geo.tif", "a GeoTIFF that says 32767 is where nothing is known", "metres", "depth:{}",
             image(np.where(holes(), 32767, depth).astype(np.float32), tiffinfo={0xA481: "32767"}),
             known),
        Case("single.npy", "7.77 where nothing is known, in 32 bits", "metres",
             "depth,holes=7.77:{}",
             array(np.where(holes(), 7.77, depth).astype(np.float32)), known),
        Case("border.npy", "known in its middle alone", "depth", "depth:{}",
             array(np.where(border, 0, depth)), np.where(border, np.nan, near)),
        Case("plain.npy", "the same depth everywhere", "depth", "depth:{}",
             array(np.full(SIZE, 3.0)), "depth (larger is farther)", doubted=True),
        Case("plain-middle.npy", "the same depth wherever it is compared", "depth", "depth:{}",
             array(np.pad(np.full(SIZE, 3.0), ((0, 0), (64, 64)), "linear_ramp", end_values=9)),
             "depth (larger is farther)", doubted=True),
        Case("point.npy", "known at one pixel", "depth", "depth:{}",
             array(np.where(np.arange(4096).reshape(SIZE) == 2080, 3.0, 0)),
             "depth (larger is farther)", doubted=True),
        Case("painted.png", "a colour map, for people", "depth", "{}",
             image(ramp.round().astype(np.uint8)), "photograph", doubted=True),
        Case("packed.png", "24 bits in three channels, as CARLA saves depth", "depth", "{}",
             image(bytes_), "numbers in several bytes"),
        Case("control.webp", "ControlNet's map with loss", "depth", "disparity:{}",
             image(stretched(near, 255), "RGB", quality=90), near),
        Case("control-guess.webp", "the same, of no kind", "depth", "{}",
             image(stretched(near, 255), "RGB", quality=90), "photograph", doubted=True),
        Case("parts.exr", "OpenEXR of several parts", "depth", "depth,key=depth.Z:{}", parts, near,
             needs="OpenEXR"),
        Case("pair.npy", "two maps in one array", "depth", "{}", array(np.stack([depth] * 2)),
             "one number a pixel"),
        Case("rgbd.png", "a photograph, its depth in the alpha channel", "depth", "{}",
             image(np.dstack([photograph(), stretched(depth, 255).clip(1, 254)])),
             "photograph from 'rgbd.png'", doubted=True),
        Case("alley.dpt", "Sintel's own format", "depth", "{}", content(b"PIEH" + bytes(64)),
             "it is optical flow or depth"),
        Case("depth.pt", "torch.save of a tensor", "depth", "{}",
             lambda path: torch.save(torch.from_numpy(depth), path), "what torch.save writes"),
    ]  # fmt: skip


def _photographs() -> list[Case]:
    photo = photograph()
    sideways = Image.Exif()
    sideways[0x0112] = 6

    def animated(path: Path) -> None:
        frames = [Image.fromarray(photo), Image.new("RGB", SIZE)]
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)

    def turned(path: Path) -> None:
        made = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90)
        made.save(path, quality=100, subsampling=0, exif=sideways)

    rule = Image.Exif()
    rule.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 65535
    rule.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: "R03"}
    half = np.dstack([photo, np.where(disc(), 0, 255).astype(np.uint8)])
    linear = (photo / 255.0) ** 2.2
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    return [
        Case("p3.png", "Display P3 (an ICC profile)", "photo", "{}",
             image(photo, icc_profile=icc(P3, 2.2, "P3 at gamma 2.2")), in_srgb(photo, P3, 2.2)),
        Case("adobe.jpg", "Adobe RGB (an ICC profile)", "photo", "{}",
             image(photo, quality=100, subsampling=0, icc_profile=icc(ADOBE, 2.2, "Adobe at 2.2")),
             in_srgb(photo, ADOBE, 2.2)),
        Case("srgb.png", "sRGB (an ICC profile)", "photo", "{}",
             image(photo, icc_profile=ImageCms.ImageCmsProfile(
                 ImageCms.createProfile("sRGB")).tobytes()), photo),
        Case("bad-icc.png", "an ICC profile that is none", "photo", "{}",
             image(photo, icc_profile=b"nothing"), photo, doubted=True),
        Case("deep.png", "16-bit grey", "photo", "{}", image(grey.astype(np.uint16) * 257),
             np.repeat(grey[..., None], 3, 2)),
        Case("turned.jpg", "EXIF: turned by a quarter", "photo", "{}", turned, photo),
        Case("rational.jpg", "EXIF with a rational that cannot be", "photo", "{}", broken_exif,
             photo),
        Case("clear.png", "transparent in part", "photo", "{}", image(half),
             np.where(disc()[..., None], 255, photo)),
        Case("film.webp", "an animation", "photo", "{}", animated, photo),
        Case("phone.heic", "HEIC", "photo", "{}", heic, photo, needs="pillow_heif"),
        Case("web.avif", "AVIF", "photo", "{}", image(photo, quality=100, subsampling="4:4:4"),
             photo),
        Case("light.exr", "OpenEXR in linear light", "photo", "photo:{}",
             exr({"RGB": linear}), curve * 255, needs="OpenEXR"),
        Case("photo.npy", "uint8 [h, w, 3]", "photo", "{}", array(photo), photo),
        Case("grey-gamma.png", "16-bit grey, its profile has a gamma of 1.8", "photo", "{}",
             image(grey.astype(np.uint16) * 257, icc_profile=grey_icc(1.8)),
             np.repeat(in_srgb(np.repeat(grey[..., None], 3, 2), SRGB, 1.8)[..., :1], 3, 2)),
        Case("hdr.avif", "BT.2020 and PQ, by numbers alone", "photo", "{}", hdr,
             "photograph from 'hdr.avif' (AVIF), RGB, taken for sRGB", doubted=True),
        Case("camera.jpg", "Adobe RGB in a camera's EXIF, without a profile", "photo", "{}",
             image(photo, quality=100, subsampling=0, exif=rule),
             "photograph from 'camera.jpg' (JPEG), RGB, taken for sRGB", doubted=True),
        Case("numbers.png", "numbers of classes where a photograph is wanted", "photo", "{}",
             image(segments()), "photograph", doubted=True),
        Case("blank.png", "one colour", "photo", "{}", image(np.full_like(photo, 77)),
             np.full_like(photo, 77), doubted=True),
        Case("linear.png", "PNG that names a gamma of 1", "photo", "{}",
             content(with_chunk(photo, b"gAMA", struct.pack(">I", 100000))),
             "photograph from 'linear.png' (PNG), RGB, taken for sRGB", doubted=True),
        Case("white-is-zero.tif", "16-bit TIFF in which white is 0", "photo", "{}",
             content(tiff(65535 - grey.astype("<u2") * 257, 0)), np.repeat(grey[..., None], 3, 2)),
        Case("raw.nef", "a camera's raw file: a TIFF that begins with a preview", "photo", "{}",
             content(tiff(grey, 1, 1)), "begins with a preview"),
        Case("dark.png", "12 bits in 16", "photo", "{}", image(grey.astype(np.uint16) * 16),
             "photograph", doubted=True),
        Case("dark-colours.png", "12 bits in 16, in three channels", "photo", "{}",
             content(png(photo.astype(np.uint16) * 16, 16, 2)), "photograph", doubted=True),
        Case("gone.png", "transparent everywhere", "photo", "{}",
             image(np.dstack([photo, 0 * grey])), np.full((*SIZE, 3), 255), doubted=True),
        Case("ink.jpg", "CMYK without a profile", "photo", "{}",
             image(photo, "CMYK", quality=100), photo, doubted=True),
        Case("below-zero.tif", "floats from -1 to 1", "photo", "{}",
             image((grey / 127.5 - 1).astype(np.float32)), "numbers below zero"),
    ]  # fmt: skip


def _refused() -> list[Case]:
    buffer = io.BytesIO()
    Image.fromarray(photograph()).save(buffer, "EPS")
    bomb = png(np.zeros((1, 1)), 8).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000), 1
    )
    fixed = bytearray(bomb)
    fixed[29:33] = struct.pack(">I", zlib.crc32(bytes(fixed[12:29])))
    return [
        Case("eps.png", "PostScript under another name", "photo", "{}", content(buffer.getvalue()),
             "it is PostScript"),
        Case("book.pdf", "a PDF", "depth", "{}", content(b"%PDF-1.7\n"), "it is a PDF"),
        Case("drawing.svg", "an SVG", "photo", "{}", content(b"<svg xmlns=''/>"), "it is an SVG"),
        Case("zero", "a device that never ends", "depth", "depth:{}",
             lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        Case("pipe.png", "a pipe", "photo", "{}", os.mkfifo, "not a regular file"),
        Case("bomb.png", "a small file of 3600 megapixels", "shapes", "{}", content(bytes(fixed)),
             "more than 150 megapixels"),
        Case("objects.npy", "pickled objects", "depth", "{}",
             lambda path: np.save(path, np.array([[{}]], object), allow_pickle=True),
             "not a readable .npy array"),
        Case("cut.png", "a download that broke off", "photo", "{}",
             content(png(np.zeros((64, 64)), 8)[:60]), "damaged or cut short"),
    ]  # fmt: skip


def cases() -> list[Case]:
    """All of them."""
    return [*_labels(), *_masks(), *_depths(), *_photographs(), *_refused()]


# Reading


@dataclass(frozen=True)
class Answer:
    """What came of a case.

    Attributes:
        said: what was understood, or the error.
        doubts: that were told.
        wrong: how it differs from what was wanted; "" if it does not.
    """

    said: str
    doubts: tuple[str, ...]
    wrong: str


def answer(case: Case) -> Answer:
    """Writes a case into the working folder and reads it."""
    path = Path(case.file)
    case.write(path)
    reader, text = guide(case.reader), case.target.format(case.file)
    try:
        target = reader.read_target(text, SIZE)
    except TargetError as error:
        wanted = case.wanted if isinstance(case.wanted, str) else None
        fine = wanted is not None and wanted in error.message and bool(error.remedy)
        return Answer(f"Error: {error.message}", (), "" if fine else "an error")
    wrong = _differs(case, target.value.double().cpu().numpy()[0], target.understood)
    if bool(target.doubts) != case.doubted:
        wrong = wrong or ("no doubt" if case.doubted else f"a doubt: {target.doubts}")
    return Answer(target.understood, tuple(target.doubts), wrong)


def _differs(case: Case, value: Array, understood: str) -> str:
    wanted = case.wanted
    if isinstance(wanted, str):
        return "" if understood.startswith(wanted) else f"not {wanted!r}"
    if "mask with" in understood:
        channel = value[list(guide(case.reader).labels).index("cone")]  # type: ignore[attr-defined]
        return _apart(channel, wanted, 0.04)
    if case.reader in ("photo", "hole"):
        lossy = case.file.endswith((".jpg", ".avif", ".heic"))
        shown = (value.transpose(1, 2, 0) + 1) * 127.5
        return _apart(shown, wanted, 16 if lossy else 2, mean=1.5 if lossy else 0.6)
    if case.reader == "metres":
        return _apart(value, wanted, 0.005)
    if case.reader == "depth":
        return _apart(_standard(value), _standard(np.asarray(wanted)), 0.1, mean=0.02)
    found = np.where((value == APART).all(axis=0), OPEN, value.argmax(axis=0))
    return "" if (found == wanted).all() else f"{(found != wanted).mean():.0%} of the pixels differ"


def _standard(values: Array) -> Array:
    """With mean 0 and deviation 1, in which networks of relative depth compare maps."""
    return np.asarray((values - np.nanmean(values)) / np.nanstd(values))


def _apart(found: Array, wanted: Array, most: float, mean: float | None = None) -> str:
    if (np.isnan(found) != np.isnan(wanted)).any():
        return "other pixels are holes"
    apart = np.abs(found - wanted)
    if np.nanmax(apart) > most or (mean is not None and np.nanmean(apart) > mean):
        return f"by {np.nanmax(apart):.3g} at most, {np.nanmean(apart):.3g} on average"
    return ""


def main() -> None:
    """Reads all cases and writes what was understood."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for case in cases():
            found = answer(case)
            rows.append({
                "file": case.file, "about": case.about, "reader": case.reader,
                "target": case.target.format(case.file), "said": found.said,
                "doubted": bool(found.doubts), "wrong": found.wrong,
            })  # fmt: skip
            print(case.file, "|", found.said, "|", found.doubts, "|", found.wrong or "right")
        os.chdir("/")
    RESULTS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
