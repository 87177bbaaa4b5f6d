# SPDX-License-Identifier: BSD-2-Clause
"""The bare guest's test=fuse, driven through `vm console`: see guest-drivers/bare/test_fuse.c."""
import re
import time

import fusor


class FuseGuest:
    """A VM with pages of a known pattern that does what it is told, a letter at a time."""

    tags = 0
    test = "fuse"
    harmless = "s"  # a command that changes nothing

    def __init__(self, machine, name, pages=1024, memory="16M", group="web", more="", options=""):
        self.machine = machine
        self.name = name
        self.id = int.from_bytes(name.encode()[-2:], "little")
        line = (f"vm create {name} memory={memory} kernel=\\guests\\bare.bin {more} "
                f'cmdline="test={self.test} pages={pages} id={self.id} {options}"')
        machine.ok(line + (f" fusion-group={group}" if group else ""))
        machine.ok(f"vm start {name}")

    def attach(self):
        self.machine.send(f"vm console {self.name}\r")
        self.machine.console.expect_exact(f"vm console {self.name}\r\n")

    def detach(self):
        self.machine.send("\x1d")
        self.machine.console.expect_exact("\r\n" + fusor.PROMPT)

    def start(self, letter, number=""):
        """Types a command; finish() has its answer."""
        FuseGuest.tags += 1
        self.attach()
        self.machine.send(f"{FuseGuest.tags}{letter}{number}\r")
        self.detach()
        return FuseGuest.tags

    def finish(self, tag, timeout=300):
        """The pairs of the line op=…, which stands before that with the tag."""
        self.attach()
        try:
            self.machine.console.expect(rf"bare: {self.test} (op=[^\r\n]*)\r\n"
                                        rf"(bare: {self.test} error[^\r\n]*\r\n)*"
                                        rf"bare: {self.test} tag={tag} errors=(\d+)\r\n",
                                        timeout=timeout)
            match = self.machine.console.match
        finally:
            self.detach()
        assert match.group(3) == "0", self.machine.replay(self.name)[-10:]
        return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", match.group(1))}

    def do(self, letter, number="", timeout=300):
        return self.finish(self.start(letter, number), timeout)

    def wait_again(self, timeout=120):
        """After a reset: waits until the new pages are there."""
        FuseGuest.tags += 1
        deadline = time.time() + timeout
        while not any(f" tag={FuseGuest.tags} " in x for x in self.machine.replay(self.name)):
            assert time.time() < deadline, self.name
            self.attach()
            self.machine.send(f"{FuseGuest.tags}{self.harmless}\r")
            self.detach()

    def metric(self, metric):
        return self.machine.metrics()[self.name, metric]

    def facts(self):
        """What `vm show` says."""
        return dict(x.split(": ", 1) for x in self.machine.command(f"vm show {self.name}"))

    def vm(self, verb, more=""):
        self.machine.ok(f"vm {verb} {self.name}{more}")

    def destroy(self):
        self.machine.ok(f"vm destroy {self.name}")
