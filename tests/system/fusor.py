# SPDX-License-Identifier: BSD-2-Clause
"""A Fusor machine in an emulator, driven through its serial console."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time

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


def make_image(path, config, files=()):
    """Writes a bootable image with `config` as fusor.conf; files are (destination, source)."""
    conf = path + ".conf"
    with open(conf, "w", encoding="ascii", newline="") as f:
        f.write(config)
    command = [os.path.join(ROOT, "tools", "mkimage"), "--config", conf]
    for destination, source in files:
        command += ["--add", f"{destination}={source}"]
    subprocess.run(command + [path], check=True, cwd=ROOT)
    return path


class Machine:
    """One run of tools/emulate with the console on a socket."""

    def __init__(self, image, engine="bochs", memory=512, cpus=1, cpu=None, timeout=1200,
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
                                        start_new_session=True)
        deadline = time.time() + 30
        self.socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.time() > deadline or self.process.poll() is not None:
                    raise RuntimeError("emulator did not start: " + self.emulator_log())
                time.sleep(0.1)
        transcript = os.path.join(BUILD, "transcript-%d.txt" % self.process.pid)
        self.transcript = open(transcript, "w", encoding="utf-8", errors="replace")
        self.console = pexpect.fdpexpect.fdspawn(self.socket.fileno(), encoding="utf-8",
                                                 codec_errors="replace", timeout=120)
        self.console.logfile_read = self.transcript
        self.boot_text = ""

    def emulator_log(self):
        self.log.flush()
        with open(self.log.name, "r", errors="replace") as f:
            return f.read()[-2000:]

    def wait_prompt(self, timeout=300):
        """Waits for the first prompt; what came before is in boot_text."""
        self.console.expect_exact(PROMPT, timeout=timeout)
        self.boot_text = self.console.before
        return self

    def send(self, text):
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def command(self, line, timeout=120):
        """Types a command and returns the lines of its answer, events (* …) left out."""
        self.send(line + "\r")
        self.console.expect_exact(line + "\r\n", timeout=timeout)
        self.console.expect(r"(?:^|\r\n|(?<=\n))" + re.escape(PROMPT), timeout=timeout)
        answer = self.console.before.replace("\r\n", "\n").strip("\n")
        return [x for x in answer.split("\n") if x and not x.startswith("* ")]

    def ok(self, line, timeout=120):
        answer = self.command(line, timeout)
        assert answer == ["ok"], (line, answer)

    def error(self, line, timeout=120):
        answer = self.command(line, timeout)
        assert len(answer) == 1 and answer[0].startswith("error: "), (line, answer)
        return answer[0]

    def metrics(self, arguments=""):
        """{(object, metric): value} with '-' left out; checks the four fields and the identities."""
        result = {}
        for line in self.command(("metrics " + arguments).strip()):
            fields = line.split(" ")
            assert len(fields) == 4, line
            name, metric, value, unit = fields
            assert unit in ("kB", "count", "ticks"), line
            if value != "-":
                result[name, metric] = int(value)
        if not arguments:
            self.check_identities(result)
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

    def wait_state(self, vm, state, timeout=120):
        deadline = time.time() + timeout
        while self.state(vm) != state:
            assert time.time() < deadline, f"{vm} is {self.state(vm)}, not {state}"
            time.sleep(0.3)

    def bare(self, test, name="bare", memory="16M", timeout=300, more=""):
        """Runs one test of the bare guest to its end and returns its output lines."""
        self.ok(f'vm create {name} memory={memory} kernel=\\guests\\bare.bin '
                f'cmdline="test={test}"{more}')
        self.ok(f"vm start {name}")
        try:
            deadline = time.time() + timeout
            while self.state(name) == "running":
                assert time.time() < deadline, f"bare test {test} does not end"
                time.sleep(0.2)
            return self.replay(name)
        finally:
            self.ok(f"vm destroy {name}")

    def replay(self, name):
        """What a VM has printed on its serial port so far."""
        self.send(f"vm console {name}\r")
        self.console.expect_exact(f"vm console {name}\r\n")
        time.sleep(0.3)
        self.send("\x1d")
        self.console.expect_exact("\r\n" + PROMPT)
        return [x for x in self.console.before.replace("\r\n", "\n").split("\n") if x]

    def power_off(self, timeout=60):
        self.send("poweroff\r")
        return self.process.wait(timeout)

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
