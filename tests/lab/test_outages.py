"""Outages only a network can make: packets dropped without a word, and an address that moves to another server."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from testing.lab import Lab
from testing.watching import SILENT, watching

pytestmark = pytest.mark.lab
if sys.platform != "linux":
    pytest.skip("the lab is made of Linux network namespaces", allow_module_level=True)


async def test_partition_of_five_seconds(lab: Lab) -> None:
    """Dropped by nftables and healed: nothing is refused, reset or closed, and the server never knows."""
    path = await asyncio.to_thread(lambda: lab.path(lab.postgres()))
    async with watching(path.endpoint.dsn) as watched:
        began = time.time()
        await asyncio.to_thread(path.cut)
        cut = time.time()
        await asyncio.sleep(5)
        healing = time.time()
        await asyncio.to_thread(path.heal)
        healed = time.time()
        outage = await watched.recovered("partition")
    assert outage.detail == "silent"
    assert outage.connections_lost == {"silent": 1}
    for spell in (outage.connect, outage.read, outage.write):
        watched.holds(spell, (began, cut), (healing, healed), widths=(SILENT, SILENT))
    assert outage.before is not None
    assert outage.after is not None
    assert outage.before.key == outage.after.key


async def test_address_moved_to_a_promoted_standby(lab: Lab) -> None:
    """The first server lives on, cut off from its address, and the new owner of that resets its connections."""
    primary = await asyncio.to_thread(lab.postgres)
    standby = await asyncio.to_thread(lab.standby, primary)
    path = await asyncio.to_thread(lab.path, primary, standby)
    async with watching(path.endpoint.dsn) as watched:
        await asyncio.to_thread(standby.promote)
        moving = time.time()
        await asyncio.to_thread(path.move, standby)
        moved = time.time()
        outage = await watched.recovered("failover")
    assert outage.detail == "timeline 1 to 2"
    for spell in (outage.read, outage.write):
        # All was well again before anything was noticed, so that its end is known no better than its beginning.
        watched.holds(spell, (moving, moved), (moving, moved), widths=(SILENT, SILENT))
    assert outage.before is not None
    assert outage.after is not None
    assert outage.before.started_at != outage.after.started_at
