# SPDX-License-Identifier: BSD-2-Clause
"""Without VT-x (QEMU TCG): the refusal, USB, four CPUs, memory above 4 GiB, console-only mode."""
import re

import pytest

import fusor

CONFIG = "[host]\nconsole = com1:115200\n"


@pytest.mark.parametrize("cpu,reason", [("Haswell", "VT-x"), ("EPYC", "AMD")])
def test_refusal_is_one_clear_line(qemu, tmp_path, cpu, reason):
    image = fusor.make_image(str(tmp_path / "a.img"), CONFIG)
    m = fusor.Machine(image, engine="qemu", memory=1024, cpu=cpu)
    try:
        m.console.expect(r"fusor: refused: ([^\r\n]*)\r\n", timeout=100)
        assert reason in m.console.match.group(1)
        assert m.process.wait(60 * fusor.PATIENCE) == 3
    finally:
        m.close()


def test_usb_four_cpus_and_six_gib(qemu, tmp_path):
    """Started from a USB stick in console-only mode: the whole kernel on a machine with ACPI and xAPIC."""
    marker = tmp_path / "console-only"
    marker.write_text("")
    with fusor.running(tmp_path, CONFIG, [("fusor/console-only", str(marker))], prompt=80, engine="qemu",
                       memory=6144, cpus=4, arguments=["--usb"]) as m:
        assert re.search(r"4 CPUs", m.boot_text)
        facts = dict(x.split(": ", 1) for x in m.command("host"))
        assert facts["cpus-online"] == "4"
        assert 5900 << 10 < int(facts["memory-total"].split()[0]) <= 6144 << 10
        assert facts["writable-executable-mappings"] == "0"
        m.metrics()
        assert "VT-x" in m.error("vm create a memory=8M kernel=x")
        m.command("log")
        m.send("reboot\r")
        m.console.expect_exact(fusor.PROMPT, timeout=200)
