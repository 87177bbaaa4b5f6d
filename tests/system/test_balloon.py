# SPDX-License-Identifier: BSD-2-Clause
"""Balloon, overcommit and waiting for memory with bare guests on one CPU in Bochs."""
import re

import pytest

import fusor

CONFIG = """\
[host]
console    = com1:115200
overcommit = off
files      = \\guests

[vm early]
memory    = 64M
kernel    = \\guests\\bare.bin
cmdline   = "test=driver"
balloon   = 8M
autostart = off
"""


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("balloon"), CONFIG, cpu="corei7_haswell_4770", memory=256) as m:
        yield m


@pytest.fixture(params=["off", "on"])
def full_machine(bochs, tmp_path, request):
    """One with overcommit, with and without auto-balloon, in which two guests want all there is."""
    config = ("[host]\nconsole = com1:115200\nfiles = \\guests\n"
              f"auto-balloon = {request.param}\n")
    with fusor.running(tmp_path, config, cpu="corei7_haswell_4770", memory=256) as m:
        m.automatic = request.param == "on"
        yield m


def show(machine, name):
    return machine.facts(f"vm show {name}")


def wait_balloon(machine, name, kb, timeout=60):
    fusor.until(lambda: show(machine, name)["balloon"] == f"{kb} kB", timeout,
                lambda: (show(machine, name)["balloon"], kb))
    machine.check_identities(machine.metrics())


def test_calls(machine):
    lines = machine.bare("balloon", name="calls", memory="32M")
    print("\n".join(x for x in lines if "ticks" in x))
    assert "bare: balloon done" in lines, lines


@pytest.mark.parametrize("options", ["", " poll=1"])
def test_target(machine, options):
    machine.ok('vm create beta memory=64M kernel=\\guests\\bare.bin '
               f'cmdline="test=driver touch=40M{options}"')
    try:
        machine.ok("vm balloon beta 4M")
        assert show(machine, "beta")["balloon-target"] == "4096 kB (pending: no driver)"
        machine.ok("vm start beta")
        wait_balloon(machine, "beta", 4096)
        assert show(machine, "beta")["balloon-target"] == "4096 kB"
        resident = machine.metrics()["beta", "Guest/RAM/Usage/Resident"]
        machine.ok("vm balloon beta 16M")
        wait_balloon(machine, "beta", 16384)
        assert machine.metrics()["beta", "Guest/RAM/Usage/Resident"] == resident - 12288
        machine.ok("vm balloon beta 2M")
        wait_balloon(machine, "beta", 2048)
        machine.ok("vm reset beta")
        assert show(machine, "beta")["balloon-target"].startswith("2048 kB")
        wait_balloon(machine, "beta", 2048)
        machine.ok("vm stop beta")
        assert show(machine, "beta")["balloon"] == "0 kB"
        for bad, what in (("65M", "more than its memory"), ("33M", "memory-min"), ("1", "integer"),
                          ("1K", "multiple of 4K"), ("-1M", "integer")):
            assert what in machine.error(f"vm balloon beta {bad}")
    finally:
        machine.ok("vm destroy beta")


def test_target_from_config(machine):
    machine.ok("vm start early")
    wait_balloon(machine, "early", 8192)
    machine.ok("vm stop early")


def test_overcommit_off(machine):
    """A VM that does not fit is refused with numbers, and starts when another has given enough."""
    machine.ok("vm start early")
    wait_balloon(machine, "early", 8192)
    machine.ok('vm create big memory=16M memory-min=1M kernel=\\guests\\bare.bin '
               'cmdline="test=driver"')
    machine.ok("vm set big memory=250M memory-min=1M")
    why = machine.error("vm start big")
    assert "needs 256000 kB" in why and "overcommit = off leaves" in why, why
    left = int(re.search(r"leaves (\d+) kB", why).group(1))
    size = left + 8192 - left % 4
    machine.ok(f"vm set big memory={size}K memory-min=1M")
    machine.error("vm start big")
    machine.ok("vm balloon early 32M")
    wait_balloon(machine, "early", 32768)
    machine.ok("vm start big")
    assert machine.state("big") == "running"
    # What early gave is promised now: it does not get all of it back.
    def kept():
        return int(show(machine, "early")["balloon"].split()[0])
    machine.ok("vm balloon early 0K")
    fusor.until(lambda: kept() < 32768)
    machine.sleep(2)
    assert kept() >= 8192, kept()
    machine.check_identities(machine.metrics())
    machine.ok("vm stop big")
    machine.ok("vm balloon early 2M")
    wait_balloon(machine, "early", 2048)
    machine.ok("vm destroy big")
    machine.ok("vm stop early")


def test_out_of_frames(full_machine):
    """A guest that finds no frame waits, and goes on when another one gives some: because the
    operator, or auto-balloon, says so."""
    m = full_machine
    m.ok('vm create idle memory=128M memory-min=32M kernel=\\guests\\bare.bin '
         'cmdline="test=driver touch=110M idle=1"')
    m.ok("vm start idle")
    fusor.until(lambda: m.metrics()["idle", "Guest/RAM/Usage/Resident"] >= 110 * 1024)
    m.ok('vm create hungry memory=144M kernel=\\guests\\bare.bin cmdline="test=touch ranges=68"')
    m.ok("vm start hungry")
    if not m.automatic:
        m.wait_state("hungry", "waiting-memory", timeout=60)
        m.check_identities(m.metrics())
        log = "\n".join(m.command("log info"))
        short = re.search(r"VM hungry waits for memory: (\d+) kB short", log)
        assert short and int(short.group(1)) > 0, log
        # The console does everything meanwhile.
        m.ok("vm set hungry weight=200")
        m.ok("vm pause hungry")
        m.ok("vm resume hungry")
        assert show(m, "idle")["balloon"] == "0 kB"
        m.wait_state("hungry", "waiting-memory", timeout=60)
        m.ok("vm balloon idle 64M")
    m.wait_state("hungry", "stopped", timeout=120)
    lines = m.replay("hungry")
    assert "bare: touch done" in lines and any("errors=0" in x for x in lines), lines
    log = m.command("log info")
    print("\n".join(x for x in log if "balloon" in x or "waits" in x or "goes on" in x))
    assert any("auto-balloon: idle gives: 0 ->" in x for x in log) == m.automatic
    m.check_identities(m.metrics())
