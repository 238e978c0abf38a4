"""File permissions that apply to root too, because tests may run as root."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of capabilities(7).
_IGNORE_PERMISSIONS = 0b110
#: Version 3 of the kernel's interface, for this thread.
_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)


@contextmanager
def permissions_apply() -> Iterator[None]:
    """Drop the capabilities that let root ignore file permissions, until the block ends."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read every file")
    libc = ctypes.CDLL(None, use_errno=True)
    before, capabilities = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    for values in (before, capabilities):
        assert libc.capget(_HEADER, values) == 0
    capabilities[0] &= ~_IGNORE_PERMISSIONS
    assert libc.capset(_HEADER, capabilities) == 0
    try:
        yield
    finally:
        assert libc.capset(_HEADER, before) == 0
