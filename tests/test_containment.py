"""Plugins that work but do not behave: nobody else notices, and each is named."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Call
from environments import Environment, build_wheel
from PIL import Image
from torch import Tensor, nn

from ppap_host.containment import SETTINGS, contained
from ppap_host.errors import PluginWarning
from ppap_host.guide import Guide, Target
from ppap_host.loading import Guarded
from ppap_host.registry import Registry

PLAIN = """\
from ppap_host.hookspecs import Entry, hookimpl

ppap_interface = 1

@hookimpl
def ppap_guides():
    return [Entry("{name}", "{module}_guide:Guide", "a guide")]
"""
GUIDE = """\
import torch
from PIL import Image
from ppap_host.guide import Guide as Base, Target
from ppap_host.images import from_tensor

class Guide(Base):
    name = "{name}"
    default_scale = {{"": 1.0}}

    def __init__(self, model=None):
        {made}
        self._network = torch.nn.Identity()

    def network(self):
        return self._network

    def read_target(self, text, size):
        return Target(text, torch.zeros(1, 3, *size))

    def prepare(self, x):
        {asked}
        return x

    def loss(self, output, target):
        return (output - target).square().flatten(1).mean(1)

    distance = loss

    def picture(self, output):
        return from_tensor(output)

    def measure(self, output, target):
        return {{"difference": self.loss(output, target).tolist()}}
"""
COMMAND = """\
import typer

app = typer.Typer(rich_markup_mode=None)

@app.command()
def duel(times: int = 1) -> None:
    print("bang " * (12 // times))
"""
IMPORTED = {
    "loud": "print('Welcome!')",
    "doubles": "import torch; torch.set_default_dtype(torch.float64); torch.set_num_threads(3)",
    "silences": "import random, warnings; warnings.simplefilter('ignore'); random.seed(0)",
    "deaf": "import signal; signal.signal(signal.SIGINT, lambda *_: None)",
    "single": "import os; os.environ['MKL_NUM_THREADS'] = '7'; os.chdir('/')",
    "chatty": "import logging; logging.basicConfig(level=logging.DEBUG)",
    "unsafe": "import functools, torch; torch.load = functools.partial(torch.load, mmap=True)",
}  # fmt: skip
UNDONE = {
    "loud": "prints to standard output ('Welcome!'), which went to standard error",
    "doubles": "changes the default dtype of torch, the thread count of torch, which was undone",
    "silences": "changes the warning filters, the random generator of Python, which was undone",
    "deaf": "changes the handler of Ctrl-C, which was undone",
    "single": "changes the working directory, "
    "environment variables of the number of threads and devices, which was undone",
    "chatty": "changes the root logger, which was undone",
    "unsafe": "changes torch.load, which was undone",
}
MADE = {"makes": "print('made'); torch.set_grad_enabled(False); torch.manual_seed(0)"}
ASKED = {
    "asks": "print('asked'); torch.set_default_dtype(torch.float64); torch.manual_seed(0)",
    "fails": "raise RuntimeError('no\\n moon')",
}


@pytest.fixture(scope="module")
def rude(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment in which all of them are installed."""
    wheels = tmp_path_factory.mktemp("wheels")
    environment = Environment.make(tmp_path_factory.mktemp("rude") / "env")

    def install(name: str, modules: dict[str, str], points: dict[str, dict[str, str]]) -> None:
        environment.install(build_wheel(wheels, f"ppap-x-{name}", modules, points))

    for name in (*IMPORTED, *MADE, *ASKED):
        module = f"ppap_x_{name}"
        source = f"{IMPORTED.get(name, '')}\n{PLAIN.format(name=name, module=module)}"
        made, asked = MADE.get(name, "pass"), ASKED.get(name, "pass")
        guide = GUIDE.format(name=name, made=made, asked=asked)
        modules = {f"{module}.py": source, f"{module}_guide.py": guide}
        install(name, modules, {"ppap": {name: module}})
    for name in ("rival", "second"):
        points = {"run": f"ppap_x_{name}:app", "duel": f"ppap_x_{name}:app"}
        install(name, {f"ppap_x_{name}.py": COMMAND}, {"ppap.commands": points})
    install("only", {"ppap_x_only.py": COMMAND}, {"ppap.commands": {"shoot": "ppap_x_only:app"}})
    return environment


@pytest.fixture(scope="module")
def listed(rude: Environment) -> dict[str, list[dict[str, Any]]]:
    """What ``ppap list --json`` says there; its standard output is JSON and nothing else."""
    outcome = rude.ppap("list", "--json")
    assert (outcome.code, outcome.err) == (0, "Welcome!\n")
    return json.loads(outcome.out)


@pytest.mark.parametrize("name", IMPORTED)
def test_what_an_import_does_to_the_process_is_undone_and_named(
    listed: dict[str, list[dict[str, Any]]], name: str
) -> None:
    (plugin,) = [p for p in listed["plugin"] if p["name"] == name]
    assert plugin["status"] in ("warning", "slow")
    assert UNDONE[name] in plugin["reason"]
    assert plugin["reason"].endswith("when it is imported")
    assert name in [g["name"] for g in listed["guide"]]


def test_after_all_imports_the_process_is_as_it_was(rude: Environment) -> None:
    state = """
        import json, os, random, signal, warnings, logging, torch
        {before}
        print(json.dumps([
            str(torch.get_default_dtype()), torch.get_num_threads(), torch.load.__name__,
            str(signal.getsignal(signal.SIGINT)), os.environ.get("MKL_NUM_THREADS"),
            os.getcwd(), len(logging.root.handlers), logging.root.level,
            [f[0] for f in warnings.filters if f[2] is Warning and f[1] is None],
        ]))
    """
    registered = "from ppap_host.registry import registry; registry()"
    found = [rude.evaluate(state.format(before=code)) for code in ("", registered)]
    assert json.loads(found[0]) == json.loads(found[1])


@pytest.fixture(scope="module")
def runs(rude: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What short runs say, by guide."""
    names = ["makes", "asks", "fails"]
    folder = tmp_path_factory.mktemp("runs")
    calls = [
        ("run", "--guide", name, "--target", "x", "--recipe", "x0", "--num", "1", "--steps", "2",
         "--json", "--out", str(folder / name))
        for name in names
    ]  # fmt: skip
    return dict(zip(names, rude.ppap_in_turn(*calls), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("makes", "when it is made, prints to standard output ('made'), which went to standard "
         "error; changes whether torch records gradients, which was undone"),
        ("asks", "asked for see(), prints to standard output ('asked'), which went to standard "
         "error; changes the default dtype of torch, which was undone"),
    ],
)  # fmt: skip
def test_a_guide_that_meddles_is_named_and_the_run_goes_on(
    runs: dict[str, Any], name: str, what: str
) -> None:
    outcome = runs[name]
    assert outcome.code == 0
    assert json.loads(outcome.out)["status"] == "complete"
    warned = " ".join(outcome.err.split())
    assert f"Warning: The guide {name!r} of ppap-x-{name} 1.0, {what}." in warned


@pytest.mark.slow
def test_a_guide_that_raises_while_it_guides_is_named(runs: dict[str, Any]) -> None:
    outcome = runs["fails"]
    assert (outcome.code, outcome.out) == (2, "")
    assert "Traceback" not in outcome.err
    said = " ".join(outcome.err.split())
    assert "The plugin ppap-x-fails 1.0 fails (ppap_x_fails_guide, line " in said
    assert "in prepare): RuntimeError: no moon. This is a fault of the plugin" in said


def test_no_plugin_replaces_a_command_of_the_host(
    rude: Environment, listed: dict[str, list[dict[str, Any]]]
) -> None:
    assert "--guide" in rude.ppap("run", "--help").out
    (row,) = [c for c in listed["command"] if c["name"] == "run"]
    assert row["from"] == ["ppap-x-rival", "ppap-x-second"]
    assert row["summary"].startswith("unusable")


def test_a_command_of_two_plugins_names_both(rude: Environment) -> None:
    outcome = rude.ppap("duel")
    assert (outcome.code, outcome.out) == (2, "")
    assert "The command 'duel' is claimed by ppap-x-rival and ppap-x-second." in outcome.err


def test_leaving_one_out_makes_the_other_one_usable(
    rude: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPAP_WITHOUT", "ppap-x-rival, loud")
    outcome = rude.ppap("duel", "--times", "4")
    assert (outcome.code, outcome.out) == (0, "bang bang bang \n")
    rows = {p["name"]: p for p in json.loads(rude.ppap("list", "--json").out)["plugin"]}
    assert rows["loud"]["status"] == "left out"
    assert "PPAP_WITHOUT" in rows["loud"]["reason"]
    assert rows["deaf"]["status"] == "warning"


def test_a_command_that_raises_is_named(rude: Environment) -> None:
    outcome = rude.ppap("shoot", "--times", "0")
    assert outcome.code == 2
    assert "The plugin ppap-x-only fails (ppap_x_only, line " in outcome.err
    assert "ZeroDivisionError" in outcome.err
    assert "Traceback" in rude.ppap("--debug", "shoot", "--times", "0").err


@pytest.mark.slow
def test_doctor_names_names_claimed_twice_and_plugins_that_are_not_there(
    rude: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPAP_WITHOUT", "moon")
    found = {f["topic"]: f for f in json.loads(rude.ppap("doctor", "--json").out)}
    assert found["command duel"]["detail"] == "claimed by ppap-x-rival and ppap-x-second"
    assert "ppap-host" in found["command run"]["detail"]
    assert found["PPAP_WITHOUT"]["detail"] == "'moon' is no plugin that is installed"
    assert found["plugin loud"]["status"] == "warning"


# The containment alone


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """Puts everything back that a test changes on purpose, whatever comes of it."""
    before = {setting.what: setting.read() for setting in SETTINGS}
    yield
    for setting in SETTINGS:
        if not setting.same(before[setting.what], setting.read()):
            setting.restore(before[setting.what])


CHANGES: dict[str, Callable[[], object]] = {
    "the warning filters": lambda: warnings.simplefilter("ignore"),
    "the handler of Ctrl-C": lambda: signal.signal(signal.SIGINT, lambda *_: None),
    "the working directory": lambda: os.chdir(os.sep),
    "environment variables of the number of threads and devices": lambda: os.environ.update(
        CUDA_VISIBLE_DEVICES="7"
    ),
    "the root logger": lambda: logging.root.setLevel(3),
    "the random generator of Python": random.random,
    "the random generator of numpy": np.random.random,
    "the error handling of numpy": lambda: np.seterr(all="raise"),
    "the random generator of torch": lambda: torch.rand(1),
    "the default dtype of torch": lambda: torch.set_default_dtype(torch.float16),
    "the default device of torch": lambda: torch.set_default_device("meta"),
    "the thread count of torch": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "whether torch records gradients": lambda: torch.set_grad_enabled(False),
    "whether torch is deterministic": lambda: torch.use_deterministic_algorithms(True),
    "the precision of torch's matrix products": lambda: torch.set_float32_matmul_precision(
        "medium"
    ),
    "how cuDNN chooses algorithms": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.load": lambda: setattr(torch, "load", None),
}


def test_every_setting_has_a_test() -> None:
    # The threads between operators can be set once a process: the next test but one.
    once = "the thread count of torch between operators"
    assert {setting.what for setting in SETTINGS} == {*CHANGES, once}


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_undone_and_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "beartype", raising=False)  # or Python's draws pass unseen
    setting = next(s for s in SETTINGS if s.what == what)
    before = setting.read()
    with contained() as conduct:
        CHANGES[what]()
    assert setting.same(before, setting.read())
    assert (conduct.changed, conduct.printed) == ([what], "")
    assert what in str(conduct)


def test_what_cannot_be_undone_is_named() -> None:
    code = (
        "import torch\n"
        "from ppap_host.containment import contained\n"
        "with contained() as conduct:\n"
        "    torch.set_num_interop_threads(torch.get_num_interop_threads() + 1)\n"
        "print(conduct)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the thread count of torch between operators (for good: " in done.stdout


@pytest.mark.usefixtures("as_it_was")
def test_a_change_is_undone_when_the_code_raises() -> None:
    with suppress(ZeroDivisionError), contained() as conduct:
        torch.set_default_dtype(torch.float16)
        _ = 1 / 0
    assert torch.get_default_dtype() == torch.float32
    assert conduct.changed == ["the default dtype of torch"]


def test_whoever_behaves_is_not_named() -> None:
    before = list(warnings.filters)
    with contained() as conduct:
        # A library may speak for itself, and a context manager cleans up behind itself.
        warnings.filterwarnings("ignore", module="a_library_of_mine")
        with torch.no_grad(), torch.random.fork_rng():
            torch.rand(3)
    assert not conduct
    assert str(conduct) == ""
    warnings.filters[:] = before  # type: ignore[index]


def test_a_filter_for_one_module_outlives_the_undoing_of_one_for_all() -> None:
    before = list(warnings.filters)
    with contained():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("ignore", module="a_library_of_mine")
    assert len(warnings.filters) == len(before) + 1
    assert warnings.filters[0][3] is not None
    warnings.filters[:] = before  # type: ignore[index]


def test_initial_weights_are_drawn_without_a_word_and_without_a_trace() -> None:
    before = torch.get_rng_state()
    with contained(draws=False) as conduct:
        nn.Linear(3, 3)
    assert not conduct
    assert torch.equal(before, torch.get_rng_state())


def test_a_long_print_is_told_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    with contained() as conduct:
        print("word " * 1000)
        sys.stdout.flush()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "word " * 1000 + "\n")
    assert str(conduct) == f"prints to standard output ({'word ' * 11 + 'wo...'!r}), " + (
        "which went to standard error"
    )


def test_bytes_do_not_reach_standard_output_either(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ppap_host.containment import contained\n"
        "with contained():\n"
        "    sys.stdout.buffer.write(b'bytes')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "bytes")


class Draws(Guide):
    """Draws from the global generator whenever it is asked, and once when it first is."""

    name = "draws"
    default_scale = {"": 1.0}  # noqa: RUF012

    def __init__(self, always: bool) -> None:
        self.always, self._network = always, None

    def network(self) -> nn.Module:
        if self._network is None:
            self._network = nn.Conv2d(3, 3, 1)
        return self._network

    def read_target(self, text: str, size: tuple[int, int]) -> Target:
        return Target(text, torch.zeros(1, 3, *size))

    def prepare(self, x: Tensor) -> Tensor:
        return x + torch.rand(1) if self.always else x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().flatten(1).mean(1)

    distance = loss

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (1, 1)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {}


def test_a_guide_that_draws_is_named_once_from_the_second_time_on() -> None:
    x = torch.zeros(1, 3, 4, 4)
    guide = Guarded(Draws(always=True), "ppap-x 1.0")
    guide.see(x)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            guide.see(x)
    (warning,) = caught
    assert warning.category is PluginWarning
    assert "'draws' of ppap-x 1.0, asked for see(), changes" in str(warning.message)
    assert torch.equal(before, torch.get_rng_state())


def test_a_guide_that_makes_its_network_when_it_is_needed_is_not_named() -> None:
    guide = Guarded(Draws(always=False), "ppap-x 1.0")
    for _ in range(2):
        guide.see(torch.zeros(1, 3, 4, 4))
    assert guide.network() is guide.network()


def test_a_guarded_guide_answers_as_the_guide_does() -> None:
    found = Registry()
    own = found.make("guide", "classifier", Guide, model=None)  # type: ignore[type-abstract]
    guarded = Guarded(own, "it")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = own.read_target("red cube", (64, 64)).value
    assert torch.equal(guarded.see(x), own.see(x))
    assert torch.equal(guarded.loss(guarded.see(x), target), own.loss(own.see(x), target))
    assert guarded.measure(own.see(x), target) == own.measure(own.see(x), target)
    tempered = guarded.tempered(1.5, 0.8)
    assert isinstance(tempered, Guarded)
    assert torch.equal(tempered.see(x), own.tempered(1.5, 0.8).see(x))
    public = {n for n in vars(Guide) if not n.startswith("_") and callable(getattr(Guide, n))}
    assert public <= set(vars(Guarded))


def test_a_plugin_warning_is_one_line_on_standard_error(
    ppap_here: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warns(*args: object, **kwargs: object) -> None:
        warnings.warn("The plugin a hums.", PluginWarning, stacklevel=1)

    monkeypatch.setattr("ppap_host.cli.list.print_json", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        outcome = ppap_here("list", "--json")
    assert outcome.err == "Warning: The plugin a hums.\n"
