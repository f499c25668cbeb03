"""A CLIP loads by folder, answers as transformers' own does, and says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from ppap_plugin_clip.checkpoint import encode, load_checkpoint
from ppap_plugin_clip.clip_guide import ClipGuide
from ppap_plugin_clip.style_guide import StyleGuide
from safetensors.torch import load_file, save_file

from ppap_host.files.errors import CheckpointError, TargetError
from ppap_host.files.images import to_tensor

GUIDES: list[Callable[[str | None], Any]] = [ClipGuide, StyleGuide]


@pytest.fixture
def folder(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(clip_folder, tmp_path / "clip"))


def edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def smooth(height: int, width: int) -> Image.Image:
    """So smooth that 8-bit rounding and clipping while resizing do not matter."""
    coarse = np.random.default_rng(0).integers(60, 190, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def features(output: Any) -> torch.Tensor:
    """Of ``get_image_features``, which returned a tensor before transformers 5."""
    found: torch.Tensor = getattr(output, "pooler_output", output)
    return found


def test_images_are_embedded_as_transformers_does_it(clip_folder: Path) -> None:
    guide = ClipGuide(str(clip_folder))
    theirs = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(clip_folder)
    for picture in (smooth(64, 64), smooth(32, 32), smooth(200, 200)):
        with torch.no_grad():
            pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
            expected = features(theirs.get_image_features(pixel_values=pixels.float()))
            prepared = guide.prepare(to_tensor(picture))
            found = guide.see(to_tensor(picture))
        # One 8-bit step, in the network's units.
        torch.testing.assert_close(prepared, pixels.float(), atol=1.2 / 255 / 0.26, rtol=0)
        angle = torch.nn.functional.cosine_similarity(found, expected)
        assert angle.item() > 0.9995
        torch.testing.assert_close(found, expected, atol=0.03 * expected.norm().item(), rtol=0)
        with torch.no_grad():  # and to the last digit for the same pixels
            expected = features(theirs.get_image_features(pixel_values=prepared))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("text", ["a red cube", "The  RED, cube!", "Würfel 立方体", "x" * 75])
def test_texts_are_embedded_as_transformers_does_it(clip_folder: Path, text: str) -> None:
    theirs = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer([text], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = features(theirs.get_text_features(**tokens))
    found = encode(load_checkpoint("clip", str(clip_folder)), text)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_style_tokens_are_those_of_the_third_layer(clip_folder: Path) -> None:
    guide = StyleGuide(str(clip_folder))
    theirs = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        states = theirs.vision_model(
            pixel_values=guide.prepare(x), output_hidden_states=True
        ).hidden_states
        # The first state is what enters the first layer.
        torch.testing.assert_close(guide.see(x), states[3][:, 1:])
        other = StyleGuide(str(clip_folder), layer=1)
        torch.testing.assert_close(other.see(x), states[1][:, 1:])
        last = StyleGuide(str(clip_folder), layer=99)
        torch.testing.assert_close(last.see(x), states[4][:, 1:])
    assert not [n for n, _ in guide.network().named_parameters() if "layers.3" in n]


def test_the_whole_picture_is_squashed_into_the_square(clip_folder: Path) -> None:
    guide = ClipGuide(str(clip_folder))
    x = torch.zeros(1, 3, 40, 72).requires_grad_()
    prepared = guide.prepare(x)
    assert prepared.shape == (1, 3, 32, 32)
    (gradient,) = torch.autograd.grad(prepared.sum(), x)
    # Every pixel has a part in it: nothing is cut away, antialiasing skips none.
    assert (gradient.abs().sum(dim=1) > 0).all()


def test_a_processor_for_another_size_is_brought_to_the_networks(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", size={"shortest_edge": 48}, do_center_crop=False)
    assert ClipGuide(str(folder)).see(torch.zeros(1, 3, 50, 90)).shape == (1, 12)


@pytest.mark.parametrize("make", GUIDES)
def test_networks_hold_nothing_of_the_text_tower(
    clip_folder: Path, make: Callable[[str], Any]
) -> None:
    guide = make(str(clip_folder))
    names = [name for name, _ in guide.network().named_parameters()]
    assert not [name for name in names if "text" in name or "token" in name]
    assert "vocab.json" in {file.name for file in guide.files()}


def test_weights_in_half_precision_are_compared_in_single(folder: Path) -> None:
    path = folder / "model.safetensors"
    half = {name: value.half() for name, value in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    edit(folder / "config.json", dtype="float16", torch_dtype="float16")
    guide = ClipGuide(str(folder))
    assert {p.dtype for p in guide.network().parameters()} == {torch.float32}
    assert guide.read_target("a red cube", (32, 32)).value.dtype == torch.float32


def test_the_temperature_is_the_checkpoints(folder: Path) -> None:
    assert ClipGuide(str(folder)).temperature == pytest.approx(100)
    path = folder / "model.safetensors"
    state = load_file(path) | {"logit_scale": torch.tensor(0.0)}
    save_file(state, path, metadata={"format": "pt"})
    assert ClipGuide(str(folder)).temperature == pytest.approx(1)


# --- what cannot be loaded


@pytest.mark.parametrize("make", GUIDES)
def test_without_a_model_it_is_said_what_to_give(make: Callable[[str | None], Any]) -> None:
    with pytest.raises(CheckpointError, match="ships no weights") as caught:
        make(None)
    for word in ("--model", "openai/clip-vit-large-patch14", "model.safetensors"):
        assert word in caught.value.remedy


def test_other_models_are_refused(tmp_path: Path, folder: Path) -> None:
    transformers.ViTConfig(hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no CLIP.*'vit'"):
        ClipGuide(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vision_config=config["vision_config"] | {"num_channels": 1})
    with pytest.raises(CheckpointError, match="1 channels"):
        ClipGuide(str(folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_missing_file_is_said(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"(There is|has) no {file}"):
        ClipGuide(str(folder))


def test_one_tower_alone_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = {k: v for k, v in load_file(path).items() if not k.startswith("text_")}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks \d+ of its weights.*text_"):
        ClipGuide(str(folder))


def test_a_tokenizer_without_its_words_is_said(folder: Path) -> None:
    for file in ("vocab.json", "merges.txt"):
        (folder / file).unlink()
    guide = ClipGuide(str(folder))  # pictures need none
    with pytest.raises(CheckpointError):
        guide.read_target("a red cube", (32, 32))


def test_a_tokenizer_of_another_model_is_said(folder: Path) -> None:
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_text())
    path.write_text(json.dumps(vocabulary | {f"more{k}": len(vocabulary) + k for k in range(9)}))
    with pytest.raises(CheckpointError, match=r"knows 5\d\d tokens"):
        ClipGuide(str(folder)).read_target("a red cube", (32, 32))


def test_a_text_that_is_too_long_is_said_with_its_length(clip_folder: Path) -> None:
    checkpoint = load_checkpoint("clip", str(clip_folder))
    assert checkpoint.context == 77
    assert encode(checkpoint, "red " * 75).shape == (1, 12)
    with pytest.raises(TargetError, match=r"76 tokens.*at most 75"):
        encode(checkpoint, "red " * 76)
