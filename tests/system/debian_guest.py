# SPDX-License-Identifier: BSD-2-Clause
"""Debian guests (tools/debian-guest), driven through `vm console`."""
import re
import time

import pexpect

import fusor

CMDLINE = "console=ttyS0 nokaslr tsc=reliable cryptomgr.notests"


class Attached:
    """The serial port of a guest, between `vm console` and Ctrl-]."""
    marks = 0

    def __init__(self, machine, name):
        self.machine, self.name = machine, name

    def __enter__(self):
        self.machine.send(f"vm console {self.name}\r")
        self.machine.console.expect_exact(f"vm console {self.name}\r\n")
        return self

    def __exit__(self, *exception):
        self.machine.send("\x1d")
        self.machine.console.expect_exact("\r\n" + fusor.PROMPT)

    def wake(self, timeout=900):
        """Until the shell answers. What the console shows at first may be from before a reset, and a kernel that boots
        drops what is typed: so something new is asked, again and again."""
        def answers():
            Attached.marks += 1
            self.machine.send(f"echo U$(({Attached.marks}))\n")
            return self.machine.console.expect_exact([f"U{Attached.marks}\r\n", pexpect.TIMEOUT], timeout=1) == 0
        fusor.until(answers, timeout, f"no shell in {self.name}")

    def shell(self, command, timeout=60):
        """Types a command at the guest's shell and returns what it printed. The marks tell its output
        from the replay of what an earlier command printed, and from the echo."""
        Attached.marks += 1
        begin, end = f"B{Attached.marks}\r\n", f"E{Attached.marks}\r\n"
        self.machine.send(f"echo B$(({Attached.marks})); {command}; echo E$(({Attached.marks}))\n")
        deadline = time.monotonic() + timeout * fusor.PATIENCE
        while True:
            ended = self.machine.console.expect_exact([end, pexpect.TIMEOUT], timeout=6) == 0
            _, found, output = self.machine.console.before.rpartition(begin)
            if ended and found and not re.search(r"(?m)^\* VM ", output):
                return output.replace("\r", "")
            assert time.monotonic() < deadline, (self.name, command)
            # An event may stand in the middle of the output or of a mark: the replay has it in one piece.
            if ended or "\n* VM " in self.machine.console.before:
                self.__exit__()
                self.__enter__()
