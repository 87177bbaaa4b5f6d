# SPDX-License-Identifier: BSD-2-Clause
"""The bare guest's test=fuse, driven through `vm console`: see guest-drivers/bare/test_fuse.c."""
import re
import time

import pexpect

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
        # A UART that is being set up drops what was typed before.
        fusor.until(lambda: any("op=f" in x for x in machine.replay(name)), 120, f"{name} does not begin")

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
        answer = (rf"bare: {self.test} (op=[^\r\n]*)\r\n(bare: {self.test} error[^\r\n]*\r\n)*"
                  rf"bare: {self.test} tag={tag} errors=(\d+)\r\n")
        deadline = time.monotonic() + timeout * fusor.PATIENCE
        found = 1
        while found == 1:
            assert time.monotonic() < deadline, (self.name, tag)
            self.attach()
            # An event may stand in the middle of it: the next replay has it in one piece.
            found = self.machine.console.expect([answer, pexpect.TIMEOUT], timeout=6)
            match = self.machine.console.match
            self.detach()
        assert match.group(3) == "0", self.machine.replay(self.name)[-10:]
        return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", match.group(1))}

    def do(self, letter, number="", timeout=300):
        return self.finish(self.start(letter, number), timeout)

    def wait_again(self, timeout=120):
        """After a reset: waits until the new pages are there."""
        FuseGuest.tags += 1

        def answered():
            self.attach()
            self.machine.send(f"{FuseGuest.tags}{self.harmless}\r")
            self.detach()
            return any(f" tag={FuseGuest.tags} " in x for x in self.machine.replay(self.name))
        fusor.until(answered, timeout, self.name)

    def metric(self, metric):
        return self.machine.metrics()[self.name, metric]

    def facts(self):
        """What `vm show` says."""
        return self.machine.facts(f"vm show {self.name}")

    def vm(self, verb, more=""):
        self.machine.ok(f"vm {verb} {self.name}{more}")

    def destroy(self):
        self.machine.ok(f"vm destroy {self.name}")
