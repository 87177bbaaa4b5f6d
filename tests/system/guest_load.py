# SPDX-License-Identifier: BSD-2-Clause
"""Debian's initrd with guest_load.c in it as /bin/load. Run by hand it takes the figures of a guest with several vCPUs:

    python3 tests/system/guest_load.py [--cpus N] [--vcpus N] ["LOAD THREADS ROUNDS"]...
"""
import argparse
import os
import re
import subprocess
import tempfile

import fusor
from debian_guest import CMDLINE, Attached

SOURCE = os.path.join(os.path.dirname(__file__), "guest_load.c")
LOADS = ("sleep 1 400", "pingpong 1 2000", "clock 1 100000", "tlb 4 300", "membarrier 4 300", "lock 8 2000",
         "map 8 100", "hack 4 100", "count 8 500000")


def initrd(directory):
    """Writes the initrd into `directory` and returns its path: two archives, one after the other."""
    root = os.path.join(directory, "root")
    os.makedirs(os.path.join(root, "bin"))
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-static", "-s", "-pthread", "-o", os.path.join(root, "bin", "load"),
                    SOURCE], check=True)
    archive = subprocess.run(["busybox", "cpio", "-o", "-H", "newc", "-R", "0:0"], cwd=root, check=True,
                             input=b"bin\nbin/load\n", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    path = os.path.join(directory, "initrd.img")
    with open(os.path.join(fusor.GUEST, "initrd.img"), "rb") as f, open(path, "wb") as out:
        first = f.read()
        out.write(first + bytes(-len(first) % 4) + archive)
    return path


def values(text):
    """The figures of a load's line."""
    return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", text)}


def exits(machine, name):
    return {x.split()[0]: int(x.split()[1]) for x in machine.command(f"exits {name}") if len(x.split()) == 2}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--vcpus", type=int, default=4)
    parser.add_argument("loads", nargs="*", default=LOADS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = (f"[host]\nfiles = \\guests\n[vm alpha]\nmemory = 256M\ncpus = {options.vcpus}\n"
                  "kernel = \\guests\\vmlinuz\ninitrd = \\guests\\initrd.img\n"
                  f'cmdline = "{CMDLINE} host=alpha fusor=off"\n')
        files = [("guests/vmlinuz", os.path.join(fusor.GUEST, "vmlinuz")), ("guests/initrd.img", initrd(directory))]
        with fusor.running(directory, config, files, prompt=160, memory=768, cpus=options.cpus) as machine:
            with Attached(machine, "alpha") as guest:
                guest.wake(1500)
            for load in ("",) + tuple(options.loads):
                before, taken = machine.metrics(), exits(machine, "alpha")
                if load:
                    with Attached(machine, "alpha") as guest:
                        print(guest.shell("load " + load, 900).strip().split("\n")[-1])
                after = machine.metrics()
                past = before if load else {("alpha", "CPU/" + k): 0 for k in ("Run", "Wait", "Steal")}
                times = {k: after["alpha", "CPU/" + k] - past["alpha", "CPU/" + k] for k in ("Run", "Wait", "Steal")}
                now = exits(machine, "alpha")
                print("  ", load or "boot", times,
                      {k: n for k, v in now.items() if (n := v - (taken.get(k, 0) if load else 0)) > 20}, flush=True)


if __name__ == "__main__":
    main()
