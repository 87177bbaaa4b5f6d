# SPDX-License-Identifier: BSD-2-Clause
"""auto-balloon with two Debian guests of 256 MiB on a machine of 384 MiB in Bochs: alpha, which has used its memory once
and does not report what is free since then, is idle while beta gets hungry; then they change places. Prints memory over
time, and every decision."""
import os
import re

import pytest

import fusor
from debian_guest import CMDLINE
from test_debian_balloon import MIB, healthy, shell, show, wait_up

CONFIG = "[host]\nfiles = \\guests\nauto-balloon = on\n" + "".join(f"""
[vm {name}]
memory  = 256M
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\initrd.img
cmdline = "{CMDLINE} quiet fusor.delay=86400 fusor.report=1 {more} host={name}"
""" for name, more in (("alpha", "fusor.report_free=0"), ("beta", "")))
NAMES = ["alpha", "beta"]
DECISION = re.compile(r"auto-balloon: (\w+) (gives|gets back): (\d+) -> (\d+) kB; available (\d+) of (\d+) kB, "
                      r"balloon (\d+) kB, spare in the machine (\d+) kB, wanted (\d+) kB")
LOW_WATER = 32 # the machine is short below this part of its frames
MINIMUM = 128 * MIB # memory-min is half of the memory


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("debian_auto_balloon"), CONFIG, fusor.DEBIAN_FILES, prompt=160,
                       memory=384, cpus=int(os.environ.get("AUTO_CPUS", "2"))) as m:
        yield m


def decisions(machine):
    return [x.groups() for x in map(DECISION.search, machine.command("log")) if x]


class Table:
    """Memory over time, a line per sample."""

    def __init__(self, machine):
        self.machine, self.start = machine, machine.uptime()
        print("\n|  s | alpha balloon | resident | available | beta balloon | resident | available | free in machine | "
              "decisions | |\n|---|---|---|---|---|---|---|---|---|---|")

    def sample(self, what=""):
        m = self.machine.metrics() # with the identities
        cells = [f"{self.machine.uptime() - self.start:.0f}"]
        for name in NAMES:
            cells += [str(m[name, "Guest/RAM/Usage/" + x] // MIB) for x in ("Balloon", "Resident", "Available")]
        cells += [str(m["host", "RAM/VMM/Free"] // MIB), str(len(decisions(self.machine))), what]
        print("| " + " | ".join(cells) + " |")
        return m

    def steady(self, seconds):
        """No decision and no other balloon for so long; first what was under way may end."""
        self.machine.sleep(4)
        before, balloons = len(decisions(self.machine)), [show(self.machine, x)["balloon"] for x in NAMES]
        self.machine.sleep(seconds)
        assert len(decisions(self.machine)) == before
        assert [show(self.machine, x)["balloon"] for x in NAMES] == balloons


def eat(machine, name, number, mib):
    out = shell(machine, name, f"dd if=/dev/zero of=/ram/{number} bs=1M count={mib} 2>&1", 300)
    assert f"{mib}+0 records out" in out, out


def test_memory_moves_to_who_needs_it(machine):
    for name in NAMES:
        wait_up(machine, name)
        shell(machine, name, "mkdir /ram; mount -t ramfs ramfs /ram")
    table = Table(machine)
    table.sample("both booted")
    eat(machine, "alpha", 0, 130)
    shell(machine, "alpha", "rm /ram/0")
    machine.sleep(2)
    start = table.sample("alpha has used 130 MiB, idles")
    for i in range(8):
        eat(machine, "beta", i, 20)
        machine.sleep(2)
        table.sample(f"beta uses {20 * i + 20} MiB")
    table.steady(20)
    m = table.sample("20 s later")
    given = m["alpha", "Guest/RAM/Usage/Balloon"]
    assert 32 * MIB <= given <= MINIMUM
    assert m["alpha", "Guest/RAM/Usage/Resident"] <= start["alpha", "Guest/RAM/Usage/Resident"] - 24 * MIB
    assert m["host", "RAM/VMM/Free"] >= m["host", "RAM/VMM/Total"] // LOW_WATER
    first = decisions(machine)
    assert first and all(x[:2] == ("alpha", "gives") for x in first), first
    shell(machine, "beta", "rm /ram/*")
    machine.sleep(5)
    table.sample("beta idles")
    for i in range(5):
        eat(machine, "alpha", i, 20)
        machine.sleep(2)
        table.sample(f"alpha uses {20 * i + 20} MiB")
    table.steady(20)
    m = table.sample("20 s later")
    assert m["alpha", "Guest/RAM/Usage/Balloon"] < given
    second = decisions(machine)[len(first):]
    assert second and all(x[:2] == ("alpha", "gets back") for x in second), second
    print()
    for x in machine.command("log"):
        if DECISION.search(x):
            print(x)
    # Each moves towards its end, by an eighth of the guest at most, and begins where the last one ended.
    target = 0
    for _, what, old, new, *_ in first + second:
        assert int(old) == target and 0 < abs(int(new) - int(old)) <= 256 * MIB // 8
        assert (int(new) > int(old)) == (what == "gives")
        target = int(new)
    for name in NAMES:
        healthy(machine, name)
