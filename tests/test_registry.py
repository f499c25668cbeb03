"""Plugins of every kind of misfortune, each a real distribution in a real environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from environments import Environment, build_wheel
from processes import Outcome

from ppap_host.files.errors import PluginError, UnknownNameError
from ppap_host.plugins import plugin as plugin_module
from ppap_host.plugins.plugin import Plugin
from ppap_host.plugins.registry import Registry


def guide(name: str, factory: str, before: str = "", interface: str = "ppap_interface = 1") -> str:
    return f"""\
{before}
from ppap_host.plugins.hookspecs import Entry, hookimpl

{interface}

@hookimpl
def ppap_guides():
    return [Entry("{name}", "{factory}", "the guide {name}")]
"""


PLUGINS: dict[str, str] = {
    "goodx": guide("goodx", "ppap_x_goodx:ppap_guides"),
    "brokenx": guide("brokenx", "a:b", 'raise ImportError("needs moonlib\\nwhich is not here")'),
    "syntaxx": "def :\n",
    "exitsx": "import sys\nsys.exit(3)\n",
    "futurex": guide("futurex", "a:b", interface="ppap_interface = 99"),
    "silentx": guide("silentx", "a:b", interface=""),
    "misspeltx": guide("misspeltx", "a:b") + "\n\n@hookimpl\ndef ppap_guidez():\n    return []\n",
    "stringsx": guide("stringsx", "a:b").replace("return [", "return ['goodx'] or ["),
    "raisesx": guide("raisesx", "a:b").replace("return", "raise KeyError('oh'); return"),
    "slowx": guide("slowx", "ppap_x_slowx:ppap_guides", "import time; time.sleep(1)"),
    "hollowx": guide("hollowx", "ppap_x_hollowx_missing:Guide"),
    "emptyx": guide("emptyx", "ppap_x_emptyx:Missing"),
    "leavesx": guide("leavesx", "antigravity_x:Guide"),
    "olderx": guide("olderx", "a:b", interface="ppap_interface = 0"),
    "wordsx": guide("wordsx", "a:b", interface="ppap_interface = 'one'"),
    "shoutsx": guide("ShoutsX", "a:b"),
    "vaguex": guide("vaguex", "the guide of vaguex"),
    "longx": guide("longx", "a:b").replace("the guide", "the\\nguide"),
    "twicex": guide("twicex", "a:b").replace("return [", "return 2 * ["),
    "nothingx": guide("nothingx", "a:b").replace("return", "return None and"),
    "hugex": guide("hugex", "a:b", interface="ppap_interface = 10**5000"),
    "mutex": "class Mute(Exception):\n    __str__ = None\n\nraise Mute\n",
    "latin": "raise OSError('caf' + chr(0xDCE9))\n",
    "moduless": "def __getattr__(name):\n    raise RuntimeError(name)\n",
    "basex": guide("basex", "a:b").replace("return", "raise BaseException('end'); return"),
    "halfx": guide("halfx", "a:b").replace("return [", "yield from [") + "    yield 1 / 0\n",
    "plainx": guide("plainx", "a:b").replace("@hookimpl", ""),
    "hashx": guide("hashx", "a:b").replace(
        'Entry("hashx"', 'Entry(type("Name", (str,), {"__hash__": None})("hashx")'
    ),
    "bareguidesx": "from ppap_host.plugins.hookspecs import *\n\nppap_interface = 1\n",
    "twin-a": guide("depthx", "ppap_x_twin_a:ppap_guides"),
    "twin-b": guide("depthx", "ppap_x_twin_b:ppap_guides"),
}
BROKEN = {
    "brokenx": "cannot be imported: ImportError: needs moonlib which is not here",
    "syntaxx": "cannot be imported: SyntaxError: invalid syntax",
    "exitsx": "cannot be imported: SystemExit: 3",
    "futurex": "is written for interface 99, and this host has 1: "
    "`pip install --upgrade ppap-host`",
    "olderx": "is written for interface 0, and this host has 1: "
    "`pip install --upgrade ppap-x-olderx`",
    "wordsx": "declares the ppap_interface 'one', which is no version; this host has 1",
    "silentx": "declares no ppap_interface; its module must name one, and this host has 1",
    "misspeltx": "implements unknown hooks ppap_guidez; known: ppap_backbones",
    "stringsx": "ppap_guides must return a list of Entry, not of str",
    "raisesx": "fails in a hook: KeyError: 'oh'",
    "hugex": "declares the ppap_interface that it does, which is no version",
    "mutex": "cannot be imported: Mute",
    "latin": r"cannot be imported: OSError: caf\udce9",
    "moduless": "fails when it is asked for its ppap_interface: RuntimeError: ppap_interface",
    "basex": "fails in a hook: BaseException: end",
    "halfx": "fails in a hook: ZeroDivisionError: division by zero",
    "plainx": "has a ppap_guides without @hookimpl",
    "hashx": "a name has lower-case letters, digits and hyphens",
    "shoutsx": "an entry named 'ShoutsX': a name has lower-case letters, digits and hyphens",
    "vaguex": "'vaguex' with the factory 'the guide of vaguex': write 'module:attribute'",
    "longx": "an entry 'longx' whose summary is not one line of text",
    "twicex": "ppap_guides names twicex twice",
    "nothingx": "fails in a hook: TypeError: 'NoneType' object is not iterable",
}
COMMANDS = """\
import sys
from pathlib import Path

import typer
from ppap_host.files.errors import OptionError

app = typer.Typer(rich_markup_mode=None)

@app.command()
def greet(name: str, loud: bool = False) -> None:
    "Greets somebody."
    if name == "nobody":
        raise OptionError("Nobody is there.", remedy="Name somebody.")
    print(f"Hello {name}{'!' if loud else ''}")
"""


def distribution(key: str) -> str:
    return f"ppap-x-{key}"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with all of them at once."""
    wheels = tmp_path_factory.mktemp("wheels")
    environment = Environment.make(tmp_path_factory.mktemp("zoo") / "env")
    for key, source in PLUGINS.items():
        name = distribution(key)
        module = name.replace("-", "_")
        modules = {f"{module}.py": source}
        if key == "leavesx":
            modules["antigravity_x.py"] = "raise SystemExit(0)\n"
        environment.install(build_wheel(wheels, name, modules, {"ppap": {key: module}}))
    commands = {"greet": "ppap_x_commands:app", "wreck": "ppap_x_wreck:app"}
    environment.install(
        build_wheel(
            wheels,
            "ppap-x-commands",
            {"ppap_x_commands.py": COMMANDS, "ppap_x_wreck.py": "import moonlib\n"},
            {"ppap.commands": commands},
        )
    )
    return environment


@pytest.fixture(scope="session")
def listed(zoo: Environment) -> dict[str, list[dict[str, Any]]]:
    """What ``ppap list --json`` says there."""
    outcome = zoo.ppap("list", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    return json.loads(outcome.out)


@pytest.fixture(scope="session")
def refusals(zoo: Environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What ``ppap run --guide <name>`` says of each."""
    names = [*BROKEN, "hollowx", "emptyx", "leavesx", "depthx", "godx"]
    out = str(tmp_path_factory.mktemp("refused") / "out")
    calls = [("run", "-q", "--guide", name, "--target", "x", "--out", out) for name in names]
    outcomes = dict(zip(names, zoo.ppap_in_turn(*calls), strict=True))
    assert not Path(out).exists()
    return outcomes


def row(listed: dict[str, list[dict[str, Any]]], key: str) -> dict[str, Any]:
    (found,) = [p for p in listed["plugin"] if p["distribution"] == distribution(key)]
    return found


def test_the_environment_is_a_real_one(zoo: Environment) -> None:
    printed = zoo.evaluate("import sys, ppap_x_goodx as x; print(sys.prefix); print(x.__file__)")
    prefix, file = printed.split("\n")[:2]
    assert Path(prefix).samefile(zoo.folder)
    assert zoo.packages.resolve() in Path(file).resolve().parents


def test_a_good_plugin_among_bad_ones_works(listed: dict[str, Any]) -> None:
    found = row(listed, "goodx")
    assert (found["status"], found["reason"], found["version"]) == ("ok", "", "1.0")
    (entry,) = [g for g in listed["guide"] if g["name"] == "goodx"]
    assert entry == {"name": "goodx", "summary": "the guide goodx", "from": ["ppap-x-goodx 1.0"]}
    assert "shapes" in [b["name"] for b in listed["backbone"]]


@pytest.mark.parametrize("key", BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason(listed: dict[str, Any], key: str) -> None:
    found = row(listed, key)
    assert found["status"] == "broken"
    assert BROKEN[key] in found["reason"]
    assert "\n" not in found["reason"]
    assert key not in [g["name"] for g in listed["guide"]]


@pytest.mark.parametrize("key", BROKEN)
def test_asking_for_a_broken_plugin_says_why(refusals: dict[str, Outcome], key: str) -> None:
    outcome = refusals[key]
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"ppap-x-{key} 1.0" in outcome.err
    assert BROKEN[key] in outcome.err
    assert "ppap doctor" in outcome.err


def test_a_plugin_that_took_the_specifications_along_offers_nothing(
    listed: dict[str, list[dict[str, Any]]],
) -> None:
    assert row(listed, "bareguidesx")["status"] == "ok"


def test_a_distribution_without_metadata_or_with_a_broken_list_takes_nobody_down(
    tmp_path: Path,
) -> None:
    environment = Environment.make(tmp_path / "env")
    for name, points in {
        "half": "[ppap.commands]\nhalf = half:app\n[ppap]\nhalf = half\n",
        "garbled": "[ppap]\nno equals sign\n",
    }.items():
        info = environment.packages / f"ppap_x_{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(points)
    assert "Usage: ppap" in environment.ppap("--help").out
    outcome = environment.ppap("list", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = json.loads(outcome.out)["plugin"]
    assert {"host", "depth"} <= {row["name"] for row in rows if row["status"] == "ok"}
    (garbled,) = [row for row in rows if "garbled" in row["distribution"]]
    assert "entry points that cannot be read" in garbled["reason"]


def test_a_name_with_two_owners_is_listed_as_unusable(listed: dict[str, Any]) -> None:
    (entry,) = [g for g in listed["guide"] if g["name"] == "depthx"]
    assert entry["from"] == ["ppap-x-twin-a 1.0", "ppap-x-twin-b 1.0"]
    assert "unusable" in entry["summary"]


def test_a_name_with_two_owners_is_refused_and_both_are_named(
    refusals: dict[str, Outcome],
) -> None:
    assert refusals["depthx"] == Outcome(2, "", TWINS)


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(zoo: Environment) -> None:
    assert zoo.ppap("run", "--guide", "depthx", "--target", "x") == Outcome(2, "", TWINS)
    assert not (zoo.folder / "ppap-out" / "000").exists()


TWINS = (
    "Error: The guide 'depthx' is claimed by ppap-x-twin-a 1.0 and ppap-x-twin-b 1.0. "
    "Uninstall one of them: `pip uninstall ppap-x-twin-a` or `pip uninstall ppap-x-twin-b`.\n"
)


def test_uninstalling_one_owner_mends_it(tmp_path: Path) -> None:
    environment = Environment.make(tmp_path / "env")
    source = PLUGINS["twin-a"]
    environment.install(
        build_wheel(
            tmp_path,
            "ppap-x-twin-a",
            {"ppap_x_twin_a.py": source},
            {"ppap": {"a": "ppap_x_twin_a"}},
        )
    )
    rows = json.loads(environment.ppap("list", "--json").out)["guide"]
    (entry,) = [g for g in rows if g["name"] == "depthx"]
    assert entry["from"] == ["ppap-x-twin-a 1.0"]


def test_a_slow_plugin_works_and_is_flagged(listed: dict[str, Any]) -> None:
    found = row(listed, "slowx")
    assert found["status"] == "slow"
    assert found["reason"].startswith("is slow: its import takes 1.")
    assert "slowx" in [g["name"] for g in listed["guide"]]


def test_help_imports_no_plugin(zoo: Environment) -> None:
    outcome = zoo.evaluate(
        """
        import contextlib, io, sys
        sys.argv = ["ppap", "--help"]
        from ppap_host.cli import main
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main()
        assert "Usage: ppap" in text.getvalue()
        print(sorted(name for name in sys.modules if name.startswith("ppap_x")))
        """
    )
    assert outcome.strip() == "[]"


def test_listing_loads_plugins_but_nothing_that_they_name(zoo: Environment) -> None:
    outcome = zoo.evaluate(
        """
        import sys
        from ppap_host.plugins.registry import registry
        registry()
        print("ppap_x_goodx" in sys.modules, "torch" in sys.modules)
        """
    )
    assert outcome.split() == ["True", "False"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("hollowx", "ModuleNotFoundError: No module named 'ppap_x_hollowx_missing'"),
        ("emptyx", "AttributeError: module 'ppap_x_emptyx' has no attribute 'Missing'"),
        ("leavesx", "RuntimeError: it calls sys.exit(0)"),
    ],
)
def test_a_factory_that_cannot_be_imported(
    listed: dict[str, Any], refusals: dict[str, Outcome], key: str, said: str
) -> None:
    assert row(listed, key)["status"] == "ok"
    outcome = refusals[key]
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"The guide '{key}' of ppap-x-{key} 1.0 cannot be loaded: {said}" in outcome.err


def test_a_mistyped_name_finds_the_plugin(refusals: dict[str, Outcome]) -> None:
    assert refusals["godx"].code == 2
    assert "Did you mean 'goodx'" in refusals["godx"].err


def test_a_command_of_a_plugin(zoo: Environment) -> None:
    assert "From the plugin ppap-x-commands" in zoo.ppap("--help").out
    assert zoo.ppap("greet", "you", "--loud") == Outcome(0, "Hello you!\n", "")


def test_the_command_of_a_plugin_speaks_as_the_host_does(zoo: Environment) -> None:
    shown, mistaken, refused, wreck = zoo.ppap_in_turn(
        ("greet", "--help"), ("greet", "--silent"), ("greet", "nobody"), ("wreck",)
    )
    assert shown.code == 0
    assert "Usage: ppap greet [OPTIONS]" in shown.out
    assert (mistaken.code, mistaken.out) == (2, "")
    assert "--silent" in mistaken.err
    assert refused == Outcome(2, "", "Error: Nobody is there. Name somebody.\n")
    assert (wreck.code, wreck.out, wreck.err.count("\n")) == (2, "", 1)
    assert (
        "The command 'wreck' of ppap-x-commands cannot be loaded: ModuleNotFoundError" in wreck.err
    )


@pytest.mark.slow
def test_doctor_reports_every_plugin(zoo: Environment) -> None:
    outcome = zoo.ppap("doctor", "--json")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    findings = {f["topic"]: f for f in json.loads(outcome.out)}
    for key, reason in BROKEN.items():
        assert findings[f"plugin {key}"]["status"] == "problem"
        assert reason in findings[f"plugin {key}"]["detail"]
        assert f"ppap-x-{key}" in findings[f"plugin {key}"]["remedy"]
    assert findings["plugin goodx"]["status"] == "ok"
    assert findings["plugin slowx"]["status"] == "warning"
    assert findings["guide depthx"]["status"] == "problem"
    assert "ppap-x-twin-a 1.0 and ppap-x-twin-b 1.0" in findings["guide depthx"]["detail"]


# The registry alone


OLD = "is written for interface 1, and this host has 2 to 3: `pip install --upgrade ppap-a`"
NEW = "is written for interface 4, and this host has 2 to 3: `pip install --upgrade ppap-host`"
AGEING = "is written for interface 2; it works, but a later host will serve 3 only"


@pytest.mark.parametrize(
    ("wanted", "problem", "warning"), [(1, OLD, ""), (2, "", AGEING), (3, "", ""), (4, NEW, "")]
)
def test_an_older_interface_is_served_with_a_warning_as_long_as_the_host_says(
    wanted: int, problem: str, warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_module, "INTERFACE", 3)
    monkeypatch.setattr(plugin_module, "OLDEST_INTERFACE", 2)
    plugin = Plugin("a", "ppap-a", "1.0", "a")
    told = plugin_module.of_another_interface(plugin, wanted)
    assert (told or "").startswith(problem)
    assert bool(told) == bool(problem)
    assert (plugin.warning or "").startswith(warning)
    assert bool(plugin.warning) == bool(warning)


def test_the_host_registers_its_things_as_a_plugin_does() -> None:
    host, *others = Registry([]).plugins
    assert (host.distribution, host.problem, others) == ("ppap-host", None, [])
    assert [e.name for e in host.offers["recipe"]][:3] == ["naive", "ppap", "x0"]


def test_a_guide_of_the_project_that_is_not_installed_comes_with_its_command() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Registry([]).entry("guide", "depth")
    assert caught.value.remedy.startswith("Install it with `pip install ppap-plugin-depth`.")
    with pytest.raises(UnknownNameError) as caught:
        Registry([]).entry("guide", "dpeth")
    assert "Did you mean 'depth'?" in caught.value.remedy
    assert "`pip install ppap-plugin-depth`" in caught.value.remedy


def test_kinds_do_not_share_names() -> None:
    with pytest.raises(UnknownNameError, match="Unknown backbone 'x0'"):
        Registry([]).entry("backbone", "x0")


def test_what_cannot_be_loaded_keeps_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([])
    (_, entry), *_ = registry.names("recipe")["x0"]
    monkeypatch.setattr(type(entry), "load", lambda self: 1 / 0)
    with pytest.raises(PluginError, match="ZeroDivisionError") as caught:
        registry.load("recipe", "x0")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
