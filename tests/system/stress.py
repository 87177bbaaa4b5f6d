# SPDX-License-Identifier: BSD-2-Clause
"""Stress of everything that moves memory: bare guests of several vCPUs write and verify at random
(guest-drivers/bare/test_stress.c) while the operator gives commands at random. The seed says which commands
come in which order; when they come is the machine's matter.

What would be wrong: a word that is not what it has to be, a guest that ends or does not answer, a metric identity,
a watchdog incident, memory that is gone when all VMs are."""
import random
import re
import time

import fusor

CONFIG = """\
[host]
console = com1:115200
files   = \\guests
reserve = 4M
"""
PAGE_KB = 4
BUSY, LARGE, TARGET = 6, 3, 2  # ranges of 2 MiB in a guest, see test_stress.c
MEMORY_KB = 24 << 10
METRICS = {"fused": "Fusion/Hints/Fused", "splits": "Fusion/Splits", "cancelled": "Fusion/Cancelled",
           "collapses": "EPT/LargeCollapsed", "demotions": "EPT/LargeSplit", "shootdowns": "EPT/Shootdowns"}
COUNTS = ("reads", "writes", "toggles", "inflated", "deflated", "reported")
COLUMNS = ("guests", "cpus", "seed", "Mticks", "fused", "splits", "cancelled", "ranges", "collapses", "demotions", "inflated", "deflated",
           "reported", "shootdowns", "pauses", "resets", "stops", "creates", "waits", "checks", "Mwords", "wrong")


class Wrong(AssertionError):
    """Something that must not happen."""


class Guest:
    """What the operator knows of a VM; what follows from the seed alone decides what comes next."""

    def __init__(self, name, cpus):
        self.name = name
        self.cpus = cpus
        self.state = "running"
        self.fusion = True
        self.told = {}  # the last report since the guest began


class Stress:
    """One machine under stress; `run` for some seconds, then `finish`."""

    kind = "bare"
    balloon_pages = TARGET * 512
    pace = 0.5  # seconds between two commands, at most

    def __init__(self, machine, seed, vms=3, vcpus=4, census=True):
        self.machine = machine
        self.random = random.Random(seed)
        self.seed = seed
        self.vcpus = vcpus
        self.with_census = census
        self.totals = dict.fromkeys(COLUMNS + COUNTS, 0)
        self.commands = []
        self.guests = {}
        self.hog = None
        self.tags = 0
        self.errors_seen = 0
        self.begin = self.ticks()
        self.before = machine.metrics()
        self.actions = {
            "pause": 8, "resume": 16, "reset": 2, "stop": 1, "start": 8, "recreate": 2, "fusion_off": 3,
            "fusion_on": 10, "balloon": 16, "scan": 5, "weight": 3, "verify": 8, "shortage": 4, "ease": 8,
            "show": 4, "census": 1 if census else 0,
        }
        for i in range(vms):
            # The first one has several CPUs in any case.
            self.create(f"s{i}", vcpus if i == 0 else self.random.randint(1, vcpus))
        self.started()

    def started(self):
        """All guests were created; what has to be done before the course begins."""

    # --- What is asked and told ---

    def say(self, line, timeout=300):
        self.commands.append(line)
        self.machine.ok(line, timeout)

    def load(self, line):
        """A command that loads a guest anew. Says whether it did: on a machine that the hog has filled it may be
        refused, and the VM is stopped then."""
        self.commands.append(line)
        answer = self.machine.command(line, 300)
        if self.hog is not None and len(answer) == 1 and answer[0].endswith("no free memory left to load it into"):
            self.commands[-1] += "  (refused)"
            return False
        assert answer == ["ok"], (line, answer)
        return True

    def ticks(self):
        facts = dict(x.split(": ", 1) for x in self.machine.command("host"))
        self.hz = int(facts["tsc-hz"])
        return float(facts["uptime"].split()[0]) * self.hz

    def fail(self, what, guest=None):
        m = self.machine
        text = [what, f"seed {self.seed}, after {(self.ticks() - self.begin) / 1e6:.0f} M ticks; the last commands:"]
        text += ["  " + x for x in self.commands[-20:]]
        text += m.command("vm list")
        for name in [guest] if guest else list(self.guests):
            text += [f"--- {name}"] + m.replay(name)[-6:]
        raise Wrong("\n".join(text))

    def collect(self, guest, metrics=None):
        """Before the guest forgets: its counts; with `metrics` also what Fusor counted for it."""
        for key in COUNTS:
            self.totals[key] += guest.told.get(key, 0)
        guest.told = {}
        for key, metric in METRICS.items() if metrics else ():
            self.totals[key] += metrics[guest.name, metric]
        if metrics:
            facts = dict(x.split(": ", 1) for x in self.machine.command(f"vm show {guest.name}"))
            self.totals["ranges"] += int(facts["large-fused"])

    def read_reports(self, guest):
        """The guest's lines; notes its newest report since it began."""
        lines = self.machine.replay(guest.name)
        since = [n for n, x in enumerate(lines) if x.startswith("bare: stress begin")]
        lines = lines[since[-1]:] if since else lines
        for line in lines:
            if line.startswith("bare: stress error"):
                self.totals["wrong"] += 1
                self.fail("wrong memory", guest.name)
            if line.startswith("bare: stress report"):
                guest.told = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line)}
        return lines

    def order(self, guest, letter, timeout=240):
        """Lets all CPUs of a guest stop and verify every word."""
        self.tags += 1
        tag, deadline, again = self.tags, time.monotonic() + timeout * fusor.PATIENCE, 0
        while guest.told.get("tag") != tag:
            if time.monotonic() > deadline:
                self.fail(f"{guest.name} does not answer", guest.name)
            if time.monotonic() > again:  # a guest that has just begun may not have heard it
                self.machine.send(f"vm console {guest.name}\r")
                self.machine.console.expect_exact(f"vm console {guest.name}\r\n")
                self.machine.send(f"\r{tag}{letter}\r")
                self.machine.send("\x1d")
                self.machine.console.expect_exact("\r\n" + fusor.PROMPT)
                again = time.monotonic() + 20
            if self.machine.state(guest.name) not in ("running", "waiting-memory"):
                self.read_reports(guest)
                if guest.told.get("tag") != tag:
                    self.fail(f"{guest.name} has ended", guest.name)
            self.read_reports(guest)
        self.totals["checks"] += 1

    def end(self, guest):
        """The last check of a guest, which ends."""
        self.order(guest, "q")
        self.machine.wait_state(guest.name, "stopped", 120)
        if "bare: stress done" not in self.read_reports(guest):
            self.fail("did not end well", guest.name)

    def check(self):
        """Identities, states, the log: at any moment."""
        m = self.machine
        m.metrics()
        states = {x.split()[0]: x.split()[1] for x in m.command("vm list")[1:]}
        for guest in self.guests.values():
            expected = {"running": ("running", "waiting-memory")}.get(guest.state, (guest.state,))
            if states.get(guest.name) not in expected:
                self.read_reports(guest)
                self.fail(f"{guest.name} is {states.get(guest.name)}, not {guest.state}", guest.name)
        errors = [x for x in m.command("log error") if "watchdog" in x or "panic" in x]
        if errors:
            self.fail("\n".join(errors))

    # --- Commands ---

    def create(self, name, cpus):
        r = self.random
        large = r.choice(["auto", "auto", "auto", "eager", "off"])
        line = (f"vm create {name} memory={MEMORY_KB}K memory-min=4M cpus={cpus} kernel=\\guests\\bare.bin "
                f"fusion-group=stress large-pages={large} scan={r.choice([0, 0, 2000])} "
                f"balloon={r.choice([0, 0, 512, 2048])}K "
                f'cmdline="test=stress busy={BUSY} large={LARGE} target={TARGET} id={1 + int(name[1:])} '
                f'seed={r.randrange(1 << 20)}"')
        self.say(line)
        self.guests[name] = Guest(name, cpus)
        if not self.load(f"vm start {name}"):
            self.guests[name].state = "stopped"
        self.totals["creates"] += 1

    def some(self, *states):
        """A guest in one of these states, or None."""
        fitting = [x for x in self.guests.values() if x.state in states]
        return self.random.choice(fitting) if fitting else None

    def do_pause(self):
        guest = self.some("running")
        if guest:
            self.say(f"vm pause {guest.name}")
            guest.state = "paused"
            self.totals["pauses"] += 1

    def do_resume(self):
        guest = self.some("paused")
        if guest:
            self.say(f"vm resume {guest.name}")
            guest.state = "running"

    def do_reset(self):
        guest = self.some("running", "paused")
        if guest:
            self.read_reports(guest)
            self.collect(guest)
            loaded = self.load(f"vm reset {guest.name}")
            guest.state = "running" if loaded and guest.state == "running" else self.known_state(guest)
            self.totals["resets"] += 1

    def known_state(self, guest):
        return self.machine.state(guest.name).replace("waiting-memory", "running")

    def do_stop(self):
        guest = self.some("running", "paused")
        if guest:
            self.read_reports(guest)
            self.collect(guest)
            self.say(f"vm stop {guest.name}")
            guest.state = "stopped"
            self.totals["stops"] += 1

    def do_start(self):
        guest = self.some("stopped")
        if guest and self.load(f"vm start {guest.name}"):
            guest.state = "running"

    def do_recreate(self):
        guest = self.some("running", "paused", "stopped")
        self.read_reports(guest)
        self.collect(guest, self.machine.metrics())
        self.say(f"vm destroy {guest.name}")
        del self.guests[guest.name]
        self.create(guest.name, self.random.randint(1, self.vcpus))

    def do_fusion_off(self):
        guest = self.some("running", "paused")
        if guest:
            self.say(f"vm fusion {guest.name} off")
            guest.fusion = False

    def do_fusion_on(self):
        for guest in self.guests.values():
            if not guest.fusion:
                self.say(f"vm fusion {guest.name} on")
                guest.fusion = True

    def do_balloon(self):
        guest = self.some("running", "paused", "stopped")
        self.say(f"vm balloon {guest.name} {PAGE_KB * self.random.randrange(self.balloon_pages + 1)}K")

    def do_scan(self):
        guest = self.some("running", "paused", "stopped")
        self.say(f"vm set {guest.name} scan={self.random.choice([0, 1000, 20000])}")

    def do_weight(self):
        guest = self.some("running", "paused", "stopped")
        self.say(f"vm set {guest.name} weight={self.random.choice([50, 100, 300])}")

    def do_show(self):
        guest = self.some("running", "paused", "stopped")
        for command in (f"vm show {guest.name}", f"exits {guest.name}", "host", "log info"):
            if not self.machine.command(command):
                self.fail(f"no answer to {command}")

    def do_census(self):
        self.machine.command("fusion census stress", timeout=600)

    def do_verify(self):
        guest = self.some("running")
        if guest and self.hog is None:
            self.order(guest, "v")

    def do_shortage(self):
        """Another VM takes all memory but a little."""
        if self.hog is not None:
            return
        left = self.random.randrange(-2048, 2048)  # below 0 it will wait itself
        m = self.machine.metrics("host")
        free = m["host", "RAM/VMM/Free"] - 4096
        touched = max((free - left) // 1024, 16)
        self.hog = "hog"
        self.say(f"vm create hog memory={touched + 8}M memory-min=2M kernel=\\guests\\bare.bin large-pages=off "
                 f'cmdline="test=driver touch={touched}M idle=1"')
        self.say("vm start hog")

    def do_ease(self):
        """The end of the shortage: by the balloon, where the hog's driver got that far, or for good."""
        if self.hog is None:
            return
        if self.random.random() < 0.3:
            self.say("vm balloon hog 8M")
        else:
            self.say("vm destroy hog")
            self.hog = None

    # --- The course ---

    def run(self, seconds, steps=1 << 30):
        """For so long, and for so many steps at most."""
        end = time.time() + seconds
        names, weights = list(self.actions), list(self.actions.values())
        n = 0
        while time.time() < end and n < steps:
            getattr(self, "do_" + self.random.choices(names, weights)[0])()
            time.sleep(self.random.uniform(0, self.pace))
            n += 1
            if n % 4 == 0:
                self.check()
        self.check()
        return self

    def finish(self):
        """Everybody verifies and ends; all frames come back. Returns the totals."""
        m = self.machine
        if self.hog is not None:
            self.say("vm destroy hog")
            self.hog = None
        for guest in self.guests.values():
            self.say(f"vm fusion {guest.name} on")
            if guest.state == "paused":
                self.say(f"vm resume {guest.name}")
            elif guest.state == "stopped":
                self.say(f"vm start {guest.name}")
            guest.state = "running"
        self.check()
        for guest in list(self.guests.values()):
            self.end(guest)
        metrics = m.metrics()
        for guest in list(self.guests.values()):
            self.collect(guest, metrics)
            self.say(f"vm destroy {guest.name}")
        after = m.metrics()
        left = {x: after["host", "RAM/VMM/" + x] for x in ("Private", "Shared", "Saved", "Ballooned")}
        left["Table"] = after["host", "RAM/VMM/Table"] - self.before["host", "RAM/VMM/Table"]
        left["Used"] = after["host", "RAM/VMM/Used"] - self.before["host", "RAM/VMM/Used"]
        print("left behind, kB:", left)
        if any(left.values()):
            self.fail(f"left behind: {left}")
        t = self.totals
        t["guests"], t["seed"] = self.kind, self.seed
        t["Mticks"] = round((self.ticks() - self.begin) / 1e6)
        t["Mwords"] = round((t["reads"] + 2 * t["toggles"]) / 1e6)
        with open(m.transcript.name, encoding="utf-8", errors="replace") as transcript:
            t["waits"] = len(re.findall(r"\* VM \S+ waits for memory", transcript.read()))
        return t


def table(rows):
    """Lines of text."""
    cells = [list(COLUMNS)] + [[str(row.get(c, "-")) for c in COLUMNS] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    return ["  ".join(x.rjust(w) for x, w in zip(row, widths)) for row in cells]
