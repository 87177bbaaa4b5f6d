# SPDX-License-Identifier: BSD-2-Clause
"""Virtual-interrupt delivery and posted interrupts: bare guests with several vCPUs get the same interrupts with them and
without, and fewer exits. One boot each way. No part of `make test`: the engine may interrupt a guest that has its
interrupts off (docs/testing.md), which these guests survive nearly always."""
import os
import re
import subprocess

import pytest

import fusor
from test_guests import values

# what `host` says, the CPU model, the line of the config
WAYS = {
    "off": ("corei7_haswell_4770", "apicv = off\n"),
    "on": ("corei7_haswell_4770", "apicv = on\n"),
    "on, posted interrupts": ("corei7_skylake_x", "apicv = on\n"),
}
counts = {}
pytestmark = pytest.mark.slow


def bochs_version():
    done = subprocess.run([os.environ.get("BOCHS", "bochs"), "--help"], capture_output=True, check=False, text=True,
                          stdin=subprocess.DEVNULL)
    found = re.search(r"Bochs x86 Emulator (\d+)\.(\d+)", done.stdout + done.stderr)
    return tuple(int(x) for x in found.groups()) if found else (0, 0)


@pytest.fixture(scope="module", params=list(WAYS))
def machine(request, bochs, tmp_path_factory):
    if request.param == "on, posted interrupts" and bochs_version() < (2, 8):
        pytest.skip("no CPU model of this Bochs has posted interrupts; those of 2.8 and later do")
    cpu, line = WAYS[request.param]
    with fusor.running(tmp_path_factory.mktemp("apicv"), f"[host]\n{line}files = \\guests\n", cpus=2, cpu=cpu) as m:
        m.way = request.param
        yield m


def run(machine, test, cpus):
    """The guest's lines and its exits by reason."""
    machine.ok(f'vm create bare memory=16M cpus={cpus} kernel=\\guests\\bare.bin cmdline="test={test}"')
    machine.ok("vm start bare")
    machine.wait_state("bare", "stopped", 300)
    lines = machine.replay("bare")
    exits = {x.split(": ")[0]: int(x.split(": ")[1]) for x in machine.command("exits bare")}
    machine.ok("vm destroy bare")
    assert f"bare: {test.split()[0]} done" in lines, lines
    return lines, exits


def test_way(machine):
    facts = dict(x.split(": ", 1) for x in machine.command("host"))
    assert facts["apicv"] == machine.way


def test_ipis_and_modes(machine):
    """Every pair of vCPUs, in xAPIC mode, mixed, x2APIC mode, and back: registers, IPIs of all kinds, INIT, STARTUP."""
    for cpus in (3, 5):
        lines, _ = run(machine, "smp", cpus)
        assert [x["mode"] for x in values(lines, "smp", pairs=str(cpus * cpus))] == ["xapic", "mixed", "x2apic", "back"]


def test_exits(machine):
    """100 IPIs to a vCPU that runs, 200 to one that halts, timers."""
    lines, exits = run(machine, "latency x2apic=1", 2)
    print(machine.way, [x for x in lines if "what=" in x], exits)
    counts[machine.way] = exits
    wrmsr = {k: v.get("WRMSR", 0) for k, v in counts.items()}
    kicks = {k: v.get("EXCEPTION_OR_NMI", 0) for k, v in counts.items()}
    if "on" in wrmsr:  # EOIs need none
        assert wrmsr["on"] < wrmsr["off"] - 300, wrmsr
    if "on, posted interrupts" in wrmsr:  # nor does what comes from another CPU
        assert wrmsr["on, posted interrupts"] < wrmsr["off"] - 300, wrmsr
        assert kicks["on, posted interrupts"] < kicks["on"] - 70, kicks


def test_devices_and_faults(machine):
    """The PIC, the IOAPIC's edges and levels, timers, NMIs, events that an exit interrupts."""
    for test in ("irq", "timer", "nmi", "fault"):
        run(machine, test, 2)


def test_storm_and_lifecycle(machine):
    """Interrupts from everywhere while it is paused, reset and stopped; nothing is left behind."""
    before = machine.metrics("host")["host", "RAM/VMM/Free"]
    machine.ok('vm create storm memory=8M cpus=4 kernel=\\guests\\bare.bin cmdline="test=storm"')
    machine.ok("vm start storm")
    for command in ("pause", "resume", "reset", "pause", "resume", "stop", "start", "reset", "destroy"):
        machine.ok(f"vm {command} storm")
    machine.metrics()
    assert abs(machine.metrics("host")["host", "RAM/VMM/Free"] - before) < 256
