"""Weights are found in whatever form a training has saved them, and nothing in a file is run."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppap_host.files.checkpoints import (
    conversion,
    library_of,
    read_state_dict,
    renamed,
    require_layout,
)
from ppap_host.files.errors import CheckpointError
from ppap_host.files.pickles import RefusedError, read_pickle


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


STATE = network().state_dict()
OTHER = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


def before(prefix: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in (state or STATE).items()}


class Settings:
    """Of some library that the reader does not have."""

    def __init__(self) -> None:
        self.rate = 0.1


ASIDE: dict[str, Any] = {
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    "epoch": 7, "args": argparse.Namespace(lr=0.1, out=Path("x")), "config": Settings(),
    "metric": np.float64(0.5), "best": np.ones(3), "rng": torch.get_rng_state(),
}  # fmt: skip

FORMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "plain": (STATE, ()),
    "timm": ({"state_dict": STATE, "arch": "resnet18", **ASIDE}, ("['state_dict'] are used",)),
    "timm-ema": (
        {"state_dict": OTHER, "state_dict_ema": STATE, **ASIDE},
        ("averaged weights under ['state_dict_ema']", "'state_dict' left aside"),
    ),
    "torchvision": ({"model": STATE, "model_ema": before("module."), **ASIDE}, ("['model_ema']",)),
    "dit": ({"model": OTHER, "ema": STATE, "opt": {}, "args": ASIDE["args"]}, ("['ema']",)),
    "nested": ({"ema": {"module": STATE, "decay": 0.9}}, ("under ['ema']['module']",)),
    "lightning": (
        {
            "state_dict": {**before("model."), "criterion.weight": torch.ones(2)},
            "pytorch-lightning_version": "2.0.0", "hyper_parameters": {"settings": Settings()},
            "callbacks": {"ModelCheckpoint": {"best_model_path": Path("x")}}, **ASIDE,
        },
        ("['state_dict']", "'model.' is taken off", "1 that begin otherwise", "criterion.weight"),
    ),
    "lightning-ema": (
        {"state_dict": {**before("net.", OTHER), **before("ema_model.module.")}},
        ("'ema_model.module.' is taken off", "net."),
    ),
    "distributed": (before("module."), ("'module.' is taken off",)),
    "compiled": (before("_orig_mod."), ()),
    "compiled-within": ({"0._orig_mod.weight" if n == "0.weight" else n: t
                         for n, t in STATE.items()}, ()),
    "distributed-compiled": (before("module._orig_mod."), ("'module.' is taken off",)),
    "fsdp": (before("_fsdp_wrapped_module."), ()),
    "twice": ({"state_dict": before("model.net.")}, ("'model.net.' is taken off",)),
    "model": (before("model."), ("'model.' is taken off",)),
    "an unusual key": ({"actor": STATE, "step": 3}, ("['actor']",)),
    "an ordered dictionary": (OrderedDict(STATE), ()),
}  # fmt: skip


def _torch(path: Path, content: Any) -> None:
    torch.save(content, path)


def _old(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _newer_protocol(path: Path, content: Any) -> None:
    torch.save(content, path, pickle_protocol=4)


def _pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def _safetensors(path: Path, content: Any) -> None:
    save_file(content["state_dict"], path)


@pytest.mark.parametrize("save", [_torch, _old, _newer_protocol, _pickle])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_and_what_was_chosen_is_said(
    tmp_path: Path, form: str, save: Callable[[Path, Any], None]
) -> None:
    content, said = FORMS[form]
    path, remarks = tmp_path / "last.ckpt", list[str]()
    save(path, content)
    found = renamed(read_state_dict(path, remarks), STATE, remarks)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    loaded = network()
    loaded.load_state_dict(found)
    text = " ".join(remarks)
    assert all(words in text for words in said), text
    assert bool(said) == bool(remarks), text


def test_safetensors_have_prefixes_too(tmp_path: Path) -> None:
    save_file(before("module."), tmp_path / "w.safetensors")
    remarks: list[str] = []
    found = renamed(read_state_dict(tmp_path / "w.safetensors"), STATE, remarks)
    assert found.keys() == STATE.keys() and "'module.'" in remarks[0]


def test_a_network_whose_own_names_begin_so_keeps_them() -> None:
    own = before("model.")
    remarks: list[str] = []
    assert renamed(own, list(own), remarks) == own and not remarks
    # A part of what is wanted is not mistaken for a prefix.
    assert renamed(STATE, list(own)) == STATE


def test_what_is_no_tensor_is_left_aside(tmp_path: Path) -> None:
    remarks: list[str] = []
    _torch(tmp_path / "w.pt", {"fine": torch.ones(2), "note": "text", "epoch": 3})
    assert list(read_state_dict(tmp_path / "w.pt", remarks)) == ["fine"]
    assert remarks == ["Of w.pt what is no tensor is left aside: note, epoch."]


def test_of_two_networks_none_is_guessed(tmp_path: Path) -> None:
    torch.save({"student": STATE, "teacher": OTHER}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match="2 networks: 'student', 'teacher'") as caught:
        read_state_dict(tmp_path / "two.pt")
    _run(caught.value.remedy, tmp_path)
    assert read_state_dict(tmp_path / "state-dict.pt").keys() == STATE.keys()
    both = {**before("student."), **before("teacher.", OTHER)}
    with pytest.raises(CheckpointError, match=r"2 networks.*'student\.' and 'teacher\.'"):
        renamed(both, STATE)
    equal = {**before("a."), **before("b.")}  # tied, or saved twice
    assert renamed(equal, STATE).keys() == STATE.keys()


def _run(remedy: str, folder: Path) -> None:
    """Runs the line that a remedy gives, as a shell would."""
    line = remedy[remedy.index("python -c") :].replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", line], cwd=folder, check=True, capture_output=True)


def test_a_whole_module_is_refused_with_the_line_that_helps(tmp_path: Path) -> None:
    for new in (True, False):
        path = tmp_path / "whole.pt"
        torch.save(network(), path, _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match=r"a whole object \(torch\.nn") as caught:
            read_state_dict(path)
        assert "trust" in caught.value.remedy
        _run(caught.value.remedy, tmp_path)
        found = read_state_dict(tmp_path / "state-dict.pt")
        assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    torch.save({"model": network(), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="under 'model' a whole object") as caught:
        read_state_dict(path)
    _run(caught.value.remedy, tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_compiled_program_is_refused_with_the_line_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.script(network()).save(str(path))
    with pytest.raises(CheckpointError, match=r"TorchScript.*never run") as caught:
        read_state_dict(path)
    _run(caught.value.remedy, tmp_path)
    found = read_state_dict(tmp_path / "state-dict.pt")
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_the_documented_conversion_takes_whatever_tensors_share(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    state = {"a.weight": weight, "b.weight": weight, "c": weight.t(), "d": weight[:, 2:4]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    _run(conversion(), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)
    # And read as it is: views of what they share.
    found = read_state_dict(tmp_path / "pytorch_model.bin")
    assert all(torch.equal(found[name], state[name]) for name in state)


KINDS_OF_NUMBERS = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", KINDS_OF_NUMBERS, ids=str)
def test_all_numbers_are_read_as_torch_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {
        "many": torch.arange(6).to(dtype).view(2, 3), "one": torch.tensor(1).to(dtype),
        "none": torch.empty(0, 3).to(dtype), "turned": torch.arange(6).to(dtype).view(2, 3).t(),
        "parameter": nn.Parameter(torch.ones(2).to(dtype), requires_grad=False),
    }  # fmt: skip
    newer = dtype in (torch.float8_e4m3fn, torch.uint16)  # of which the older format knows nothing
    for save in (_torch,) if newer else (_torch, _old):
        save(tmp_path / "w.pt", state)
        expected = torch.load(tmp_path / "w.pt", weights_only=True)
        found = read_state_dict(tmp_path / "w.pt")
        for name, tensor in expected.items():
            assert found[name].dtype == dtype and found[name].shape == tensor.shape
            assert found[name].contiguous().view(-1).tolist() == tensor.reshape(-1).tolist()


# What is no state dict


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([STATE], "holds a list"),
        (torch.ones(3), "holds a tensor"),
        ({}, "there is nothing in it"),
        ({"epoch": 3}, "'epoch' is no plain tensor"),
        ({"a": STATE["0.weight"], "b": [1]}, "'b' is no plain tensor"),
        ({"a": STATE["0.weight"], "b": Settings()}, "'b' is no plain tensor"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is no plain tensor"),
        ({"a": torch.empty(2, device="meta")}, "'a' is no plain tensor"),
        ({"optimizer": ASIDE["optimizer"]}, "'optimizer' is no plain tensor"),
        (Settings(), "a whole object .*Settings"),
        ({"0.weight": torch.ones(2, 2, dtype=torch.int8)}, "whole numbers .*quantised"),
    ],
    ids=range(11),
)
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: Any, words: str) -> None:
    for save in (_torch, _old):
        save(tmp_path / "w.pt", content)
        with pytest.raises(CheckpointError, match=words) as caught:
            read_state_dict(tmp_path / "w.pt")
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\x89HDF\r\n\x1a\n", "HDF5"), (b"GGUF\x03\0\0\0", "GGUF"), (b"\x93NUMPY\x01\0", "NumPy"),
        (b"\x1f\x8b\x08\0", "gzip"), (b"\x08\x07\x12\x07pytorch", "ONNX"), (b"GIF89a", "starts"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_named(tmp_path: Path, head: bytes, words: str) -> None:
    (tmp_path / "w.pt").write_bytes(head + bytes(100))
    with pytest.raises(CheckpointError, match=words):
        read_state_dict(tmp_path / "w.pt")


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    with pytest.raises(CheckpointError, match="arrays of NumPy"):
        read_state_dict(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme", "text")
    with pytest.raises(CheckpointError, match="archive of other files"):
        read_state_dict(tmp_path / "w.zip")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device"),
                        (tmp_path, "folder")):  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("names", "who"),
    [
        (["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"], "timm's transformers"),
        (["vit.encoder.layer.0.attention.attention.query.weight"], "transformers"),
        (["encoder.layers.encoder_layer_0.ln_1.weight"], "torchvision's ViT"),
        (["visual.transformer.resblocks.0.ln_1.weight"], "OpenAI's or open_clip's CLIP"),
        (["backbone.layer1.0.conv1.weight", "decode_head.conv_seg.weight"], "MMSegmentation"),
        (["down_blocks.0.resnets.0.conv1.weight"], "diffusers"),
        (["input_blocks.0.0.weight"], "OpenAI's guided-diffusion or GLIDE"),
        (["segmentation_head.0.weight"], "segmentation-models-pytorch"),
        (["weight"], ""),
    ],
)
def test_names_of_libraries_are_known(names: list[str], who: str) -> None:
    assert library_of(names) == who


def test_names_that_are_all_foreign_are_said_in_a_line() -> None:
    state = {f"blocks.{k}.attn.qkv.weight": torch.ones(1) for k in range(90)}
    layout = {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    with pytest.raises(CheckpointError, match=r"None of its 90 names.*timm's transformers") as e:
        require_layout(state, layout)
    assert len(str(e.value)) < 900


# Hostile


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("where", ["top", "entry", "args", "key"])
@pytest.mark.parametrize("save", [_torch, _old, _pickle])
def test_nothing_is_run_wherever_it_is(
    tmp_path: Path, where: str, save: Callable[[Path, Any], None]
) -> None:
    flag = tmp_path / "was-run"
    evil = Hostile(os.mkdir, str(flag))
    content: Any = {
        "top": evil, "entry": {**STATE, "x": evil}, "args": {"state_dict": STATE, "args": [evil]},
        "key": {"state_dict": STATE, "args": {Path("x"): evil}},
    }[where]  # fmt: skip
    save(tmp_path / "w.pt", content)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        read_state_dict(tmp_path / "w.pt")
    assert not flag.exists()


def test_tensors_that_are_not_there_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "wide.pt")
    shared = torch.zeros(10**5)
    torch.save({f"t{k}": shared for k in range(2000)}, tmp_path / "shared.pt")
    for name in ("wide.pt", "shared.pt"):
        with pytest.raises(CheckpointError, match="not stored whole"):
            read_state_dict(tmp_path / name)
    # Tied weights are.
    torch.save({"a": shared, "b": shared}, tmp_path / "tied.pt")
    assert len(read_state_dict(tmp_path / "tied.pt")) == 2


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("w/data/0", bytes(10**8))
    with pytest.raises(CheckpointError, match="unpacks to more than it is"):
        read_state_dict(tmp_path / "w.pt")


def test_a_pickle_that_asks_for_too_much_work_is_refused() -> None:
    # A dictionary of a hundred thousand pairs, made again for every four bytes of the file.
    pairs = b"]q\x00(" + b"K\x01K\x02\x86" * 10**5 + b"e0"
    again = b"ccollections\nOrderedDict\nh\x00\x85R0" * 1000
    with pytest.raises(RefusedError, match="steps of work"):
        read_pickle(io.BytesIO(b"\x80\x02" + pairs + again + b"N."))
    # Numbers that hash alike: a dictionary of them takes the square of their number.
    number = (2**61 - 1).to_bytes(8, "little")
    with pytest.raises(RefusedError, match="used as a key"):
        read_pickle(io.BytesIO(b"\x80\x02}\x8a\x08" + number + b"Ns."))


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("save", [_torch, _old, _pickle, _safetensors])
def test_what_is_cut_short_is_refused(
    tmp_path: Path, keep: float, save: Callable[[Path, Any], None]
) -> None:
    path = tmp_path / "w.pt"
    save(path, {"state_dict": STATE, **ASIDE})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"cut short|not in it"):
        read_state_dict(path)


def test_a_file_of_a_big_endian_machine_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as before_,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as after,
    ):
        for info in before_.infolist():
            big = info.filename.endswith("byteorder")
            after.writestr(info.filename, b"big" if big else before_.read(info))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_state_dict(tmp_path / "big.pt")


def test_a_storage_of_another_length_than_it_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-24] + struct.pack("<q", 5) + data[-16:])
    with pytest.raises(CheckpointError):
        read_state_dict(path)
