# SPDX-License-Identifier: BSD-2-Clause
"""Overcommit torture: four guests share all their memory, then write all of it anew while the host
has no free frame. See guest-drivers/bare/test_torture.c."""
import re
import time

import pytest

import fusor
from fuse_guest import FuseGuest

CONFIG = "[host]\nconsole = com1:115200\nfiles = \\guests\n"
NAMES = ("va", "vb", "vc", "vd")
PAGES = 10240  # 40 MiB: all four alone fit into the machine, all four and the hog by far not
LEFT = 4096    # kB beyond the reserve when they begin to write


class TortureGuest(FuseGuest):
    test = "torture"

    def verify(self):
        """The number of wrong bytes; every page was rewritten when `own` is all."""
        return self.do("v")


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("torture")
    image = fusor.make_image(str(directory / "torture.img"), CONFIG,
                             [("guests/bare.bin", fusor.BARE)])
    m = fusor.Machine(image, cpu="corei7_haswell_4770", memory=256)
    try:
        yield m.wait_prompt()
        assert m.power_off() == 0
    finally:
        m.close()


def host(machine, metric):
    return machine.metrics()["host", "RAM/VMM/" + metric]


def reserve(machine):
    facts = dict(x.split(": ", 1) for x in machine.command("host"))
    return int(facts["reserve"].split()[0])


def test_explore(machine):
    m = machine
    print("\n".join(m.command("host")))
    guests = []
    for name in NAMES:
        g = TortureGuest(m, name, pages=PAGES, memory="96M")
        print(g.do("h"), host(m, "Free"), host(m, "Saved"))
        guests.append(g)
    print("\n".join(m.command("metrics host/*")))
