# SPDX-License-Identifier: BSD-2-Clause
"""Bare guests on one CPU in Bochs: exits, devices, misbehaviour, console input. One boot, many checks."""
import os
import re

import pytest

import fusor

# Errors on purpose: each is reported with its line, and `good` stands all the same.
CONFIG = """\
[host]
apicv = off
console = com1:115200
files   = \\guests
colour  = blue

[vm good]
memory  = 8M
kernel  = \\guests\\bare.bin
cmdline = "test=spin"
autostart = off

[vm good]
memory  = 8M
kernel  = \\guests\\bare.bin

[vm badsize]
memory  = 12
kernel  = \\guests\\bare.bin

[vm huge]
memory  = 64G
kernel  = \\guests\\bare.bin

[vm missing]
memory  = 8M
kernel  = \\guests\\nowhere.bin

[vm many]
memory  = 8M
cpus    = 17
kernel  = \\guests\\bare.bin

[vm truncated]
memory  = 8M
kernel  = \\guests\\short.bin

[vm fat]
memory  = 8M
kernel  = \\guests\\bare.bin
initrd  = \\guests\\fat.img
"""

MODELS = ["corei7_haswell_4770", "corei7_skylake_x"]


@pytest.fixture(scope="module", params=MODELS)
def machine(request, bochs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("guests")
    short = directory / "short.bin"
    with open(fusor.BARE, "rb") as f:
        bare = f.read()
    short.write_bytes(bare[:4096])
    fat = directory / "fat.img"
    fat.write_bytes(os.urandom(12 << 20))
    files = fusor.BARE_FILES + (("guests/short.bin", str(short)), ("guests/fat.img", str(fat)))
    with fusor.running(directory, CONFIG, files, cpu=request.param) as m:
        yield m


@pytest.fixture(autouse=True)
def nothing_is_left(machine):
    yield
    machine.sweep(("good", "truncated", "fat"))


def values(lines, name, **wanted):
    """The key=value pairs of the bare guest's lines of test `name` that have all of `wanted`."""
    found = []
    for line in lines:
        if line.startswith(f"bare: {name} "):
            pairs = dict(x.split("=", 1) for x in line.split() if "=" in x)
            if all(pairs.get(k) == v for k, v in wanted.items()):
                found.append(pairs)
    return found


def test_config_errors_name_line_and_expectation(machine):
    text = machine.boot_text
    for pattern in (r"fusor\.conf:5: .*colour", r"fusor\.conf:13: .*good", r"fusor\.conf:18: .*memory",
                    r"fusor\.conf:22: .*memory.*64G", r"fusor\.conf:27: .*nowhere\.bin", r"fusor\.conf:31: .*cpus",
                    r"truncated did not start.*truncated",
                    r"fat did not start.*initrd"):
        assert re.search(pattern, text), pattern
    assert machine.state("good") == "stopped"


def test_host(machine):
    answer = machine.command("host")
    facts = dict(x.split(": ", 1) for x in answer)
    assert facts["writable-executable-mappings"] == "0"
    assert int(facts["mappings"]) > 10
    assert facts["cpus-online"] == "1"
    assert facts["vt-x"] == "on"
    total = int(facts["memory-total"].split()[0])
    assert 480 << 10 < total < 512 << 10


def test_own_memory_is_small(machine):
    m = machine.metrics()
    own = m["host", "RAM/VMM/Fusor"] - m["host", "RAM/VMM/Files"]
    print("own memory", own, "kB")
    assert own < m["host", "RAM/VMM/Total"] * 0.02


def test_help_and_errors(machine):
    for name in ("vm list", "metrics", "log", "host", "poweroff"):
        assert any(name in x for x in machine.command("help"))
    assert "nonsense" in machine.error("nonsense")
    assert "nobody" in machine.error("vm start nobody")
    machine.error("vm create x memory=12 kernel=\\guests\\bare.bin")
    assert "was not loaded at boot" in machine.error("vm create x memory=8M kernel=\\guests\\no.bin")
    assert machine.state("x") is None


def test_console_noise(machine):
    before = machine.command("vm list")
    machine.send(bytes(range(128, 256)) + b"\x00\x01\x02vm stop good\r")
    machine.console.expect("error: ")
    machine.console.expect_exact("\r\n" + fusor.PROMPT)
    machine.send("x" * 10000 + "\r")
    machine.console.expect("error: ", timeout=60)
    machine.console.expect_exact("\r\n" + fusor.PROMPT)
    for i in range(40):
        machine.send(f"nonsense{i}\r" if i % 2 else f"nonsense{i}\n")
    for i in range(40):
        machine.console.expect(f"error: [^\\r\\n]*nonsense{i}\\b[^\\r\\n]*\r\n", timeout=30)
    machine.console.expect_exact(fusor.PROMPT)
    assert machine.command("vm list") == before
    facts = dict(x.split(": ", 1) for x in machine.command("host"))
    assert facts["serial-lost-bytes"] == "0"


def test_trace(machine):
    """What a guest did last can be read, in order of time, and nothing more once it is off."""
    machine.ok("trace on")
    machine.bare("bench")
    machine.ok("trace off")
    lines = machine.command("trace show 300")
    assert len(lines) == 300, len(lines)
    records = [re.fullmatch(r"(\d+) cpu0 (\S+) (exit|run|leave|held) ?(.*)", x) for x in lines]
    assert all(records), [x for x, r in zip(lines, records) if not r][:3]
    times = [int(r[1]) for r in records]
    assert times == sorted(times)
    assert {"exit", "leave", "run"} <= {r[3] for r in records}
    assert any(re.match(r"\w+ rip=0x[0-9a-f]+ info=", r[4]) for r in records if r[3] == "exit")
    assert machine.command("trace show 300") == lines
    machine.error("trace show 0")


def test_no_command_holds_the_cpu(machine):
    """The console's fiber gives way: a vCPU beside it is away for some 50 k ticks at most, by the kernel's own trace."""
    seen = 0
    for command in ("host", "metrics", "metrics --prometheus", "metrics --json", "help", "fusion census"):
        machine.ok("trace on")
        assert machine.command(command)
        lines = machine.command("trace show 512")
        machine.ok("trace off")
        held = [int(x.split("ticks=")[1], 16) for x in lines if " held " in x]
        print(command, len(held), "times", max(held, default=0))
        assert max(held, default=0) < 60000, (command, held)
        seen += len(held)
    assert seen != 0


def test_metrics_formats(machine):
    machine.metrics()
    import json
    parsed = json.loads("".join(machine.command("metrics --json")))
    assert parsed
    for line in machine.command("metrics --prometheus"):
        assert re.match(r"(# (HELP|TYPE) )?[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? ", line), line
    only = machine.metrics("host RAM/VMM/*")
    assert only and all(k[0] == "host" for k in only)


@pytest.mark.parametrize("test", ["hello", "fault", "sti", "movss", "nmi", "irq", "tlb", "rtc", "timer",
                                  "halt", "mmio", "reset"])
def test_bare(machine, test):
    lines = machine.bare(test)
    assert any(x.startswith(f"bare: {test} done") for x in lines), lines
    assert not any("FAIL" in x or "error" in x.lower() and "errors=0" not in x for x in lines), lines


@pytest.mark.parametrize("test", ["msr", "ports"])
def test_bare_hammers(machine, test):
    lines = machine.bare(test, timeout=600)
    assert any(x.startswith(f"bare: {test} done") for x in lines), lines


def test_fpu_survives_exits_and_preemption(machine):
    machine.ok('vm create other memory=8M kernel=\\guests\\bare.bin cmdline="test=fpu seed=2"')
    machine.ok("vm start other")
    lines = machine.bare("fpu")
    assert any("bare: fpu done" in x for x in lines), lines
    machine.command("vm stop other")
    assert not any("errors=" in x and "errors=0" not in x for x in machine.replay("other") + lines)
    machine.ok("vm destroy other")


@pytest.mark.parametrize("test,reason", [("triple", "triple fault"), ("void", "memory"),
                                         ("badinsn", "instruction")])
def test_misbehaviour_harms_only_itself(machine, test, reason):
    machine.ok(f'vm create bad memory=8M kernel=\\guests\\bare.bin cmdline="test={test}"')
    machine.ok("vm start bad")
    machine.wait_state("bad", "crashed")
    assert any(reason in x for x in machine.command("vm show bad"))
    assert any(reason in x for x in machine.command("log"))
    machine.ok("vm destroy bad")
    assert machine.bare("hello")


def test_touch_promotes(machine):
    machine.ok('vm create bare memory=32M kernel=\\guests\\bare.bin cmdline="test=touch"')
    machine.wait_end("bare", machine.start("bare"))
    lines = machine.replay("bare")
    promotions = [x for x in machine.command("vm show bare") if x.startswith("promotions: ")]
    machine.ok("vm destroy bare")
    assert int(promotions[0].split()[1]) >= len([x for x in values(lines, "touch") if "range" in x]) > 0
    assert any("errors=0" in x for x in lines), lines
    single = values(lines, "touch")[0]
    assert int(single["avg"]) <= 1000
    # a page that promotes its range is far dearer than the others
    assert any(int(v["max"]) > 100000 for v in values(lines, "touch") if "range" in v)


def test_spinning_guest_does_not_hold_the_console(machine):
    for name in ("one", "two"):
        machine.ok(f'vm create {name} memory=8M kernel=\\guests\\bare.bin cmdline="test=spincli"')
        machine.ok(f"vm start {name}")
    assert machine.state("one") == "running"
    # A second of the machine's time, which the line takes some of.
    assert machine.ticks_of() < int(machine.facts()["tsc-hz"])
    for name in ("one", "two"):
        machine.ok(f"vm stop {name}")
        machine.ok(f"vm destroy {name}")


def test_pause_freezes_guest_time(machine):
    machine.ok('vm create spin memory=8M kernel=\\guests\\bare.bin cmdline="test=spin"')
    machine.ok("vm start spin")

    def reports():
        return values(machine.replay("spin"), "spin")
    fusor.until(lambda: len(reports()) >= 2)
    machine.ok("vm pause spin")
    assert machine.state("spin") == "paused"
    machine.error("vm start spin")
    before = machine.replay("spin")
    machine.sleep(5)
    assert machine.replay("spin") == before
    machine.ok("vm resume spin")
    seen = len(values(before, "spin"))
    fusor.until(lambda: len(reports()) >= seen + 2)
    # one report a second of guest time: the pause left no gap
    ticks = [int(x["tsc"]) for x in reports()]
    gaps = [b - a for a, b in zip(ticks, ticks[1:])]
    assert max(gaps) < 2.5 * min(gaps), gaps
    machine.ok("vm reset spin")
    machine.ok("vm stop spin")
    machine.ok("vm destroy spin")


def test_power_button(machine):
    machine.ok('vm create button memory=8M kernel=\\guests\\bare.bin cmdline="test=button"')
    machine.ok("vm start button")
    fusor.until(lambda: "bare: button armed" in machine.replay("button"))
    machine.ok("vm shutdown button")
    machine.wait_state("button", "stopped")
    machine.ok("vm destroy button")


def test_every_frame_comes_back(machine):
    def rounds(n):
        for i in range(n):
            machine.ok(f'vm create round memory=16M kernel=\\guests\\bare.bin cmdline="test=pattern size=4M"')
            machine.ok("vm start round")
            fusor.until(lambda: any("filled=" in x for x in machine.replay("round")))
            during = machine.metrics()
            assert during["host", "RAM/VMM/Private"] > 0
            machine.ok("vm reset round" if i % 2 else "vm stop round")
            machine.ok("vm destroy round")
    rounds(1)  # what is set up once
    before = machine.metrics()
    rounds(10)
    after = machine.metrics()
    for metric in ("Total", "Fusor", "Table", "Private", "Shared", "Free"):
        assert after["host", "RAM/VMM/" + metric] == before["host", "RAM/VMM/" + metric], metric


def test_exit_costs(machine):
    lines = machine.bare("bench")
    costs = {v["op"]: int(v["min"]) for v in values(lines, "bench") if "op" in v and "min" in v}
    print(costs)
    assert set(costs) >= {"cpuid", "vmcall", "rdmsr_tsc_adjust", "in_pic"}
    for op in ("cpuid", "vmcall", "rdmsr_tsc_adjust"):
        assert costs[op] < 300, costs  # the aim is 150, `make bench` shows it; this catches accidents
