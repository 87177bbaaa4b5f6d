# SPDX-License-Identifier: BSD-2-Clause
"""Hypercalls and page fusion with bare guests on one CPU in Bochs. One boot, many checks."""
import pytest

import fusor

CONFIG = """\
[host]
console = com1:115200
files   = \\guests
"""


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("fusion"), CONFIG, cpu="corei7_haswell_4770") as m:
        yield m


def hypercall_guest(machine, more="", options=""):
    """Runs test=hypercall; returns its lines, and `vm show` and metrics when it has powered off."""
    machine.ok(f"vm create calls memory=16M kernel=\\guests\\bare.bin{more} "
               f'cmdline="test=hypercall{options}"')
    machine.ok("vm start calls")
    machine.wait_state("calls", "stopped")
    lines = machine.replay("calls")
    facts = dict(x.split(": ", 1) for x in machine.command("vm show calls"))
    metrics = machine.metrics()
    machine.ok("vm destroy calls")
    return lines, facts, metrics


def pairs(lines, test, key):
    """The key=value pairs of the first line of `test` that has `key`."""
    for line in lines:
        if line.startswith(f"bare: {test} ") and f" {key}=" in line:
            return dict(x.split("=", 1) for x in line.split() if "=" in x)
    raise AssertionError((key, lines))


def test_hypercalls(machine):
    lines, facts, metrics = hypercall_guest(machine)
    assert "bare: hypercall done" in lines, lines
    assert not any("error" in x and "errors=0" not in x for x in lines), lines
    found = pairs(lines, "hypercall", "version")
    assert (found["version"], found["list_max"]) == ("1", "512")
    assert int(found["features"], 16) & 3 == 3
    assert "bare: hypercall ring3=refused" in lines
    # What the guest was told is what the console shows.
    told = pairs(lines, "hypercall", "received")
    for key in ("received", "fused", "unmatched", "rejected"):
        assert facts["hints-" + key] == told[key], key
    assert int(told["received"]) > 512 and int(told["rejected"]) > 0
    # Wrong hints are told apart, and nothing was fused: no other VM has these pages.
    assert facts["fusion"] == "on" and facts["hints-fused"] == "0" and facts["splits"] == "0"
    for why in ("range", "reserved", "duplicate"):
        assert metrics["calls", "Fusion/Hints/Rejected/" + why] > 0, why
    assert metrics["calls", "Guest/RAM/Usage/Shared"] == 0
    assert int(dict(x.split(": ", 1) for x in machine.command("host"))["hypercalls-refused"]) > 20
    # The guest's report, in kB; the bad ones behind it changed nothing.
    for metric, pages in (("Total", 4096), ("Free", 1000), ("Available", 3000), ("Cache", 500)):
        assert metrics["calls", "Guest/RAM/Usage/" + metric] == 4 * pages


def test_hypercalls_with_fusion_off(machine):
    lines, facts, metrics = hypercall_guest(machine, more=" page-fusion=off", options=" off=1")
    assert "bare: hypercall done" in lines, lines
    assert facts["fusion"] == "off" and facts["hints-unmatched"] == "0"
    told = pairs(lines, "hypercall", "received")
    assert told["received"] == told["rejected"] != "0"
    assert metrics["calls", "Fusion/Hints/Rejected/off"] == int(told["rejected"])
    assert metrics["calls", "Guest/RAM/Usage/Shared"] == 0
