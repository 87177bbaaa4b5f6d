# SPDX-License-Identifier: BSD-2-Clause
"""One run of each side. A result is {(clear, step): facts}: clear "1" or "0", as init_on_alloc, step what host.sh calls it."""
import os
import re
import sys
import tempfile
import time

import pexpect

from . import images

sys.path.insert(0, os.path.join(images.ROOT, "tests", "system"))
import fusor  # noqa: E402  pylint: disable=wrong-import-position
from debian_guest import CMDLINE, Attached  # noqa: E402  pylint: disable=wrong-import-position

EXTENTS = "/sys/module/fusor/parameters/balloon_extents"
TMPFS = "mount -t tmpfs -o size=100% tmp /tmp"


def run_peer(settings, more_cmdline, machine_memory, timeout):
    """KVM's rows. `ticks` is the CPU time of QEMU's threads, guest included, without the measuring itself."""
    rows = {}
    with tempfile.TemporaryDirectory() as work:
        image = os.path.join(work, "peer.img")
        images.peer_image(image, work, dict(settings, CMDLINE=CMDLINE), more_cmdline)
        m = fusor.Machine(image, memory=machine_memory, timeout=timeout)
        try:
            while True:
                m.console.expect(r"(row|peer:|Kernel panic) ([^\r\n]*)\r\n", timeout=timeout)
                kind, text = m.console.match.groups()
                if kind == "row":
                    label, *facts = text.split()
                    clear, step = re.fullmatch(r"clear=(\d),(.*)", label).groups()
                    rows[clear, step] = peer_row({k: float(v) for k, v in (x.split("=") for x in facts)})
                elif kind != "peer:" or text.startswith("failed"):
                    m.console.expect(pexpect.TIMEOUT, timeout=3)  # the logs that follow
                    raise SystemExit(f"the peer's machine: {text}\n{m.console.before}")
                elif text == "done":
                    return rows
                else:
                    print("   ", text)
        finally:
            m.close()


def peer_row(facts):
    facts["ticks"] = facts["vcpu"] + facts["rest"] - facts.get("queries", 0) * facts.get("query", 0)
    facts["got"] = facts["free_after"] - facts["free"]
    return facts


class FusorGuest:
    """A Debian guest of 256 MiB, whose first prompt has come, alone on the machine."""

    def __init__(self, machine, name):
        self.machine, self.name = machine, name
        machine.ok(f"vm start {name}")
        with Attached(machine, name) as guest:
            machine.console.expect_exact(f"{name}:/# ", timeout=900)
            guest.shell(TMPFS)
        self.rest(5)

    def rest(self, seconds):
        """By the emulated clock."""
        def uptime():
            return float(dict(x.split(": ", 1) for x in self.machine.command("host"))["uptime"].split()[0])
        end = uptime() + seconds
        while uptime() < end:
            time.sleep(0.05)

    def shell(self, command):
        with Attached(self.machine, self.name) as guest:
            return guest.shell(command, 600)

    def facts(self):
        return dict(x.split(": ", 1) for x in self.machine.command(f"vm show {self.name}"))

    def driver(self):
        out = self.shell("cd /sys/kernel/fusor/balloon; grep . *; cd /")
        return {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", out)}

    def sample(self):
        """(CPU ticks of the guest, Fusor's work for it included; kB free in the machine; exits)"""
        m = self.machine.metrics()
        exits = sum(int(x.split(": ")[1]) for x in self.machine.command(f"exits {self.name}"))
        return m[self.name, "CPU/Run"], m["host", "RAM/VMM/Free"], exits

    def row(self, action):
        run, free, exits = self.sample()
        resident = int(self.facts()["resident"].split()[0])
        action()
        run_after, free_after, exits_after = self.sample()
        return {"ticks": run_after - run, "got": free_after - free, "exits": exits_after - exits, "rss": resident,
                "rss_after": int(self.facts()["resident"].split()[0])}

    def balloon(self, mib):
        """A row of what it costs until the target is reached."""
        def action():
            self.machine.ok(f"vm balloon {self.name} {mib}M")
            deadline = time.time() + 600
            while int(self.facts()["balloon"].split()[0]) != mib * 1024:
                if time.time() > deadline:
                    raise SystemExit(f"{self.name} does not reach {mib} MiB: {self.facts()}")
                time.sleep(0.05)
        before = self.driver()
        row = self.row(action)
        after = self.driver()
        row.update({k: after[k] - before[k] for k in after})
        return row

    def write_and_free(self, mib):
        """A row of the time after: the kernel reports what was freed 2 s later."""
        out = self.shell(f"dd if=/dev/zero of=/tmp/big bs=1M count={mib} && echo fine")
        if "fine" not in out:
            raise SystemExit(f"the guest cannot write {mib} MiB: {out}")
        self.rest(2)
        self.shell("rm /tmp/big")
        return self.row(lambda: self.rest(10))

    def destroy(self):
        self.machine.ok(f"vm destroy {self.name}")


def fusor_config(memory):
    text = "[host]\nfiles = \\guests\n"
    for clear in "10":
        for kind, report in (("extents", "N"), ("pages", "N"), ("report", "Y")):
            text += f"""
[vm {kind}{clear}]
memory  = {memory}M
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\initrd.img
cmdline = "{CMDLINE} quiet fusor.delay=86400 fusor.report=0 fusor.report_free={report} init_on_alloc={clear} host={kind}{clear}"
autostart = off
"""
    return text


def run_fusor(settings, machine_memory, timeout):
    """Fusor's rows by whole ranges and by single pages: ({…}, {…})."""
    by = {"extents": {}, "pages": {}}
    with tempfile.TemporaryDirectory() as work:
        image = fusor.make_image(os.path.join(work, "fusor.img"), fusor_config(settings["MEMORY"]), [
            (f"guests/{x}", os.path.join(images.GUEST, x)) for x in ("vmlinuz", "initrd.img")])
        m = fusor.Machine(image, memory=machine_memory, timeout=timeout)
        try:
            m.wait_prompt(400)
            for clear in "10":
                for kind, rows in by.items():
                    guest = FusorGuest(m, f"{kind}{clear}")
                    if clear == "1" and kind == "extents":
                        for line in guest.shell("grep -H . /sys/devices/system/cpu/vulnerabilities/*").split("\n"):
                            print("    guest", line.rsplit("/", 1)[-1])
                    if kind == "pages":
                        guest.shell(f"echo 0 >{EXTENTS}")
                    fusor_case(guest, rows, clear, settings)
                    guest.destroy()
                guest = FusorGuest(m, f"report{clear}")
                by["extents"][clear, "reported"] = guest.write_and_free(settings["TOUCH"])
                guest.destroy()
            m.power_off()
        finally:
            m.close()
    return by["extents"], by["pages"]


def fusor_case(guest, rows, clear, settings):
    rows[clear, "idle"] = guest.row(lambda: guest.rest(10))
    for state in ("untouched", "resident"):
        if state == "resident":
            rows[clear, "freed"] = guest.write_and_free(settings["TOUCH"])
        rows[clear, f"{state},give"] = guest.balloon(settings["GIVE"])
        rows[clear, f"{state},take"] = guest.balloon(0)
