# SPDX-License-Identifier: BSD-2-Clause
"""A Debian guest with four vCPUs on two CPUs in Bochs."""
import os
import re

import pytest

import fusor
import guest_load
from debian_guest import CMDLINE, Attached

CPUS = 4
CONFIG = f"""\
[host]
files = \\guests

[vm alpha]
memory  = 256M
cpus    = {CPUS}
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\initrd.img
cmdline = "{CMDLINE} host=alpha"
"""


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("debian_smp")
    files = [("guests/vmlinuz", os.path.join(fusor.GUEST, "vmlinuz")),
             ("guests/initrd.img", guest_load.initrd(str(directory)))]
    with fusor.running(directory, CONFIG, files, prompt=160, memory=768, cpus=2) as m:
        yield m


def healthy(guest):
    errors = guest.shell("dmesg | grep -E 'BUG:|Oops|Call Trace|lockup|detected stall|unstable'; echo end=$?")
    assert "end=1" in errors, errors


def test_all_cpus_work(machine):
    with Attached(machine, "alpha") as guest:
        guest.wake()
        assert guest.shell("nproc").strip() == str(CPUS)
        assert "Switched to clocksource tsc" in guest.shell("dmesg | grep clocksource")
        local = [x for x in guest.shell("cat /proc/interrupts").split("\n") if "LOC:" in x][0]
        assert all(int(x) > 0 for x in local.split()[1:1 + CPUS]), local
        topology = guest.shell("cat /sys/devices/system/cpu/cpu*/topology/core_id "
                               "/sys/devices/system/cpu/cpu*/topology/physical_package_id").split()
        assert topology == [str(i) for i in range(CPUS)] + ["0"] * CPUS
        # the same work on all of them at once gives the same result
        sums = guest.shell(f"for i in $(seq {2 * CPUS}); do (md5sum /bin/busybox | cut -c1-32) & done; wait", 300)
        assert len(re.findall(r"\b[0-9a-f]{32}\b", sums)) == 2 * CPUS, sums
        assert len(set(re.findall(r"\b[0-9a-f]{32}\b", sums))) == 1, sums
        healthy(guest)


def load(guest, what, threads, rounds):
    return guest_load.values(guest.shell(f"load {what} {threads} {rounds}", 300))


def check_kvm(machine, guest):
    """Unmodified Linux uses what KVM's leaf offers: it knows its steal time, skips IPIs to vCPUs without a CPU,
    and no CPU writes to a page any more when mprotect() has returned."""
    dmesg = guest.shell("dmesg | grep -E 'KVM|x2apic|PV'")
    for line in ("Hypervisor detected: KVM", "x2apic enabled", "setup pv remote TLB flush", "setup PV IPIs"):
        assert line in dmesg, line

    def steal():  # of the guest, in ticks: /proc/stat counts hundredths of a second
        line = guest.shell("grep '^cpu ' /proc/stat").strip().split("\n")[-1]
        return int(line.split()[8]) * 1000000

    before = steal()
    result = load(guest, "stale", CPUS, 30)
    assert result["bad"] == 0 and result["work"] > 0, result
    result = load(guest, "count", CPUS, 8000000)
    assert steal() - before > result["ticks"], (before, steal(), result)  # 4 want to run on 2
    print(load(guest, "tlb", CPUS, 100))


def test_kvm_interface(machine):
    with Attached(machine, "alpha") as guest:
        check_kvm(machine, guest)
        guest_steal = guest.shell("grep '^cpu ' /proc/stat").strip().split("\n")[-1].split()[8]
        healthy(guest)
    told, real = int(guest_steal) * 1000000, machine.metrics()["alpha", "CPU/Steal"]
    print("steal", told, real)
    assert 0.7 * real < told < 1.1 * real, (told, real)


def test_cpus_go_and_come(machine):
    with Attached(machine, "alpha") as guest:
        for cpu in (1, 3):
            control = f"/sys/devices/system/cpu/cpu{cpu}/online"
            assert guest.shell(f"echo 0 > {control}; nproc").strip().endswith(str(CPUS - 1))
            assert guest.shell(f"echo 1 > {control}; nproc").strip().endswith(str(CPUS))
        check_kvm(machine, guest)  # the areas of those two have gone and come, too
        healthy(guest)


def test_lifecycle(machine):
    machine.ok("vm pause alpha")
    machine.ok("vm resume alpha")
    with Attached(machine, "alpha") as guest:
        guest.shell("sleep 2")
        healthy(guest)
        machine.send("reboot -f\n")
        machine.console.expect("VM alpha reset by the guest", timeout=120)
        guest.wake()
        assert guest.shell("nproc").strip() == str(CPUS)
        check_kvm(machine, guest)
    machine.ok("vm shutdown alpha")
    machine.wait_state("alpha", "stopped", 300)
    assert machine.metrics()["alpha", "Guest/RAM/Usage/Resident"] == 0
