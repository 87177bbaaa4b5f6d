# SPDX-License-Identifier: BSD-2-Clause
"""The engines: which command starts a machine that boots an image through UEFI.

Each engine connects to TCP ports we listen at: for its first serial port, and, for QEMU, the debug port
0xE9. Bochs prints what it gets on that port to its standard output."""

import os
import shutil
import subprocess

BOCHS_MODEL = "corei7_haswell_4770"
BOCHS_FIRMWARE = "/usr/share/ovmf/OVMF.fd"
QEMU_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
QEMU_VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
VGA_BIOS = "VGABIOS-lgpl-latest"


class EngineError(Exception):
    """The engine cannot be used as asked for."""


class EngineMissing(EngineError):
    """Something must be installed first; the text names the package."""


def need_file(path, package):
    if not os.path.exists(path):
        raise EngineMissing(f"{path} is missing: install the package {package}")
    return path


def need_program(name, package):
    path = shutil.which(name)
    if path is None:
        raise EngineMissing(f"{name} is missing: install the package {package}")
    return path


def nested_kvm_works():
    """Whether this machine's KVM can offer VT-x to a guest. /dev/kvm alone does not say so."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
            flags = next((line for line in cpuinfo if line.startswith("flags")), "")
    except OSError:
        return False
    if "vmx" not in flags.split() or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        with open("/sys/module/kvm_intel/parameters/nested", encoding="ascii") as nested:
            return nested.read().strip() in ("Y", "1")
    except OSError:
        return False


def choose():
    return "kvm" if nested_kvm_works() else "bochs"


class Bochs:
    """Debian's Bochs, or the one the environment variable BOCHS names."""

    status_on_stdout = True
    ends_on_reset = False  # it resets the machine by itself, and then OVMF hangs in it

    def __init__(self, options, work_dir):
        self.options = options
        self.work_dir = work_dir
        self.program = self.find_program()
        self.has_debugger = "-rc " in self.ask_help()
        self.firmware = need_file(BOCHS_FIRMWARE, "ovmf")
        self.share = self.find_share()
        if options.usb:
            raise EngineError("--usb needs --engine qemu or kvm: Bochs cannot boot from USB")

    def find_program(self):
        chosen = os.environ.get("BOCHS")
        if not chosen:
            return need_program("bochs", "bochs")
        path = shutil.which(chosen)
        if path is None:
            raise EngineMissing(f"BOCHS={chosen} is no program: unset it and install the package "
                                "bochs, or name another Bochs")
        return path

    def ask_help(self):
        try:
            done = subprocess.run([self.program, "--help"], stdin=subprocess.DEVNULL, timeout=30,
                                  capture_output=True, check=False, text=True, errors="replace")
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineMissing(f"{self.program} does not run ({error}): install the package "
                                "bochs") from error
        return done.stdout + done.stderr

    def find_share(self):
        beside = os.path.join(os.path.dirname(os.path.realpath(self.program)), "../share/bochs")
        for folder in (os.environ.get("BXSHARE"), os.path.normpath(beside), "/usr/share/bochs"):
            if folder and os.path.exists(os.path.join(folder, VGA_BIOS)):
                return folder
        raise EngineMissing(f"{VGA_BIOS} is missing: install the package bochs")

    def memory_line(self):
        # Bochs allocates at most 2 GiB at once; the rest of a larger guest goes to a swap file.
        megabytes = self.options.memory
        if megabytes <= 2048:
            return f"megs: {megabytes}"
        return f"memory: guest={megabytes}, host=2048"

    def write_config(self, image, serial_port):
        # A private copy: Bochs locks the image, and OVMF without flash keeps its variables on it.
        disk = os.path.join(self.work_dir, "disk.img")
        if os.path.exists(disk + ".lock"):
            os.unlink(disk + ".lock")  # a killed Bochs leaves it
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, disk], check=True)
        com2 = self.options.com2
        model = self.options.cpu or BOCHS_MODEL
        lines = [
            self.memory_line(),
            f"cpu: model={model}, count={self.options.cpus}, ips=100000000, "
            "reset_on_triple_fault=0",
            f"romimage: file={self.firmware}, address=0x00000000",
            f"vgaromimage: file={self.share}/{VGA_BIOS}",
            "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
            f'ata0-master: type=disk, path="{disk}", mode=flat',
            "boot: disk",
            f"com1: enabled=1, mode=socket-client, dev=127.0.0.1:{serial_port}",
            f'com2: enabled=1, mode=file, dev="{os.path.abspath(com2)}"' if com2
            else "com2: enabled=0",
            "port_e9_hack: enabled=1",
            f'log: "{os.path.join(self.work_dir, "bochs.log")}"',
            "panic: action=fatal",
            "error: action=ignore",
            "info: action=ignore",
            "debug: action=ignore",
            "clock: sync=none",
            'display_library: rfb, options="timeout=0"',
            "pci: enabled=1, chipset=i440fx",
            # Without a sound card its mixer thread crashes Debian's Bochs.
            "plugin_ctrl: speaker=0",
        ]
        path = os.path.join(self.work_dir, "bochsrc")
        with open(path, "w", encoding="utf-8") as config:
            config.write("\n".join(lines) + "\n")
        return path

    def command(self, image, serial_port, _debug_port):
        config = self.write_config(image, serial_port)
        command = [self.program, "-q", "-f", config]
        if self.has_debugger:
            script = os.path.join(self.work_dir, "debugger-commands")
            with open(script, "w", encoding="ascii") as commands:
                commands.write("c\nquit\n")
            command += ["-rc", script]
        return command

    def environment(self):
        return dict(os.environ, BXSHARE=self.share)


class Qemu:
    """QEMU on a q35 board: under KVM, or TCG, which has no VT-x."""

    status_on_stdout = False
    ends_on_reset = True

    def __init__(self, options, work_dir, kvm):
        self.options = options
        self.work_dir = work_dir
        self.kvm = kvm
        self.program = need_program("qemu-system-x86_64", "qemu-system-x86")
        self.code = need_file(QEMU_CODE, "ovmf")
        self.variables = need_file(QEMU_VARIABLES, "ovmf")
        if kvm and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise EngineMissing("/dev/kvm cannot be used: load kvm_intel and join the group kvm, "
                                "or take --engine bochs")

    def command(self, image, serial_port, debug_port):
        variables = os.path.join(self.work_dir, "OVMF_VARS.fd")
        shutil.copyfile(self.variables, variables)
        model = self.options.cpu or ("host" if self.kvm else "max")
        disk = ["-device", "qemu-xhci", "-device", "usb-storage,drive=disk,bootindex=0"] \
            if self.options.usb else ["-device", "ide-hd,drive=disk,bootindex=0"]
        com2 = ["-serial", f"file:{os.path.abspath(self.options.com2)}"] \
            if self.options.com2 else []
        return [
            self.program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", f"q35,accel={'kvm' if self.kvm else 'tcg'}", "-cpu", model,
            "-smp", str(self.options.cpus), "-m", str(self.options.memory), "-vga", "std",
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escape(self.code)}",
            "-drive", f"if=pflash,unit=1,format=raw,file={escape(variables)}",
            # Writes go to a temporary file: the image stays as it is.
            "-drive", f"if=none,id=disk,format=raw,snapshot=on,file={escape(image)}", *disk,
            "-chardev", f"socket,id=com1,host=127.0.0.1,port={serial_port}",
            "-serial", "chardev:com1",
            *com2,
            "-chardev", f"socket,id=debug,host=127.0.0.1,port={debug_port}",
            "-device", "isa-debugcon,iobase=0xe9,chardev=debug,readback=0xe9",
        ]

    def environment(self):
        return dict(os.environ)


def escape(path):
    """QEMU separates options by commas; a doubled one is a comma."""
    return path.replace(",", ",,")


def create(name, options, work_dir):
    if name == "auto":
        name = choose()
    if name == "bochs":
        return Bochs(options, work_dir)
    return Qemu(options, work_dir, kvm=name == "kvm")
