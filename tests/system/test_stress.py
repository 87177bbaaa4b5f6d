# SPDX-License-Identifier: BSD-2-Clause
"""The short form of `make stress`: bare guests of several vCPUs on four CPUs in Bochs."""
import os

import fusor
import stress

SEED = int(os.environ.get("STRESS_SEED", "1141"))
CPUS = int(os.environ.get("STRESS_CPUS", "4"))
STEPS = 20  # this seed has nearly every command among its first


def test_stress(bochs, tmp_path):
    with fusor.running(tmp_path, stress.CONFIG, prompt=240, cpus=CPUS, cpu="corei7_haswell_4770", memory=192) as m:
        # A census takes 10 s of the machine's time, which is most of this test's.
        row = stress.Stress(m, SEED, census=False).run(3000, steps=STEPS).finish()
        print("\n" + "\n".join(stress.table([row | {"cpus": CPUS}])))
        assert row["wrong"] == 0
        # There was something that could have gone wrong.
        for what in ("fused", "splits", "inflated", "reported", "shootdowns", "checks"):
            assert row[what] > 0, (what, row)
