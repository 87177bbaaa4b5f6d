# SPDX-License-Identifier: BSD-2-Clause
"""The part of `make stress` with Debian guests of two vCPUs, in which Fusor's driver hints, balloons and reports free
pages, while files are written, copied, removed and their checksums verified."""
import re
import time

import fusor
import stress
from debian_guest import CMDLINE, Attached

MEMORY_MB = 192
BALLOON_PAGES = (64 << 20) // 4096
DRIVER = "/modules/fusor/fusor.ko"
# Work that goes on until the file is removed; f1..f4 keep what they have, and `sums` says what that is.
WORK = ("mkdir -p /tmp/s; cd /tmp/s; for i in 1 2 3 4; do cat /bin/busybox /modules/*.ko > f$i; echo $i >> f$i; done; "
        "md5sum f* > sums; for n in 1 2; do (while [ -e /tmp/s ]; do cp f$n g$n; cat g$n f3 > h$n; cmp g$n f$n || "
        "echo $n >> /tmp/wrong; rm g$n h$n; done) >/dev/null 2>&1 & done; true")


class DebianStress(stress.Stress):
    """As Stress, with guests that take long to come up: they are reset and made anew rarely."""

    kind = "debian"
    balloon_pages = BALLOON_PAGES
    pace = 3

    def __init__(self, machine, seed):
        super().__init__(machine, seed, vms=2, vcpus=2)
        self.actions.update({"reset": 1, "stop": 0, "recreate": 0, "shortage": 2, "census": 1})

    def create(self, name, cpus):
        self.say(f'vm create {name} memory={MEMORY_MB}M cpus=2 kernel=\\guests\\vmlinuz initrd=\\guests\\initrd.img '
                 f'fusion-group=stress cmdline="{CMDLINE} quiet fusor=off host={name}"')
        self.say(f"vm start {name}")
        self.guests[name] = stress.Guest(name, 2)
        self.totals["creates"] += 1

    def started(self):
        for guest in self.guests.values():
            self.prepare(guest)

    def prepare(self, guest):
        """Waits until it is up, and lets it work."""
        with Attached(self.machine, guest.name) as inside:
            inside.wake(1800)
            inside.shell(f"insmod {DRIVER} delay=0", 300)
            inside.shell(WORK, 900)

    def do_reset(self):
        guest = self.some("running")
        if guest and self.hog is None:
            self.say(f"vm reset {guest.name}")
            self.totals["resets"] += 1
            self.prepare(guest)

    def read_reports(self, guest):
        return self.machine.replay(guest.name)

    def order(self, guest, _letter, timeout=900):
        with Attached(self.machine, guest.name) as inside:
            sums = inside.shell("cd /tmp/s && md5sum -c sums; cat /tmp/wrong", timeout)
            faults = inside.shell("dmesg | grep -E 'BUG|Oops|Call Trace|lockup|detected stall|WARNING'; echo end=$?", 300)
        if sums.count("OK") != 4 or "FAILED" in sums or "No such file" not in sums:
            self.totals["wrong"] += 1
            self.fail("wrong checksum:\n" + sums, guest.name)
        if faults.strip() != "end=1":
            self.fail("the kernel complains:\n" + faults, guest.name)
        self.totals["checks"] += 1

    def end(self, guest):
        self.order(guest, "q")
        with Attached(self.machine, guest.name) as inside:
            counts = inside.shell("cd /sys/kernel/fusor/balloon; grep . inflated deflated* reported; cd /", 300)
        for name, count in re.findall(r"(\w+):(\d+)", counts):
            self.totals[name.split("_")[0]] += int(count)
        self.say(f"vm stop {guest.name}")


def run(directory, cpus, seed, seconds):
    with fusor.running(directory, stress.CONFIG, fusor.BARE_FILES + fusor.DEBIAN_FILES, prompt=900,
                       cpus=cpus, memory=512, timeout=seconds + 7200) as m:
        began = time.time()
        course = DebianStress(m, seed)
        try:
            # The time that the guests take to boot is part of the share, but some is left in any case.
            row = course.run(max(seconds - (time.time() - began), 120)).finish()
        except Exception:
            print("commands:\n  " + "\n  ".join(course.commands), flush=True)
            print("transcript:", m.transcript.name, flush=True)
            raise
    return row | {"cpus": cpus}
