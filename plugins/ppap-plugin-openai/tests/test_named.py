"""The plugin's names: what they load, and what they say without a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ppap_plugin_openai
import pytest
import torch
from PIL import Image
from ppap_plugin_openai import named
from ppap_plugin_openai.adm import PUBLISHED_ADM, ADMConfig
from ppap_plugin_openai.adm import PUBLISHED_URL as ADM_URL
from ppap_plugin_openai.backbone import ADMBackbone, ADMUpsampler
from ppap_plugin_openai.glide import PUBLISHED_GLIDE, GlideConfig
from ppap_plugin_openai.glide import PUBLISHED_URL as GLIDE_URL
from ppap_plugin_openai.glide_backbone import GlideBackbone, GlideUpsampler
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.backbones.noise import DiscreteSchedule, cosine_betas, linear_betas
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.plugins.registry import registry
from ppap_host.runs.batches import generate
from ppap_host.runs.config import RunConfig
from ppap_host.runs.setup import set_up
from ppap_host.sampling.evaluator import Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise

State = Callable[[Any], dict[str, Tensor]]
PUBLISHED = {**PUBLISHED_ADM, **PUBLISHED_GLIDE}
ADM_FLAGS: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 4,
    "attention_resolutions": "8",
    "channel_mult": "1,2",
    "learn_sigma": True,
}
GLIDE_FLAGS: dict[str, Any] = {
    "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2",
    "num_head_channels": 16, "attention_resolutions": "4", "text_ctx": 6, "xf_width": 16,
    "xf_layers": 1, "xf_heads": 2, "n_vocab": 260,
}  # fmt: skip


def load(name: str, checkpoint: Path | None) -> Backbone:
    path = None if checkpoint is None else str(checkpoint)
    return registry().make("backbone", name, Backbone, checkpoint=path)  # type: ignore[type-abstract]


def small(config: ADMConfig) -> ADMConfig:
    """The same kind of network in a size for tests."""
    return replace(
        config,
        image_size=16, num_channels=32, num_res_blocks=1, num_heads=4, num_head_channels=-1,
        attention_resolutions=(8,), channel_mult=(1, 2), small_size=config.small_size and 8,
    )  # fmt: skip


def test_every_published_model_has_its_name_and_nothing_else_has() -> None:
    entries = ppap_plugin_openai.ppap_backbones()
    assert [entry.name for entry in entries] == ["adm", *PUBLISHED]
    for entry in entries[1:]:
        assert entry.load().args == (entry.name,)


def test_the_plugin_is_named_without_loading_torch() -> None:
    code = "import sys, ppap_plugin_openai as p; p.ppap_backbones(); p.ppap_guides(); "
    code += "assert not {'torch', 'diffusers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["adm", *PUBLISHED])
def test_without_a_file_a_name_says_which_one_it_needs(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}.* ships no weights") as caught:
        load(name, None)
    assert "--checkpoint" in caught.value.remedy
    if name in PUBLISHED:
        url = ADM_URL if name in PUBLISHED_ADM else GLIDE_URL
        assert f"{url}{PUBLISHED[name].file} " in caught.value.remedy


@pytest.mark.parametrize("name", PUBLISHED_ADM)
def test_a_name_loads_its_configuration(
    name: str, tmp_path: Path, random_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PUBLISHED_ADM[name]
    tiny = replace(entry, config=small(entry.config))
    monkeypatch.setitem(named._adm.PUBLISHED_ADM, name, tiny)  # type: ignore[arg-type]
    path = tmp_path / entry.file
    torch.save(random_state(tiny.config), path)
    # The file itself, or the folder it lies in under its published name.
    for checkpoint in (path, tmp_path):
        backbone = load(name, checkpoint)
        assert isinstance(backbone, ADMUpsampler if "upsampler" in name else ADMBackbone)
        assert backbone.name == name
        assert backbone.state_shape == (3, 16, 16)
        assert backbone.files() == (path,)
    assert isinstance(backbone, ADMBackbone)
    betas = cosine_betas if "64-cond" in name else linear_betas
    assert backbone.levels() == DiscreteSchedule.from_betas(betas(1000)).levels()

    condition = {}
    if tiny.config.class_cond:
        condition |= backbone.encode_classes([3])
        with pytest.raises(OptionError, match="needs a class"):
            backbone.predict(torch.zeros(1, 3, 16, 16), backbone.levels()[9], {})
    if isinstance(backbone, ADMUpsampler):
        with pytest.raises(OptionError, match="enlarges images"):
            backbone.predict(torch.zeros(1, 3, 16, 16), backbone.levels()[9], condition)
        condition |= backbone.conditioned_on(torch.zeros(1, 3, 8, 8))
    image = sample(
        backbone,
        ClassifierFree(backbone, condition, {}),
        backbone.walk("ddim2"),
        DDIM(),
        ImageNoise(0, [0], backbone.state_shape),
    )
    assert image.isfinite().all()


def test_an_upsampler_looks_at_the_small_image_enlarged(
    tmp_path: Path, random_state: State
) -> None:
    flags = {name: value for name, value in ADM_FLAGS.items() if name != "image_size"}
    flags |= {"large_size": 16, "small_size": 8}
    path = tmp_path / "up.pt"
    torch.save(random_state(ADMConfig.from_flags(flags)), path)
    Path(f"{path}.json").write_text(json.dumps(flags))
    backbone = load("adm", path)
    assert isinstance(backbone, ADMUpsampler)
    generator = torch.Generator().manual_seed(0)
    x, image = torch.randn(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 8, 8)
    level = backbone.levels()[400]
    actual = backbone.predict(x, level, backbone.conditioned_on(image))
    rounded = ((image + 1) * 127.5).round() / 127.5 - 1
    # Bilinear enlargement, corners not aligned, by its definition along each side.
    positions = (torch.arange(16) + 0.5) / 2 - 0.5
    weights = (1 - (positions[:, None].clamp(0, 7) - torch.arange(8)).abs()).clamp(min=0)
    enlarged = weights @ rounded @ weights.T
    inputs = torch.cat([x, enlarged], dim=1)
    with torch.no_grad():
        expected = backbone.unet(inputs, torch.full((2,), 400)).sample
    torch.testing.assert_close(actual.eps, expected[:, :3], atol=1e-5, rtol=1e-5)


def test_flags_beside_the_checkpoint_describe_any_adm(tmp_path: Path, random_state: State) -> None:
    path = tmp_path / "mine.pt"
    torch.save(random_state(ADMConfig.from_flags(ADM_FLAGS)), path)
    process = {"noise_schedule": "cosine", "diffusion_steps": 400, "rescale_timesteps": False}
    (tmp_path / "mine.pt.json").write_text(json.dumps(ADM_FLAGS | process))
    backbone = load("adm", path)
    assert backbone.state_shape == (3, 16, 16)
    assert backbone.levels() == DiscreteSchedule.from_betas(cosine_betas(400)).levels()
    assert backbone.files() == (path, tmp_path / "mine.pt.json")


def test_an_adm_without_flags_is_told_what_its_file_is(
    tmp_path: Path, random_state: State, weightless_state: State
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(weightless_state(PUBLISHED_ADM["adm-64-cond"].config), path)
    with pytest.raises(CheckpointError, match="published adm-64-cond") as caught:
        load("adm", path)
    assert "--backbone adm-64-cond" in caught.value.remedy
    torch.save(random_state(ADMConfig.from_flags(ADM_FLAGS)), path)
    with pytest.raises(CheckpointError, match=r"mine\.pt\.json") as caught:
        load("adm", path)
    assert "JSON object" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "no JSON object"),
        ('{"image_sise": 16}', "image_size"),
        ('{"predict_xstart": true}', "predict x_0"),
        ('{"diffusion_steps": 0}', "diffusion_steps is 0"),
        ('{"noise_schedule": "sigmoid"}', "noise_schedule is 'sigmoid'"),
        ('{"rescale_timesteps": true, "diffusion_steps": 4000}', "rescaled timesteps"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    tmp_path: Path, random_state: State, text: str, words: str
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(random_state(ADMConfig.from_flags(ADM_FLAGS)), path)
    (tmp_path / "mine.pt.json").write_text(text)
    with pytest.raises(OptionError, match=words):
        load("adm", path)


@pytest.mark.parametrize("name", PUBLISHED_GLIDE)
def test_glide_loads_by_name_with_flags_and_vocabulary_beside_it(
    name: str, vocabulary: Path, random_state: State
) -> None:
    kind = {"inpaint": "inpaint" in name, "super_res": "upsampler" in name}
    path = vocabulary / PUBLISHED_GLIDE[name].file
    torch.save(random_state(GlideConfig.from_flags(GLIDE_FLAGS | kind)), path)
    # Which kind it is follows from the name.
    Path(f"{path}.json").write_text(json.dumps(GLIDE_FLAGS))
    backbone = load(name, vocabulary)
    assert isinstance(backbone, GlideUpsampler if kind["super_res"] else GlideBackbone)
    assert backbone.name == name
    assert backbone.default_cfg == (1.0 if kind["super_res"] else 3.0)
    betas = linear_betas if kind["super_res"] else cosine_betas
    assert backbone.levels() == DiscreteSchedule.from_betas(betas(1000)).levels()
    condition = dict(backbone.encode_prompts(["a red cat"]))
    if isinstance(backbone, GlideUpsampler):
        condition |= backbone.conditioned_on(torch.zeros(1, 3, 4, 4))
    prediction = backbone.predict(torch.zeros(1, 3, 8, 8), backbone.levels()[500], condition)
    assert prediction.eps.isfinite().all()


def test_a_glide_of_another_kind_is_refused(vocabulary: Path, random_state: State) -> None:
    path = vocabulary / "base.pt"
    torch.save(random_state(GlideConfig.from_flags(GLIDE_FLAGS)), path)
    Path(f"{path}.json").write_text(json.dumps(GLIDE_FLAGS | {"inpaint": True}))
    with pytest.raises(OptionError, match="another kind of network than 'glide'") as caught:
        load("glide", path)
    assert "glide-inpaint" in caught.value.remedy


def test_the_wrong_published_file_is_named(tmp_path: Path, weightless_state: State) -> None:
    path = tmp_path / "upsample.pt"
    torch.save(weightless_state(PUBLISHED_GLIDE["glide-upsampler"].config), path)
    with pytest.raises(CheckpointError, match=r"published glide-upsampler\."):
        load("glide", path)


def write_glide(folder: Path, name: str, flags: dict[str, Any], random_state: State) -> str:
    """A random GLIDE network in the published format."""
    path = folder / PUBLISHED_GLIDE[name].file
    kind = {"inpaint": "inpaint" in name, "super_res": "upsampler" in name}
    torch.save(random_state(GlideConfig.from_flags(flags | kind)), path)
    Path(f"{path}.json").write_text(json.dumps(flags))
    return str(path)


def test_a_glide_cascade_runs_by_its_names(vocabulary: Path, random_state: State) -> None:
    base = write_glide(vocabulary, "glide", GLIDE_FLAGS, random_state)
    second = write_glide(
        vocabulary, "glide-upsampler", GLIDE_FLAGS | {"image_size": 16}, random_state
    )
    config = RunConfig(
        backbone="glide", checkpoint=base, backbone_options={"upsampler": second},
        prompt="a red cat", steps=3, upsampler_steps=2, num=2, device="cpu",
    )  # fmt: skip
    setup = set_up(config)
    assert [(s.cfg, s.backbone.image_size) for s in setup.stages] == [
        (3.0, (8, 8)),
        (1.0, (16, 16)),
    ]
    pictures = generate(setup, [0, 1], Health())
    assert pictures.shape == (2, 3, 16, 16) and pictures.isfinite().all()
    other = generate(set_up(replace(config, prompt="a dog")), [0, 1], Health())
    assert not torch.equal(pictures, other)
    assert len(set_up(replace(config, upsampler_steps=None)).stages[1].walk) == 27


def test_an_upsampler_of_an_upsampler_is_refused(vocabulary: Path, random_state: State) -> None:
    second = write_glide(vocabulary, "glide-upsampler", GLIDE_FLAGS, random_state)
    with pytest.raises(OptionError, match="an upsampler itself"):
        named.published_glide("glide-upsampler", second, upsampler=second)


def test_a_conditional_adm_needs_a_class_and_takes_it(tmp_path: Path, random_state: State) -> None:
    flags = ADM_FLAGS | {"class_cond": True}
    path = tmp_path / "model.pt"
    torch.save(random_state(ADMConfig.from_flags(flags)), path)
    Path(f"{path}.json").write_text(json.dumps(flags))
    config = RunConfig(backbone="adm", checkpoint=str(path), steps=2, num=1, device="cpu")
    with pytest.raises(OptionError, match="needs a class from 0 to 999"):
        set_up(config)
    one, two = (generate(set_up(replace(config, class_index=k)), [0], Health()) for k in (1, 2))
    assert not torch.equal(one, two)


def test_an_upsampler_for_other_images_is_named(
    tmp_path: Path, weightless_state: State, random_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PUBLISHED_ADM["adm-64-cond"]
    monkeypatch.setitem(PUBLISHED_ADM, "adm-64-cond", replace(entry, config=small(entry.config)))
    torch.save(random_state(small(entry.config)), tmp_path / entry.file)
    wrong = tmp_path / "wrong.pt"
    torch.save(weightless_state(PUBLISHED_ADM["adm-128-512-upsampler"].config), wrong)
    with pytest.raises(OptionError, match="adm-128-512-upsampler"):
        named.published_adm("adm-64-cond", str(tmp_path), upsampler=str(wrong))


def test_a_glide_cascade_fills_in_a_picture(vocabulary: Path, random_state: State) -> None:
    base = write_glide(vocabulary, "glide-inpaint", GLIDE_FLAGS, random_state)
    second = write_glide(
        vocabulary, "glide-inpaint-upsampler", GLIDE_FLAGS | {"image_size": 16}, random_state
    )
    Image.new("RGB", (40, 40), (200, 40, 40)).save(vocabulary / "picture.png")
    mask = Image.new("L", (40, 40))
    mask.paste(255, (20, 0, 40, 40))
    mask.save(vocabulary / "mask.png")
    config = RunConfig(
        backbone="glide-inpaint", checkpoint=base, backbone_options={"upsampler": second},
        prompt="a red cat", steps=3, upsampler_steps=2, num=2, device="cpu",
        image=str(vocabulary / "picture.png"), mask=str(vocabulary / "mask.png"),
    )  # fmt: skip
    made = generate(set_up(config), [0, 1], Health())
    wanted = torch.tensor([200, 40, 40]).view(3, 1, 1) / 127.5 - 1
    assert (made[..., :7] - wanted).abs().max() < 0.02
    assert (made[..., 9:] - wanted).abs().mean() > 0.1
