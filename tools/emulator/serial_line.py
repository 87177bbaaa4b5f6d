# SPDX-License-Identifier: BSD-2-Clause
"""The user's end of the serial line: the terminal, or a client at a UNIX socket.

Both have the same methods: begin, output(bytes) for what the machine sends, take_input() for what the user
sends, unsent() and end. They register callbacks as the data of their selector keys."""

import errno
import os
import selectors
import socket
import sys
import termios
import tty

ESCAPE = 0x01  # Ctrl-A
CHUNK = 65536


def write_some(write, pending):
    """Writes as much of `pending` as goes without waiting and removes it."""
    try:
        while pending:
            written = write(bytes(pending[:CHUNK]))
            del pending[:written]
    except BlockingIOError:
        pass


class Terminal:
    """Standard input and output: raw on a terminal, where Ctrl-A x quits, else plain pipes."""

    def __init__(self, selector, on_quit):
        self.selector = selector
        self.on_quit = on_quit
        self.input = bytearray()
        self.after_escape = False
        self.saved = None
        self.stdin = sys.stdin.fileno()
        self.stdout = sys.stdout.fileno()

    def begin(self):
        if os.isatty(self.stdin):
            self.saved = termios.tcgetattr(self.stdin)
            tty.setraw(self.stdin)
            print("emulate: Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A", end="\r\n",
                  file=sys.stderr)
        try:
            self.selector.register(self.stdin, selectors.EVENT_READ, self.on_readable)
        except PermissionError:
            pass  # a regular file or /dev/null cannot be waited for, and the line is output only then
        except ValueError:
            pass  # closed

    def on_readable(self, _mask):
        try:
            data = os.read(self.stdin, CHUNK)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(self.stdin)
            return
        self.input += self.filter_escapes(data) if self.saved is not None else data

    def filter_escapes(self, data):
        passed = bytearray()
        for byte in data:
            if self.after_escape:
                self.after_escape = False
                if byte in b"xX":
                    self.on_quit()
                elif byte == ESCAPE:
                    passed.append(byte)
                else:
                    passed += bytes((ESCAPE, byte))
            elif byte == ESCAPE:
                self.after_escape = True
            else:
                passed.append(byte)
        return passed

    def take_input(self):
        data, self.input = self.input, bytearray()
        return data

    def output(self, data):
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.stdout, view):]
            except BlockingIOError:
                # The terminal shares its flags with others that may have made it non-blocking.
                with selectors.DefaultSelector() as waiting:
                    waiting.register(self.stdout, selectors.EVENT_WRITE)
                    waiting.select()
            except BrokenPipeError:
                return

    def unsent(self):
        return False

    def end(self):
        if self.saved is not None:
            termios.tcsetattr(self.stdin, termios.TCSADRAIN, self.saved)
            self.saved = None


class UnixSocket:
    """Listens at a path and serves one client at a time; what the machine sends while nobody is
    connected is kept for the next one."""

    def __init__(self, selector, path):
        self.selector = selector
        self.path = path
        self.input = bytearray()
        self.pending = bytearray()
        self.client = None
        self.bound = False
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def begin(self):
        self.remove_stale()
        self.listener.bind(self.path)
        self.bound = True
        self.listener.listen(4)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.on_connect)

    def remove_stale(self):
        """A socket nobody listens at is left from a run that was killed."""
        if not os.path.exists(self.path):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
            except OSError:
                pass
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self.path)

    def on_connect(self, _mask):
        self.client, _ = self.listener.accept()
        self.client.setblocking(False)
        self.selector.unregister(self.listener)  # the next one waits in the queue
        self.selector.register(self.client, selectors.EVENT_READ, self.on_client)
        self.flush()

    def on_client(self, mask):
        if mask & selectors.EVENT_READ:
            try:
                data = self.client.recv(CHUNK)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self.drop_client()
                return
            self.input += data or b""
        if mask & selectors.EVENT_WRITE:
            self.flush()

    def drop_client(self):
        self.selector.unregister(self.client)
        self.client.close()
        self.client = None
        self.selector.register(self.listener, selectors.EVENT_READ, self.on_connect)

    def flush(self):
        try:
            write_some(self.client.send, self.pending)
        except OSError:
            self.drop_client()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.pending else 0)
        self.selector.modify(self.client, events, self.on_client)

    def take_input(self):
        data, self.input = self.input, bytearray()
        return data

    def output(self, data):
        self.pending += data
        if self.client is not None:
            self.flush()

    def unsent(self):
        return self.client is not None and bool(self.pending)

    def end(self):
        if self.client is not None:
            self.client.close()
        self.listener.close()
        if self.bound and os.path.exists(self.path):
            os.unlink(self.path)
