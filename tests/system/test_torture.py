# SPDX-License-Identifier: BSD-2-Clause
"""Overcommit torture with bare guests: they share all their memory, then write all of it anew while
the host has no free frame. See guest-drivers/bare/test_torture.c."""
import re

import pytest

import fusor
from fuse_guest import FuseGuest

CONFIG = "[host]\nconsole = com1:115200\nfiles = \\guests\n"
RESERVE = 16384  # kB, the default
LARGE = 24 << 20 # bytes of an initrd: more than a guest has of its own and splits leave of the reserve
LEFT = 4096      # kB beyond the reserve when they begin to write


class TortureGuest(FuseGuest):
    test = "torture"
    harmless = "p"


class Memory:
    """A full machine: guests that share all they have, and a fifth one that holds the rest."""

    def __init__(self, machine):
        self.machine = machine
        self.guests = []

    def add(self, name, **options):
        guest = TortureGuest(self.machine, name, **options)
        self.guests.append(guest)
        assert guest.do("h")["refused"] == 0
        return guest

    def fill(self):
        m = self.machine
        touch = (m.metrics()["host", "RAM/VMM/Free"] - RESERVE - LEFT) // 2048 * 2048
        m.ok(f"vm create hog memory={touch + 8192}K kernel=\\guests\\bare.bin "
             f'cmdline="test=driver touch={touch}K"')
        m.ok("vm start hog")
        fusor.until(lambda: m.metrics()["hog", "Guest/RAM/Usage/Resident"] >= touch, 120)

    def states(self):
        lines = self.machine.command("vm list")[1:]
        states = dict(x.split()[:2] for x in lines)
        return [states[g.name] for g in self.guests]

    def wait_until(self, state, timeout=120):
        fusor.until(lambda: self.states() == [state] * len(self.guests), timeout, self.states)
        self.machine.check_identities(self.machine.metrics())

    def figures(self, metric):
        m = self.machine.metrics()
        return [m[g.name, metric] for g in self.guests]

    def end(self):
        for line in self.machine.command("vm list")[1:]:
            self.machine.ok(f"vm destroy {line.split()[0]}")


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("torture")
    large = directory / "large"
    large.write_bytes(bytes(LARGE))
    with fusor.running(directory, CONFIG, (*fusor.BARE_FILES, ("guests/large", str(large))),
                       cpu="corei7_haswell_4770", memory=256) as m:
        yield m


@pytest.fixture
def memory(machine):
    memory = Memory(machine)
    try:
        yield memory
    finally:
        memory.end()


def elapsed(machine, name):
    """Ticks since the VM was made."""
    return sum(int(x.split()[2]) for x in machine.command(f"metrics {name} CPU/*"))


def waits_said(machine):
    """What the log says of each VM's waiting."""
    return re.findall(r"VM (\w+) (waits for memory: [1-9]\d* kB short|goes on after \d+ ms: [1-9]\d* kB are free)",
                      "\n".join(machine.command("log info")))


def ticks_until_resumed(machine):
    """From the stop of the hog until the first and until all of the VMs go on for good, at most: the
    log says when each has tried in vain for the last time, and the next try was 10 ms later."""
    hz = int(dict(x.split(": ", 1) for x in machine.command("host"))["tsc-hz"])
    log = "\n".join(machine.command("log info"))
    stopped = float(re.findall(r"\[([\d.]+)\] [^\n]*console: vm stop hog", log)[-1])
    began = {n: float(t) for t, n in re.findall(r"\[([\d.]+)\] [^\n]*VM (\w+) waits", log)}
    waited = re.findall(r"VM (\w+) goes on after (\d+) ms", log)
    ends = [began[n] + int(ms) / 1000 + 0.011 - stopped for n, ms in waited]
    return int(min(ends) * hz), int(max(ends) * hz)


def check_console(machine):
    """The console does everything while every guest waits and nothing is free."""
    m = machine
    before = m.metrics()["host", "RAM/VMM/Free"]
    assert before < RESERVE
    for line in ("help", "host", "log info", "vm show va", "exits va", "metrics --json",
                 "metrics --prometheus", "fusion census nobody", "log"):
        assert m.command(line, timeout=30), line
    m.ok("vm set va weight=200")
    m.ok("vm set va weight=100")
    for line, what in (("vm create new memory=64M kernel=\\guests\\bare.bin", "no memory"),
                       ("vm create new memory=400M kernel=\\guests\\bare.bin", "memory"),
                       ("fusion census", "not enough free memory"),
                       ("vm start va", "runs already")):
        why = m.error(line, timeout=30)
        assert what in why, why
    # Splitting goes on as far as frames allow: not at all.
    m.ok("vm fusion vb off")
    facts = dict(x.split(": ", 1) for x in m.command("vm show vb"))
    assert facts["fusion"] == "splitting" and int(facts["fusion-left"].split()[0]) > 0
    m.check_identities(m.metrics())


def check_quiet(memory):
    """Waiting costs next to no CPU time, and none of what splits may have of the reserve is
    overdrawn."""
    m = memory.machine
    before = m.metrics()
    deadline = elapsed(m, "va") + 500_000_000
    fusor.until(lambda: elapsed(m, "va") >= deadline)
    after = m.metrics()
    for g in memory.guests:
        ran, passed = (sum(after[g.name, "CPU/" + k] - before[g.name, "CPU/" + k] for k in what)
                       for what in (("Run",), ("Run", "Wait", "Steal")))
        print(f"{g.name}: ran {ran} of {passed} ticks while it waited")
        assert passed > 400_000_000 and ran < passed // 100
        assert after[g.name, "Fusion/Splits"] == before[g.name, "Fusion/Splits"]
    assert after["host", "RAM/VMM/Free"] >= RESERVE // 2


def test_all_wait(memory):
    m = memory.machine
    for name in ("va", "vb", "vc", "vd"):
        memory.add(name, pages=11264, memory="96M",
                   options="spare=8M" if name == "va" else "",
                   more="scan=2000" if name == "vc" else "")
    assert m.metrics()["host", "RAM/VMM/Saved"] >= 3 * 11264 * 4
    memory.fill()
    tags = [g.start("r") for g in memory.guests]
    memory.wait_until("waiting-memory")
    check_quiet(memory)
    check_console(m)
    assert sorted(n for n, _ in waits_said(m)) == ["va", "vb", "vc", "vd"]  # once each

    # A guest that waits itself gives some memory: everybody has a share of it, and waits again.
    splits = memory.figures("Fusion/Splits")
    m.ok("vm balloon va 8M")
    fusor.until(lambda: m.metrics()["va", "Guest/RAM/Usage/Balloon"] >= 8192)
    memory.wait_until("waiting-memory")
    gained = [b - a for a, b in zip(splits, memory.figures("Fusion/Splits"))]
    print(f"8 MiB from va: splits of each VM {gained}")
    assert min(gained) >= 64, gained

    # The fifth VM is stopped: everyone goes on, to the end.
    private = memory.figures("Guest/RAM/Usage/Private")
    m.ok("vm stop hog")
    assert all(b > a for a, b in zip(private, memory.figures("Guest/RAM/Usage/Private")))
    for g, tag in zip(memory.guests, tags):
        done = g.finish(tag)
        print(g.name, done)
        assert done["rewritten"] == 11264
        # Its time stood still meanwhile; what is left is a slice or two of others.
        assert done["longest"] < 20_000_000
    for g in memory.guests:
        v = g.do("v")
        assert (v["verified"], v["own"], v["wrong"]) == (11264, 11264, 0)
    assert g.do("b", 4711)["page"] == 4711 and g.do("v")["wrong"] == 1
    assert g.do("b", 4711)["page"] == 4711 and g.do("v")["wrong"] == 0
    assert memory.guests[0].do("v")["held"] == 4
    fusor.until(lambda: sum(what.startswith("goes on") for _, what in waits_said(m)) >= 4, 60, lambda: waits_said(m))
    said = waits_said(m)
    assert len(said) == 8, said
    first, last = ticks_until_resumed(m)
    print(f"events: {len(said)}; ticks from the stop of the hog until the first VM goes on for "
          f"good: {first}, until all four: {last}")
    assert last < 50_000_000
    # vb's fusion was switched off, and there is nothing left to split.
    assert memory.guests[1].facts()["fusion"] == "off"
    assert m.metrics()["vb", "Guest/RAM/Usage/Shared"] == 0


def check_resets_wait(memory, vb, vc):
    """What they are to begin anew with does not fit: both wait with a part of it, and the console goes on."""
    m = memory.machine
    for g in (vb, vc):
        m.ok(f"vm set {g.name} initrd=\\guests\\large")
        g.vm("reset")
        assert m.state(g.name) == "waiting-memory"
        assert re.search(rf"VM {g.name} waits for memory: \d{{5}} kB short", "\n".join(m.command("log info")))
    m.sleep(0.5)
    parts = [g.metric("Guest/RAM/Usage/Private") for g in (vb, vc)]
    print(f"loaded of {LARGE // 1024} kB: {parts}")
    assert all(0 < x < LARGE // 1024 for x in parts)
    assert m.metrics()["host", "RAM/VMM/Free"] >= RESERVE // 8
    m.check_identities(m.metrics())
    # Waiting costs little, and nothing is loaded twice.
    before = m.metrics()
    m.sleep(0.5)
    assert [g.metric("Guest/RAM/Usage/Private") for g in (vb, vc)] == parts
    assert before["vb", "CPU/Run"] == vb.metric("CPU/Run")
    assert "is being reset" in m.error("vm shutdown vb")
    assert "no memory" not in m.error("vm start vb")
    vb.vm("pause")
    assert m.state("vb") == "paused"
    vb.vm("resume")
    assert m.state("vb") == "waiting-memory"
    vb.vm("reset")
    assert m.state("vb") == "waiting-memory"
    assert abs(vb.metric("Guest/RAM/Usage/Private") - parts[0]) < 64
    m.check_identities(m.metrics())


def test_lifecycle_of_those_that_wait(memory):
    m = memory.machine
    va, vb, vc, vd = (memory.add(n, pages=4096, memory="96M") for n in ("va", "vb", "vc", "vd"))
    memory.fill()
    tags = [g.start("r") for g in memory.guests]
    memory.wait_until("waiting-memory")
    va.vm("pause")
    assert m.state("va") == "paused"
    va.vm("resume")
    m.wait_state("va", "waiting-memory")
    vb.vm("reset")  # what it had it gets back before the others, so it is loaded
    m.check_identities(m.metrics())
    m.wait_state("vb", "waiting-memory")
    vb.vm("reset")
    m.wait_state("vb", "waiting-memory")
    check_resets_wait(memory, vb, vc)
    vc.vm("stop")
    assert m.state("vc") == "stopped"
    assert "no memory" in m.error("vm start vc")
    assert m.state("vc") == "stopped"
    vd.vm("shutdown")  # its interrupt handler answers the button
    m.wait_state("vd", "stopped")
    m.check_identities(m.metrics())
    m.ok("vm destroy hog")
    vb.wait_again()
    assert m.metrics()["vb", "Guest/RAM/Usage/Private"] >= LARGE // 1024
    m.ok("vm set vc initrd=")
    vc.vm("start")
    vc.wait_again()
    for g, own in ((va, 4096), (vb, 0), (vc, 0)):
        if g is va:
            assert g.finish(tags[0])["rewritten"] == 4096
        v = g.do("v")
        assert (v["verified"], v["own"], v["wrong"]) == (4096, own, 0)


@pytest.mark.parametrize("interrupts_off", [0, 1])
def test_one_vcpu_waits(memory, interrupts_off):
    """The others run on, and interrupt it: if it can take interrupts while it waits it answers,
    else when it has got its frame."""
    m = memory.machine
    smp = memory.add("sm", pages=4096, memory="64M", more="cpus=4")
    memory.add("ot", pages=4096, memory="64M")
    memory.fill()
    smp.do("R", interrupts_off)
    m.wait_state("sm", "waiting-memory")
    one = smp.do("p")
    m.sleep(0.1)
    two = smp.do("p")
    assert two["reads"] > one["reads"] and two["written"] == one["written"] < 4096
    assert (two["rounds"] > one["rounds"]) == (not interrupts_off)
    smp.vm("pause")
    assert m.state("sm") == "paused"
    m.check_identities(m.metrics())
    smp.vm("resume")
    m.wait_state("sm", "waiting-memory")
    three = smp.do("p")
    assert three["reads"] > two["reads"] and three["written"] == two["written"]
    if not interrupts_off:
        smp.vm("reset")  # it waits for what it fills now
        m.wait_state("sm", "waiting-memory")
    m.ok("vm stop hog")
    if not interrupts_off:
        smp.wait_again()
        smp.do("R")
    done = smp.do("j")
    print(done)
    assert done["written"] == 4096 and done["wrong"] == 0 and done["rounds"] > 1
    v = smp.do("v")
    assert (v["own"], v["wrong"]) == (4096, 0)
    smp.vm("stop")
