# SPDX-License-Identifier: BSD-2-Clause
"""One power-on of the machine: the engine's process, the far end of its serial port, its status words."""

import ctypes
import os
import re
import selectors
import signal
import socket
import subprocess

from .serial_line import CHUNK, write_some

STATUS = re.compile(rb"fusor-status: ([a-z]+)\r?\n")
PR_SET_PDEATHSIG = 1


def die_with_parent():
    """Runs in the child: no engine outlives us, even if we are killed outright."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """The engine connects to us, so that no port number has to be guessed. TCP, because a UNIX socket is
    full after some 278 single bytes, and QEMU's 16550 then stops long enough for OVMF to drop text."""

    def __init__(self, selector, engine, image, log):
        self.selector = selector
        self.on_serial = None  # called with bytes from the machine
        self.on_status = None  # called with a word
        self.to_machine = bytearray()
        self.serial = None
        self.sockets = []
        self.status_text = b""
        serial_port = self.listen(self.on_serial_connect)
        debug_port = None if engine.status_on_stdout else self.listen(self.on_debug_connect)
        command = engine.command(image, serial_port, debug_port)
        self.process = subprocess.Popen(
            command, env=engine.environment(), stdin=subprocess.DEVNULL, stderr=log,
            stdout=subprocess.PIPE if engine.status_on_stdout else log,
            start_new_session=True, preexec_fn=die_with_parent)
        if engine.status_on_stdout:
            self.watch(self.process.stdout, self.read_stdout)

    def listen(self, callback):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        self.watch(listener, lambda mask: self.accept(listener, callback))
        return listener.getsockname()[1]

    def watch(self, source, callback):
        self.sockets.append(source)
        self.selector.register(source, selectors.EVENT_READ, callback)

    def forget(self, source):
        self.selector.unregister(source)
        self.sockets.remove(source)
        source.close()

    def accept(self, listener, callback):
        connection, _ = listener.accept()
        connection.setblocking(False)
        self.forget(listener)
        callback(connection)

    def on_serial_connect(self, connection):
        self.serial = connection
        self.watch(connection, self.serve_serial)
        self.send(b"")

    def serve_serial(self, mask):
        if mask & selectors.EVENT_READ:
            data = self.receive(self.serial)
            if data == b"":
                self.forget(self.serial)
                self.serial = None
                return
            if data:
                self.on_serial(data)
        if mask & selectors.EVENT_WRITE:
            self.send(b"")

    def on_debug_connect(self, connection):
        def read(_mask):
            data = self.receive(connection)
            if data == b"":
                self.forget(connection)
            elif data:
                self.look_for_status(data)
        self.watch(connection, read)

    def read_stdout(self, _mask):
        data = os.read(self.process.stdout.fileno(), CHUNK)
        if not data:
            self.forget(self.process.stdout)
        self.look_for_status(data)

    @staticmethod
    def receive(connection):
        """None: nothing there now. b"": the other end is gone."""
        try:
            return connection.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def look_for_status(self, data):
        self.status_text += data
        end = 0
        for match in STATUS.finditer(self.status_text):
            self.on_status(match.group(1).decode("ascii"))
            end = match.end()
        self.status_text = self.status_text[end:][-200:]  # a word may come in pieces

    def send(self, data):
        """Towards the machine, as fast as it takes it."""
        self.to_machine += data
        if self.serial is None:
            return
        try:
            write_some(self.serial.send, self.to_machine)
        except OSError:
            self.to_machine.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.to_machine else 0)
        self.selector.modify(self.serial, events, self.serve_serial)

    def has_ended(self):
        return self.process.poll() is not None

    def drained(self):
        """Whether everything that the ended engine has sent is read."""
        return not self.sockets

    def stop(self):
        """Ends the engine with all its children, gently first."""
        for number, patience in ((signal.SIGTERM, 2), (signal.SIGKILL, 10)):
            if self.has_ended():
                break
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        for source in list(self.sockets):
            self.forget(source)
        self.serial = None
