# SPDX-License-Identifier: BSD-2-Clause
"""tools/mkimage and tools/emulate: what they refuse and how, exit statuses, the serial socket.

Only QEMU without VT-x is started: Fusor refuses there within seconds, which is all these tests need."""
import hashlib
import os
import signal
import socket
import subprocess
import time

import pexpect
import pytest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
MKIMAGE = os.path.join(ROOT, "tools", "mkimage")
EMULATE = os.path.join(ROOT, "tools", "emulate")


def run(*command, **environment):
    return subprocess.run(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=900,
                          check=False)


def build(directory, *arguments):
    config = directory / "fusor.conf"
    config.write_text("[host]\nreserve = 16M\n")
    image = directory / "test.img"
    done = run(MKIMAGE, "--config", str(config), *arguments, str(image))
    return done, image


@pytest.fixture(scope="module", name="image")
def make_image(tmp_path_factory):
    done, image = build(tmp_path_factory.mktemp("image"))
    assert done.returncode == 0, done.stderr
    return str(image)


def descendants(pid):
    """The engines below an emulate that still runs."""
    done = run("ps", "-o", "pid=", "--ppid", str(pid))
    return [int(word) for word in done.stdout.split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize("add, text", [
    ("\\a", "expected DEST=SRC"),
    ("\\a=", "expected DEST=SRC"),
    ("\\=/etc/passwd", "names no file"),
    ("..\\a=/etc/passwd", "cannot be a name"),
    ("a*b=/etc/passwd", "cannot be a name"),
    ("a=/nonexistent/file", "/nonexistent/file: No such file"),
    ("\\FUSOR\\fusor.CONF=/etc/passwd", "on the image already"),
    ("fusor/fusor.conf/x=/etc/passwd", "needs a directory"),
])
def test_mkimage_refuses_bad_files(tmp_path, add, text):
    done, image = build(tmp_path, "--add", add)
    assert done.returncode == 1
    assert done.stderr.startswith("mkimage: ") and done.stderr.count("\n") == 1
    assert text in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["fusor.conf"] and not image.exists()


def test_mkimage_names_what_is_missing(tmp_path):
    done = run(MKIMAGE, "--config", "/nonexistent.conf", str(tmp_path / "a.img"))
    assert done.returncode == 1 and "/nonexistent.conf: No such file" in done.stderr
    done, _ = build(tmp_path, "--efi", "/nonexistent.efi")
    assert done.returncode == 1 and "run make first" in done.stderr
    config = tmp_path / "fusor.conf"
    done = run(MKIMAGE, "--config", str(config), "/nonexistent/directory/a.img")
    assert done.returncode == 1 and "No such file" in done.stderr


def test_mkimage_is_deterministic_and_holds_directories(tmp_path):
    source = tmp_path / "tree"
    (source / "below").mkdir(parents=True)
    (source / "one").write_bytes(b"1" * 100_000)
    (source / "below" / "two").write_bytes(b"")
    add = ["--add", f"\\guests\\tree={source}", "--add", f"guests/one={source / 'one'}"]
    sums = set()
    for _ in range(2):
        done, image = build(tmp_path, *add)
        assert done.returncode == 0, done.stderr
        sums.add(hashlib.sha256(image.read_bytes()).hexdigest())
        time.sleep(2.1)  # FAT counts in two seconds
    assert len(sums) == 1
    listing = run("mdir", "-/", "-b", "-i", f"{image}@@1M", "::").stdout
    for path in ("/EFI/BOOT/BOOTX64.EFI", "/fusor/fusor.conf", "/guests/tree/one",
                 "/guests/tree/below/two", "/guests/one"):
        assert f"::{path}\n" in listing


def test_emulate_names_the_missing_package(image):
    done = run(EMULATE, "--engine", "bochs", image, BOCHS="/nonexistent/bochs")
    assert done.returncode == 127 and "package bochs" in done.stderr
    done = run(EMULATE, "--engine", "qemu", image, PATH="/nonexistent")
    assert done.returncode == 127 and "package qemu-system-x86" in done.stderr


def test_emulate_refuses_bad_arguments(image):
    for arguments in (["--memory", "5"], ["--cpus", "0"], ["--serial", "telnet"],
                      ["--engine", "virtualbox"], ["--timeout", "x"]):
        done = run(EMULATE, *arguments, image)
        assert done.returncode == 2 and arguments[0] in done.stderr
    done = run(EMULATE, "/nonexistent.img")
    assert done.returncode == 1 and "/nonexistent.img: No such file" in done.stderr


@pytest.mark.parametrize("model, reason", [
    ("max,vendor=AuthenticAMD", "this is an AMD CPU (QEMU TCG CPU"),
    ("Haswell", "the CPU (Intel Core Processor (Haswell)) has no VT-x"),
])
def test_refusal_is_one_line_and_status_3(qemu, image, model, reason):
    del qemu
    done = run(EMULATE, "--engine", "qemu", "--cpu", model, "--timeout", "600", image)
    assert done.returncode == 3, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "fusor:" in line]
    assert lines[0].startswith("fusor: boot stage ")
    assert lines[1].startswith("fusor: 1 CPU, 10")
    assert lines[2].startswith("fusor: refused: " + reason)
    assert len(lines) == 3


def test_timeout(qemu, image):
    del qemu
    done = run(EMULATE, "--engine", "qemu", "--timeout", "1", image)
    assert done.returncode == 124 and "not done after 1 s" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_engine_is_left_behind(qemu, image, tmp_path, number):
    del qemu
    with subprocess.Popen([EMULATE, "--engine", "qemu", "--work-dir", str(tmp_path), image],
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: descendants(process.pid), 100)
        engines = descendants(process.pid)
        time.sleep(0.5)
        process.send_signal(number)
        status = process.wait(100)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not any(is_alive(pid) for pid in engines), 60)


def test_control_a_x_quits(qemu, image):
    del qemu
    terminal = pexpect.spawn(EMULATE, ["--engine", "qemu", image], timeout=200)
    terminal.expect_exact("Ctrl-A x quits")
    terminal.send("abc\x01\x01\x01x")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def read_all(client):
    text = b""
    while data := client.recv(65536):
        text += data
    return text


def leave(client, process):
    """Closes the connection when it has nothing unread, which would be lost. Returns what it had."""
    text = client.recv(65536)
    process.send_signal(signal.SIGSTOP) # it sends nothing now
    with open(f"/proc/{process.pid}/stat", encoding="ascii") as stat:
        wait_for(lambda: (stat.seek(0), stat.read())[1].rsplit(")", 1)[1].split()[0] == "T", 60)
    client.setblocking(False)
    try:
        while data := client.recv(65536):
            text += data
    except BlockingIOError:
        pass
    client.close()
    process.send_signal(signal.SIGCONT)
    return text


def test_serial_socket_keeps_output_and_takes_reconnects(qemu, image, tmp_path):
    del qemu
    path = str(tmp_path / "serial")

    def connect():
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(600)
        client.connect(path)
        return client

    arguments = [EMULATE, "--engine", "qemu", "--serial", "unix:" + path, "--timeout", "600"]
    with subprocess.Popen([*arguments, image], stdin=subprocess.DEVNULL) as process:
        wait_for(lambda: os.path.exists(path), 100)
        second = run(*arguments, image)
        assert second.returncode == 1 and "in use" in second.stderr and os.path.exists(path)
        text = leave(connect(), process)
        with connect() as client:
            text += read_all(client)
        assert process.wait(100) == 3
    assert text.count(b"fusor: boot stage") == 1 and text.count(b"fusor: refused:") == 1
    assert not os.path.exists(path)


def test_driver_package(tmp_path):
    """The DKMS package holds all that a build of the driver needs, and is the same each time."""
    make_deb = os.path.join(ROOT, "guest-drivers", "linux", "make-deb")
    sums = []
    for name in ("a", "b"):
        done = run(make_deb, str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        package, = (tmp_path / name).glob("fusor-dkms_*_all.deb")
        sums.append(hashlib.sha256(package.read_bytes()).hexdigest())
    assert sums[0] == sums[1]
    assert run("dpkg-deb", "-x", str(package), str(tmp_path / "root")).returncode == 0
    source, = (tmp_path / "root" / "usr" / "src").glob("fusor-*")
    have = {x.name for x in source.iterdir()}
    wanted = {x for x in os.listdir(os.path.join(ROOT, "guest-drivers", "linux", "fusor"))
              if x.endswith((".c", ".h")) or x == "Kbuild"}
    assert have == wanted | {"dkms.conf", "fusor_abi.h"}
    objects = (source / "Kbuild").read_text()
    assert all(x[:-2] + ".o" in objects for x in have if x.endswith(".c"))
    version = source.name.split("-", 1)[1]
    assert f'PACKAGE_VERSION="{version}"' in (source / "dkms.conf").read_text()
