"""Supervision: a task that ends is told, by its name and by the error that matters."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sidecar.tasks import SupervisedTasks, leaf_error

LOG = logging.getLogger("sidecar.test")


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("of which nobody thought")


async def group_that_fails() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(for_ever())
        group.create_task(fail())


async def group_of_groups() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(group_that_fails())


async def end() -> None:
    pass


@pytest.mark.parametrize("work", [fail, group_that_fails, group_of_groups])
async def test_the_error_inside_is_told_with_the_name(work, caplog: pytest.LogCaptureFixture) -> None:
    tasks = SupervisedTasks(LOG)
    tasks.start("others", for_ever())
    tasks.start("db/part", work())
    async with asyncio.timeout(10):
        while not tasks.faults:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    assert tasks.faults == {"db/part": "died of ValueError"}
    (record,) = caplog.records
    assert (record.levelname, record.message, record.task) == ("CRITICAL", "task died", "db/part")
    assert "of which nobody thought" in caplog.text, "with its traceback"
    await tasks.stop(1.0)
    assert tasks.faults == {"db/part": "died of ValueError"}, "who is told to end has not died"


async def test_a_task_that_just_ends_is_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    tasks = SupervisedTasks(LOG)
    tasks.start("short", end())
    await asyncio.sleep(0.01)
    assert tasks.faults == {"short": "ended by itself"}
    assert [record.message for record in caplog.records] == ["task died"]


async def test_what_fails_while_leaving_is_logged_and_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def fail_late() -> None:
        try:
            await for_ever()
        finally:
            await fail()

    tasks = SupervisedTasks(LOG)
    tasks.start("late", fail_late())
    await asyncio.sleep(0)
    await tasks.stop(1.0)
    assert tasks.faults == {}
    (record,) = caplog.records
    assert (record.levelname, record.message, record.task) == ("ERROR", "task failed while leaving", "late")


async def test_who_will_not_end_is_waited_for_no_longer_than_the_grace() -> None:
    async def stubborn() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(5)

    tasks = SupervisedTasks(LOG)
    tasks.start("stubborn", stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(4):
        await tasks.stop(0.05)


def test_an_error_that_is_no_group_is_its_own_leaf() -> None:
    error = KeyError("x")
    assert leaf_error(error) is error
