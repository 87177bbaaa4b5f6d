# SPDX-License-Identifier: BSD-2-Clause
"""Bare guests with several vCPUs on two CPUs in Bochs: IPIs of all kinds, INIT and STARTUP, and the lifecycle
while vCPUs spin with interrupts off. One boot, many checks."""
import random
import time

import pytest

import fusor
from test_guests import values
from test_lifecycle import check_frames_come_back

CONFIG = "[host]\nfiles = \\guests\n"


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("smp"), CONFIG, cpus=2, cpu="corei7_haswell_4770") as m:
        yield m


@pytest.fixture(autouse=True)
def nothing_is_left(machine):
    yield
    machine.sweep()


def create(machine, name, test, cpus, more=""):
    machine.ok(f'vm create {name} memory=8M cpus={cpus} kernel=\\guests\\bare.bin cmdline="test={test}"{more}')


def fact(machine, name, key):
    return [x.split(": ", 1)[1] for x in machine.command(f"vm show {name}") if x.startswith(key + ": ")][0]


def wait_output(machine, name, count, timeout=60):
    """Waits until smpspin has said `count` times more that all its vCPUs move; returns its clock each time that it is
    known."""
    moved = str(int(fact(machine, name, "cpus")) - 1)

    def good():
        return [int(x["tsc"]) for x in values(machine.replay(name), "smpspin", moved=moved)]
    last = good()[-1:]

    def enough():
        ticks = good()
        # What was said last may be gone meanwhile: the newest 16 KiB are kept.
        new = ticks[ticks.index(last[0]) + 1:] if last and last[0] in ticks else ticks
        return ticks if len(new) >= count else None
    return fusor.until(enough, timeout, lambda: machine.replay(name)[-3:], 0.3)


@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
def test_everything_between_vcpus(machine, cpus):
    lines = machine.bare("smp", more=f" cpus={cpus}", timeout=300)
    assert "bare: smp done" in lines, lines
    assert f"bare: smp cpus={cpus} expected={cpus}" in lines
    pairs = values(lines, "smp", pairs=str(cpus * cpus))
    assert [x["mode"] for x in pairs] == ["xapic", "mixed", "x2apic", "back"]
    print({x["mode"]: x["min"] for x in pairs})


def test_other_tests_do_not_mind(machine):
    for test in ("hello", "irq", "timer", "nmi", "fault"):
        lines = machine.bare(test, more=" cpus=3", timeout=300)
        assert f"bare: {test} done" in lines, lines


def test_crash_names_the_vcpu(machine):
    create(machine, "bad", "smptriple", 4)
    machine.ok("vm start bad")
    machine.wait_state("bad", "crashed")
    assert "triple fault" in fact(machine, "bad", "crash") and "vCPU 3" in fact(machine, "bad", "crash")
    assert any("bad/3: crashed" in x for x in machine.command("log"))
    machine.ok("vm destroy bad")


@pytest.mark.parametrize("cpus", [2, 4])
def test_reset_and_power_off_by_any_vcpu(machine, cpus):
    lines = machine.bare("smpreset", more=f" cpus={cpus}")
    assert f"bare: smpreset boots=0 cpus={cpus}" in lines
    assert f"bare: smpreset boots=1 cpus={cpus}" in lines
    assert "bare: smpreset done" in lines
    assert f"bare: smpoff cpus={cpus}" in machine.bare("smpoff", more=f" cpus={cpus}")


def test_lifecycle_while_all_spin(machine):
    create(machine, "spin", "smpspin", 4)
    machine.ok("vm start spin")
    wait_output(machine, "spin", 2)
    hz = int(machine.facts()["tsc-hz"])
    assert machine.ticks_of("vm pause spin") < hz
    before = machine.replay("spin")
    run = machine.metrics()["spin", "CPU/Run"]
    machine.sleep(5)
    assert machine.replay("spin") == before
    assert machine.metrics()["spin", "CPU/Run"] == run
    machine.ok("vm resume spin")
    ticks = wait_output(machine, "spin", 3)
    gaps = [b - a for a, b in zip(ticks, ticks[1:])]
    assert max(gaps) < 2.5 * min(gaps), gaps  # guest time stood still
    assert machine.metrics()["spin", "CPU/Run"] > run
    machine.ok("vm reset spin")
    wait_output(machine, "spin", 1)
    machine.ok("vm pause spin")
    machine.ok("vm reset spin")
    assert machine.state("spin") == "paused"
    machine.ok("vm resume spin")
    wait_output(machine, "spin", 1)
    machine.ok("vm stop spin")
    assert machine.state("spin") == "stopped"
    machine.ok("vm start spin")
    wait_output(machine, "spin", 1)
    machine.ok("vm destroy spin")


def test_number_of_vcpus_changes_with_the_next_start(machine):
    create(machine, "more", "smpspin", 2)
    machine.ok("vm start more")
    wait_output(machine, "more", 1)
    machine.ok("vm set more cpus=4")
    machine.ok("vm reset more")
    wait_output(machine, "more", 1)
    machine.ok("vm stop more")
    machine.ok("vm set more cpus=1")
    machine.ok("vm start more")
    wait_output(machine, "more", 1)
    assert "bare: smpspin cpus=1" in machine.replay("more")
    machine.error("vm set more cpus=17")
    machine.ok("vm destroy more")


def test_any_moment_and_nothing_left_behind(machine):
    """Operations at random moments, from before the first instruction on; every frame comes back."""
    rng = random.Random(5)

    def round_():
        for name, cpus in (("one", 4), ("two", 2)):
            create(machine, name, rng.choice(["smp", "smpspin", "smpreset"]), cpus)
            machine.ok(f"vm start {name}")
        for _ in range(6):
            time.sleep(rng.random() * 0.4)
            name = rng.choice(["one", "two"])
            for operation in rng.choice([["pause", "resume"], ["reset"], ["stop", "start"], ["pause", "reset", "resume"]]):
                answer = machine.command(f"vm {operation} {name}")
                # smp and smpreset end by themselves, possibly just now
                assert answer == ["ok"] or (answer[0].startswith("error: ") and "stopped" in answer[0]), answer
        for name in ("one", "two"):
            machine.ok(f"vm destroy {name}")
    def rounds():
        for _ in range(3):
            round_()
    round_()
    check_frames_come_back(machine, rounds)
    check_frames_come_back(machine, rounds)


def test_spinning_vcpus_starve_nobody(machine):
    """Eight vCPUs that never leave the guest by themselves, on two CPUs: another VM and the console go on."""
    for name in ("one", "two"):
        create(machine, name, "smpspin", 4)
        machine.ok(f"vm start {name}")
        wait_output(machine, name, 1)
    assert machine.state("one") == "running"
    assert machine.ticks_of() < int(machine.facts()["tsc-hz"])
    lines = machine.bare("hello", timeout=120)
    assert "bare: hello done" in lines
    for name in ("one", "two"):
        wait_output(machine, name, 1)
        machine.ok(f"vm destroy {name}")


def test_weight_is_the_vms(machine):
    """Four vCPUs get no more of a CPU than one of a VM with the same weight."""
    create(machine, "many", "smpspin", 4, " affinity=1")
    create(machine, "alone", "spincli", 1, " affinity=1")
    machine.ok("vm start many")
    wait_output(machine, "many", 1)
    machine.ok("vm start alone")
    before = machine.metrics()
    machine.sleep(4)
    after = machine.metrics()
    ran = {n: after[n, "CPU/Run"] - before[n, "CPU/Run"] for n in ("many", "alone")}
    print(ran)
    assert 0.75 < ran["many"] / ran["alone"] < 1.33, ran
    for name in ("many", "alone"):
        machine.ok(f"vm destroy {name}")
