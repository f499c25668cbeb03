"""Heads of all kinds: one logit, several labels at once, tables of names with gaps or from 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from ppap_plugin_classifier.guide import ClassifierGuide
from ppap_plugin_classifier.losses import OPEN, binary_cross_entropy, binary_distillation
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.experts.patches import Patch
from ppap_host.files.errors import CheckpointError, OptionError, TargetError

transformers = pytest.importorskip("transformers")

SIZE = (64, 64)
SMALL = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
    patch_size=8,
)  # fmt: skip


def vit(folder: Path, classes: int, table: Any = "usual", **more: Any) -> Any:
    """A ViT of transformers of this many outputs, saved with another table of names."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, num_labels=classes, **more)
    model = transformers.ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size=32).save_pretrained(folder)
    path = folder / "config.json"
    described = json.loads(path.read_text())
    if table != "usual":
        described.pop("id2label", None)
        described.pop("label2id", None)
        described.update(table)
    path.write_text(json.dumps(described))
    return model


def resnet(folder: Path, classes: int, **config: Any) -> nn.Module:
    """A small ResNet of timm of this many outputs."""
    torch.manual_seed(0)
    arguments = {"channels": [8, 8, 8, 8], "stem_width": 8}
    network: nn.Module = timm.create_model("resnet10t", num_classes=classes, **arguments).eval()
    nn.init.normal_(network.fc.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    described = {"architecture": "resnet10t", "num_classes": classes, "model_args": arguments}
    cfg = {"input_size": [3, 32, 32], "interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps(described | {"pretrained_cfg": cfg} | config))
    return network


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


# One logit


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_one_logit_is_a_sigmoid_both_ways(tmp_path: Path, library: str) -> None:
    theirs: nn.Module
    if library == "timm":
        theirs = resnet(tmp_path, 1, label_names=["hot dog"])
    else:
        theirs = vit(tmp_path, 1, {"id2label": {"0": "hot dog"}})
    guide = ClassifierGuide(str(tmp_path))
    assert list(guide.labels.names) == ["not hot dog", "hot dog"]
    x = images()
    prepared = guide.prepare(x)
    with torch.no_grad():
        z = theirs(prepared)
        z = getattr(z, "logits", z)[:, 0]
        output = guide.see(x)
    torch.testing.assert_close(output.softmax(1)[:, 1], z.sigmoid())
    for text, sign in (("hot dog", 1), ("1", 1), ("Hot_Dog", 1), ("not hot dog", -1), ("0", -1)):
        target = guide.read_target(text, SIZE)
        expected = -F.logsigmoid(sign * z)
        torch.testing.assert_close(guide.loss(output, target.value), expected)
        measures = guide.measure(output, target.value)
        assert measures["probability"] == pytest.approx((sign * z).sigmoid().tolist(), abs=1e-5)
        assert measures["right"] == (sign * z > 0).float().tolist()
    both = torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    yes, no = (guide.read_target(text, SIZE).value for text in ("1", "0"))
    assert guide.measure(both, yes)["right"] == [1.0, 0.0]
    assert guide.measure(both, no)["right"] == [0.0, 1.0]
    assert (guide.loss(both, yes) > 0.1).tolist() == [True, True]
    assert "one output" in " ".join(guide.remarks())
    # It steers: opposite ways for the two classes.
    gradients = []
    for text in ("0", "1"):
        x.requires_grad_()
        loss = guide.loss(guide.see(x), guide.read_target(text, SIZE).value)
        gradients += torch.autograd.grad(loss.sum(), x)
    assert (gradients[0] * gradients[1]).sum() < 0
    assert guide.distance(output, output).abs().max() < 1e-6
    Patch.fresh(guide.network(), guide.patch_plan(guide.network()))


def test_one_logit_may_have_both_names_or_none(tmp_path: Path) -> None:
    resnet(tmp_path / "both", 1, label_names=["cat", "dog"])
    assert ClassifierGuide(str(tmp_path / "both")).labels.find("dog") == 1
    resnet(tmp_path / "none", 1)
    assert ClassifierGuide(str(tmp_path / "none")).labels.find("positive") == 1
    vit(tmp_path / "two", 1, {"id2label": {"0": "cat", "1": "dog"}})
    assert ClassifierGuide(str(tmp_path / "two")).labels.find("dog") == 1
    vit(tmp_path / "placeholder", 1)
    assert ClassifierGuide(str(tmp_path / "placeholder")).labels.find("negative") == 0


def test_a_regression_is_no_classifier(tmp_path: Path) -> None:
    vit(tmp_path, 1, problem_type="regression")
    with pytest.raises(CheckpointError, match="regression"):
        ClassifierGuide(str(tmp_path))


def test_weights_alone_of_one_logit(tmp_path: Path) -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=1).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    guide = ClassifierGuide(f"mobilenetv3_small_050:{tmp_path / 'w.safetensors'}")
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(guide.see(x)[:, 1:], network(guide.prepare(x)))
        assert not guide.see(x)[:, 0].any()


# Several labels at once


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassifierGuide, Any]:
    folder = tmp_path_factory.mktemp("many")
    names = {str(k): name for k, name in enumerate(["dog", "cat", "outdoors", "night"])}
    theirs = vit(folder, 4, {"id2label": names}, problem_type="multi_label_classification")
    return ClassifierGuide(str(folder)), theirs


def test_each_class_of_a_multi_label_head_has_a_sigmoid(many: tuple[ClassifierGuide, Any]) -> None:
    guide, theirs = many
    assert not guide.exclusive and "multi-label" in " ".join(guide.remarks())
    x = images()
    with torch.no_grad():
        output = guide.see(x)
        # transformers' own loss for such heads is this one, meaned over the classes.
        wanted = torch.tensor([[0.0, 1.0, 1.0, 0.0]]).expand(3, 4)
        said = theirs(pixel_values=guide.prepare(x), labels=wanted).loss
    torch.testing.assert_close(binary_cross_entropy(output, wanted[:1]).mean() / 4, said)
    target = guide.read_target("cat", SIZE)
    assert target.value.tolist() == [[OPEN, 1.0, OPEN, OPEN]]
    torch.testing.assert_close(guide.loss(output, target.value), -F.logsigmoid(output[:, 1]))
    measures = guide.measure(output, target.value)
    assert measures["probability"] == pytest.approx(output[:, 1].sigmoid().tolist())
    assert measures["right"] == (output[:, 1] > 0).float().tolist()
    torch.testing.assert_close(guide.as_target(output), output.sigmoid())


def test_several_labels_may_be_asked_for(many: tuple[ClassifierGuide, Any]) -> None:
    guide, _ = many
    target = guide.read_target("dog + Night", SIZE)
    assert target.value.tolist() == [[1.0, OPEN, OPEN, 1.0]]
    assert "'dog' + 'night'" in target.understood
    with torch.no_grad():
        output = guide.see(images())
    expected = -F.logsigmoid(output[:, 0]) - F.logsigmoid(output[:, 3])
    torch.testing.assert_close(guide.loss(output, target.value), expected)
    least = output[:, [0, 3]].sigmoid().amin(dim=1)
    assert guide.measure(output, target.value)["probability"] == pytest.approx(least.tolist())
    with pytest.raises(TargetError, match="'horse'"):
        guide.read_target("dog + horse", SIZE)


def test_distances_of_independent_classes_are_divergences() -> None:
    teacher = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    student = torch.randn(2, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    both = [torch.stack([z, -z], dim=-1).sigmoid() for z in (teacher, student)]
    expected = (both[0] * (both[0] / both[1]).log()).sum(dim=(1, 2))
    torch.testing.assert_close(binary_distillation(student, teacher), expected)
    sure = torch.tensor([[90.0, -90.0]])
    assert torch.isfinite(binary_distillation(-sure, sure)).all()


def test_independent_classes_have_no_temperatures(many: tuple[ClassifierGuide, Any]) -> None:
    guide, _ = many
    assert guide.tempered(1.0, 1.0) is guide
    for call in (lambda: guide.tempered(2.0, 1.0), lambda: guide.logits(torch.zeros(1, 4))):
        with pytest.raises(OptionError, match="do not exclude each other"):
            call()


def test_timms_heads_are_multi_label_where_they_say_so(tmp_path: Path) -> None:
    names = ["sky", "sea", "sand"]
    resnet(tmp_path, 3, label_names=names, problem_type="multi_label_classification")
    assert not ClassifierGuide(str(tmp_path)).exclusive
    resnet(tmp_path, 3, label_names=names)
    guide = ClassifierGuide(str(tmp_path))
    assert guide.exclusive and guide.remarks() == ()
    with pytest.raises(TargetError):
        guide.read_target("sky + sea", SIZE)


# Tables of names


@pytest.mark.parametrize(
    ("table", "names", "said"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ["a", "b", "c"], ""),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ["a", "b", "c"], ""),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, ["a", "b", "c"], "numbered from 1"),
        ({"id2label": {"0": "a", "2": "c"}}, ["a", "class 1", "c"], "1 classes .* no name: 1"),
        ({"id2label": {"1": "b", "2": "c"}}, ["class 0", "b", "c"], "no name: 0"),
        ({"id2label": {"1": "a", "3": "c"}}, ["a", "class 1", "c"], "numbered from 1"),
        ({"id2label": {"0": "a", "1": "b", "2": None}}, ["a", "b", "class 2"], ""),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 2, "b": 1, "c": 0}},
            ["a", "b", "c"],
            "contradict each other",
        ),
        ({"label2id": {"b": 1, "a": 0, "c": 2}}, ["a", "b", "c"], ""),
        (
            {
                "id2label": {str(k): f"LABEL_{k}" for k in range(3)},
                "label2id": {"b": 1, "a": 0, "c": 2},
            },
            ["a", "b", "c"],
            "",
        ),
        ({}, ["class 0", "class 1", "class 2"], ""),
    ],
    ids=range(11),
)
def test_tables_with_gaps_or_from_one_name_the_right_outputs(
    tmp_path: Path, table: dict[str, Any], names: list[str], said: str
) -> None:
    import re

    theirs = vit(tmp_path, 3, table)
    guide = ClassifierGuide(str(tmp_path))
    assert list(guide.labels.names) == names
    text = " ".join(guide.remarks())
    assert re.search(said, text) and bool(said) == bool(text), text
    x = images()
    with torch.no_grad():
        expected = theirs(pixel_values=guide.prepare(x)).logits
        torch.testing.assert_close(guide.see(x), expected)
    for k, name in enumerate(names):
        assert guide.read_target(name, SIZE).value.argmax() == k


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"id2label": {"0": "a"}}, "of another shape"),
        ({"id2label": {"0": "a", "1": "b"}}, "of another shape"),
        ({"id2label": {str(k): f"n{k}" for k in range(5)}}, "of another shape"),
        ({"id2label": {"4": "a", "5": "b", "6": "c"}}, "from 4 to 6, and the network has 3"),
        ({"id2label": {"a": "0", "b": "1", "c": "2"}}, "does not number its classes"),
        ({"id2label": {str(k): {"name": "a"} for k in range(3)}}, "names are no texts"),
        ({"id2label": {"-1": "a", "0": "b", "1": "c"}}, "does not number its classes"),
        ({"id2label": {"0": "a", "00": "b", "1": "c"}}, "does not number its classes"),
        ({"id2label": {"0": "a", "1": "b", "1000000000": "c"}}, "cannot be|not number"),
        ({"id2label": ["a", "b", "c"]}, "does not number its classes"),
    ],
    ids=range(10),
)
def test_tables_for_another_number_of_classes_are_refused(
    tmp_path: Path, table: dict[str, Any], words: str
) -> None:
    vit(tmp_path, 3, table)
    with pytest.raises(CheckpointError, match=words) as caught:
        ClassifierGuide(str(tmp_path))
    assert caught.value.remedy


def test_timms_tables_may_count_from_one_and_its_means_are_from_0_to_1(tmp_path: Path) -> None:
    resnet(tmp_path, 2, label_names={"1": "a", "2": "b"})
    assert list(ClassifierGuide(str(tmp_path)).labels.names) == ["a", "b"]
    cfg = {"input_size": [3, 32, 32], "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}
    resnet(tmp_path, 2, pretrained_cfg=cfg)
    with pytest.raises(CheckpointError, match="0 to 255"):
        ClassifierGuide(str(tmp_path))


def test_namesakes_are_refused_with_their_numbers(tmp_path: Path) -> None:
    vit(tmp_path, 3, {"id2label": {"0": "Crane", "1": "dog", "2": "crane"}})
    with pytest.raises(TargetError, match="means 2 classes: 0 is Crane; 2 is crane"):
        ClassifierGuide(str(tmp_path)).read_target("crane", SIZE)


def test_a_name_that_is_the_number_of_another_class_is_doubted(tmp_path: Path) -> None:
    vit(tmp_path, 3, {"id2label": {"0": "1", "1": "2", "2": "7"}})
    guide = ClassifierGuide(str(tmp_path))
    found = guide.read_target("1", SIZE)
    assert found.value.argmax() == 0 and "the number of another, '2'" in found.doubts[0]
    for clear in ("7", "0"):
        assert not guide.read_target(clear, SIZE).doubts


def test_a_problem_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    vit(tmp_path, 3, {"problem_type": "multi_label"})
    with pytest.raises(CheckpointError, match="'multi_label', which is not known"):
        ClassifierGuide(str(tmp_path))


# Low-rank patches


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_patches_that_are_not_merged_are_refused_and_others_told(tmp_path: Path) -> None:
    theirs = vit(tmp_path, 3)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    guide = ClassifierGuide(str(tmp_path))
    assert "an adapter as well" in " ".join(guide.remarks())
    assert "adapter_config.json" not in {file.name for file in guide.files()}
    peft = pytest.importorskip("peft")
    targets = [name for name, part in theirs.named_modules() if isinstance(part, nn.Linear)][:2]
    config = peft.LoraConfig(target_modules=targets, r=2)
    patched = peft.get_peft_model(theirs, config)
    save_file(
        {name: tensor.contiguous() for name, tensor in patched.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"LoRA.* not merged") as caught:
        ClassifierGuide(str(tmp_path))
    assert "merge_and_unload" in caught.value.remedy
    # What its remedy says leads there.
    merged = patched.merge_and_unload()
    merged.save_pretrained(tmp_path)
    x = images()
    found = ClassifierGuide(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(found.see(x), merged(pixel_values=found.prepare(x)).logits)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="it holds adapter_config") as caught:
        ClassifierGuide(str(tmp_path))
    assert "It is an adapter" in caught.value.remedy


@pytest.mark.parametrize(
    ("file", "head", "said"),
    [("model.onnx", b"\x08\x07", "an ONNX file"), ("model.gguf", b"GGUF", "a GGUF file"),
     ("config.json", b"{}", "is a file, and the folder")],
)  # fmt: skip
def test_a_file_for_a_folder_is_called_one(
    tmp_path: Path, file: str, head: bytes, said: str
) -> None:
    (tmp_path / file).write_bytes(head)
    with pytest.raises(CheckpointError, match=said):
        ClassifierGuide(str(tmp_path / file))
