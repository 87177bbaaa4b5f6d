# SPDX-License-Identifier: BSD-2-Clause
"""Page fusion with bare guests of several vCPUs on several CPUs in Bochs: concurrent splits, and a stress in which
pages are written, read and hinted at the same time (guest-drivers/bare/fuse_smp.c)."""
import pytest

import fusor
from fuse_guest import FuseGuest

CONFIG = "[host]\nfiles = \\guests\n"
PAGES = 1024


@pytest.mark.parametrize("cpus,rounds", [(2, 4), (4, 3)])
def test_stress(bochs, tmp_path, cpus, rounds):
    with fusor.running(tmp_path, CONFIG, prompt=240, cpus=cpus, cpu="corei7_haswell_4770") as m:
        a, b = (FuseGuest(m, x, more=f"cpus={cpus}") for x in "ab")
        writes_together(m, a, b)
        stress(m, a, b, rounds)


def writes_together(machine, a, b):
    assert a.do("h")["unmatched"] == PAGES and b.do("h")["fused"] == PAGES
    machine.metrics()
    tags = a.start("c"), b.start("c")
    a.finish(tags[0]), b.finish(tags[1])
    for guest in (a, b):
        assert guest.do("v")["wrong"] == 0
    # Every page had one split, or none where the other guest's was first.
    facts = [x.facts() for x in (a, b)]
    assert sum(int(x["splits"]) + int(x["last-sharers"]) for x in facts) == 2 * PAGES
    assert PAGES <= sum(int(x["splits"]) for x in facts) <= 2 * PAGES
    assert machine.metrics()["host", "RAM/VMM/Shared"] == 0


def stress(machine, a, b, rounds):
    tags = a.start("S", rounds), b.start("S", rounds)
    a.vm("pause")
    machine.metrics()
    a.vm("resume")
    machine.metrics()
    b.vm("reset")
    b.wait_again()
    tag = b.start("S", rounds)
    first, second = a.finish(tags[0]), b.finish(tag)
    print(first, second)
    for told in (first, second):
        assert told["splits"] > rounds * PAGES // 2 and told["fused"] > rounds * PAGES // 2
    machine.metrics()
    a.do("f", 1), b.do("f", 1)
    a.do("h")
    b.do("h")
    assert machine.metrics()["host", "RAM/VMM/Saved"] >= 4 * PAGES
    a.do("v"), b.do("v")
    a.destroy(), b.destroy()
    after = machine.metrics()
    assert all(after["host", "RAM/VMM/" + x] == 0 for x in ("Private", "Shared", "Saved"))
