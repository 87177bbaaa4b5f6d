# SPDX-License-Identifier: BSD-2-Clause
"""The peer's machine as a bootable image: Debian's cloud kernel with KVM, QEMU with the libraries it wants, and the same
kernel with virtio-balloon for the guest. Everything comes from Debian packages; nothing is installed but what
`install` names."""
import gzip
import os
import re
import shutil
import subprocess

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
HERE = os.path.dirname(os.path.abspath(__file__))
GUEST = os.path.join(ROOT, "build", "guest")  # tools/debian-guest's
QEMU = "/usr/bin/qemu-system-x86_64-microvm"
FIRMWARE = ("bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin")
STUB = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
WANTED = {QEMU: "qemu-system-x86", STUB: "systemd-boot-efi", "/usr/bin/objcopy": "binutils",
          "/usr/bin/cpio": "cpio", "/usr/bin/gcc": "gcc"}
# In the order in which they need each other.
HOST_MODULES = ("irqbypass", "kvm", "kvm-intel")
GUEST_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_balloon")
HOST_CMDLINE = "console=ttyS0 nokaslr tsc=reliable cryptomgr.notests quiet"
# Where the parts of the EFI application go in memory: the stub's documentation puts them there.
SECTIONS = ((".cmdline", 0x30000), (".linux", 0x2000000), (".initrd", 0x4000000))


def install():
    """What is missing of WANTED, as tools/setup does it."""
    missing = sorted({package for path, package in WANTED.items() if not os.path.exists(path)})
    if missing:
        print("installing from Debian:", *missing, flush=True)
        as_root = [] if os.getuid() == 0 else ["sudo"]
        subprocess.run(as_root + ["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(as_root + ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y",
                                  "--no-install-recommends"] + missing, check=True, stdout=subprocess.DEVNULL)


def write(path, text, mode=0o644):
    with open(path, "w", encoding="ascii") as f:
        f.write(text)
    os.chmod(path, mode)


def unpack(package, to):
    """The package that tools/debian-guest has chosen: of those it keeps the highest version."""
    folder = os.path.join(GUEST, "packages")
    found = [x for x in os.listdir(folder) if re.fullmatch(package + r"_.*\.deb", x)]
    if not found:
        raise SystemExit(f"no package {package}: run tools/debian-guest {os.path.relpath(GUEST)}")
    highest = subprocess.run(["sort", "-V"], input="\n".join(found), check=True, capture_output=True, text=True).stdout.split()[-1]
    subprocess.run(["dpkg-deb", "-x", os.path.join(folder, highest), to], check=True)


def find(folder, *names):
    for below, _, files in os.walk(folder):
        for name in names:
            if name in files:
                return os.path.join(below, name)
    raise SystemExit(f"no {names[0]} in {folder}")


def copy_modules(kernel, names, folder):
    """Numbered, so that the shell's order is the right one."""
    os.makedirs(folder)
    for i, name in enumerate(names):
        found = find(kernel, f"{name}.ko", f"{name}.ko.xz")
        to = os.path.join(folder, f"{i}-{name}.ko")
        if found.endswith(".xz"):
            with open(to, "wb") as out:
                subprocess.run(["xz", "-dc", found], check=True, stdout=out)
        else:
            shutil.copy(found, to)


def pack(folder):
    """A directory as a cpio archive, the same for the same content."""
    names = sorted(os.path.relpath(os.path.join(below, x), folder)
                   for below, folders, files in os.walk(folder) for x in folders + files)
    for name in names:
        os.utime(os.path.join(folder, name), (0, 0), follow_symlinks=False)
    return subprocess.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--reproducible", "--quiet"], cwd=folder, check=True,
                          input="".join(x + "\n" for x in names).encode(), stdout=subprocess.PIPE).stdout


def guest_initrd(kernel, work):
    """tools/debian-guest's with the modules of virtio-balloon added."""
    folder = os.path.join(work, "guest")
    copy_modules(kernel, GUEST_MODULES, os.path.join(folder, "modules"))
    with open(os.path.join(GUEST, "initrd.img"), "rb") as f:
        return f.read() + gzip.compress(pack(folder), mtime=0)


def libraries(program):
    """What the dynamic linker would load for it, and the linker."""
    out = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", out)


def host_root(kernel, work, settings):
    root = os.path.join(work, "host")
    for folder in ("bin", "dev", "proc", "sys", "tmp", "lib", "lib64", "share", "guests"):
        os.makedirs(os.path.join(root, folder))
    unpack("busybox-static", os.path.join(work, "busybox"))
    busybox = os.path.join(root, "bin", "busybox")
    shutil.copy(find(os.path.join(work, "busybox", "bin"), "busybox"), busybox)
    for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            os.symlink("busybox", os.path.join(root, "bin", applet))
    copy_modules(kernel, HOST_MODULES, os.path.join(root, "modules"))
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu17", "-static", "-o",
                    os.path.join(root, "bin", "measure"), os.path.join(HERE, "measure.c")], check=True)
    shutil.copy(QEMU, os.path.join(root, "bin"))
    for library in libraries(QEMU):
        shutil.copy(library, os.path.join(root, "lib64" if "ld-linux" in library else "lib"))
    for name in FIRMWARE:
        shutil.copy(os.path.join("/usr/share/qemu", name), os.path.join(root, "share"))
    shutil.copy(os.path.join(GUEST, "vmlinuz"), os.path.join(root, "guests", "vmlinuz"))
    with open(os.path.join(root, "guests", "initrd.img"), "wb") as f:
        f.write(guest_initrd(kernel, work))
    shutil.copy(os.path.join(HERE, "host.sh"), os.path.join(root, "init"))
    os.chmod(os.path.join(root, "init"), 0o755)
    write(os.path.join(root, "settings"), "".join(f"{k}='{v}'\n" for k, v in settings.items()))
    return root


def application(path, cmdline, linux, initrd, work):
    """One EFI application of systemd's stub, a kernel, its initrd and its command line."""
    write(os.path.join(work, "cmdline"), cmdline)
    command = ["objcopy"]
    for (name, address), source in zip(SECTIONS, (os.path.join(work, "cmdline"), linux, initrd)):
        command += ["--add-section", f"{name}={source}", "--change-section-vma", f"{name}={address:#x}"]
    subprocess.run(command + [STUB, path], check=True)


def peer_image(path, work, settings, more_cmdline):
    """Writes the image of the peer's machine."""
    kernel = os.path.join(work, "kernel")
    unpack(r"linux-image-[0-9].*-cloud-amd64", kernel)
    initrd = os.path.join(work, "initrd.img")
    with open(initrd, "wb") as f:
        f.write(pack(host_root(kernel, work, settings)))  # not compressed: reading it is cheaper than decompressing
    efi = os.path.join(work, "linux.efi")
    application(efi, f"{HOST_CMDLINE} {more_cmdline}", os.path.join(GUEST, "vmlinuz"), initrd, work)
    # The configuration is Fusor's and means nothing here.
    subprocess.run([os.path.join(ROOT, "tools", "mkimage"), "--efi", efi, "--config", os.devnull, path], check=True)
