"""Commands that start at once: each runs in a fork of one process that has imported everything.

Importing torch and its kin takes longer than most commands of the documentation. A server imports
them once; a small script in place of each program hands it the arguments, the folder, the
environment and its own standard streams, and ends as the command does. POSIX only.

Served are ``ppap``, ``python -m MODULE`` and, as far as pages need them without a network,
``pip install`` and ``curl -O`` (:mod:`offline`). What ``torchrun`` starts is forked as well; other
programs that start processes are run as they are, with the shortening options appended.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import offline
import shown

PROGRAMS = ("ppap", "python", "pip", "curl", "torchrun", "accelerate")
APPENDED = "SHOWN_OPTIONS"
"""Environment variable with the options that are appended to commands that take them, as JSON."""

_HEAVY = (
    "torch", "torch.distributed.run", "diffusers", "timm", "torchvision.models", "pillow_heif",
    "transformers.image_utils", "transformers.models.dpt.modeling_dpt",
    "transformers.models.dpt.image_processing_dpt",
    "ppap_host.cli.run", "ppap_host.runs.run", "ppap_host.runs.harvesting",
    "ppap_host.runs.processes", "ppap_host.experts.tuning", "ppap_host.pipelines",
    "ppap_host.plugins.builtin", "ppap_host.shapes.backbone",
    "ppap_plugin_bench.evaluation", "ppap_plugin_bench.plots", "ppap_plugin_openai.named",
    "ppap_plugin_dit.backbone", "ppap_plugin_edm.backbone", "ppap_plugin_depth.guide",
    "ppap_plugin_classifier.guide", "ppap_plugin_segmentation.guide", "ppap_plugin_clip.networks",
    "ppap_plugin_restore",
)  # fmt: skip
_CLIENT = """\
import json, os, socket, struct, sys
request = json.dumps({{"program": {program!r}, "arguments": sys.argv[1:], "folder": os.getcwd(),
                      "environment": dict(os.environ)}}).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [struct.pack("!Q", len(request))], [0, 1, 2])
    server.sendall(request)
    answer = server.recv(1)
sys.exit(answer[0] if answer else "the command was killed")
"""


@contextlib.contextmanager
def served(environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder to be put first into PATH; its programs are answered as long as the context lasts.

    Args:
        environment: of the server, which decides what is read while libraries are imported.
    """
    # Not below pytest's folders: the addresses of sockets are short.
    with tempfile.TemporaryDirectory(prefix="ppap-") as name:
        folder, address = Path(name) / "bin", str(Path(name) / "socket")
        folder.mkdir()
        for program in PROGRAMS:
            client = Path(name) / f"{program}.py"
            client.write_text(_CLIENT.format(program=program, address=address))
            script = folder / program
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISE "{client}" "$@"\n')
            script.chmod(0o755)
        with open(Path(name) / "log", "w+") as log:
            server = subprocess.Popen(
                [sys.executable, __file__, address],
                env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
            try:
                assert server.stdout is not None
                if server.stdout.readline() != b"ready\n":
                    log.seek(0)
                    raise RuntimeError(f"the server of commands does not start: {log.read()}")
                yield folder
            finally:
                server.kill()
                server.communicate()


def _serve(address: str) -> None:
    import gc
    import importlib

    import PIL.Image
    import stand_ins

    for module in _HEAVY:
        importlib.import_module(module)
    PIL.Image.init()
    stand_ins.shrink()
    # What is here will stay: a fork that collects garbage need not look through it, nor copy it.
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        # Until the standard input ends: nobody leaves a server behind, however it is left.
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass  # nobody else asks for the end of earlier commands
            with connection:
                if os.fork() == 0:
                    server.close()
                    _child(connection)


def _child(connection: socket.socket) -> None:
    """Answers one request and ends the process."""
    code = 1
    try:
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        request = b""
        while len(request) < struct.unpack("!Q", size)[0]:
            request += connection.recv(1 << 16)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        code = _run(**json.loads(request))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([code]))
        os._exit(code)


def _end_with(connection: socket.socket) -> None:
    """Nobody waits for a command whose caller was killed."""
    if not connection.recv(1):
        os._exit(1)


def _run(program: str, arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    # The script's own folder holds the tests' helpers.
    with contextlib.suppress(ValueError):
        sys.path.remove(str(Path(__file__).parent))
    try:
        _call(program, arguments)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _call(program: str, arguments: list[str]) -> Any:
    if program == "python" and arguments[0] == "-u":  # as torchrun starts its processes
        arguments = arguments[1:]
    own = shown.of_ppap([program, *arguments])
    if own is not None:
        arguments = arguments + shown.taken(own, json.loads(os.environ.get(APPENDED, "[]")))
    sys.argv = [program, *arguments]
    if program == "ppap":
        from ppap_host.cli import main

        return main()
    if program == "pip" or arguments[:2] == ["-m", "pip"]:
        return offline.pip(arguments[2 * (program != "pip") :])
    if program == "curl":
        return offline.curl(arguments)
    if program == "torchrun":
        # Its own way to name another interpreter: that of the folder of programs.
        os.environ.update({"PYTHON_EXEC": str(shutil.which("python")), APPENDED: "[]"})
        from torch.distributed.run import main as torchrun

        return torchrun(arguments)
    if program == "python" and arguments[:1] == ["-m"]:
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        return runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    if program == "python" and arguments[0].endswith(".py"):
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        return runpy.run_path(arguments[0], run_name="__main__")
    if program == "python" and arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        return exec(arguments[1], {"__name__": "__main__"})
    launcher = ["-m", "accelerate.commands.accelerate_cli"] if program == "accelerate" else []
    return sys.exit(subprocess.call([sys.executable, *launcher, *arguments]))


if __name__ == "__main__":
    _serve(sys.argv[1])
