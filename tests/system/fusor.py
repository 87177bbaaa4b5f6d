# SPDX-License-Identifier: BSD-2-Clause
"""A Fusor machine in an emulator, driven through its serial console.

Nothing here depends on how fast this computer is or what else it does. Between two commands the machine runs as far as
it likes: what a test compares comes from one answer, or from commands typed in one go (Machine.commands). How long
something takes is counted in the machine's ticks. Time-outs only end what would never end."""
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pexpect
import pexpect.fdpexpect

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD = os.path.join(ROOT, "build")
PROMPT = "fusor> "
GUEST = os.path.join(BUILD, "guest")
BARE = os.path.join(GUEST, "bare.bin")
# What an image takes of files, (destination, source).
BARE_FILES = (("guests/bare.bin", BARE),)
DEBIAN_FILES = (("guests/vmlinuz", os.path.join(GUEST, "vmlinuz")),
                ("guests/initrd.img", os.path.join(GUEST, "initrd.img")))
# The seconds that tests name are what is ample on a computer with nothing else to do.
PATIENCE = float(os.environ.get("PATIENCE", "5"))
AT_PROMPT = r"(?:^|(?<=\n))" + re.escape(PROMPT)
EVENT = re.compile(r"\* (?:VM \S+ |\d+ events were not shown)")
PR_SET_PDEATHSIG = 1


def until(what, seconds=60, say=None, step=0.2):
    """Waits until what() is true and returns what it returned. `say` is the complaint, or makes it."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, say() if callable(say) else say
        time.sleep(step)
    return found


def make_image(path, config, files=()):
    """Writes a bootable image with `config` as fusor.conf; files are (destination, source). Without a word about APICv in
    `config` it is off: Bochs delivers virtual interrupts to guests that have theirs off (docs/testing.md)."""
    if "apicv" not in config:
        config = config.replace("[host]\n", "[host]\napicv = off\n", 1)
    conf = path + ".conf"
    with open(conf, "w", encoding="ascii", newline="") as f:
        f.write(config)
    command = [os.path.join(ROOT, "tools", "mkimage"), "--config", conf]
    for destination, source in files:
        command += ["--add", f"{destination}={source}"]
    subprocess.run(command + [path], check=True, cwd=ROOT)
    return path


def die_with_parent():
    """Runs in the child: no emulator outlives the test, even if that is killed outright."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Console(pexpect.fdpexpect.fdspawn):
    """With patience."""

    def expect(self, pattern, timeout=120, **options):
        return super().expect(pattern, timeout=timeout * PATIENCE, **options)

    def expect_exact(self, pattern_list, timeout=120, **options):
        return super().expect_exact(pattern_list, timeout=timeout * PATIENCE, **options)


class Transcript:
    """Everything that was received, in a file; and the events in it."""

    def __init__(self, path):
        self.name = path
        self.file = open(path, "w", encoding="utf-8", errors="replace")
        self.events = []
        self.line = ""

    def write(self, text):
        self.file.write(text)
        *lines, self.line = (self.line + text).split("\n")
        self.events += [x.rstrip("\r") for x in lines if EVENT.match(x)]

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()


class Machine:
    """One run of tools/emulate with the console on a socket."""

    def __init__(self, image, engine="bochs", memory=512, cpus=1, cpu=None, timeout=7200,
                 arguments=()):
        self.directory = tempfile.mkdtemp(prefix="fusor-")
        path = os.path.join(self.directory, "serial")
        command = [os.path.join(ROOT, "tools", "emulate"), "--engine", engine,
                   "--memory", str(memory), "--cpus", str(cpus), "--serial", "unix:" + path,
                   "--timeout", str(timeout), *arguments]
        if cpu:
            command += ["--cpu", cpu]
        self.log = open(os.path.join(self.directory, "emulate.log"), "wb")
        self.process = subprocess.Popen(command + [image], cwd=ROOT, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log,
                                        start_new_session=True, preexec_fn=die_with_parent)
        self.transcript = Transcript(os.path.join(BUILD, "transcript-%d.txt" % self.process.pid))
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            until(lambda: self.connect(path), 30, "the emulator does not listen", step=0.1)
        except Exception:
            self.close()
            raise
        self.console = Console(self.socket.fileno(), encoding="utf-8", codec_errors="replace")
        self.console.logfile_read = self.transcript
        self.boot_text = ""

    def connect(self, path):
        try:
            self.socket.connect(path)
            return True
        except OSError as error:
            if self.process.poll() is not None:
                raise RuntimeError("the emulator did not start: " + self.emulator_log()) from error
            return False

    def emulator_log(self):
        self.log.flush()
        with open(self.log.name, "r", errors="replace") as f:
            return f.read()[-2000:]

    def wait_prompt(self, timeout=120):
        """Waits for the first prompt; what came before is in boot_text."""
        self.console.expect_exact(PROMPT, timeout=timeout)
        self.boot_text = self.console.before
        return self

    def send(self, text):
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def commands(self, lines, timeout=120):
        """Types lines in one go, so that no time of ours passes between them. Returns the lines of each answer, events
        (* …) left out."""
        self.send("".join(x + "\r" for x in lines))
        answers = []
        for line in lines:
            self.console.expect_exact(line + "\r\n", timeout=timeout)
            self.console.expect(AT_PROMPT, timeout=timeout)
            answer = self.console.before.replace("\r\n", "\n").strip("\n")
            answers.append([x for x in answer.split("\n") if x and not x.startswith("* ")])
        return answers

    def command(self, line, timeout=120):
        return self.commands([line], timeout)[0]

    def ok(self, line, timeout=120):
        answer = self.command(line, timeout)
        assert answer == ["ok"], (line, answer)

    def error(self, line, timeout=120):
        answer = self.command(line, timeout)
        assert len(answer) == 1 and answer[0].startswith("error: "), (line, answer)
        return answer[0]

    # --- The machine's time ---

    def facts(self, what="host"):
        """The `key: value` lines of an answer."""
        return self.pairs(self.command(what))

    @staticmethod
    def pairs(answer):
        return dict(x.split(": ", 1) for x in answer if ": " in x)

    def uptime(self):
        return float(self.facts()["uptime"].split()[0])

    def sleep(self, seconds):
        """Of the machine's time, at least. Ours passes faster or slower."""
        now = self.uptime()
        end, begin, real = now + seconds, now, time.monotonic()
        deadline = real + (60 + 20 * seconds) * PATIENCE
        while now < end:
            assert time.monotonic() < deadline, "the machine's clock does not run"
            rate = (now - begin) / (time.monotonic() - real) if now > begin else 100
            time.sleep(min(max((end - now) / rate, 0.05), 2))
            now = self.uptime()

    def ticks_of(self, *lines):
        """How many ticks commands take and, in any case, one answer of `host` with its way over the line."""
        first, *answers, last = self.commands(["host", *lines, "host"])
        for line, answer in zip(lines, answers):
            assert answer == ["ok"], (line, answer)
        seconds = [float(self.pairs(x)["uptime"].split()[0]) for x in (first, last)]
        return (seconds[1] - seconds[0]) * int(self.pairs(first)["tsc-hz"])

    def metrics(self, arguments=""):
        """{(object, metric): value} with '-' left out; checks the four fields and the identities."""
        result = self.parse_metrics(self.command(("metrics " + arguments).strip()))
        if not arguments:
            self.check_identities(result)
        return result

    @staticmethod
    def parse_metrics(answer):
        result = {}
        for line in answer:
            fields = line.split(" ")
            assert len(fields) == 4, line
            name, metric, value, unit = fields
            assert unit in ("kB", "count", "ticks"), line
            if value != "-":
                result[name, metric] = int(value)
        return result

    @staticmethod
    def check_identities(m):
        host = {k[1].split("/")[-1]: v for k, v in m.items() if k[1].startswith("RAM/VMM/")}
        assert host["Total"] == sum(host[k] for k in ("Fusor", "Table", "Private", "Shared", "Free"))
        assert host["Used"] == host["Total"] - host["Free"]
        shared = private = 0
        for (name, metric), value in m.items():
            if metric != "Guest/RAM/Usage/Configured":
                continue
            guest = {k: m[name, "Guest/RAM/Usage/" + k]
                     for k in ("Private", "Shared", "Balloon", "Untouched", "Resident")}
            assert value == sum(guest[k] for k in ("Private", "Shared", "Balloon", "Untouched"))
            assert guest["Resident"] == guest["Private"] + guest["Shared"]
            shared += guest["Shared"]
            private += guest["Private"]
        assert shared == host["Shared"] + host["Saved"]
        assert private == host["Private"]

    def state(self, vm):
        for line in self.command("vm list"):
            fields = line.split()
            if fields and fields[0] == vm:
                return fields[1]
        return None

    def sweep(self, keep=()):
        """Destroys what a test that failed has left, so that the next one shows what it shows by itself."""
        for line in self.command("vm list")[1:]:
            name = line.split()[0]
            if name not in keep:
                self.ok(f"vm destroy {name}")

    def wait_state(self, vm, state, timeout=120):
        until(lambda: self.state(vm) == state, timeout, lambda: f"{vm} is {self.state(vm)}, not {state}", 0.3)

    def start(self, name):
        """Starts a VM; returns what wait_end wants to know."""
        since = len(self.transcript.events)
        self.ok(f"vm start {name}")
        return since

    def wait_end(self, name, since, timeout=300):
        """Until a VM has ended by itself. Nothing is asked meanwhile: the console takes none of the machine's time."""
        end = re.compile(rf"\* VM {name} (?:powered off|ended with code|crashed)")
        deadline = time.monotonic() + timeout * PATIENCE
        while not any(end.match(x) for x in self.transcript.events[since:]):
            assert time.monotonic() < deadline, f"{name} does not end"
            # Events that come too fast are left out.
            if self.console.expect([r"\* [^\r\n]*\r\n", pexpect.TIMEOUT], timeout=10) == 1 and \
                    self.state(name) in ("stopped", "crashed"):
                break

    def bare(self, test, name="bare", memory="16M", timeout=300, more=""):
        """Runs one test of the bare guest to its end and returns its output lines."""
        self.ok(f'vm create {name} memory={memory} kernel=\\guests\\bare.bin '
                f'cmdline="test={test}"{more}')
        since = self.start(name)
        try:
            self.wait_end(name, since, timeout)
            return self.replay(name)
        finally:
            self.ok(f"vm destroy {name}")

    def replay(self, name):
        """The lines that a VM has printed on its serial port so far: the newest 16 KiB. What it prints at the end may be half
        a line."""
        for _ in range(20):
            self.send(f"vm console {name}\r\x1d")  # Ctrl-] waits for the end of the replay
            self.console.expect_exact(f"vm console {name}\r\n")
            self.console.expect(r"(?s)attached to \S+ Ctrl-\] detaches\r\n(.*?)(?:^|(?<=\n))detached from " + name +
                                r"\r\n(?:\* [^\r\n]*\r\n)*" + PROMPT)
            lines = self.console.match.group(1).replace("\r\n", "\n").split("\n")
            if not any(EVENT.match(x) for x in lines):  # it may stand in the middle of a line
                return [x for x in lines if x]
        raise AssertionError("too many events")

    def power_off(self, timeout=60):
        self.send("poweroff\r")
        return self.process.wait(timeout * PATIENCE)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.socket.close()
        self.transcript.close()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running(directory, config, files=BARE_FILES, prompt=300, **options):
    """A Machine with these options at its first prompt, from an image that is made in `directory`. At the end it is
    switched off by its own command, which must work; after a failure it is only closed."""
    machine = Machine(make_image(os.path.join(directory, "fusor.img"), config, files), **options)
    try:
        yield machine.wait_prompt(prompt)
        assert machine.power_off() == 0
    finally:
        machine.close()
