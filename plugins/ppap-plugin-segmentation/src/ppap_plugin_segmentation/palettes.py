"""The colours that data sets and people give to classes.

A :class:`Palette` says which class a colour stands for. Published ones are known by name; any other
is read from a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppap_host.files.errors import TargetError
from ppap_host.files.reading import Document, read_text
from ppap_host.guides.labels import Labels, plain

Colour = tuple[int, int, int]

OPEN = -1
"""In place of a class: the colour says that nothing is compared."""

_BYTES = 1 << 20  # of a palette's file
_ROW = "Write a row for each class, such as 128 64 128 road."
_JSON = Document("palette in JSON", TargetError, _ROW, _BYTES)

NOTHING = ("unlabeled", "unlabelled", "void", "ignore", "ignored", "unknown", "other", "none")
"""What people call pixels that are no class."""


@dataclass(frozen=True)
class Palette:
    """Colours and what they stand for.

    Attributes:
        name: of the palette, or of its file.
        entries: (colour, name of the class or "", its number, :data:`OPEN` for none). A colour may
            stand for several classes, and then cannot tell them apart.
        count: classes of the data set; 0 if that is not known.
        landmarks: some classes by number, to notice a network with others.
    """

    name: str
    entries: tuple[tuple[Colour, str, int], ...]
    count: int = 0
    landmarks: Mapping[int, str] = field(default_factory=dict)

    def classes(self, labels: Sequence[str]) -> tuple[dict[Colour, int | str | None], bool]:
        """The class of a network that each colour stands for, and whether names have told it.

        A colour that may be several classes has None, one of a name that the network does not know
        that name. Without names on both sides, numbers tell.

        Raises:
            TargetError: the network has other classes.
        """
        named = all(name for _, name, number in self.entries if number != OPEN)
        by_name = named and not _numbered(labels)
        if not by_name:
            self._check_numbers(labels)
        found: dict[Colour, int | str | None] = {}
        for colour, name, number in self.entries:
            index: int | str | None = number
            if by_name and number != OPEN:
                called = Labels(labels).matches(name)
                index = name if not called else called[0] if len(called) == 1 else None
            if colour not in found or found[colour] == OPEN:
                found[colour] = index
            elif index != OPEN and found[colour] != index:
                found[colour] = None
        if by_name and not any(isinstance(i, int) and i != OPEN for i in found.values()):
            raise self._other(labels)
        return found, by_name

    def fits(self, labels: Sequence[str]) -> bool:
        """Whether a network has the classes of this data set."""
        if len(labels) != self.count:
            return False
        return _numbered(labels) or any(
            plain(name) in plain(labels[number]) for number, name in self.landmarks.items()
        )

    def _check_numbers(self, labels: Sequence[str]) -> None:
        if self.count and len(labels) == self.count and not self.fits(labels):
            raise self._other(labels)

    def _other(self, labels: Sequence[str]) -> TargetError:
        return TargetError(
            f"The palette {self.name!r} is of other classes than the network's, which are "
            f"{', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''}.",
            remedy="Use a network of that data set, or give palette=FILE with the network's names.",
        )


def _numbered(labels: Sequence[str]) -> bool:
    """Whether classes have no names but LABEL_3 or class 3."""
    return all(re.fullmatch(r"(label|class)[ _]\d+", label.lower()) for label in labels)


# Published palettes


def bit_shuffled(index: int) -> Colour:
    """The colour of a class in the palette of PASCAL VOC: its bits, by threes, from the top."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


# The label definition of Cityscapes (Cordts et al., 2016): name, train id (-1: not evaluated),
# colour; the ids count from 0.
_CITYSCAPES = """
unlabeled -1 000000, ego vehicle -1 000000, rectification border -1 000000, out of roi -1 000000,
static -1 000000, dynamic -1 6f4a00, ground -1 510051, road 0 804080, sidewalk 1 f423e8,
parking -1 faaaa0, rail track -1 e6968c, building 2 464646, wall 3 66669c, fence 4 be9999,
guard rail -1 b4a5b4, bridge -1 966464, tunnel -1 96785a, pole 5 999999, polegroup -1 999999,
traffic light 6 faaa1e, traffic sign 7 dcdc00, vegetation 8 6b8e23, terrain 9 98fb98, sky 10 4682b4,
person 11 dc143c, rider 12 ff0000, car 13 00008e, truck 14 000046, bus 15 003c64,
caravan -1 00005a, trailer -1 00006e, train 16 005064, motorcycle 17 0000e6, bicycle 18 770b20
"""
# The 150 classes of the scene parsing benchmark of ADE20K (Zhou et al., 2017).
_ADE20K = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
# The 80 things and 53 kinds of stuff of COCO's panoptic segmentation (Kirillov et al., 2019).
_COCO = """
dc143c 770b20 00008e 0000e6 6a00e4 003c64 005064 000046 0000c0 faaa1e 64aa1e dcdc00 af74af
fa001e a52a2a ff4dff 00e2fc b6b6ff 005200 78a69d 6e4c00 ae39ff c76400 480076 ffb3f0 007d5c
d10097 bcd0b6 00dcb0 ff63a4 5c0049 8581ff 4eb4ff 00e400 aefff3 2d59ff 868667 9194ae ffd0ba
c5e2ff ab8601 6d3f36 cf8aff 97005f 09503d 546933 4a4169 a6c466 d0c3d2 ff6d41 008f95 b300c2
d1636a 057900 e3ffcd 93bad0 994501 035fa1 a3ff00 7700aa 00b6c7 00a578 b78258 5f2000 827287
6e8185 a64a76 db8eb9 4fd272 b25a3e 41460f 7fa773 3b696a 8e6c2d c4ac00 5f3650 804cff c93901
f6007a bfa2d0 ffff80 93d3cb 966464 a8abac 9270c6 d2aa64 5c8859 da58b8 f18100 d911ff 7c4ab5
464646 ffe4ff 9ad000 c1005c 4c5b71 ffb4c3 6a9ab0 e6968c 3c8fff 804080 5c5237 fed47c 494dae
ffa062 ffffff 68546d a9a483 e1c7ff 89364a 879edf 07f6e7 6bffc8 3a2995 b7798e ff4961 6b8e23
be9999 928b8d 4682b4 86c79c d1e28c 60246c 606060 40aa40 98fb98 d0e5e4 cebaab 98a140 747000
00728f 66669c fa8dff
"""


def _colour(text: str) -> Colour:
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _listed(text: str) -> tuple[tuple[Colour, str, int], ...]:
    rows = [(_colour(part), "", index) for index, part in enumerate(text.split())]
    # Neither set has a black class; black is where nobody has drawn.
    return (*rows, ((0, 0, 0), "", OPEN))


CITYSCAPES_IDS: tuple[tuple[str, int, Colour], ...] = tuple(
    (words[0], int(words[1]), _colour(words[2]))
    for words in (row.strip().rsplit(" ", 2) for row in _CITYSCAPES.split(","))
)
"""(name, train id or -1, colour) of each label id of Cityscapes, which count from 0."""

CITYSCAPES_NAMES = tuple(name for name, train, _ in CITYSCAPES_IDS if train >= 0)
"""The 19 classes that are evaluated, in the order of their train ids."""

PALETTES: Mapping[str, Palette] = {
    "voc": Palette(
        "voc",
        tuple((bit_shuffled(i), "", i if i < 255 else OPEN) for i in range(256)),
        21,
        {7: "car", 15: "person"},
    ),
    "cityscapes": Palette(
        "cityscapes",
        tuple((colour, name, train) for name, train, colour in CITYSCAPES_IDS),
        19,
        dict(enumerate(CITYSCAPES_NAMES)),
    ),
    "ade20k": Palette("ade20k", _listed(_ADE20K), 150, {0: "wall", 2: "sky", 12: "person"}),
    "coco": Palette("coco", _listed(_COCO), 133, {0: "person", 1: "bicycle", 79: "toothbrush"}),
}
"""Palettes that are known by name."""


# Palettes of one's own


def palette_named(text: str, path: Path) -> Palette:
    """A published palette, or that of a file.

    A file is JSON ([[r, g, b], ...], {"name": [r, g, b], ...} or rows with keys "name" or "label"
    and "color"), or a table with a row a class: ``r g b``, ``r g b name``, ``name r g b``,
    ``index r g b`` or ``#rrggbb name``, separated by blanks, commas or tabs, as GIMP's ``.gpl``
    and CamVid's ``class_dict.csv`` have them. Without an index, rows count from 0. Classes called
    void, unlabeled, ignore and the like are left open.

    Raises:
        TargetError: there is no such palette, or the file cannot be understood.
    """
    if text in PALETTES:
        return PALETTES[text]
    named = f"Known are {', '.join(PALETTES)}; any other is given as the path of a file."
    content = read_text(path, TargetError, named, _BYTES)
    try:
        is_json = path.suffix.lower() == ".json"
        rows = _from_json(_JSON.values(content, str(path))) if is_json else _rows(content)
    except (ValueError, TypeError, KeyError) as error:
        raise TargetError(
            f"The palette {str(path)!r} cannot be understood ({error}).",
            remedy=_ROW,
        ) from None
    if not rows:
        raise TargetError(
            f"The palette {str(path)!r} has no colours.",
            remedy=_ROW,
        )
    return Palette(path.name, tuple(rows))


def _entry(colour: Sequence[Any], name: str, index: int) -> tuple[Colour, str, int]:
    r, g, b = (int(c) for c in colour[:3])
    if not all(0 <= c <= 255 for c in (r, g, b)):
        raise ValueError(f"the colour {r}, {g}, {b} is not from 0 to 255")
    number = OPEN if any(word in NOTHING for word in plain(name).split()[:1]) else index
    return (r, g, b), name, number


def _from_json(content: Any) -> list[tuple[Colour, str, int]]:
    if isinstance(content, dict):
        content = [{"name": name, "color": colour} for name, colour in content.items()]
    rows = []
    for index, row in enumerate(content):
        name, colour = "", row
        if isinstance(row, dict):
            name = str(row.get("name", row.get("label", row.get("class", ""))))
            colour = next((row[key] for key in ("color", "colour", "rgb") if key in row), ())
        if any(type(c) is not int for c in colour):
            raise ValueError(f"the colour {str(colour)[:60]} is not of whole numbers")
        rows.append(_entry(colour, name, index))
    return rows


# Linear in the length of any row: nothing is tried twice.
_BETWEEN = r"[\s,;]++"
_NUMBERS_FIRST = re.compile(
    rf"(?:(\d++){_BETWEEN})?(\d++){_BETWEEN}(\d++){_BETWEEN}(\d++)(?:{_BETWEEN}(\D.*))?"
)
_NAME_FIRST = re.compile(rf"(\D(?:.*?[^\s,;])?){_BETWEEN}(\d++){_BETWEEN}(\d++){_BETWEEN}(\d++)")


def _rows(content: str) -> list[tuple[Colour, str, int]]:
    rows: list[tuple[Colour, str, int]] = []
    for text in content.splitlines():
        line = text.strip().strip(",;")
        code = re.search(r"#([0-9a-fA-F]{6})\b", line)
        if code is not None:
            name = (line[: code.start()] + line[code.end() :]).strip(" ,;:\t\"'")
            rows.append(_entry(_colour(code[1]), name, len(rows)))
        elif first := _NUMBERS_FIRST.fullmatch(line):
            index = len(rows) if first[1] is None else int(first[1])
            rows.append(_entry(first.group(2, 3, 4), (first[5] or "").strip("\"' "), index))
        elif last := _NAME_FIRST.fullmatch(line):
            rows.append(_entry(last.group(2, 3, 4), last[1].strip("\"' "), len(rows)))
        elif rows and line and not line.startswith("#"):
            raise ValueError(f"the row {line[:60]!r} has no colour of three numbers")
    return rows
