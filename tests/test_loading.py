"""What is added to a pipeline when it is read: low-rank patches, IP-Adapters, control networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from PIL import Image
from pipelines import clip_vision, ip_adapter, siglip_vision, tiny
from safetensors.torch import save_file
from test_own_steps import SIZE, STEPS, by_diffusers, same, steers
from torch import Tensor, nn
from transformers import SiglipImageProcessor

import ppap_host as ppap
from ppap_host.cli.run import _listed
from ppap_host.files.errors import CheckpointError, CheckpointWarning, OptionError, PpapError
from ppap_host.pipelines import loading
from ppap_host.pipelines.decoding import Decoder
from ppap_host.runs.record import differences

OPTIONS = {"prompt": "a dog", "num": 1, **STEPS, **SIZE}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def patches(pipe: Any, *parts: str) -> dict[str, Tensor]:
    """Low-rank patches of random numbers, named as diffusers saves them today."""
    torch.manual_seed(3)
    found = {}
    for part in parts:
        network = getattr(pipe, part)
        layers = CLIP if part.startswith("text") else ATTENTION
        config = LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
        inject_adapter_in_model(config, network)
        state = get_peft_model_state_dict(network)
        found |= {f"{part}.{key}": value.contiguous() for key, value in state.items()}
    return found


def before_peft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers saved them until 2023."""
    found = {}
    for key, value in state.items():
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            key = key.replace(f".{layer}.", f".processor.{layer}_lora.").replace(
                "_lora.0.", "_lora."
            )
        found[key.replace("lora_A", "down").replace("lora_B", "up")] = value
    return found


def kohya(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As kohya's sd-scripts and most files on the hub have them: flat names, halves, an alpha."""
    text = {
        k.replace("text_encoder.enc", "text_encoder.text_model.enc"): v for k, v in state.items()
    }
    found = {k: v.half().contiguous() for k, v in convert_state_dict_to_kohya(text).items()}
    found = {key.replace("lora_te1_", "lora_te_"): value for key, value in found.items()}
    downs = [key for key in found if key.endswith(".lora_down.weight")]
    return found | {k.replace("lora_down.weight", "alpha"): torch.tensor(1.0) for k in downs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny pipeline."""
    places: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in places:
            places[name] = str(tmp_path_factory.mktemp(name))
            tiny(name).save_pretrained(places[name])
        return places[name]

    return of


def read(folder: str) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("name", "parts", "published"),
    [
        ("sd", ("unet", "text_encoder"), dict),
        ("sd", ("unet", "text_encoder"), kohya),
        ("sd", ("unet",), before_peft),
        ("sdxl", ("unet", "text_encoder_2"), dict),
        ("flux", ("transformer",), dict),
    ],
)
def test_patches_do_what_they_do_in_diffusers(
    name: str,
    parts: tuple[str, ...],
    published: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    folder: Callable[[str], str],
    tmp_path: Path,
) -> None:
    (tmp_path / "a, b").mkdir()
    file = str(tmp_path / "a, b" / "style.safetensors")
    save_file(published(patches(tiny(name), *parts)), file)
    call: dict[str, Any] = {"max_sequence_length": 8} if name == "flux" else {}
    made = [
        ppap.sample(
            "diffusers", checkpoint=folder(name), pipeline=call, **OPTIONS,
            backbone_options={"lora": lora} if lora else {},
        )
        for lora in ("", _listed([file]), _listed([f"{file}:0.5"]),
                     _listed([f"{file}:0.5", f"{file}:-0.5"]))
    ]  # fmt: skip
    pipe = read(folder(name))
    pipe.load_lora_weights(file, adapter_name="style")
    for result, strength in zip(made[1:3], (1.0, 0.5), strict=True):
        pipe.set_adapters(["style"], [strength])
        assert same(result.images[0], by_diffusers(pipe, "a dog", **SIZE, **call))
        assert not same(result.images[0], made[0].images[0])
        assert result.record["remarks"] == []
    apart = made[3].tensor - made[0].tensor
    assert apart.abs().max() <= 4 / 255  # one takes away what the other adds
    assert any(name.endswith("/style.safetensors") for name in made[1].record["model_files"])


def test_patched_networks_are_guided_recorded_and_run_again(
    folder: Callable[[str], str], tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    state = patches(tiny("sd"), "unet")
    save_file(state, file)
    backbone = ppap.load_backbone("diffusers", folder("sd"), lora=f"{file}:0.5", dtype="bfloat16")
    assert all(p.dtype == torch.bfloat16 for p in backbone.pipe.unet.parameters())
    plain = ppap.sample(
        "diffusers", checkpoint=folder("sd"), backbone_options={"lora": str(file)}, **OPTIONS,
        out=tmp_path / "run",
    )  # fmt: skip
    again = ppap.rerun(tmp_path / "run", out=tmp_path / "again")
    assert same(plain.images[0], again.images[0])
    for recipe in ("x0", "x0-through"):
        guided = ppap.sample(backbone, steers(recipe=recipe), **OPTIONS)
        assert not same(guided.images[0], plain.images[0])
    save_file({key: value * 2 for key, value in state.items()}, file)
    other = ppap.rerun(tmp_path / "run")
    assert any("style.safetensors" in row for row in differences(plain.record, other.record))


def test_patches_that_have_no_layer_are_told(folder: Callable[[str], str], tmp_path: Path) -> None:
    state = patches(tiny("sd"), "unet")
    lost = {f"unet.lost.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    cases = {
        "bare": {key.removeprefix("unet."): value for key, value in state.items()},
        "other": {key.replace("unet.", "transformer."): value for key, value in state.items()},
        "none": {"weight": torch.ones(2)},
        "larger": patches(tiny("sdxl"), "unet"),
        "some": state | lost,
    }
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        options = {"lora": str(tmp_path / f"{name}.safetensors")}
        if name == "some":
            with pytest.warns(CheckpointWarning, match="33 low-rank .* only 32 have a layer"):
                ppap.load_backbone("diffusers", folder("sd"), **options)
        else:
            with pytest.raises(CheckpointError, match=f"{name}.safetensors' do not fit Stable"):
                ppap.load_backbone("diffusers", folder("sd"), **options)
    with pytest.raises(OptionError, match="'nan' is no strength"):
        ppap.load_backbone("diffusers", folder("sd"), lora="style.safetensors:nan")


def test_without_peft_it_is_named(
    folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"unet.a.lora_A.weight": torch.ones(2)}, tmp_path / "style.safetensors")
    monkeypatch.setattr(loading, "USE_PEFT_BACKEND", False)
    with pytest.raises(OptionError, match=r"peft .* not installed.*ppap-host\[pipelines\]"):
        ppap.load_backbone("diffusers", folder("sd"), lora=str(tmp_path / "style.safetensors"))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_an_ip_adapter_is_shown_a_picture(
    name: str, folder: Callable[[str], str], tmp_path: Path
) -> None:
    """In the published layout: the adapter's file, and what sees its pictures beside it."""
    file, photo = tmp_path / "ip-adapter.safetensors", tmp_path / "photo.png"
    pipe = tiny(name)
    save_file(ip_adapter(getattr(pipe, "unet", None) or pipe.transformer), file)
    more = {"max_sequence_length": 8} if name in ("sd3", "flux") else {}
    sees = siglip_vision if name == "sd3" else clip_vision
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(photo)
    options = {"ip_adapter": f"{file}:0.6"}
    with pytest.warns(CheckpointWarning, match="image_encoder=FOLDER"):
        ppap.load_backbone("diffusers", folder(name), **options)
    eye = tmp_path / "elsewhere"
    sees().save_pretrained(eye)
    elsewhere = ppap.load_backbone("diffusers", folder(name), **options, image_encoder=str(eye))
    sees().save_pretrained(tmp_path / "image_encoder")
    if name == "sd3":
        SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(
            tmp_path / "image_encoder"
        )
    made = [
        ppap.sample(
            backbone, pipeline={"ip_adapter_image": str(photo), **more}, **OPTIONS,
            **({"checkpoint": folder(name), "backbone_options": options}
               if backbone == "diffusers" else {}),
        )
        for backbone in ("diffusers", elsewhere)
    ]  # fmt: skip
    pipe = read(folder(name))
    beside = str(tmp_path / "image_encoder")
    own: dict[str, dict[str, Any]] = {
        "sd3": {"image_encoder_folder": beside},
        "flux": {
            "image_encoder_pretrained_model_name_or_path": beside,
            "image_encoder_dtype": torch.float32,
        },
    }
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, **own.get(name, {}))
    pipe.set_ip_adapter_scale(0.6)
    call = {"ip_adapter_image": Image.open(photo), **more, **SIZE}
    expected = by_diffusers(pipe, "a dog", **call)
    assert all(same(result.images[0], expected) for result in made)
    pipe.set_ip_adapter_scale(0.0)
    assert not same(expected, by_diffusers(pipe, "a dog", **call))
    assert made[0].record["remarks"] == []
    options = {"ip_adapter_image": str(photo), **more}
    guided = ppap.sample(elsewhere, steers(), pipeline=options, **OPTIONS)
    assert not same(guided.images[0], expected)


def test_pictures_of_other_arguments_are_kept_with_the_record(
    folder: Callable[[str], str], tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (16, 16), "teal").save(photo)
    tiny("controlnet").controlnet.save_pretrained(tmp_path / "control")
    options = {"controlnet": str(tmp_path / "control")}
    made = ppap.sample(
        "diffusers", checkpoint=folder("sd"), backbone_options=options, **OPTIONS,
        pipeline={"image": str(photo)}, out=tmp_path / "run",
    )  # fmt: skip
    photo.unlink()
    assert same(ppap.rerun(tmp_path / "run").images[0], made.images[0])


def test_what_is_no_adapter_is_refused(folder: Callable[[str], str], tmp_path: Path) -> None:
    save_file({"image_proj.proj.weight": torch.ones(2, 2)}, tmp_path / "bad.safetensors")
    save_file(ip_adapter(tiny("sd").unet), tmp_path / "good.safetensors")
    whole = ip_adapter(tiny("sd3").transformer)
    part = {key: value for key, value in whole.items() if ".layers.3." not in key}
    save_file(part, tmp_path / "part.safetensors")
    (tmp_path / "eye").mkdir()
    (tmp_path / "eye" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    good, bad, lacks = (str(tmp_path / f"{name}.safetensors") for name in ("good", "bad", "part"))
    cases: tuple[tuple[str, dict[str, str], str], ...] = (
        ("sd", {"ip_adapter": bad}, "IP-Adapter .*bad.safetensors' do not fit"),
        ("sd3", {"ip_adapter": lacks}, "do not fit .*Missing key"),
        ("sd", {"ip_adapter": good, "image_encoder": str(tmp_path / "eye")}, "no image encoder"),
        ("sd", {"image_encoder": str(tmp_path / "eye")}, "there is none"),
        ("ddpm", {"ip_adapter": good}, "takes no IP-Adapter"),
        ("ddpm", {"lora": good}, "takes no low-rank patches"),
    )
    for name, options, words in cases:
        with pytest.raises(PpapError, match=words):
            ppap.load_backbone("diffusers", folder(name), **options)


def test_networks_that_wait_in_memory_make_the_same() -> None:
    """As far as it can be seen without a graphics card: with hooks that have nowhere to move to."""
    for recipe in ("x0", "x0-through"):
        images = []
        for offload in ("none", "model", "sequential"):
            pipe = tiny("sd")
            if offload == "model":
                pipe.enable_model_cpu_offload(device="cpu")
            elif offload == "sequential":  # the weights of each layer come when it computes
                for part in pipe.components.values():
                    if isinstance(part, nn.Module):
                        cpu_offload(part, torch.device("cpu"))
                assert next(pipe.unet.parameters()).device.type == "meta"
            images.append(ppap.sample(pipe, steers(recipe=recipe), **OPTIONS).images[0])
        assert all(same(images[0], other) for other in images[1:])


def test_a_decoder_that_waits_in_memory_is_asked_where_it_computes() -> None:
    """The meta device stands for a graphics card: what is moved there cannot meet what is not."""
    pipe = tiny("flux")
    add_hook_to_module(pipe.vae, CpuOffload("meta"))
    assert Decoder(pipe).factor == 2
    assert pipe.vae.device.type == "meta"


def test_gradients_do_not_go_through_networks_that_leave() -> None:
    pipe = tiny("sd")
    add_hook_to_module(pipe.unet, CpuOffload("meta"))
    with (
        ppap.steer(pipe, steers(recipe="x0-through")),
        pytest.raises(OptionError, match="takes networks from the device"),
    ):
        pipe("a dog", num_inference_steps=1, **SIZE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("guide", ["classifier", "depth", "segmentation"])
def test_guides_see_in_half_precision_what_they_see_in_full(
    guide: str, dtype: str, folder: Callable[[str], str], tmp_path: Path
) -> None:
    """Resizing has no half-precision form on the CPU, so pictures are prepared in float32."""
    photo = tmp_path / "photo.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(photo)
    target = ppap.guidance(guide, target=str(photo))
    whole, half = (
        ppap.sample("diffusers", target, checkpoint=folder("sd"), dtype=kind, **OPTIONS)
        for kind in ("float32", dtype)
    )
    assert half.record["skipped_guidance"] == {}
    apart = (whole.tensor - half.tensor).abs().mean()
    assert apart < (0.02 if dtype == "float16" else 0.15)
    for name, value in whole.record["images"][0]["measures"][guide].items():
        found = half.record["images"][0]["measures"][guide][name]
        assert found == pytest.approx(value, rel=0.1, abs=0.05), name
