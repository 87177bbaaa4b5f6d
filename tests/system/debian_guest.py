# SPDX-License-Identifier: BSD-2-Clause
"""Debian guests (tools/debian-guest), driven through `vm console`."""
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

    def shell(self, command, timeout=60):
        """Types a command at the guest's shell and returns what it printed. The marks tell its output
        from the replay of what an earlier command printed, and from the echo."""
        Attached.marks += 1
        n = Attached.marks
        self.machine.send(f"echo B$(({n})); {command}; echo E$(({n}))\n")
        self.machine.console.expect_exact(f"B{n}\r\n", timeout=timeout)
        self.machine.console.expect_exact(f"E{n}\r\n", timeout=timeout)
        return self.machine.console.before.replace("\r", "")


def uptime(machine):
    host = dict(x.split(": ", 1) for x in machine.command("host"))
    return float(host["uptime"].split()[0])
