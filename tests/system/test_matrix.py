# SPDX-License-Identifier: BSD-2-Clause
"""`make test-full`: other CPU models and numbers of CPUs, each with a short run of bare guests."""
import pytest

import fusor

CONFIG = "[host]\nfiles = \\guests\n"


@pytest.mark.parametrize("cpu,cpus", [
    ("corei7_haswell_4770", 4), ("corei7_haswell_4770", 8), ("corei7_skylake_x", 2),
    ("corei7_icelake_u", 1), ("corei7_icelake_u", 2), ("corei3_cnl", 1), ("broadwell_ult", 2),
    ("corei5_arrandale_m520", 1)])
def test_model(bochs, tmp_path, cpu, cpus):
    with fusor.running(tmp_path, CONFIG, prompt=600, memory=1024, cpus=cpus, cpu=cpu) as m:
        facts = dict(x.split(": ", 1) for x in m.command("host"))
        assert facts["cpus-online"] == str(cpus)
        assert facts["writable-executable-mappings"] == "0"
        assert 95e6 < int(facts["tsc-hz"]) < 105e6  # what it ticks at, whatever its CPUID says
        before = m.metrics()
        # alone, because it compares intervals to 1 %
        assert any(x.startswith("bare: timer done") for x in m.bare("timer"))
        for i in range(cpus + 1):
            m.ok(f'vm create spin{i} memory=8M kernel=\\guests\\bare.bin cmdline="test=spincli"')
            m.ok(f"vm start spin{i}")
        for test in ("hello", "fault", "irq", "tlb", "fpu"):
            lines = m.bare(test, timeout=600)
            assert any(x.startswith(f"bare: {test} done") for x in lines), lines
        for i in range(cpus + 1):
            m.ok(f"vm destroy spin{i}")
        after = m.metrics()
        assert after["host", "RAM/VMM/Private"] == before["host", "RAM/VMM/Private"] == 0
