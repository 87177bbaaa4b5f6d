# SPDX-License-Identifier: BSD-2-Clause
"""Debian guests with four and two vCPUs that run Fusor's driver: hints, balloon, and every way to stop, go on and begin
anew, under load. One emulated CPU (DRIVER_SMP_CPUS for more), so vCPUs are preempted at any place. One boot."""
import os
import random
import re
import time

import pytest

import fusor
from debian_guest import CMDLINE, Attached
from test_debian_fusion import DRIVER, healthy, wait_up

NAMES = {"alpha": 4, "beta": 2}
CONFIG = "[host]\nfiles = \\guests\n" + "".join(f"""
[vm {name}]
memory  = 192M
cpus    = {cpus}
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\initrd.img
cmdline = "{CMDLINE} quiet panic=1 fusor.delay=0 host={name}"
fusion-group = debian
autostart = off
""" for name, cpus in NAMES.items())
MIB = 1024 # kB
state = {}


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("debian_driver_smp"), CONFIG, fusor.DEBIAN_FILES, prompt=160,
                       memory=768, cpus=int(os.environ.get("DRIVER_SMP_CPUS", "1"))) as m:
        yield m


def shell(machine, name, command, timeout=300):
    with Attached(machine, name) as guest:
        return guest.shell(command, timeout)


def kb(machine, name, what):
    return int(machine.facts(f"vm show {name}")[what].split()[0])


def wait(what, seconds=300):
    fusor.until(what, seconds)


def frames(machine):
    return {k[1]: v for k, v in machine.metrics().items() if k[1].startswith("RAM/VMM/")}


def load(machine, name, on):
    """Processes that compute, write files and end, on all CPUs."""
    if on:
        shell(machine, name, f"touch /tmp/load; for i in $(seq {NAMES[name]}); do (while [ -e /tmp/load ]; do "
              f"cat /bin/busybox >/tmp/copy$i; cmp /bin/busybox /tmp/copy$i || touch /tmp/differs; usleep 20000; done) & done")
    else:
        out = shell(machine, name, "rm /tmp/load; wait; ls /tmp/differs 2>&1; rm -f /tmp/copy*")
        assert "No such file" in out, out


def works(machine, name):
    """All CPUs compute the same of a file that is fused, and the kernel has nothing to complain about."""
    cpus = NAMES[name]
    with Attached(machine, name) as guest:
        assert guest.shell("nproc").strip() == str(cpus)
        sums = guest.shell(f"for i in $(seq {2 * cpus}); do (md5sum /bin/busybox | cut -c1-32) & done; wait", 300)
    sums = re.findall(r"\b[0-9a-f]{32}\b", sums)
    assert len(sums) == 2 * cpus and set(sums) == {state.setdefault("sum", sums[0])}, sums
    healthy(machine, name)
    machine.metrics()


def test_drivers_fuse(machine):
    state["frames"] = frames(machine)
    for name in NAMES:
        machine.ok(f"vm start {name}")
    for name in NAMES:
        wait_up(machine, name)
        assert "features 0xf" in shell(machine, name, "dmesg | grep 'fusor: '")
    wait(lambda: frames(machine)["RAM/VMM/Saved"] > 20 * MIB)
    for name in NAMES:
        works(machine, name)


def test_fusion_off_under_load_and_on(machine):
    load(machine, "alpha", True)
    machine.ok("vm fusion alpha off")
    wait(lambda: kb(machine, "alpha", "shared") == 0)
    load(machine, "alpha", False) # hints give way to it
    machine.ok("vm fusion alpha on")
    shell(machine, "alpha", "echo 1 >/sys/kernel/fusor/scan") # at once, not within a minute
    wait(lambda: kb(machine, "alpha", "shared") > 4 * MIB)
    machine.metrics()


def test_balloon_and_cpus_that_go_under_load(machine):
    load(machine, "alpha", True)
    machine.ok("vm balloon alpha 48M")
    for cpu in (1, 2, 3):
        control = f"/sys/devices/system/cpu/cpu{cpu}/online"
        shell(machine, "alpha", f"echo 0 >{control}; sleep 0.2; echo 1 >{control}")
    wait(lambda: kb(machine, "alpha", "balloon") == 48 * MIB)
    assert "gone" in shell(machine, "alpha", "rmmod fusor && echo gone")
    assert kb(machine, "alpha", "balloon") == 0
    assert "back" in shell(machine, "alpha", f"insmod {DRIVER} delay=0 && echo back")
    wait(lambda: kb(machine, "alpha", "balloon") == 48 * MIB)


def test_pauses_at_any_moment(machine):
    """Guest time is Fusor's without the pauses."""
    def now():
        before = machine.uptime()
        inside = float(shell(machine, "alpha", "cat /proc/uptime").split()[0])
        return before, inside, machine.uptime()
    rng = random.Random(7)
    least = most = 0
    a = now()
    for _ in range(20):
        time.sleep(rng.random() * 0.2)
        t0 = machine.uptime()
        machine.ok("vm pause alpha")
        t1 = machine.uptime()
        if rng.random() < 0.3:
            machine.ok("vm pause beta")
            machine.ok("vm resume beta")
        t2 = machine.uptime()
        machine.ok("vm resume alpha")
        t3 = machine.uptime()
        least, most = least + t2 - t1, most + t3 - t0
    b = now()
    inside, shortest, longest = b[1] - a[1], b[0] - a[2] - most, b[2] - a[0] - least
    print(f"\nguest {inside:.2f} s, Fusor's clock without the pauses {shortest:.2f} to {longest:.2f} s, pauses {least:.2f} s")
    assert shortest - 0.1 < inside < longest + 0.1
    load(machine, "alpha", False)
    works(machine, "alpha")


def reboot(machine, how):
    with Attached(machine, "alpha"):
        machine.send(how + "\n")
        machine.console.expect("VM alpha reset by the guest", timeout=300)
    wait_up(machine, "alpha")
    wait(lambda: kb(machine, "alpha", "balloon") == 48 * MIB)
    works(machine, "alpha")


def test_reboot_and_panic_from_inside_under_load(machine):
    machine.ok("vm balloon alpha 48M")
    load(machine, "alpha", True)
    reboot(machine, "reboot -f")
    load(machine, "alpha", True)
    reboot(machine, "echo c >/proc/sysrq-trigger")


def test_power_off_from_inside_and_start_at_once(machine):
    load(machine, "beta", True)
    with Attached(machine, "beta"):
        machine.send("poweroff -f\n")
        machine.console.expect("VM beta powered off", timeout=300)
    machine.ok("vm start beta")
    wait_up(machine, "beta")
    wait(lambda: kb(machine, "beta", "shared") > 4 * MIB)
    for name in NAMES:
        works(machine, name)


def test_nothing_is_left(machine):
    machine.ok("vm shutdown beta")
    machine.ok("vm stop alpha")
    machine.wait_state("beta", "stopped", 300)
    after, before = frames(machine), state["frames"]
    for what in ("Total", "Table", "Private", "Shared", "Saved", "Ballooned"):
        assert after["RAM/VMM/" + what] == before["RAM/VMM/" + what], what
    assert after["RAM/VMM/Fusor"] - before["RAM/VMM/Fusor"] <= 64 # slabs of the heap that stay
