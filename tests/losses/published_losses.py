"""Which losses are published, so that their numbers are known and more is asked of them."""

import pytest

PUBLISHED = {"afd", "at", "ce", "crd", "dist", "dkd", "fitnet", "kd", "lskd", "nkd", "nst", "pkt"}
PUBLISHED |= {"reviewkd", "rkd", "sp", "vid", "wttm"}


def skip_unless_published(name):
    if name not in PUBLISHED:
        pytest.skip(f"no reference case for {name!r}: see docs/own-data-networks-losses.md")
