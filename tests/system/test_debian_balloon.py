# SPDX-License-Identifier: BSD-2-Clause
"""The balloon of Debian guests that run Fusor's driver: three of 384 MiB on a machine of 1 GiB with two CPUs in
Bochs and overcommit = off. One boot, many checks; the figures are printed."""
import os
import re
import subprocess

import pytest

import fusor
from debian_guest import CMDLINE, Attached
from test_debian_fusion import healthy, wait_up

NAMES = ["alpha", "beta", "gamma"]
# Hints would change the figures; beta does not clear what it allocates, as Debian's kernel does by default.
INITRDS = {"alpha": "initrd", "beta": "initrd", "gamma": "kexec"}
CONFIG = "[host]\nfiles = \\guests\novercommit = off\n" + "".join(f"""
[vm {name}]
memory  = 384M
memory-min = 64M
kernel  = \\guests\\vmlinuz
initrd  = \\guests\\{INITRDS[name]}.img
cmdline = "{CMDLINE} quiet fusor.delay=86400 fusor.report=2 init_on_alloc={0 if name == 'beta' else 1} host={name}"
autostart = {'off' if name == 'gamma' else 'on'}
""" for name in NAMES)
DRIVER = "/modules/fusor/fusor.ko"
PARAMETERS = "/sys/module/fusor/parameters"
EXTENTS = PARAMETERS + "/balloon_extents"
MIB = 1024 # kB
PAGES = 256 # per MiB


def make_kexec_initrd(directory):
    """The guest's initrd and, in a second archive behind it, what a kexec takes: program, kernel, initrd."""
    source = os.path.join(os.path.dirname(__file__), "guest_kexec.c")
    root, path = os.path.join(directory, "root"), os.path.join(directory, "kexec.img")
    os.makedirs(os.path.join(root, "kexec"))
    subprocess.run(["gcc", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2", "-s", "-static", source, "-o",
                    os.path.join(root, "kexec", "kexec")], check=True)
    for name in ("vmlinuz", "initrd.img"):
        os.symlink(os.path.join(fusor.GUEST, name), os.path.join(root, "kexec", name))
    archive = subprocess.run("find . | cpio -o -L -H newc -R 0:0 | gzip -1n", shell=True, check=True, cwd=root,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    with open(path, "wb") as out, open(os.path.join(fusor.GUEST, "initrd.img"), "rb") as first:
        out.write(first.read() + archive)
    return path


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("debian_balloon")
    files = fusor.DEBIAN_FILES + (("guests/kexec.img", make_kexec_initrd(str(directory))),)
    with fusor.running(directory, CONFIG, files, prompt=160,
                       memory=1024, cpus=int(os.environ.get("BALLOON_CPUS", "2"))) as m:
        yield m


def shell(machine, name, command, timeout=120):
    with Attached(machine, name) as guest:
        return guest.shell(command, timeout)


def show(machine, name):
    return machine.facts(f"vm show {name}")


def kb(machine, name, what):
    return int(show(machine, name)[what].split()[0])


def driver(machine, name):
    out = shell(machine, name, "cd /sys/kernel/fusor/balloon; grep . *; cd /")
    return {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", out)}


def meminfo(machine, name, what):
    return int(re.search(what + r":\s+(\d+) kB", shell(machine, name, "cat /proc/meminfo")).group(1))


def uptime_inside(machine, name):
    return float(shell(machine, name, "cat /proc/uptime").split()[0])


def wait(what, seconds=120):
    """Until what() is true; emulated time runs fast while the guests are idle."""
    fusor.until(what, seconds)


def balloon(machine, name, mib):
    machine.ok(f"vm balloon {name} {mib}M")
    wait(lambda: kb(machine, name, "balloon") == mib * MIB)
    machine.metrics() # the identities


def works(machine, name):
    out = shell(machine, name, "cp /bin/busybox /tmp/copy && cmp /bin/busybox /tmp/copy && rm /tmp/copy && echo same")
    assert "same" in out, out
    healthy(machine, name)


def hogs(machine, name, more):
    """Five processes that use, together, `more` MiB beyond what is available. Returns how many came to their end, how many
    the OOM killer chose, and what the driver did; the log must tell nothing worse."""
    shell(machine, name, "dmesg -c >/dev/null; rm -f /tmp/dd.*")
    before = driver(machine, name)
    size = (meminfo(machine, name, "MemAvailable") // MIB + more) // 5 + 1
    out = shell(machine, name, f"for i in 1 2 3 4 5; do dd if=/dev/zero of=/dev/null bs={size}M count=4 2>/tmp/dd.$i & done; "
                "wait; echo ended=$(cat /tmp/dd.* | grep -c '4+0 records out')", 600)
    ended = int(re.search(r"ended=(\d)", out).group(1))
    log = shell(machine, name, "dmesg | grep -E 'Killed process|BUG|Oops|WARNING|lockup|stall'; dmesg -c >/dev/null")
    killed = log.count("Killed process")
    assert killed == len(log.strip().split("\n")) or not log.strip(), log
    after = driver(machine, name)
    d = {k: after[k] - before[k] for k in ("deflated_shrinker", "deflated_oom", "no_frames")}
    print(f"{name}: 5 processes of {size} MiB: {ended} came to their end, {killed} were killed; {d}")
    assert ended + killed == 5
    return ended, killed, d


def tsc_hz(machine):
    return int(machine.facts()["tsc-hz"])


def measure(machine, name, mib, what):
    """Sets the target and prints what it cost, in ticks: all of the guest's CPU time until the target is reached,
    and by the driver's clock what it did itself."""
    hz = tsc_hz(machine)
    before, run = driver(machine, name), machine.metrics(name)[name, "CPU/Run"]
    large = show(machine, name)
    balloon(machine, name, mib)
    run = machine.metrics(name)[name, "CPU/Run"] - run
    after = driver(machine, name)
    d = {k: after[k] - before[k] for k in after}
    pages, extents = abs(d["pages"]), abs(d["extents"])
    units, unit = (extents, "extent") if extents else (pages, "page")
    ticks = {k: d[k] * hz / 1e9 / units for k in ("ns_allocating", "ns_giving", "ns_taking")}
    now = show(machine, name)
    print(f"{name} {what}: {pages} pages ({extents} extents), target reached after {run / 1e6:.1f} M ticks of the guest; per "
          f"{unit} {run / units:.0f} all in, of it allocating {ticks['ns_allocating']:.0f}, giving {ticks['ns_giving']:.0f}, "
          f"taking back {ticks['ns_taking']:.0f}; 2 MiB entries {large['large-leaves']} -> {now['large-leaves']}, split "
          f"{int(now['large-splits']) - int(large['large-splits'])}; EPT tables {large['ept-tables']} -> {now['ept-tables']}")
    return d, large, now, ticks


def test_drivers_are_there(machine):
    for name in NAMES[:2]:
        wait_up(machine, name)
        out = shell(machine, name, "dmesg | grep 'fusor: '; grep fusor /proc/interrupts")
        assert "features 0xf" in out and "fusor" in out.split("features", 1)[1], out
        assert show(machine, name)["balloon-target"] == "0 kB" # not pending: the driver has asked
    machine.metrics()


def test_third_guest_is_refused(machine):
    why = machine.error("vm start gamma")
    print(why)
    assert f"needs {384 * MIB} kB" in why and re.search(r"overcommit = off leaves \d+ kB", why), why


def test_targets_and_what_they_cost(machine):
    print()
    total = meminfo(machine, "alpha", "MemTotal")
    d, before, during, ticks = measure(machine, "alpha", 128, "gives 128 MiB")
    # Nothing is cleared that is given away: that alone would be 2 M ticks of each in Bochs. What the guest spends in all
    # has in it what else it does until we look.
    assert ticks["ns_allocating"] < 100e3 and ticks["ns_allocating"] + ticks["ns_giving"] < 400e3
    assert d["extents"] == 64 and d["pages"] == 128 * PAGES and d["refused"] == 0
    assert during["large-splits"] == before["large-splits"]
    assert kb(machine, "alpha", "resident") <= int(before["resident"].split()[0]) + 4 * MIB
    assert meminfo(machine, "alpha", "MemTotal") == total - 128 * MIB
    d, _, after, _ = measure(machine, "alpha", 0, "gets 128 MiB back")
    assert d["deflated"] == 128 * PAGES and after["large-splits"] == before["large-splits"]
    assert meminfo(machine, "alpha", "MemTotal") == total
    shell(machine, "alpha", f"echo 0 >{EXTENTS}")
    d, *_ = measure(machine, "alpha", 16, "gives 16 MiB by pages")
    assert d["extents"] == 0 and d["inflated"] == 16 * PAGES
    d, *_ = measure(machine, "alpha", 0, "gets 16 MiB back by pages")
    assert d["deflated"] == 16 * PAGES
    shell(machine, "alpha", f"echo 1 >{EXTENTS}")
    balloon(machine, "alpha", 128)
    measure(machine, "beta", 128, "gives 128 MiB, init_on_alloc=0")
    assert driver(machine, "beta")["rings"] > 0


def test_third_guest_starts(machine):
    machine.ok("vm start gamma")
    wait_up(machine, "gamma")
    for name in NAMES:
        works(machine, name)
    machine.metrics()


def test_what_is_promised_is_not_given_back(machine):
    before = driver(machine, "alpha")["no_frames"]
    machine.ok("vm balloon alpha 0M")
    wait(lambda: driver(machine, "alpha")["no_frames"] > before + 1)
    kept = kb(machine, "alpha", "balloon")
    assert 0 < kept < 128 * MIB, kept
    works(machine, "alpha")
    # Without frames for it, a guest that needs more than it has is on its own: its OOM killer acts, and it goes on. It
    # asks Fusor again and again, but not at every need: three calls each time at most, ten times in a second for the
    # OOM killer, once by the worker, and in the shrinker's growing intervals.
    print()
    start = uptime_inside(machine, "alpha")
    _, killed, d = hogs(machine, "alpha", 32)
    seconds = uptime_inside(machine, "alpha") - start
    print(f"asked in vain {d['no_frames']} times in {seconds:.1f} s")
    assert killed > 0 and 0 < d["no_frames"] < 3 * 13 * (seconds + 1)
    assert d["deflated_shrinker"] + d["deflated_oom"] < 8 * PAGES
    works(machine, "alpha")


def test_what_is_left_in_comes_back(machine):
    """A driver that must go while Fusor has no frames leaves pages in the balloon, as the kernel before a kexec does; the
    next one finds none of them its own. It gets them back as soon as there are frames."""
    # As much in the balloon as Fusor cannot give: by now all of alpha's that is left.
    left = kb(machine, "alpha", "balloon")
    out = shell(machine, "alpha", f"rmmod fusor; insmod {DRIVER} delay=86400 report=2 && echo back; "
                                  "dmesg | grep 'fusor: Fusor has no frames' | tail -n 1")
    assert "back" in out and re.search(r"no frames for \d+ pages", out), out
    wait(lambda: driver(machine, "alpha")["no_frames"] > 1) # it asks for them
    assert driver(machine, "alpha")["pages"] == 0
    strays = kb(machine, "alpha", "balloon")
    assert 0 < strays <= left, (strays, left)
    works(machine, "alpha")
    # What it gives now, others need not: Fusor has frames for the strays, and the balloon is what it should be.
    machine.ok("vm balloon alpha 128M")
    wait(lambda: driver(machine, "alpha")["pages"] == 128 * PAGES and kb(machine, "alpha", "balloon") == 128 * MIB)
    d = driver(machine, "alpha")
    print(f"\n{left} kB could not be given back, {strays} kB were in the balloon when the next driver came; {d['strays']} "
          f"pages came back, {d['no_frames']} refusals")
    assert d["strays"] > 0
    machine.metrics()
    works(machine, "alpha")


def test_free_pages_are_reported(machine):
    """A file is written and removed: what it took is the machine's again."""
    start = kb(machine, "beta", "resident")
    shell(machine, "beta", "dd if=/dev/zero of=/big bs=1M count=64", 300)
    full = kb(machine, "beta", "resident")
    assert full > start + 40 * MIB, (start, full) # some of it was there already
    free = machine.metrics()["host", "RAM/VMM/Free"]
    shell(machine, "beta", "rm /big")
    wait(lambda: kb(machine, "beta", "resident") < full - 40 * MIB)
    assert machine.metrics()["host", "RAM/VMM/Free"] > free + 30 * MIB
    print(f"\nresident {start} kB, with a file of 64 MiB {full} kB, after it was removed {kb(machine, 'beta', 'resident')} kB")
    works(machine, "beta")


def test_a_guest_that_needs_its_memory_gets_it(machine):
    """gamma has given half its memory; a file in memory, which cannot be reclaimed, needs more than it has left."""
    balloon(machine, "gamma", 192)
    available = meminfo(machine, "gamma", "MemAvailable")
    size = available // MIB + 24
    out = shell(machine, "gamma", f"dd if=/dev/zero of=/big bs=1M count={size} 2>&1; ls -l /big", 300)
    assert f" {size << 20} " in out, out
    d = driver(machine, "gamma")
    log = shell(machine, "gamma", "dmesg | grep -ciE 'out of memory|oom-kill|killed process'")
    print(f"\n{available} kB available, a file of {size} MiB written; deflated {d['deflated_shrinker']} pages by the shrinker, "
          f"{d['deflated_oom']} before OOM")
    assert log.strip() == "0", log
    assert d["deflated_shrinker"] + d["deflated_oom"] >= 24 * PAGES
    machine.metrics()
    shell(machine, "gamma", "rm /big")
    works(machine, "gamma")
    wait(lambda: kb(machine, "gamma", "balloon") == 192 * MIB) # after a rest
    assert driver(machine, "gamma")["pages"] == 192 * PAGES
    machine.metrics()


def test_memory_statistics(machine):
    """What the guest says of itself is in the metrics, while memory is in the balloon."""
    for name in NAMES:
        inside = {x: meminfo(machine, name, y) for x, y in (("Total", "MemTotal"), ("Free", "MemFree"),
                                                            ("Available", "MemAvailable"), ("Cache", "Cached"))}
        before = driver(machine, name)["pages"]
        wait(lambda: abs(machine.metrics()[name, "Guest/RAM/Usage/Free"] - inside["Free"]) < 4 * MIB) # every 2 s
        m = machine.metrics()
        said = {x: m[name, "Guest/RAM/Usage/" + x] for x in inside}
        print(f"\n{name}: in the guest {inside}, in the metrics {said}, balloon {before * 4} kB")
        assert m[name, "Guest/RAM/Usage/Balloon"] == before * 4 > 0
        assert said["Total"] == inside["Total"]
        for x in ("Free", "Available", "Cache"):
            assert abs(said[x] - inside[x]) < 4 * MIB, x


def test_oom(machine):
    """Processes that need more than gamma has left: without the driver's help some are killed; with its shrinker, with its
    OOM notifier, and with both none is."""
    name = "gamma"
    balloon(machine, name, 240)
    set_to = f"for i in shrink oom; do echo %s >{PARAMETERS}/balloon_$i; done"
    shell(machine, name, set_to % 0)
    print()
    _, killed, d = hogs(machine, name, 32)
    assert killed > 0 and d["deflated_shrinker"] == d["deflated_oom"] == 0
    for shrink, oom in ((0, 1), (1, 0), (1, 1)):
        shell(machine, name, f"echo {shrink} >{PARAMETERS}/balloon_shrink; echo {oom} >{PARAMETERS}/balloon_oom")
        ended, killed, d = hogs(machine, name, 32)
        assert ended == 5 and killed == 0
        by = {"shrink": d["deflated_shrinker"], "oom": d["deflated_oom"]}
        assert sum(by.values()) >= 8 * PAGES and (shrink or not by["shrink"]) and (oom or not by["oom"]), by
        shell(machine, name, set_to % 0)
        wait(lambda: kb(machine, name, "balloon") == 240 * MIB) # after a rest
        machine.metrics()
    shell(machine, name, set_to % 1)
    works(machine, name)


def test_suspend(machine):
    """Suspended to idle the balloon stands still, and follows a new target after it woke up by a key."""
    shell(machine, "alpha", "dmesg -c >/dev/null; echo enabled >/sys/class/tty/ttyS0/power/wakeup")
    machine.send("vm console alpha\r")
    machine.console.expect_exact("vm console alpha\r\n")
    machine.send("echo freeze$((1)); echo freeze >/sys/power/state\n")
    machine.console.expect_exact("freeze1\r\n")
    machine.send("\x1d")
    machine.console.expect_exact("\r\n" + fusor.PROMPT)

    def calls():
        return [x for x in machine.command("exits alpha") if x.startswith("VMCALL:")]

    def stands_still():  # awake, the driver has something to say every other second
        before = calls()
        assert before
        machine.sleep(7)
        return calls() == before
    wait(stands_still)
    machine.ok("vm balloon alpha 64M")
    machine.sleep(5)
    assert kb(machine, "alpha", "balloon") == 128 * MIB
    assert "PM: suspend exit" in shell(machine, "alpha", "dmesg") # the first key wakes
    wait(lambda: kb(machine, "alpha", "balloon") == 64 * MIB)
    works(machine, "alpha")
    balloon(machine, "alpha", 128)


def test_hibernation(machine):
    """The balloon is empty in the image, and filled again afterwards. Without a swap device the image is made and thrown
    away. As user space's hibernation does it too: /dev/snapshot."""
    pages = "cat /sys/kernel/fusor/balloon/pages"
    inside = shell(machine, "alpha", f"echo in=$({pages} </dev/snapshot)")
    assert "in=0\n" in inside, inside
    wait(lambda: driver(machine, "alpha")["pages"] == 128 * PAGES)
    before, returned = driver(machine, "alpha")["deflated"], show(machine, "alpha")["balloon-returned"]
    log = shell(machine, "alpha", "dmesg -c >/dev/null; echo disk >/sys/power/state; dmesg", 400)
    assert "Image created" in log and "hibernation exit" in log, log
    wait(lambda: kb(machine, "alpha", "balloon") == 128 * MIB)
    assert driver(machine, "alpha")["deflated"] - before == 128 * PAGES
    assert show(machine, "alpha")["balloon-returned"] == returned # written to while they had no driver
    machine.metrics()
    works(machine, "alpha")


def test_unloading_gives_all_back(machine):
    assert kb(machine, "beta", "balloon") == 128 * MIB
    out = shell(machine, "beta", "rmmod fusor && echo gone")
    assert "gone" in out, out
    s = show(machine, "beta")
    assert s["balloon"] == "0 kB" and s["balloon-returned"] == "0 kB", s
    machine.metrics()
    works(machine, "beta")
    assert "back" in shell(machine, "beta", f"insmod {DRIVER} delay=86400 && echo back")
    wait(lambda: kb(machine, "beta", "balloon") == 128 * MIB)


def test_reset_reboot_and_kexec(machine):
    """Three ways to another kernel, at once. The console's reset and the guest's own empty the balloon; before a kexec, which
    resets nothing, the driver does. Targets stay, and the next driver follows them."""
    balloon(machine, "gamma", 128) # a kernel to start may be half of what MemTotal says at most
    with Attached(machine, "gamma") as guest:
        guest.shell("true")
        machine.send('/kexec/kexec /kexec/vmlinuz /kexec/initrd.img "$(cat /proc/cmdline) second=1"\n')
    wait(lambda: kb(machine, "gamma", "balloon") == 0) # by the driver; before the others' resets claim the frames
    assert show(machine, "gamma")["balloon-returned"] == "0 kB"
    with Attached(machine, "beta") as guest:
        guest.shell("true")
        machine.send("reboot -f\n")
        machine.console.expect("VM beta reset by the guest", timeout=120)
    machine.ok("vm reset alpha")
    for name in ("alpha", "beta"):
        s = show(machine, name)
        assert s["balloon"] == "0 kB" and s["balloon-target"].startswith(f"{128 * MIB} kB"), s
    machine.metrics()
    for name in ("alpha", "beta"):
        wait(lambda: kb(machine, name, "balloon") == 128 * MIB, 600)
        wait_up(machine, name)
        works(machine, name)
    wait_up(machine, "gamma")
    assert "second=1" in shell(machine, "gamma", "cat /proc/cmdline")
    wait(lambda: driver(machine, "gamma")["pages"] == 128 * PAGES, 300)
    s = show(machine, "gamma")
    # The kernel before left nothing in it that this one would have written to or given a second time.
    assert s["balloon"] == f"{128 * MIB} kB" and s["balloon-returned"] == "0 kB", s
    assert driver(machine, "gamma")["inflated"] == 128 * PAGES
    for name in NAMES:
        healthy(machine, name)
    machine.metrics()
