# SPDX-License-Identifier: BSD-2-Clause
"""Page fusion with bare guests on one CPU in Bochs: what is fused, split, given back, refused. One boot, many checks.

The guests' pages (1,024 unless said otherwise) are equal where their seeds are. Whatever a guest has besides (image,
stack, page tables) is hinted in the test of garbage only, which stands last of those that count frames."""
import pytest

import fusor
from fuse_guest import FuseGuest

CONFIG = """\
[host]
console = com1:115200
files   = \\guests
"""
PAGES = 1024


@pytest.fixture(scope="module")
def machine(bochs, tmp_path_factory):
    with fusor.running(tmp_path_factory.mktemp("fuse"), CONFIG, cpu="corei7_haswell_4770") as m:
        assert "fusion-engine: avx2" in m.command("host")
        yield m


@pytest.fixture
def guests(machine):
    """Makes guests; afterwards they are gone and nothing is shared any more."""
    made = []

    def make(*names, **options):
        new = [FuseGuest(machine, x, **options) for x in names]
        made.extend(new)
        for guest in new:
            guest.do("s")  # answers when its pages are there
        return new
    yield make
    for guest in made:
        if machine.state(guest.name):
            guest.destroy()
    after = machine.metrics()
    for metric in ("Private", "Shared", "Saved"):
        assert after["host", "RAM/VMM/" + metric] == 0, metric


def saved(machine):
    return machine.metrics()["host", "RAM/VMM/Saved"] // 4


def check_sum(guest):
    """Every hint came to something."""
    facts = {k: v for k, v in guest.facts().items() if k.startswith("hints-")}
    n = {k: int(v) for k, v in facts.items()}
    assert n["hints-received"] == n["hints-fused"] + n["hints-unmatched"] + n["hints-rejected"]


def verify(*guests):
    for guest in guests:
        assert guest.do("v")["wrong"] == 0
        check_sum(guest)


def fuse(*guests):
    """Everything that two or more guests with equal pages have."""
    first = guests[0].do("h")
    assert (first["fused"], first["unmatched"]) == (0, PAGES)
    for guest in guests[1:]:
        assert guest.do("h")["fused"] == PAGES


def test_two_guests(machine, guests):
    a, b = guests("a", "b")
    before = machine.metrics()
    fuse(a, b)
    after = machine.metrics()
    assert after["host", "RAM/VMM/Shared"] == after["host", "RAM/VMM/Saved"] == 4 * PAGES
    assert after["host", "RAM/VMM/Free"] >= before["host", "RAM/VMM/Free"] + 4 * PAGES - 64
    for guest in (a, b):
        assert after[guest.name, "Guest/RAM/Usage/Shared"] == 4 * PAGES
    verify(a, b)
    # what is fused is not hinted twice
    again = b.do("h")
    assert (again["fused"], again["rejected"]) == (0, PAGES)
    assert b.metric("Fusion/Hints/Rejected/shared") == PAGES
    # a writes: its pages are split; b's are the last sharer's, without a copy
    a.do("w")
    assert a.metric("Fusion/Splits") == PAGES and saved(machine) == 0
    assert machine.metrics()["host", "RAM/VMM/Shared"] == 4 * PAGES
    verify(a, b)
    b.do("w")
    assert b.facts()["last-sharers"] == str(PAGES) and b.facts()["splits"] == "0"
    assert machine.metrics()["host", "RAM/VMM/Shared"] == 0
    verify(a, b)
    # back to what it was: fused again
    a.do("o"), b.do("o")
    fuse(a, b)
    # `rep movsb` over three pages of four
    assert a.do("m")["moved"] == PAGES // 4 * 3
    assert saved(machine) == PAGES // 4
    verify(a, b)


def test_nothing_changes_nothing_is_spent(machine, guests):
    a, b = guests("a", "b")
    fuse(a, b)
    machine.sleep(1)
    before = machine.metrics()
    machine.sleep(3)
    after = machine.metrics()
    for guest in (a, b):
        assert after[guest.name, "Fusion/Ticks"] == before[guest.name, "Fusion/Ticks"] > 0
        assert after[guest.name, "EPT/Shootdowns"] == before[guest.name, "EPT/Shootdowns"] > 0


def test_three_guests_come_and_go(machine, guests):
    a, b, c = guests("a", "b", "c")
    fuse(a, b, c)
    assert saved(machine) == 2 * PAGES
    assert machine.metrics()["host", "RAM/VMM/Shared"] == 4 * PAGES
    b.do("w", 100)
    assert saved(machine) == 2 * PAGES - 100
    verify(a, b, c)
    b.vm("reset")
    b.wait_again()
    assert saved(machine) == PAGES
    verify(a, b, c)
    assert b.do("h")["fused"] == PAGES
    b.vm("stop")
    assert saved(machine) == PAGES
    verify(a, c)
    b.vm("start")
    b.wait_again()
    assert b.do("h")["fused"] == PAGES
    a.destroy()
    assert saved(machine) == PAGES
    verify(b, c)
    c.destroy()
    assert saved(machine) == 0
    verify(b)
    b.do("w")
    assert b.facts()["last-sharers"] == str(PAGES)
    verify(b)


def test_groups_are_separate(machine, guests):
    a, = guests("a", group="one")
    b, = guests("b", group="two")
    c, d = guests("c", "d", group=None)  # private groups
    for guest in (a, b, c, d):
        assert guest.do("h")["unmatched"] == PAGES
    assert saved(machine) == 0
    e, = guests("e", group="two")
    assert e.do("h")["fused"] == PAGES
    assert saved(machine) == PAGES
    verify(a, b, c, d, e)
    # inside of one VM pages are fused, too; zeros are one frame
    c.do("f", 0)
    assert c.do("h")["fused"] == PAGES - 1
    assert saved(machine) == 2 * PAGES - 1
    verify(c)
    c.do("w")
    verify(c)


def test_fusion_off_and_on(machine, guests):
    a, b, c = guests("a", "b", "c")
    fuse(a, b, c)
    machine.ok("vm fusion a off")

    def is_off():
        facts = a.facts()
        assert facts["fusion"] == "off" or facts["fusion"] == "splitting" and facts["fusion-left"] != "0 kB", facts
        return facts["fusion"] == "off"
    fusor.until(is_off)
    assert a.metric("Guest/RAM/Usage/Shared") == 0 and saved(machine) == PAGES
    assert a.facts()["page-fusion"] == "off"
    assert a.do("h")["refused"] == PAGES
    assert a.metric("Fusion/Hints/Rejected/off") == PAGES
    verify(a, b, c)
    machine.ok("vm fusion a on")
    assert a.do("h")["fused"] == PAGES
    machine.ok("vm set b page-fusion=off")
    fusor.until(lambda: b.facts()["fusion"] == "off")
    assert b.metric("Guest/RAM/Usage/Shared") == 0 and saved(machine) == PAGES
    verify(a, b, c)


def test_scanner(machine, guests):
    a, b = guests("a", "b", more="scan=20000")
    fusor.until(lambda: saved(machine) >= PAGES)
    assert all(int(x.facts()["scanned"]) >= PAGES for x in (a, b))
    verify(a, b)
    a.do("w")
    verify(a, b)
    machine.ok("vm set a scan=0")
    machine.ok("vm set b scan=0")


def test_wrong_hints(machine, guests):
    a, b = guests("a", "b")
    # a page that changed after it was remembered: found, compared, different
    a.do("h")
    a.do("w")
    assert b.do("h")["rejected"] == PAGES
    assert b.metric("Fusion/Hints/Rejected/mismatch") == PAGES and saved(machine) == 0
    verify(a, b)
    # forgotten in time
    a.do("f", 2), b.do("f", 2)
    a.do("h")
    assert a.do("u")["done"] == PAGES
    assert b.do("h")["unmatched"] == PAGES and saved(machine) == 0
    # and found again when it is hinted again, now by the other side
    assert a.do("h")["fused"] == PAGES
    # changed right after they were fused
    b.do("w")
    assert b.metric("Fusion/Splits") == PAGES
    verify(a, b)
    # hints without partner, of other pages every time, more than the guest has pages in all
    for seed in range(11, 18):
        a.do("f", seed)
        assert a.do("h")["unmatched"] == PAGES, seed
    assert saved(machine) == 0
    verify(a, b)


def test_page_tables_split_and_are_left_alone(machine, guests):
    a, b = guests("a", "b")
    assert a.do("t")["fused"] == 0
    tables = b.do("t")["fused"]
    assert tables == 2
    walked = a.do("T")  # reads through them, hints them again
    assert walked["splits"] == tables and walked["accessed"] == 512 * tables
    assert (walked["fused"], walked["rejected"]) == (0, tables)
    assert a.metric("Fusion/Hints/Rejected/backoff") == a.metric("Fusion/Backoff") == tables
    assert b.do("T")["splits"] == 0  # b was the last one
    verify(a, b)


def test_buffers_in_fused_pages(machine, guests):
    a, b = guests("a", "b")
    assert a.do("l")["fused"] == 0 and b.do("l")["fused"] == 1
    # the list is one of its own entries, fused already
    assert a.do("L") == {"done": 512, "refused": 0, "fused": 0, "splits": 0}
    assert b.do("L") == {"done": 512, "refused": 0, "fused": 511, "splits": 0}
    assert saved(machine) == 512
    verify(a, b)
    assert a.do("F")["splits"] == 512  # Fusor writes to every page
    assert saved(machine) == 0
    verify(a, b)
    assert b.do("F")["splits"] == 0
    verify(a, b)


def test_back_off_grows(machine, guests):
    a, b = guests("a", "b")
    fuse(a, b)
    waits = a.do("k", 4)
    assert waits["wait0"] < 100
    for n, seconds in ((1, 1), (2, 2), (3, 4)):
        assert 900 * seconds <= waits[f"wait{n}"] <= 1200 * seconds, waits
    assert a.metric("Fusion/FutileSplits") == a.metric("Fusion/Backoff") == 3
    verify(a, b)


def test_census_tells_what_the_pattern_says(machine, guests):
    def census():
        lines = machine.command("fusion census web", timeout=120)
        return {k: int(v.split()[0]) // 4 for k, v in (x.split(": ") for x in lines) if v.endswith(" kB")}
    a, b = guests("a", "b")
    b.do("f", 5)
    different = census()
    b.do("f", 1)
    same = census()
    for what in ("shareable", "unchanged-shareable"):
        assert same[what] == different[what] + PAGES, what
    assert same["resident"] == different["resident"] and same["saved"] == 0
    assert same["shareable-zero"] == different["shareable-zero"] == same["zero"] - 1
    a.do("f", 0)
    zero = census()
    assert zero["zero"] == same["zero"] + PAGES
    assert zero["shareable"] == same["shareable"]  # 1,024 pairs fewer, 1,024 zero pages more
    a.do("f", 1)
    fuse(a, b)
    fused = census()
    assert fused["saved"] == PAGES
    # a list and statistics are where equal zeros were before: a few pages of a guest's own
    assert same["shareable"] - 8 <= fused["shareable"] <= same["shareable"]
    assert "no VM is in a group" in machine.error("fusion census nobody")


def test_ranges(machine, guests):
    ranges = 4
    a, b, c = guests("a", "b", "c", pages=512 * ranges)

    def large(*which):
        return [int(x.facts()["large-leaves"]) for x in which]
    before = large(a, b, c)
    assert min(before) >= ranges  # promoted when they were filled
    # the first range has no partner and falls apart into hints of 4 KiB
    a.do("H"), b.do("H"), c.do("H")
    assert saved(machine) == 2 * 512 * ranges
    verify(a, b, c)
    fused_whole = [int(x.facts()["large-fused"]) for x in (a, b, c)]
    print("fused as a whole:", fused_whole, "large leaves:", before, large(a, b, c))
    assert fused_whole[2] >= ranges
    leaves = large(c)[0]
    c.do("w", 1)  # a write demotes the writer's entry only
    assert large(c)[0] == leaves - 1
    assert saved(machine) == 2 * 512 * ranges - 1
    verify(a, b, c)
    # all become private again; where the frames still lie side by side, large ones come back
    for guest in (a, b, c):
        guest.do("w")
    assert saved(machine) == 0 and machine.metrics()["host", "RAM/VMM/Shared"] == 0
    # one frame of a range went to b
    fusor.until(lambda: sum(x.metric("EPT/LargeCollapsed") for x in (a, b, c)) >= ranges - 1)
    verify(a, b, c)


def test_garbage(machine, guests):
    a, b = guests("a", "b")
    fuse(a, b)
    for guest in (a, b, a, b):
        told = guest.do("x", 200)
        assert told["done"] > 500 and told["invalid"] > 100 and told["range"] > 100 and told["twice"] > 100, told
        assert told["received"] == told["fused"] + told["unmatched"] + told["rejected"]
        # bounded, whatever is asked for: no more than a hint of good will for each entry done
        assert told["ticks"] / (told["received"] + told["again"]) < 5000, told
        verify(a, b)
    for why in ("range", "reserved", "duplicate"):
        assert a.metric("Fusion/Hints/Rejected/" + why) > 0, why
    a.do("w"), b.do("w")
    verify(a, b)


def test_nothing_leaks(machine, guests):
    guests("keeper")[0].do("h")

    def cycle(n):
        guest = FuseGuest(machine, "round", group="web" if n % 2 else f"group{n}")
        if n % 8 == 1:
            assert guest.do("h")["fused"] == PAGES
        guest.destroy()
    cycle(1)
    before = machine.metrics()
    for n in range(100):  # there are 32 slots
        cycle(n)
    after = machine.metrics()
    for metric in ("Total", "Fusor", "Table", "Private", "Shared", "Saved", "Free"):
        assert after["host", "RAM/VMM/" + metric] == before["host", "RAM/VMM/" + metric], metric
