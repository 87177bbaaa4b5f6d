# SPDX-License-Identifier: BSD-2-Clause
"""Two Debian guests on two CPUs in Bochs, and the scheduler. One boot, many checks."""
import re

import pytest

import fusor
from debian_guest import CMDLINE, Attached

CONFIG = f"""\
[host]
files = \\guests

[vm alpha]
memory  = 256M
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\initrd.img
cmdline = "{CMDLINE} host=alpha"

[vm beta]
memory  = 256M
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\initrd.img
cmdline = "{CMDLINE} host=beta"
"""


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("debian"), CONFIG, fusor.BARE_FILES + fusor.DEBIAN_FILES, prompt=160,
                       memory=1024, cpus=2) as m:
        yield m


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_userland(machine, name):
    with Attached(machine, name) as guest:
        guest.wake()
        assert re.search(r"Linux \S+ 6\.\S+", guest.shell("uname -a"))
        total = int(re.search(r"MemTotal:\s+(\d+) kB", guest.shell("cat /proc/meminfo")).group(1))
        assert 180 << 10 < total < 256 << 10
        dmesg = guest.shell("dmesg | grep -iE 'tsc|clocksource|apic|acpi: pm|rtc' ")
        assert "PIT calibration failed" not in dmesg
        assert "Marking TSC unstable" not in dmesg
        assert "Switched to clocksource tsc" in dmesg
        errors = guest.shell("dmesg | grep -E 'BUG:|Oops|Call Trace|lockup|detected stall' ; echo end=$?")
        assert "end=1" in errors, errors


def test_guest_time_is_true(machine):
    """Guest time against Fusor's clock. An idle emulated machine may run many times faster than ours, so
    each reading of the guest's clock is bracketed by two of Fusor's."""
    def now():
        before = machine.uptime()
        with Attached(machine, "alpha") as guest:
            inside = float(guest.shell("cat /proc/uptime").split()[0])
        return before, inside, machine.uptime()
    with Attached(machine, "alpha") as guest:
        out = guest.shell("cat /proc/uptime" + 4 * "; sleep 5; cat /proc/uptime")
    times = [float(x.split()[0]) for x in out.split("\n") if x]
    slept = [b - a for a, b in zip(times, times[1:])]
    # Never less; and one at least that nothing else came into.
    assert 4.99 <= min(slept) < 5.05, slept
    a = now()
    with Attached(machine, "alpha") as guest:
        guest.shell("sleep 60", timeout=300)
    b = now()
    inside, least, most = b[1] - a[1], b[0] - a[2], b[2] - a[0]
    print(f"guest {inside:.2f} s, Fusor's clock {least:.2f} to {most:.2f} s")
    assert inside > 60 and least * 0.99 < inside < most * 1.01, (a, b)


def test_metrics_of_running_guests(machine):
    m = machine.metrics()
    for name in ("alpha", "beta"):
        resident = m[name, "Guest/RAM/Usage/Resident"]
        print(name, "resident", resident, "kB")
        assert 40 << 10 < resident < 200 << 10
    assert any("EPT_VIOLATION" in x for x in machine.command("exits alpha"))


def test_four_spinners_share_two_cpus(machine):
    """Paused Debian guests, four spinning bare guests: equal shares within 10 %, live console."""
    for name in ("alpha", "beta"):
        machine.ok(f"vm pause {name}")
    names = [f"spin{i}" for i in range(4)]
    for name in names:
        machine.ok(f'vm create {name} memory=8M kernel=\\guests\\bare.bin cmdline="test=spincli"')
        machine.ok(f"vm start {name}")

    def run_ticks():
        m = machine.metrics()
        return [m[x, "CPU/Run"] for x in names]
    before = run_ticks()
    machine.sleep(6)
    after = run_ticks()
    shares = [b - a for a, b in zip(before, after)]
    print("shares", shares)
    assert max(shares) < 1.1 * min(shares), shares
    # the console answers within a second of the machine's time
    assert machine.ticks_of() < int(machine.facts()["tsc-hz"])
    for name in names:
        machine.ok(f"vm destroy {name}")
    for name in ("alpha", "beta"):
        machine.ok(f"vm resume {name}")


def test_weights(machine):
    for name, weight in (("light", 100), ("heavy", 300), ("filler", 400)):
        machine.ok(f'vm create {name} memory=8M weight={weight} affinity=1 kernel=\\guests\\bare.bin '
                   'cmdline="test=spincli"')
    for name in ("light", "heavy", "filler"):
        machine.ok(f"vm start {name}")
    before = machine.metrics()
    machine.sleep(6)
    after = machine.metrics()
    ran = {n: after[n, "CPU/Run"] - before[n, "CPU/Run"] for n in ("light", "heavy", "filler")}
    assert 2.4 < ran["heavy"] / ran["light"] < 3.6, ran
    for name in ("light", "heavy", "filler"):
        machine.ok(f"vm destroy {name}")


def test_shutdown_by_power_button_and_reset(machine):
    machine.ok("vm shutdown beta")
    machine.wait_state("beta", "stopped", 300)
    m = machine.metrics()
    assert m["beta", "Guest/RAM/Usage/Resident"] == 0
    with Attached(machine, "alpha") as guest:
        guest.shell("echo still here")
        machine.send("reboot -f\n")
        machine.console.expect("VM alpha reset by the guest", timeout=120)
    assert machine.state("alpha") == "running"
    machine.ok("vm stop alpha")
