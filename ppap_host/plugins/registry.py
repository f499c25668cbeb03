"""Finds plugins, isolates the broken ones, looks things up by name."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from ppap_host.files.errors import PluginError, PpapError, UnknownNameError, unknown_name
from ppap_host.files.weights import PublishedFile, default_folder, stored
from ppap_host.plugins import hookspecs
from ppap_host.plugins.containment import contained, in_a_line, plain, warn_of
from ppap_host.plugins.entry_points import (
    HOST,
    LEFT_OUT,
    OWN_COMMANDS,
    PLUGINS,
    entry_points,
    is_left_out,
    owner,
    plugin_commands,
)
from ppap_host.plugins.hookspecs import Entry
from ppap_host.plugins.plugin import (
    ANSWERS,
    HOOKS,
    PUBLISHED,
    SLOW_IMPORT,
    WEIGHTS_HOOK,
    Kind,
    Plugin,
    fault_of,
    of_another_interface,
)

T = TypeVar("T")

# What the project itself publishes, so that an unknown name can be answered with a command.
KNOWN_PLUGINS: dict[Kind, dict[str, str]] = {
    "guide": {
        "classifier": "ppap-plugin-classifier",
        "clip": "ppap-plugin-clip",
        "style": "ppap-plugin-clip",
        "depth": "ppap-plugin-depth",
        "segmentation": "ppap-plugin-segmentation",
        "adm-classifier": "ppap-plugin-openai",
        "super-resolution": "ppap-plugin-restore",
        "inpainting": "ppap-plugin-restore",
        "deblur": "ppap-plugin-restore",
        "motion-deblur": "ppap-plugin-restore",
        "colourise": "ppap-plugin-restore",
    },
    "backbone": {
        "adm": "ppap-plugin-openai",
        "adm-256-uncond": "ppap-plugin-openai",
        "dit-xl-2-256": "ppap-plugin-dit",
        "edm": "ppap-plugin-edm",
        "glide": "ppap-plugin-openai",
    },
}


class Registry:
    """All plugins of this environment, the host's own among them.

    The host's things are registered through the same hooks as anyone's. A broken plugin becomes a
    line with a reason, never an exception; only asking for a name that two plugins claim, or that a
    broken one would have provided, is an error.
    """

    def __init__(self, points: Iterable[metadata.EntryPoint] | None = None) -> None:
        """Loads every plugin of these entry points (default: those installed)."""
        self._manager = pluggy.PluginManager("ppap")
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self._claims: dict[Kind, dict[str, list[tuple[Plugin, Entry]]]] = {k: {} for k in HOOKS}
        self._published: dict[str, list[tuple[Plugin, PublishedFile]]] = {}
        broken: dict[str, str] = {}
        if points is None:
            found, broken = entry_points(PLUGINS)
        else:
            found = sorted(points, key=lambda p: (p.name, p.value))
        self._add(*HOST, _version("ppap-host"), "ppap_host.plugins.builtin", _host_module)
        for point in found:
            self._add(point.name, owner(point), _version_of(point), point.value, point.load)
        for name, reason in broken.items():
            problem = f"declares entry points that cannot be read: {plain(reason)}"
            self.plugins.append(Plugin(name, name, "", "", problem))

    def _add(
        self, name: str, distribution: str, version: str, module: str, load: Callable[[], object]
    ) -> None:
        plugin = Plugin(name, distribution, version, module)
        self.plugins.append(plugin)
        if (name, distribution) != HOST and is_left_out(name, distribution):
            plugin.unwanted = True
            plugin.problem = f"is left out: the environment variable {LEFT_OUT} names it"
            return
        began = time.perf_counter()
        with contained() as conduct:
            plugin.problem = self._tried(plugin, load)
        plugin.seconds = time.perf_counter() - began
        if plugin.problem is not None:
            plugin.offers.clear()
            plugin.published.clear()
            return
        remarks = [plugin.warning] if plugin.warning else []
        if plugin.seconds > SLOW_IMPORT:
            remarks.append(
                f"is slow: its import takes {plugin.seconds:.1f} s; "
                "it should import heavy libraries only inside what it registers"
            )
        if conduct:
            remarks.append(f"{conduct}, when it is imported")
        plugin.warning = "; ".join(remarks) or None
        for kind, entries in plugin.offers.items():
            for entry in entries:
                self._claims[kind].setdefault(entry.name, []).append((plugin, entry))
        for file in plugin.published:
            self._published.setdefault(file.name, []).append((plugin, file))

    def _tried(self, plugin: Plugin, load: Callable[[], object]) -> str | None:
        """Imports and registers a plugin; the reason if it must be left out."""
        doing = "cannot be imported"
        try:
            loaded = load()
            doing = "fails when it is asked for its ppap_interface"
            problem = of_another_interface(plugin, getattr(loaded, "ppap_interface", None))
            doing = "fails in a hook"
            return problem or self._register(plugin, loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            return f"{doing}: {in_a_line(error)}"

    def _register(self, plugin: Plugin, loaded: object) -> str | None:
        """Checks and registers a loaded plugin; the reason if it must be left out."""
        twin = self._manager.get_name(loaded)
        if twin is not None:
            return f"names the module {plugin.module!r}, which {twin.partition(':')[0]} registers"
        self._manager.register(loaded, name=f"{plugin.distribution}:{plugin.name}")
        problem = self._asked(plugin, loaded)
        if problem is not None:
            self._manager.unregister(loaded)
        return problem

    def _asked(self, plugin: Plugin, loaded: object) -> str | None:
        """Calls the hooks of a plugin; what is wrong with their answers, if anything is."""
        callers = self._manager.get_hookcallers(loaded) or ()
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        if unknown:
            return (
                f"implements unknown hooks {', '.join(sorted(unknown))}; "
                f"known: {', '.join(sorted(ANSWERS))}"
            )
        marked = {caller.name for caller in callers}
        answers: dict[str, list[Any]] = {}
        for hook, wanted in ANSWERS.items():
            found = getattr(loaded, hook, None)
            if hook not in marked and found is not None and not hasattr(found, "ppap_spec"):
                return f"has a {hook} without @hookimpl"
            answers[hook] = list(found()) if found is not None and hook in marked else []
            for answer in answers[hook]:
                if not isinstance(answer, wanted):
                    return (
                        f"{hook} must return a list of {wanted.__name__}, "
                        f"not of {type(answer).__name__}"
                    )
            names = [answer.name for answer in answers[hook]]
            twice = sorted({str(name) for name in names if names.count(name) > 1})
            if twice:
                return f"{hook} names {', '.join(twice)} twice"
        for kind, hook in HOOKS.items():
            for entry in answers[hook]:
                fault = fault_of(entry)
                if fault is not None:
                    return f"{hook} returns an entry {fault}"
            if answers[hook]:
                plugin.offers[kind] = answers[hook]
        plugin.published = answers[WEIGHTS_HOOK]
        return None

    def names(self, kind: Kind) -> dict[str, list[tuple[Plugin, Entry]]]:
        """Everything of a kind: name -> who claims it (more than one is a collision)."""
        return dict(sorted(self._claims[kind].items()))

    def published_files(self) -> dict[str, list[tuple[Plugin, PublishedFile]]]:
        """All published files of weights: name -> who claims it (more than one is a collision)."""
        return dict(sorted(self._published.items()))

    def published(self, name: str) -> PublishedFile:
        """The one published file of this name.

        Raises:
            PluginError: two plugins claim the name.
            UnknownNameError: nobody declares it; says the nearest names.
        """
        claims = self._published.get(name, [])
        if len(claims) == 1:
            return claims[0][1]
        if claims:
            raise _claimed_twice(PUBLISHED, name, [plugin for plugin, _ in claims])
        error = unknown_name(PUBLISHED, name, self._published)
        if not self._published:
            error.remedy = "No plugin that is installed declares one."
        raise error

    def collisions(self) -> list[tuple[str, str, list[str]]]:
        """Names that several plugins claim: (kind, name, labels of the plugins).

        The host's own commands stay its own, whoever claims them.
        """
        owners: dict[tuple[str, str], list[str]] = {
            (kind, name): [plugin.label for plugin, _ in found]
            for kind, claims in self._claims.items()
            for name, found in claims.items()
        }
        for name, files in self._published.items():
            owners[PUBLISHED, name] = [plugin.label for plugin, _ in files]
        for name, points in plugin_commands().items():
            own = [self.plugins[0].label] if name in OWN_COMMANDS else []
            owners["command", name] = [*own, *(owner(point) for point in points)]
        return [
            (kind, name, sorted(labels))
            for (kind, name), labels in owners.items()
            if len(labels) > 1
        ]

    def owner(self, kind: Kind, name: str) -> Plugin:
        """The plugin that offers the one thing of this kind and name.

        Raises:
            PluginError, UnknownNameError: as :meth:`entry`.
        """
        self.entry(kind, name)
        return self._claims[kind][name][0][0]

    def blamed(self, error: BaseException) -> tuple[str, str] | None:
        """The plugin in whose code an error came up, and where there; None if in nobody's."""
        owners: dict[str, set[str]] = {}
        try:
            packages = metadata.packages_distributions()
        except Exception:  # one broken distribution among all is enough
            packages = {}
        for points in plugin_commands().values():
            for point in points:
                owners.setdefault(point.module, set()).add(owner(point))
        for plugin in self.plugins[1:]:
            for package in plugin.packages(packages):
                owners.setdefault(package, set()).add(plugin.label)
        cause: BaseException | None = error
        while cause is not None:
            found = None
            for frame, line in traceback.walk_tb(cause.__traceback__):
                module = str(frame.f_globals.get("__name__", ""))
                known = (owners[name] for name in _and_parents(module) if name in owners)
                labels = next(known, set())
                if labels and module.split(".")[0] != "ppap_host":
                    where = f"{module}, line {line}, in {frame.f_code.co_name}"
                    found = " or ".join(sorted(labels)), where
            if found is not None:
                return found
            cause = cause.__cause__
        return None

    def entry(self, kind: Kind, name: str) -> Entry:
        """The one thing of this kind and name.

        Raises:
            PluginError: two plugins claim the name, or it belongs to a broken plugin.
            UnknownNameError: nobody offers it; says the nearest name and how to install it.
        """
        if not isinstance(name, str):  # from a script
            raise unknown_name(kind, name, self._claims[kind])
        claims = self._claims[kind].get(name, [])
        if len(claims) == 1:
            return claims[0][1]
        if claims:
            raise _claimed_twice(kind, name, [plugin for plugin, _ in claims])
        known_as = KNOWN_PLUGINS.get(kind, {}).get(name)
        for plugin in self.plugins:
            if plugin.problem and (plugin.name == name or plugin.distribution == known_as):
                raise PluginError(
                    f"The plugin {plugin.label}, which should provide the {kind} {name!r}, "
                    f"{plugin.problem}.",
                    remedy=f"Take it out of {LEFT_OUT}."
                    if plugin.unwanted
                    else "Mend or reinstall it; `ppap list` and `ppap doctor` say more.",
                )
        raise self._unknown(kind, name)

    def make(self, kind: Kind, name: str, wanted: type[T], **options: Any) -> T:
        """What the factory of this kind and name returns for ``options``.

        Raises:
            PluginError: the factory fails in a way that is not the user's fault, or returns
                something else than a ``wanted``; or as :meth:`load`.
            PpapError: what the factory itself says about the options.
        """
        factory, plugin = self.load(kind, name), self.owner(kind, name)
        try:
            # Networks draw their initial weights from the global generators: no fault of theirs.
            with contained(draws=False) as conduct:
                made = factory(**options)
        except (PpapError, KeyboardInterrupt):
            raise
        except BaseException as error:
            named = next((v for v in options.values() if isinstance(v, str)), None)
            if named is not None:
                raise PluginError(
                    f"The {kind} {name!r} of {plugin.label} cannot be made of {named!r}: "
                    f"{in_a_line(error)}.",
                    remedy="If the plugin can read others, the file is at fault: check it, or give "
                    "another one. The traceback, on the command line --debug, shows where.",
                ) from error
            raise PluginError(
                f"The {kind} {name!r} of {plugin.label} cannot be made: {in_a_line(error)}.",
                remedy="This is a fault of the plugin; tell its authors. The traceback, on the "
                "command line --debug, shows where.",
            ) from error
        if not isinstance(made, wanted):
            raise PluginError(
                f"The {kind} {name!r} of {plugin.label} makes a {type(made).__name__}, "
                f"not a {wanted.__name__}.",
                remedy="This is a fault of the plugin; tell its authors.",
            )
        warn_of(conduct, f"The {kind} {name!r} of {plugin.label}, when it is made,")
        return made

    def expert_set(self, name: str) -> Path:
        """The file of a registered expert set.

        Raises:
            PluginError: its plugin cannot say where it is, or nothing is there; or as :meth:`load`.
            UnknownNameError: as :meth:`entry`.
        """
        path = self.make("expert set", name, Path)
        if not path.is_file():
            plugin = self.owner("expert set", name)
            raise PluginError(
                f"The expert set {name!r} of {plugin.label} is not at {str(path)!r}.",
                remedy="Reinstall the plugin.",
            )
        return path

    def load(self, kind: Kind, name: str) -> Any:
        """What the entry of this kind and name stands for, imported now.

        Raises:
            PluginError: its import fails, or as :meth:`entry`.
            UnknownNameError: as :meth:`entry`.
        """
        entry, plugin = self.entry(kind, name), self.owner(kind, name)
        try:
            with contained(draws=False) as conduct:
                loaded = entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"The {kind} {name!r} of {plugin.label} cannot be loaded: {in_a_line(error)}.",
                remedy="Run `ppap doctor`; if it finds nothing, reinstall the plugin.",
            ) from error
        warn_of(conduct, f"The {kind} {name!r} of {plugin.label}, when it is imported,")
        return loaded

    def _unknown(self, kind: Kind, name: str) -> UnknownNameError:
        published = KNOWN_PLUGINS.get(kind, {})
        known = {*self._claims[kind], *published}
        error = unknown_name(kind, name, known)
        wanted = published.get(name)
        if wanted:
            error = unknown_name(kind, name, self._claims[kind])
            error.remedy = f"Install it with `pip install {wanted}`. {error.remedy}"
        else:
            missing = {k: p for k, p in published.items() if k not in self._claims[kind]}
            if missing:
                offers = ", ".join(f"{k!r} with `pip install {p}`" for k, p in missing.items())
                error.remedy += f" Not installed here: {offers}."
        return error


def _and_parents(module: str) -> Iterable[str]:
    """A module and the packages that it is in, the innermost first."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _version_of(point: metadata.EntryPoint) -> str:
    try:
        return (point.dist and point.dist.version) or ""
    except Exception:  # of a distribution without metadata
        return ""


def _claimed_twice(kind: str, name: str, plugins: Iterable[Plugin]) -> PluginError:
    owners = " and ".join(sorted({plugin.label for plugin in plugins}))
    distributions = sorted({plugin.distribution for plugin in plugins})
    return PluginError(
        f"The {kind} {name!r} is claimed by {owners}.",
        remedy="Uninstall one of them: "
        + " or ".join(f"`pip uninstall {dist}`" for dist in distributions)
        + ".",
    )


def _host_module() -> ModuleType:
    from ppap_host.plugins import builtin

    return builtin


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@cache
def registry() -> Registry:
    """The registry of this environment, made once per process."""
    return Registry()


def fetched(name: str, folder: Path | None = None) -> Path | None:
    """The published file of this name if it is here; nothing is fetched, and nothing read.

    Args:
        name: as in ``ppap weights``.
        folder: where to look; the default folder if None.

    Returns:
        Its path, or None if it is not there, unfinished, of another size, or another file.

    Raises:
        PluginError, UnknownNameError: as :meth:`Registry.published`.
    """
    file = registry().published(name)
    return stored(file, default_folder(file) if folder is None else folder)
