"""Label maps as people have them: indices of any kind, and colours that stand for classes.

The same numbers mean different classes to different tools, and the same file may be a photograph or
a map. What is read is said; what nearly fits is an error; what cannot be told is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from ppap_host.files.decoding import Decoded, has_alpha
from ppap_host.files.errors import TargetError, foreign
from ppap_host.guides.labels import Labels, plain
from ppap_host.guides.targets import Given, Reading, fit_numbers, how_fitted, origin
from ppap_plugin_segmentation.palettes import (
    CITYSCAPES_IDS,
    CITYSCAPES_NAMES,
    NOTHING,
    OPEN,
    PALETTES,
    Colour,
    Palette,
    bit_shuffled,
    palette_named,
)

SETTINGS = ("palette", "ids", "reduce", "ignore", "by", "key")
"""What may be said of a label map before its colon."""

_IGNORED = (255, 65535)
_BACKGROUND = [[name] for name in ("background", *NOTHING)]
_SAMPLE = 1024
_COCO = {80: 90, 133: 200, 171: 182}
"""The highest id of COCO's things, of its panoptic classes and of COCO-Stuff, by their number."""


@dataclass(frozen=True)
class Conventions:
    """What a network and its preprocessing say of label maps.

    Attributes:
        names: of its classes.
        reduced: whether annotations count from 1 and 0 is left out, as processors with
            ``do_reduce_labels`` read them.
        ignored: further numbers that are not compared.
        sure: whether maps of its classes can only count as it does.
    """

    names: tuple[str, ...]
    reduced: bool = False
    ignored: tuple[int, ...] = ()
    sure: bool = False

    @property
    def is_cityscapes(self) -> bool:
        """Whether its classes are the 19 of Cityscapes, in their order."""
        known = [plain(name) for name in CITYSCAPES_NAMES]
        return [plain(name) for name in self.names] == known


@dataclass(frozen=True, eq=False)
class LabelMap(Reading):
    """The class of each pixel.

    Attributes:
        indices: -1 where nothing is compared.
    """

    indices: Int[Tensor, "1 h w"]


def read_labels(
    given: Given, size: tuple[int, int], conventions: Conventions
) -> tuple[LabelMap | None, tuple[str, ...]]:
    """A label map; None, with doubts, for a photograph, if the target does not say what it is.

    Read are indices, in any format that keeps numbers as they are (one channel, three equal ones,
    a palette, 1 to 32 bits), and colours by a palette. Numbers are classes of the network, or
    annotations where its processor has ``do_reduce_labels``. 255, 65535, numbers below zero, what
    the network ignores and what is transparent are not compared.

    Settings: ``palette`` (one of :data:`~ppap_plugin_segmentation.palettes.PALETTES` or a file);
    ``ids=cityscapes`` for label ids, ``ids=train`` for numbers of classes; ``reduce`` (yes, no);
    ``ignore``, further numbers, with ``+`` between them; ``by`` (``index``, ``colour``), which
    counts in a file with a palette; ``key``.

    Args:
        size: (height, width) to crop (centred, aspect ratio kept) and resize to, without mixing
            neighbours.

    Raises:
        TargetError: it cannot be read; holds an index or a colour that is no class, a fraction, or
            nothing to compare; is a black and white mask, which says nothing of the class it is
            meant for; or may be a label map or a photograph.
    """
    given.expect(("labels",), SETTINGS)
    decoded = given.decoded()
    reader = _Reader(given, decoded, conventions)
    found = reader.read()
    if found is None:
        return None, reader.doubts
    indices, how, doubts = found
    count = len(conventions.names)
    open_ = indices == OPEN
    fitted = fit_numbers(indices.astype(np.float32), size, Resampling.NEAREST)
    if (fitted == OPEN).all():
        where = "" if open_.all() else f" in its middle, which is resized to {size[1]} x {size[0]}"
        raise TargetError(
            f"The label map {given.text!r} holds nothing to compare{where}: all of it is ignored.",
            remedy=f"Use indices from 0 ({foreign(conventions.names[0])}) to {count - 1} "
            f"({foreign(conventions.names[-1])}).",
        )
    there = len(np.unique(indices[~open_]))
    words = [f"label map from {origin(given, decoded)}", *decoded.notes, how]
    words.append(f"{there} of {count} classes in it")
    if open_.any():
        share = 100 * float(open_.mean())
        words.append(f"{share:.0f} % open" if share >= 0.5 else f"{share:.2g} % open")
    understood = "; ".join([", ".join(words), how_fitted(decoded.original, size)])
    tensor = torch.from_numpy(fitted.astype(np.int64))[None]
    files = given.files
    if reader.palette_file:
        files = (*files, given.setting_path("palette"))
    return LabelMap(given, understood, files, tuple(doubts), tensor), ()


Found = tuple[NDArray[np.int64], str, list[str]]
"""Indices with -1 for what is open, in words how they were read, and doubts."""


class _Reader:
    """Reads one map; sides with its head where it has one."""

    def __init__(self, given: Given, decoded: Decoded, conventions: Conventions) -> None:
        self.given, self.decoded, self.conventions = given, decoded, conventions
        self.names, self.count = conventions.names, len(conventions.names)
        self.said = given.kind == "labels"
        self.doubts: tuple[str, ...] = ()  # of a photograph
        self.by = given.choice("by", ("index", "colour"))
        self.palette_file = "palette" in given.settings and (
            given.settings["palette"] not in PALETTES
        )

    def read(self) -> Found | None:
        if self.said and not self.decoded.exact:
            raise TargetError(
                f"{self.decoded.name} is a {self.decoded.format}, which changes numbers and "
                "colours a little, so that classes cannot be told from it.",
                remedy="Save the label map as PNG or .npy.",
            )
        image = self.decoded.image
        clear = _transparent(image)
        if "palette" in self.given.settings:
            palette = palette_named(
                self.given.settings["palette"], self.given.setting_path("palette")
            )
            return self._by_palette(_colours(self.decoded), clear, palette)
        if image is not None and image.mode in ("P", "PA"):
            return self._with_palette(image, clear)
        found = self.decoded.numbers()
        if found is not None:
            if self.decoded.narrowed:
                self.given.numbers()  # says why it cannot be read
            return self._numbers(found[0], clear)
        pixels = self.decoded.pixels
        if isinstance(pixels, np.ndarray) and not _has_colours(pixels):
            colours = pixels.ndim == 3 and {pixels.shape[0], pixels.shape[2]} & {1, 3, 4}
            if self.said or not colours or set(np.unique(pixels)) == {0, 1}:
                self.given.numbers()  # says what is wrong with it
            return None
        return self._coloured(clear)

    # Numbers

    def _numbers(
        self,
        stored: NDArray[Any],
        clear: NDArray[np.bool_] | None,
        colours: NDArray[np.uint8] | None = None,
    ) -> Found | None:
        """Reads indices, which ``colours`` show if they are not as dark as they are low."""
        image = self.decoded.image
        small = stored.dtype.itemsize == 1
        truth = stored.dtype == np.bool_ or (image is not None and image.mode == "1")
        if truth and not self.said:
            raise self._mask()
        if not self.decoded.exact:
            self._refuse_lossy(stored)
            self._doubt_flat(_colours(self.decoded))
            return None
        if stored.dtype.kind == "f":
            stored = np.where(np.isnan(stored), OPEN, stored)
            low, high = float(stored.min()), float(stored.max())
            if not self.said and image is not None and 0 <= low <= high <= 1:
                if not ((stored != 0) & (stored != 1)).any():
                    raise self._mask()
                return None  # a photograph in floats
            if not np.abs([low, high]).max() < 2**24 or (stored != np.round(stored)).any():
                raise self._no_indices(low, high)
        values = stored.astype(np.int64)
        seen = np.unique(values if clear is None else values[~clear])
        if small and set(seen.tolist()) == {0, 255} and self.count <= 255:
            raise self._mask()
        indices, how, doubts, bad = self._classes(values, seen)
        if clear is not None:
            indices = np.where(clear, OPEN, indices)
        looks = "labels" if self.said else _looks(values, colours)
        if bad is None:
            # A photograph of 8 bits is seldom so dark, and one of more bits never.
            as_shown = colours is None and self.decoded.step == 1
            clearly = looks == "labels" or not small or (as_shown and int(indices.max()) < 16)
            if looks == "photo" and not clearly:
                self.doubts = (
                    f"{self.decoded.name} was taken for a photograph, though all of its numbers "
                    f"could be classes. If it is a label map, give {self.given.as_('labels')}.",
                )
                return None
            doubts += self._odd_numbers(values, seen)
            if not clearly:
                doubts.append(
                    f"{self.decoded.name} was taken for a label map, though it is as uneven as "
                    f"some photographs. If it is one, give {self.given.as_('photo')}."
                )
            return indices, how, doubts
        if looks == "photo":
            self._doubt_flat(_colours(self.decoded))
            return None
        raise self._too_high(bad)

    def _odd_numbers(self, values: NDArray[np.int64], seen: NDArray[np.int64]) -> list[str]:
        """What is doubted of numbers that were smoothed, or multiplied to be seen.

        Raises:
            TargetError: they were smoothed, and the target does not say that they are classes.
        """
        doubts = []
        if _is_smoothed(values):
            what = (
                f"{self.decoded.name} has, where two classes meet, mostly numbers between theirs, "
                "as after resizing with smoothing, which makes up classes."
            )
            remedy = "Resize label maps by the nearest neighbour."
            if not self.said:
                raise TargetError(
                    what, remedy=f"{remedy} {self.given.as_('labels')} says that they are meant."
                )
            doubts.append(f"{what} {remedy}")
        kept = seen[(seen > 0) & ~np.isin(seen, sorted(self._ignored()))]
        step = int(np.gcd.reduce(kept, initial=0))
        if len(kept) > 1 and step ** min(len(kept), 10) >= 1000 and not self._counting_is_said:
            doubts.append(
                f"All numbers in {self.decoded.name[0].lower()}{self.decoded.name[1:]} are "
                f"multiples of {step}, as in label maps that were multiplied to be seen. Divide "
                f"them if so; {self.given.as_('labels,ids=train')} says that they are classes."
            )
        return doubts

    @property
    def _counting_is_said(self) -> bool:
        """Whether the target says what its numbers count."""
        return bool(self.given.settings.keys() & {"reduce", "ids"})

    def _classes(
        self, values: NDArray[np.int64], seen: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], str, list[str], int | None]:
        """Classes of numbers, how they were read, doubts, and a number that is no class."""
        ignored = self._ignored()
        open_ = (values < 0) | np.isin(values, sorted(ignored))
        kept = seen[(seen >= 0) & ~np.isin(seen, sorted(ignored))]
        most = int(kept.max(initial=0))
        ids, doubts = self._ids(most, bool(np.isin(seen, sorted(ignored)).any()))
        if ids == "cityscapes":
            table = self._of_cityscapes()
            if most >= 1000:  # an instance has its class times 1000 and a number of its own
                values = np.where(values >= 1000, values // 1000, values)
                most = int(values[~open_].max(initial=0))
            bad = most if most >= len(table) else None
            inside = values.clip(0, len(table) - 1)
            return np.where(open_, OPEN, table[inside]), "label ids of Cityscapes", doubts, bad
        reduced = self.conventions.reduced
        if "reduce" in self.given.settings:
            reduced = self.given.flag("reduce")
        if reduced:
            values, most = values - 1, most - 1
            open_ |= values < 0
        bad = None if most < self.count else most + int(reduced)
        doubts = [*doubts, *self._where_it_begins(seen, ignored, reduced)]
        how = f"indices of classes, 0 is {self.names[0]!r}"
        if reduced:
            how = "annotations from 1 on with 0 left open (do_reduce_labels)"
            how += f", 1 is {self.names[0]!r}"
        return np.where(open_, OPEN, values), how, doubts, bad

    def _where_it_begins(
        self, seen: NDArray[np.int64], ignored: set[int], reduced: bool
    ) -> list[str]:
        """A doubt where numbers fit both ways of counting: classes from 0, and from 1 with 0 open.

        Nothing in such a map tells them apart, but a number that is open marks what 0 would.
        """
        first = plain(self.names[0]).split()[:1]
        if self._counting_is_said or self.conventions.sure or self.conventions.is_cityscapes:
            return []
        if not reduced and self.count in _COCO:
            return [
                f"{self.decoded.name} was taken for numbers of the network's {self.count} classes. "
                f"COCO's own ids have gaps and go up to {_COCO[self.count]}: bring those to "
                f"numbers without gaps first. {self.given.as_('labels,ids=train')} says that it "
                "holds none."
            ]
        if not reduced and first in _BACKGROUND:
            return []
        if reduced:
            if int(seen.max(initial=0)) >= self.count:
                return []
            taken, other = "from 1, as the network's processor does, with 0 open", "from 0"
        else:
            if (seen < 0).any() or np.isin(seen, sorted(ignored)).any():
                return []
            taken, other = f"from 0 ({self.names[0]})", "from 1, with 0 open"
        ways = [self.given.as_(f"labels,reduce={way}") for way in ("no", "yes")]
        if reduced:
            ways.reverse()
        return [
            f"{self.decoded.name} was taken to count classes {taken}, which its numbers do not "
            f"show. If it counts {other}, give {ways[1]}; {ways[0]} says that it does not."
        ]

    def _ignored(self) -> set[int]:
        ignored = {number for number in _IGNORED if number >= self.count}
        # As a processor: what it ignores it ignores, also where there are so many classes.
        ignored |= {
            n for n in self.conventions.ignored if n >= self.count or not self.conventions.reduced
        }
        if self.decoded.nodata is not None and self.decoded.nodata.is_integer():
            ignored.add(int(self.decoded.nodata))
        text = self.given.settings.get("ignore")
        if text is not None:
            try:
                ignored |= {int(part) for part in text.split("+")}
            except ValueError:
                raise self.given.bad_setting(
                    "ignore", "Give whole numbers, as in ignore=0 or ignore=0+254."
                ) from None
        return ignored

    def _ids(self, most: int, has_ignored: bool) -> tuple[str, list[str]]:
        """What numbers count, "train" or "cityscapes", and doubts."""
        ids = self.given.choice("ids", ("train", "cityscapes"))
        if ids is not None or not self.conventions.is_cityscapes:
            return ids or "train", []
        called = self.given.path.name.lower() if self.given.files else ""
        # The first number beyond the train ids is also what some give to what is open.
        named = "labelids" in called or "instanceids" in called
        if len(CITYSCAPES_NAMES) < most < len(CITYSCAPES_IDS) or named:
            return "cityscapes", []
        if has_ignored or "trainids" in called:
            return "train", []
        doubt = (
            f"{self.decoded.name} was taken for train ids of Cityscapes, and could be label ids. "
            f"Say {self.given.as_('labels,ids=train')} or {self.given.as_('labels,ids=cityscapes')}"
            "."
        )
        return "train", [doubt]

    def _of_cityscapes(self) -> NDArray[np.int64]:
        """The network's class of each label id of Cityscapes."""
        found = []
        for name, train, _ in CITYSCAPES_IDS:
            called = Labels(self.names).matches(name)
            index = called[0] if len(called) == 1 else None
            if index is None and train >= 0 and self.count == len(CITYSCAPES_NAMES):
                index = train if PALETTES["cityscapes"].fits(self.names) else None
            found.append(OPEN if index is None else index)
        if all(index == OPEN for index in found):
            raise TargetError(
                "The network has none of the classes of Cityscapes, whose ids the target is said "
                "to hold.",
                remedy=f"It has {self._names(8)}.",
            )
        return np.array(found)

    # Colours

    def _with_palette(self, image: Image.Image, clear: NDArray[np.bool_] | None) -> Found | None:
        """Of a picture with a palette of its own: its indices, or its colours if they are known."""
        indices = np.asarray(image if image.mode == "P" else image.convert("P"), dtype=np.int64)
        if self.by == "index":
            return self._numbers(indices.astype(np.uint8), clear)
        colours = _colours(self.decoded)
        used: dict[int, Colour] = {}
        for index in np.unique(indices):
            r, g, b = colours[indices == index][0]
            used[int(index)] = (int(r), int(g), int(b))
        if self.by == "colour":
            grey = (colours == colours[..., :1]).all()
            return self._numbers(colours[..., 0], clear) if grey else self._coloured(clear)
        known = self._known_palette(set(used.values()))
        if known is not None and len(used) > 1:
            return self._by_palette(colours, clear, known)
        greys = {index: c[0] for index, c in used.items() if len(set(c)) == 1}
        if len(greys) == len(used):
            numbers = self._of_greys(greys, indices, colours)
            same = bool((numbers == colours[..., 0]).all())
            return self._numbers(numbers, clear, None if same else colours)
        if self.said:
            return self._numbers(indices.astype(np.uint8), clear)
        # What a palette shows is smooth in a photograph, whatever the order of its entries.
        looks = _looks(_packed(colours), colours)
        if looks == "photo":
            return None
        if looks is None:
            raise self._either_photo()
        seen = np.unique(indices if clear is None else indices[~clear])
        found, how, doubts, bad = self._classes(indices, seen)
        if bad is not None:
            raise self._too_high(bad)
        return (
            found if clear is None else np.where(clear, OPEN, found),
            f"{how}, of its palette",
            (doubts),
        )

    def _of_greys(
        self, greys: dict[int, int], indices: NDArray[np.int64], colours: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """The numbers of a picture whose palette is grey: its indices or its greys."""
        by_index, by_grey = indices.astype(np.uint8), colours[..., 0]
        if all(index == grey for index, grey in greys.items()) or _is_ramp(greys):
            return by_index
        if max(greys.values()) < 64:  # as dark as numbers are; nobody looks at such a palette
            return by_grey
        fit = [
            self._classes(v, np.unique(v))[3] is None
            for v in (by_index.astype(np.int64), by_grey.astype(np.int64))
        ]
        if all(fit) and not self.said and _looks(_packed(colours), colours) == "photo":
            return by_grey
        if all(fit):
            raise self._either_way()
        return by_index if fit[0] else by_grey

    def _coloured(self, clear: NDArray[np.bool_] | None) -> Found | None:
        """Of a picture with colours and no indices."""
        colours = _colours(self.decoded)
        if not self.decoded.exact:
            self._refuse_lossy_colours(colours)
            self._doubt_flat(colours)
            return None
        seen = _unique_colours(colours, clear)
        if len(seen) > 4096 and not self.said and self.by is None:
            self._doubt_flat(colours)
            return None
        palette = self._known_palette(set(seen))
        if palette is not None and (len(seen) > 1 or self.said):
            return self._by_palette(colours, clear, palette)
        if not self.said and self.by is None:
            looks = _looks(_packed(colours), colours)
            if looks == "photo" or len(seen) == 1:
                self._refuse_lossy_colours(colours)
                self._doubt_flat(colours)
                return None
            if looks is None:
                raise self._either_photo()
        swapped = self._known_palette({(b, g, r) for r, g, b in seen})
        if swapped is not None:
            raise TargetError(
                f"{self.decoded.name} holds the colours of the palette {swapped.name!r} with red "
                "and blue exchanged.",
                remedy="Exchange them: OpenCV writes and reads them as blue, green, red.",
            )
        shown = ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in seen[:4])
        raise TargetError(
            f"{self.decoded.name} looks like a label map in colours ({len(seen)} of them: {shown}"
            f"{', ...' if len(seen) > 4 else ''}), which are those of no palette that fits the "
            f"network's {self.count} classes.",
            remedy=f"Say which palette: {self.given.as_('labels,palette=NAME')}, with "
            f"{', '.join(PALETTES)} or a file; or {self.given.as_('photo')} if it is a photograph.",
        )

    def _known_palette(self, colours: set[Colour]) -> Palette | None:
        """The published palette of the network's classes that has all of these colours."""
        for palette in PALETTES.values():
            known = {colour for colour, _, number in palette.entries if number < palette.count}
            if palette.name == "voc":
                known.add(bit_shuffled(255))
            if palette.fits(self.names) and colours <= known:
                return palette
        return None

    def _by_palette(
        self, colours: NDArray[np.uint8], clear: NDArray[np.bool_] | None, palette: Palette
    ) -> Found:
        classes, by_name = palette.classes(self.names)
        doubts = []
        if not by_name and palette.count not in (0, self.count):
            doubts.append(
                f"The palette {palette.name!r} is of {palette.count} classes and the network has "
                f"{self.count}; colours were taken for the classes of the same number."
            )
        packed = _packed(colours)
        indices = np.full(packed.shape, OPEN, np.int64)
        for colour in _unique_colours(colours, clear):
            shown = "#{:02x}{:02x}{:02x}".format(*colour)
            here = packed == _packed(np.array(colour))
            if colour not in classes:
                raise TargetError(
                    f"{self.decoded.name} holds the colour {shown} ({100 * here.mean():.2g} % of "
                    f"it), which the palette {palette.name!r} does not have.",
                    remedy="Save the map without smoothing and without loss, or use the palette "
                    "that it was painted with.",
                )
            meant = classes[colour]
            if isinstance(meant, str):
                raise TargetError(
                    f"In the palette {palette.name!r} the colour {shown} is {meant!r}, which the "
                    "network does not know.",
                    remedy="Call it as the network does, or 'void' to leave it open; its classes: "
                    f"{self._names(30)}.",
                )
            if meant is None:
                doubts.append(
                    f"In the palette {palette.name!r} the colour {shown} stands for several "
                    "classes; where it is, nothing is compared."
                )
            elif meant >= self.count:
                raise self._too_high(meant)
            indices[here] = OPEN if meant is None else meant
        if clear is not None:
            indices[clear] = OPEN
        return indices, f"colours of the palette {palette.name!r}", doubts

    # Saying what is wrong

    def _refuse_lossy(self, stored: NDArray[Any]) -> None:
        """A label map that was saved with loss is too dark to be a photograph, or could be one."""
        if self.said or int(stored.max()) < min(self.count, 64):
            raise TargetError(
                f"{self.decoded.name} has no pixel brighter than {int(stored.max())} of 255: it "
                f"looks like a label map that was saved as {self.decoded.format}, which changes "
                "numbers.",
                remedy=f"Save it as PNG or .npy; or give {self.given.as_('photo')} if it is a "
                "photograph.",
            )
        # By so much compression changes numbers, but for a few pixels.
        if np.percentile(stored, 99) < self.count + 8:
            self.doubts = (
                f"{self.decoded.name} was taken for a photograph, though all of its greys are "
                f"about numbers of classes. If it is a label map that was saved as "
                f"{self.decoded.format}, save it as PNG; {self.given.as_('photo')} says that it "
                "is none.",
            )

    def _doubt_flat(self, colours: NDArray[np.uint8]) -> None:
        """A few colours without any change in them are a map that was smoothed or compressed."""
        if not self.doubts and _is_flat(colours):
            self.doubts = (
                f"{self.decoded.name} was taken for a photograph, though a few flat colours make "
                "up most of it, as in label maps that were saved with loss or resized with "
                "smoothing. Save such a map anew as PNG, unsmoothed, and give that; "
                f"{self.given.as_('photo')} says that it is a photograph.",
            )

    def _refuse_lossy_colours(self, colours: NDArray[np.uint8]) -> None:
        """Colours near to those of the network's palette, saved with loss, or smoothed."""
        loss = 0 if self.decoded.exact else 12
        step = max(1, max(colours.shape[:2]) // 128)
        some = colours[::step, ::step].reshape(-1, 3).astype(np.int64)
        for palette in PALETTES.values():
            if not palette.fits(self.names):
                continue
            rows = [c for c, _, number in palette.entries if number < max(palette.count, 1)]
            table = np.array(sorted(set(rows)))
            apart = np.abs(some[:, None] - table[None]).max(axis=2)
            near = apart.min(axis=1) <= loss
            found = np.bincount(apart.argmin(axis=1)[near], minlength=len(table)) / len(some)
            if near.mean() > 0.5 and (found > 0.02).sum() > 2:
                how = f"saved as {self.decoded.format}" if loss else "smoothed or resized"
                raise TargetError(
                    f"{self.decoded.name} looks like a label map in the colours of "
                    f"{palette.name!r} that was {how}, which changes colours.",
                    remedy="Resize it by the nearest neighbour, and save it as PNG; or give "
                    f"{self.given.as_('photo')} if it is a photograph.",
                )

    def _names(self, most: int) -> str:
        return ", ".join(map(foreign, self.names[:most])) + ", ..." * (self.count > most)

    def _too_high(self, index: int) -> TargetError:
        more = "and the numbers that are ignored, such as 255"
        hint = ""
        if index == self.count and self.conventions.is_cityscapes:
            hint = f" If it holds label ids, give {self.given.as_('labels,ids=cityscapes')}."
        elif index == self.count and not self.conventions.reduced:
            hint = f" If it counts from 1, give {self.given.as_('labels,reduce=yes')}."
        elif self.count <= index <= _COCO.get(self.count, 0):
            hint = " If it holds COCO's own ids, which have gaps, bring them to numbers without."
        if not self.said:
            hint += f" If it is a photograph, give {self.given.as_('photo')}."
        return TargetError(
            f"The label map {self.given.text!r} holds the index {index}, but the network has "
            f"{self.count} classes.",
            remedy=f"Use indices from 0 ({foreign(self.names[0])}) to {self.count - 1} "
            f"({foreign(self.names[-1])}) {more}, and name others with ignore={index}.{hint}",
        )

    def _no_indices(self, low: float, high: float) -> TargetError:
        return TargetError(
            f"The label map {self.given.text!r} holds values from {low:g} to {high:g} that are no "
            "class indices.",
            remedy="A label map holds whole numbers; save a photograph with 8 bits a channel.",
        )

    def _mask(self) -> TargetError:
        what = self.given.value if isinstance(self.given.value, str) else "..."
        return TargetError(
            f"The target {self.given.text!r} is black and white, a mask of a class it does not "
            "name.",
            remedy="Name the class that white stands for, as in "
            f"{foreign(f'{self.names[-1]}={what} or mask,of={self.names[-1]}:{what}')}.",
        )

    def _either_way(self) -> TargetError:
        return TargetError(
            f"{self.decoded.name} has a palette of greys, and both its indices and its greys could "
            "be classes.",
            remedy=f"Say which: {self.given.as_('labels,by=index')} or "
            f"{self.given.as_('labels,by=colour')}; or {self.given.as_('photo')}.",
        )

    def _either_photo(self) -> TargetError:
        return TargetError(
            f"{self.decoded.name} may be a label map or a photograph with few colours.",
            remedy=f"Say which: {self.given.as_('labels')} or {self.given.as_('photo')}.",
        )


def _has_colours(pixels: NDArray[Any]) -> bool:
    whole = pixels.ndim == 3 and pixels.dtype == np.uint8 and pixels.shape[2] in (3, 4)
    return whole and bool(pixels.max(initial=0) > 1)


def _transparent(image: Image.Image | None) -> NDArray[np.bool_] | None:
    """Where a picture is fully transparent; None if it is nowhere."""
    if image is None or not has_alpha(image):
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() else alpha == 0


def _colours(decoded: Decoded) -> NDArray[np.uint8]:
    """[h, w, 3] as stored, without any colour profile: they are names of classes."""
    if isinstance(decoded.pixels, np.ndarray):
        values = decoded.pixels
        if values.ndim == 2:
            values = np.repeat(values[..., None], 3, axis=2)
        return np.ascontiguousarray(values[..., :3]).astype(np.uint8)
    return np.asarray(decoded.pixels.convert("RGBA").convert("RGB"))


def _packed(colours: NDArray[Any]) -> NDArray[np.int64]:
    """One number for each colour."""
    parts = colours.astype(np.int64)
    return np.asarray((parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2])


def _unique_colours(colours: NDArray[np.uint8], clear: NDArray[np.bool_] | None) -> list[Colour]:
    packed = _packed(colours)
    seen = np.unique(packed if clear is None else packed[~clear])
    return [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in seen[:100_000]]


def _is_flat(colours: NDArray[np.uint8]) -> bool:
    """Whether most of what changes little in a picture has a few colours, each nearly the same.

    So do label maps after lossy compression, which disturbs their borders. What changes little in
    photographs has all shades between its lightest and its darkest.
    """
    if min(colours.shape[:2]) < 3:
        return False
    step = max(1, max(colours.shape[:2]) // 256)
    around = np.lib.stride_tricks.sliding_window_view(colours, (3, 3), (0, 1))[::step, ::step]
    change = np.ptp(around, axis=(3, 4)).max(axis=2)
    calm = change <= 8
    if calm.mean() < 0.25:
        return False
    if (change == 0).mean() > 0.5:  # smoothed, and so many of them that they lie close
        _, counts = np.unique(_packed(around[change == 0][:, :, 1, 1]), return_counts=True)
        if (counts >= 0.01 * calm.size).sum() >= 3:
            return True
    inside = _packed(around[calm][:, :, 1, 1])
    packed, counts = np.unique(inside, return_counts=True)
    there = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    near = kinds = 0
    for _ in range(40):
        apart = np.abs(there - there[counts.argmax()]).max(axis=1)
        same = int(counts[apart <= 3].sum())
        near, kinds = near + same, kinds + (same >= 0.01 * calm.size)
        counts[apart <= 10] = 0
    return kinds >= 3 and near >= 0.75 * len(inside)


def _is_smoothed(values: NDArray[np.int64]) -> bool:
    """Whether a map of pieces has numbers in between wherever two pieces meet.

    At a sharp border a pixel has the lowest or the highest number around it.
    """
    if min(values.shape) < 3:
        return False
    top, left = ((n - min(n, _SAMPLE)) // 2 for n in values.shape)
    part = values[top : top + _SAMPLE, left : left + _SAMPLE]
    around = np.lib.stride_tricks.sliding_window_view(part, (3, 3))
    low, high = around.min(axis=(2, 3)), around.max(axis=(2, 3))
    border = high - low >= 2
    inside = part[1:-1, 1:-1]
    between = (low < inside) & (inside < high) & border
    return bool((low == high).mean() > 0.25 and between.sum() > 0.25 * max(border.sum(), 8))


def _is_ramp(greys: dict[int, int]) -> bool:
    """Whether greys rise evenly with their indices to white, as those of 1, 2 and 4 bits do."""
    return any(
        all(grey == round(index * 255 / (size - 1)) for index, grey in greys.items())
        for size in (2, 4, 16)
    )


def _looks(values: NDArray[np.int64], colours: NDArray[np.uint8] | None) -> str | None:
    """Whether an image looks like a label map ("labels") or a "photo"; None if it is hard to say.

    Label maps are made of pieces: next to a pixel there is nearly always an equal one. Where
    photographs change, they change by little; the numbers of classes do not.

    Args:
        values: what tells pixels apart.
        colours: what they look like, if that is not their number.
    """
    top, left = ((n - min(n, _SAMPLE)) // 2 for n in values.shape)
    part = values[top : top + _SAMPLE, left : left + _SAMPLE]
    shown = (
        part[..., None]
        if colours is None
        else colours[top : top + _SAMPLE, left : left + _SAMPLE].astype(np.int64)
    )
    kinds = len(np.unique(part))
    across, down = part[:, 1:] == part[:, :-1], part[1:] == part[:-1]
    if not across.size + down.size:
        return "labels"
    equal = (across.sum() + down.sum()) / (across.size + down.size)
    alone = np.ones(part.shape, dtype=bool)
    alone[:, 1:] &= ~across
    alone[:, :-1] &= ~across
    alone[1:] &= ~down
    alone[:-1] &= ~down
    changes = np.concatenate([
        np.abs(np.diff(shown, axis=1)).max(axis=2)[~across],
        np.abs(np.diff(shown, axis=0)).max(axis=2)[~down],
    ])  # fmt: skip
    little = 2 if colours is None else 24
    gradual = float((changes <= little).mean()) if changes.size else 0.0
    pieces = alone.mean() <= 0.01 and equal >= (0.6 if kinds <= 100 else 0.9)
    if pieces and colours is not None:
        # Ids in the bytes of colours differ by little, and so do the colours of few-coloured art.
        return "labels" if kinds <= 12 or gradual <= 0.5 else None
    if kinds > 100 or alone.mean() > 0.03 or (kinds > 12 and gradual > 0.5):
        return "photo"
    return "labels" if pieces else None
