"""Nothing is lost: power cuts, two jobs at once, and files that are no files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from powercut import Disk, cuts
from processes import plain_environment
from teaching import world
from worlds import ColourGuide, small_gaussian

from ppap_host.experts.harvest import Harvest, HarvestConfig
from ppap_host.experts.sets import ExpertSet
from ppap_host.experts.tuning import STATE, TuningConfig, tune
from ppap_host.files import reading
from ppap_host.files.errors import CheckpointError, OptionError, OutputError, RecordError
from ppap_host.files.folders import Job, inside, numbered
from ppap_host.files.offline import nothing_fetched
from ppap_host.files.reading import Document, read_bytes, read_toml, require_regular
from ppap_host.files.writing import UNFINISHED, write_file
from ppap_host.runs.harvesting import harvest

HARVEST = HarvestConfig("gaussian", num=6, shard=2, batch=2, steps=3, seed=3, device="cpu")
TUNING = TuningConfig(experts=1, rank=1, steps=2, batch=2, check_every=1, held_out=0.4)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# Power cuts


def test_a_power_cut_leaves_a_file_old_new_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "old.txt").write_bytes(b"old")

    def work() -> None:
        write_file(folder / "old.txt", b"new")
        write_file(folder / "inner" / "deep" / "x.txt", b"made")

    seen = set()
    for where, left in cuts(folder, work, tmp_path / "cuts"):
        found = {k: v for k, v in files(left).items() if not k.endswith(UNFINISHED)}
        assert found.pop("old.txt") in (b"old", b"new"), where
        assert found.pop("inner/deep/x.txt", b"made") == b"made", where
        assert not found, where
        seen.add(where.rpartition(" ")[2])
    assert seen >= {"nothing", "names"}


def test_what_was_written_is_on_the_disk_once_it_returns(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", lambda name: None)
    with disk.watching():
        write_file(tmp_path / "disk" / "inner" / "deep" / "x.txt", b"made")
        disk.leave("nothing", tmp_path / "left")
    assert files(tmp_path / "left") == {"inner/deep/x.txt": b"made"}


def test_what_is_no_file_is_not_replaced_by_one(odd_files: dict[str, Path]) -> None:
    for name in ("pipe", "link", "loop", "socket"):  # never the device itself
        path = odd_files[name]
        before = path.lstat()
        with pytest.raises(OutputError, match="would be replaced"):
            write_file(path, b"data")
        assert path.lstat().st_ino == before.st_ino


def test_the_layer_notices_a_file_that_was_never_flushed(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()

    def work() -> None:
        (folder / ".half").write_bytes(b"bytes")
        os.replace(folder / ".half", folder / "x.txt")

    left = dict(cuts(folder, work, tmp_path / "cuts"))
    after = {w.rpartition(" ")[2]: files(path) for w, path in left.items() if "after" in w}
    assert {"names", "half"} <= after.keys()
    assert after["names"] == {"x.txt": b""}
    assert after["half"] == {"x.txt": b"by\0\0\0"}


def test_a_harvest_ends_the_same_after_a_power_cut_at_any_point(tmp_path: Path) -> None:
    whole = files(harvest(HARVEST, tmp_path / "whole", found=world()).folder)
    folder = tmp_path / "disk"
    folder.mkdir()
    left = list(cuts(folder, lambda: harvest(HARVEST, folder, found=world()), tmp_path / "cuts"))
    assert len(left) > 15
    for where, path in left:
        # What is there under its own name is never half of a file: nothing has to be made again.
        again = harvest(HARVEST, path, found=world())
        assert files(again.folder) == whole, where


def test_a_tuning_ends_the_same_after_a_power_cut_at_any_point(tmp_path: Path) -> None:
    made = harvest(HARVEST, tmp_path / "harvest", found=world())
    lesson = made.lesson(ColourGuide())

    def to_the_end(folder: Path) -> bytes:
        target = folder / "experts.safetensors"
        if not target.exists():
            experts = tune(
                ColourGuide(), lesson, small_gaussian().levels(), TUNING, folder, save_every=0.0
            )
            experts.save(target)
            (folder / STATE).unlink()
        ExpertSet.load(target)
        return target.read_bytes()

    folder = tmp_path / "disk"
    folder.mkdir()
    left = list(cuts(folder, lambda: to_the_end(folder), tmp_path / "cuts"))
    assert len(left) > 15
    whole = (folder / "experts.safetensors").read_bytes()
    for where, path in left:
        assert to_the_end(path) == whole, where


def test_a_lesson_is_the_same_after_a_power_cut_at_any_point(tmp_path: Path) -> None:
    made = harvest(HARVEST, tmp_path / "disk", found=world())
    left = list(cuts(made.folder, lambda: made.lesson(ColourGuide()), tmp_path / "cuts"))
    whole = files(made.folder)
    for where, path in left:
        Harvest.open(path).lesson(ColourGuide())
        found = {k: v for k, v in files(path).items() if not k.endswith(UNFINISHED)}
        assert found == whole, where


# Two at once

_HOLD = """
import sys, time
from pathlib import Path
from ppap_host.files.folders import Job
job = Job(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_jobs(tmp_path: Path) -> None:
    with Job(tmp_path / "x"):
        with Job(tmp_path / "x"):  # the same job, further inside
            pass
        refused: list[BaseException] = []

        def other() -> None:
            try:
                Job(tmp_path / "x")
            except OutputError as error:
                refused.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "at work" in str(refused[0])
        other_process = [sys.executable, "-c", _HOLD, str(tmp_path / "x")]
        assert b"at work" in subprocess.run(other_process, capture_output=True).stderr
        (tmp_path / "x" / "result").write_text("")
    with Job(tmp_path / "x"):
        pass
    assert (tmp_path / "x" / "result").exists()


def test_a_killed_job_lets_go_and_its_leftovers_are_removed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE,
        env=plain_environment(),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    (tmp_path / f".x.json.0123{UNFINISHED}").write_bytes(b"half")
    with pytest.raises(OutputError, match="at work"):
        Job(tmp_path)
    child.kill()
    child.communicate()
    with Job(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_job_that_leaves_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Job(tmp_path / "a" / "b"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "own").mkdir()
    with Job(tmp_path / "own"):
        pass
    assert list((tmp_path / "own").iterdir()) == []


def test_numbers_are_taken_by_making_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001").write_text("in the way")
    taken: list[Path] = []

    def take() -> None:
        with numbered(tmp_path / "out") as folder:
            taken.append(folder)
            (folder / "x").write_text("")

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(path.name for path in taken)
    assert names == ["000", *(f"{k:03d}" for k in range(2, 9))]
    with pytest.raises(ZeroDivisionError), numbered(tmp_path / "out") as folder:
        1 / 0  # noqa: B018
    assert not folder.exists()


# Names that stay inside


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "", ".", "a/../../x", "link/x", "\0", "targets/../../../etc/passwd"],
)
def test_names_stay_inside_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "x").write_text("outside")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(RecordError, match="no file inside"):
        inside(tmp_path / "in", name, RecordError)
    for good in ("x", "targets/0-0.png", "a/../x"):
        assert inside(tmp_path / "in", good, RecordError) == tmp_path / "in" / good


# Files that are no files, and documents that are too much


@pytest.fixture
def odd_files(tmp_path: Path) -> Iterator[dict[str, Path]]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)
        server.bind("socket")
        os.chdir(here)
        names = ("pipe", "folder", "link", "loop", "socket", "missing")
        yield {name: tmp_path / name for name in names} | {"device": Path("/dev/zero")}


READERS: dict[str, Callable[[Path], Any]] = {
    "require_regular": lambda path: require_regular(path, OptionError),
    "read_bytes": lambda path: read_bytes(path, OptionError),
    "read_toml": lambda path: read_toml(path, OptionError, ""),
    "document": lambda path: Document("list", OptionError, "").read(path, list[int]),
}


@pytest.mark.parametrize("reader", READERS)
def test_nothing_but_regular_files_is_opened(odd_files: dict[str, Path], reader: str) -> None:
    for path in odd_files.values():
        began = time.monotonic()
        with pytest.raises(OptionError):
            READERS[reader](path)
        assert time.monotonic() - began < 2, path


NUMBERS = Document("list", OptionError, "Mend it.", size=100_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 50_000, "nested"),
        ('{"a":' * 5_000, "nested"),
        ("[" * 70 + "]" * 70, "nested more than 64"),
        ("[" + "9" * 5_000 + "]", "digits"),
        ("[" + "9" * 400 + "]", "300 digits"),
        ("[1e999]", "number inf"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "Infinity is no number"),
        ("[1.5]", "'0': input should be a valid integer, not 1.5"),
        ('["1"]', "not '1'"),
        ("[true]", "not True"),
        ('["' + "x" * 1000 + '"]', r"\.\.\."),
        ("{}", "valid list"),
        ("", "line 1"),
        ("\ufeff[]", "BOM"),
        ("[1, 2", "line 1"),
        ("[" + "1," * 60_000 + "1]", "100,000 bytes"),
    ],
)
def test_documents_that_are_none_are_refused_in_a_line(text: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(OptionError, match=said) as caught:
        NUMBERS.parse(text, list[int], "x.json")
    assert time.monotonic() - began < 2
    assert len(caught.value.message) < 700
    assert "\n" not in caught.value.message


def test_more_values_than_a_budget_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "VALUES", 100)
    assert NUMBERS.parse(json.dumps(list(range(50))), list[int], "") == list(range(50))
    with pytest.raises(OptionError, match="100 values"):
        NUMBERS.parse(json.dumps(list(range(200))), list[int], "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@given(VALUES)
def test_whatever_json_holds_it_is_read_or_refused(values: Any) -> None:
    sound = isinstance(values, list) and all(type(value) is int for value in values)
    if sound:
        assert NUMBERS.parse(json.dumps(values), list[int], "x") == values
    else:
        with pytest.raises(OptionError) as caught:
            NUMBERS.parse(json.dumps(values), list[int], "x")
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (".".join("a" * 50_000) + " = 1", "parts"),
        ("[" + ".".join(["ab"] * 40) + "]", "parts"),
        (" . ".join(['"a"'] * 40) + " = 1", "parts"),
        ("a" * 100_000 + " = 1", "characters"),
        ("a = " + "[" * 3_000, "nested"),
        ("a = " + "{b=" * 1_000, "nested"),
        ("a = " + "9" * 5_000, "characters"),
        ("a = 0x" + "f" * 100_000, "characters"),
        ("a = " + "9" * 400, "300 digits"),
        ("a = nan", "number nan"),
        ("a = inf", "number inf"),
        ("a = 1\n" * 100_000, "bytes"),
    ],
)
def test_toml_that_takes_too_long_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    began = time.monotonic()
    with pytest.raises(OptionError, match=said) as caught:
        read_toml(tmp_path / "x.toml", OptionError, "Mend it.")
    assert time.monotonic() - began < 2
    assert len(caught.value.message) < 700


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200))
def test_texts_in_toml_may_hold_anything(text: str) -> None:
    import tomli_w

    folder = Path(os.environ["PYTEST_TMP_TOML"])
    values = {"prompt": f"{text} [[[ {'.'.join('ab' * 40)} # {text}", "guide": [{"name": text}]}
    (folder / "x.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    assert read_toml(folder / "x.toml", OptionError, "") == values


@pytest.fixture(autouse=True, scope="module")
def _toml_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_TMP_TOML", str(tmp_path_factory.mktemp("toml")))
        yield


def test_a_harvest_says_which_of_its_files_is_no_file(tmp_path: Path) -> None:
    made = harvest(HARVEST, tmp_path / "h", found=world())
    made.images_file(1).unlink()
    os.mkfifo(made.images_file(1))
    with pytest.raises(CheckpointError, match="a pipe"):
        Harvest.open(made.folder)


_HAMMER = """
import sys
from pathlib import Path
from ppap_host.files.errors import OutputError
from ppap_host.files.folders import Job
folder, held = Path(sys.argv[1]), 0
for _ in range(300):
    try:
        with Job(folder):
            (folder / "alone").touch(exist_ok=False)
            (folder / "alone").unlink()
            held += 1
    except OutputError:
        pass
print(held)
"""


def test_a_lock_goes_with_its_job_and_is_never_two_jobs(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", _HAMMER, str(tmp_path / "x")], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=plain_environment(),
        )
        for _ in range(3)
    ]  # fmt: skip
    for child in begun:
        out, err = child.communicate()
        assert not err, err.decode()
        assert int(out) > 0
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("where", ["here", "thread", "pool"])
def test_nothing_is_fetched_from_any_thread_that_begins_meanwhile(where: str) -> None:
    told: list[BaseException | None] = []

    def ask() -> None:
        with socket.socket() as client:
            try:
                client.connect(("127.0.0.1", 9))
            except (OSError, CheckpointError) as error:
                told.append(error)

    def all_ways() -> None:
        if where == "pool":
            with ThreadPoolExecutor() as pool:
                pool.submit(lambda: ThreadPoolExecutor().submit(ask).result()).result()
        elif where == "thread":
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        else:
            ask()

    with nothing_fetched("a record"):
        all_ways()
    all_ways()
    assert [type(error) for error in told] == [CheckpointError, ConnectionRefusedError]
