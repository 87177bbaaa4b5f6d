# SPDX-License-Identifier: BSD-2-Clause
import os
import shutil
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
# When the time is over: fixtures are torn down, and what was done is counted.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also the slow matrices")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run by `make test-full`")


def pytest_collection_modifyitems(config, items):
    """The slow matrices, and what is marked as slow, are no part of `make test`: left out, not skipped."""
    if config.getoption("--full"):
        return
    slow = [x for x in items if x.path.name in ("test_matrix.py", "test_debian_driver_smp.py")
            or x.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [x for x in items if x not in slow]


@pytest.fixture(scope="session")
def bochs():
    """Skips, with the reason, where the engine is missing; but what was asked for must be there."""
    binary = os.environ.get("BOCHS", "bochs")
    if shutil.which(binary) is None:
        assert "BOCHS" not in os.environ, f"BOCHS={binary} is no program"
        pytest.skip(f"{binary} is not installed (Debian package bochs)")


@pytest.fixture(scope="session")
def qemu():
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (Debian package qemu-system-x86)")
