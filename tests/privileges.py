"""Permissions that count, also where the tests run as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import pytest

_VERSION = 0x20080522  # of capabilities(7), with two words each
_OVER_FILES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@contextlib.contextmanager
def without_power_over_files() -> Iterator[None]:
    """This thread may read and write what the permissions say, no more, even if it is root's.

    Programs that it starts get the power back.
    """
    if sys.platform != "linux" or os.geteuid():
        if hasattr(os, "geteuid") and not os.geteuid():
            pytest.skip("root may read and write everything")
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = _Header(_VERSION, 0), (_Word * 2)()

    def call(function: str) -> None:
        if getattr(libc, function)(ctypes.byref(header), ctypes.byref(words)):
            raise OSError(ctypes.get_errno(), f"{function} failed")

    call("capget")
    before = words[0].effective
    words[0].effective = before & ~_OVER_FILES
    call("capset")
    try:
        yield
    finally:
        words[0].effective = before
        call("capset")
