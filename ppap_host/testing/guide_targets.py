"""Checks of what goes in as a target and what comes out for people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL.Image import Image
from torch import Tensor

from ppap_host.files.errors import TargetError
from ppap_host.guides.targets import Target
from ppap_host.testing.checks import Fault, Suite, require
from ppap_host.testing.guide_subject import GuideUnderTest

CLAIMS = Suite[GuideUnderTest]()

_NONSENSE = "qzx no such thing 7", "wjk nor such a one 3"


@CLAIMS.claim(
    "target",
    why="One target is compared with all images of a batch, and shown and recorded with the run.",
    remedy="Return Target(text, value, pictures, files) with a value of shape [1, ...] that loss() "
    "takes.",
)
def target(subject: GuideUnderTest) -> None:
    """A target is read: a batch of one that the loss takes, with pictures and files."""
    found: object = subject.read(subject.guide)
    require(isinstance(found, Target), f"read_target() returns a {type(found).__name__}.")
    assert isinstance(found, Target)
    value: object = found.value
    require(isinstance(value, Tensor), f"The value is a {type(value).__name__}.")
    assert isinstance(value, Tensor)
    one = value.ndim >= 1 and len(value) == 1
    require(one, f"The value has the shape {tuple(value.shape)}: no batch of one.")
    require(not value.requires_grad, "The value wants a gradient.", "Detach it.")
    for label, picture in found.pictures.items():
        sound = isinstance(label, str) and isinstance(picture, Image)
        require(sound, f"The picture {label!r} is a {type(picture).__name__}.")
    odd = [file for file in found.files if not isinstance(file, Path)]
    require(not odd, f"files holds {odd[:1]}, no Path.")
    losses = subject.guide.loss(subject.output, value)
    shape = tuple(losses.shape)
    require(shape == (len(subject.x),), f"For this target the loss has the shape {shape}.")
    require(losses.isfinite().all(), f"For this target the loss is {losses.tolist()}.")


@CLAIMS.claim(
    "bad-target",
    why="A target that was mistyped must end the run with a sentence, not with a traceback and not "
    "with images of something else.",
    remedy="Raise ppap_host.files.errors.TargetError with a message and a remedy for what is "
    "missing, unreadable or unknown; ppap_host.files.images.read_rgb does so for pictures.",
)
def bad_target(subject: GuideUnderTest) -> None:
    """What is missing, unreadable or means nothing is refused as a TargetError with a remedy.

    Free text may be understood, but then two texts must not mean the same.
    """
    with TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.png"
        broken.write_bytes(b"no picture at all")
        missing = Path(folder) / "missing" / "picture.png"
        for what, text in (
            ("a picture that does not exist", str(missing)),
            ("a file that is no picture", str(broken)),
            ("a folder", f"{folder}/"),
        ):
            _refuses(subject, what, text)
        read = [_read(subject, "a text without meaning", text) for text in _NONSENSE]
    values = [found for found in read if found is not None]
    if len(values) == 2:
        a, b = (found.value for found in values)
        apart = a.shape != b.shape or not bool((a == b).all())
        require(apart, f"{_NONSENSE[0]!r} and {_NONSENSE[1]!r} are understood as the same target.")


def _refuses(subject: GuideUnderTest, what: str, text: str) -> None:
    found = _read(subject, what, text)
    require(found is None, f"It takes {what} for a target.")


def _read(subject: GuideUnderTest, what: str, text: str) -> Target | None:
    """The target, None where it is refused as it should be."""
    guide = subject.guide
    try:
        return guide.read_target(text, subject.size)
    except TargetError as error:
        require(error.message.strip(), f"For {what} the TargetError says nothing.")
        require(error.remedy.strip(), f"For {what} the TargetError has no remedy.")
        return None
    except Exception as error:
        raise Fault(f"For {what} it raises {type(error).__name__}, no TargetError.") from error


@CLAIMS.claim(
    "pictures",
    why="Contact sheets show beside each image what the guide sees in it.",
    remedy="Return a list with one PIL image for each row of the output.",
)
def pictures(subject: GuideUnderTest) -> None:
    """There is one picture for people an image, also while gradients are recorded.

    Rewards, what sees a few numbers, and what looks at no images may have none.
    """
    output = subject.output.clone().requires_grad_(True)
    found = subject.guide.picture(output)
    require(isinstance(found, list), f"picture() returns a {type(found).__name__}.")
    numbers = not found and (
        subject.guide.rewards or subject.makes != "images" or output[0].numel() < 64
    )
    require(
        numbers or len(found) == len(output),
        f"For {len(output)} images there are {len(found)} pictures.",
    )
    odd = [type(p).__name__ for p in found if not isinstance(p, Image)]
    require(not odd, f"A picture is a {(odd or [''])[0]}.")


@CLAIMS.claim(
    "measures",
    why="Measures go into the record as JSON, one row an image, and into means over many images.",
    remedy="Return {name: values} with tensor.tolist() for the values, one float an image.",
)
def measures(subject: GuideUnderTest) -> None:
    """Measures are lists of floats by name, one number an image."""
    guide = subject.guide
    output = subject.output.clone().requires_grad_(True)
    found = guide.measure(output, subject.target)
    require(isinstance(found, dict) and found, f"measure() returns {found!r:.80}.")
    for name, values in found.items():
        require(isinstance(name, str), f"The name {name!r} is no text.")
        require(isinstance(values, list), f"{name!r} is a {type(values).__name__}, no list.")
        count = len(values)
        require(count == len(output), f"{name!r} has {count} numbers for {len(output)} images.")
        odd = [value for value in values if not isinstance(value, int | float)]
        require(not odd, f"{name!r} holds a {type((odd or [0])[0]).__name__}, no float.")
        infinite = [value for value in values if math.isinf(value)]
        require(not infinite, f"{name!r} is infinite; JSON has no such number.")
    json.dumps(found)
