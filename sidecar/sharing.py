"""Shares what a server can spare among the targets of this process that lead to it. One per process.

The rule is `core.server_budget`'s; here is the shell around it. A target joins; whatever it learns that bears on the
budget it tells at once (a look, a refusal), whatever it wishes it is asked for. Grants are drawn anew at each of these
occasions and once a second, for time passes too; each target is told its own.

Which server a target leads to shows when it has looked: by its identity, whatever address was configured. Until then,
targets with the same address are taken for targets of the same server: the first that looks tells for all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from sidecar.core.budget import BudgetStatus, Hindrance, SessionTable, Wish, within_cap
from sidecar.core.identity import Identity
from sidecar.core.server_budget import Circumstances, ServerBudget
from sidecar.core.signals import ServerSignal

log = logging.getLogger("sidecar.sharing")

REFRESH_SECONDS = 1.0
"""Between two draws while nothing happens: a refusal that passes and a wish that changes may take so long to show."""


class Member(Protocol):
    """What a target tells of itself, and is told."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> tuple[str, int]:
        """As configured: host and port."""

    @property
    def wish(self) -> Wish: ...
    @property
    def circumstances(self) -> Circumstances: ...
    @property
    def pids(self) -> set[int]:
        """Of all its sessions on the server."""

    def apply(self, status: BudgetStatus) -> None:
        """Hold what is granted from now on, and no more."""


@dataclass(eq=False, slots=True)
class _Group:
    """Members that lead to one server, as far as is known."""

    members: dict[str, Member] = field(default_factory=dict)
    identity: Identity | None = None
    budget: ServerBudget = field(default_factory=ServerBudget)


class Sharing:
    """See the module. `cap` is `fleet.max_connections`; `monotonic` and `wall` are the process's clocks."""

    def __init__(self, *, cap: int | None, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._cap, self._monotonic, self._wall = cap, monotonic, wall
        self._groups: list[_Group] = []
        self._drawing = self._again = False

    def join(self, member: Member) -> None:
        """Give a target its share from now on. One of the same name takes the place of the former."""
        for group in self._groups:
            if group.members.pop(member.name, None) is not None:
                group.budget.forget(member.name)
        found = [one for one in self._groups if any(each.address == member.address for each in one.members.values())]
        if not found:
            self._groups.append(_Group())
        group = found[0] if found else self._groups[-1]
        group.members[member.name] = member

    def looked(self, name: str, table: SessionTable | None, identity: Identity) -> None:
        """A target has looked; `table` is None where it was shown none that tells of its own sessions."""
        group = self._regroup(name, identity)
        ours = {pid for member in group.members.values() for pid in member.pids}
        group.budget.looked(name, table, ours, self._monotonic())
        self.draw()

    def refused(self, name: str, said: ServerSignal) -> None:
        """A login of a target was refused by an answer."""
        group = self._group_of(name)
        group.budget.refused(name, said, self._monotonic())
        self.draw()

    def draw(self) -> None:
        """Draw all grants anew, and tell them."""
        if self._drawing:  # by somebody who was just told his
            self._again = True
            return
        self._drawing = True
        try:
            self._again = True
            while self._again:
                self._again = False
                self._draw()
        finally:
            self._drawing = False

    async def run(self) -> None:
        """Draw once a second until cancelled."""
        while True:
            self.draw()
            await asyncio.sleep(REFRESH_SECONDS)

    def _draw(self) -> None:
        now, at = self._monotonic(), self._wall()
        members: dict[str, Member] = {}
        found: dict[str, BudgetStatus] = {}
        for group in self._groups:
            members |= group.members
            wishes = [member.wish for member in group.members.values()]
            how = {name: member.circumstances for name, member in group.members.items()}
            found |= group.budget.grants(wishes, now, at=at, circumstances=how)
        for name, status in self._capped(found).items():
            members[name].apply(status)

    def _capped(self, found: dict[str, BudgetStatus]) -> dict[str, BudgetStatus]:
        if self._cap is None:
            return found
        capped = within_cap({name: status.granted for name, status in found.items()}, self._cap)
        return {
            name: status
            if capped[name] == status.granted
            else replace(status, granted=capped[name], hindrance=Hindrance.CAPPED)
            for name, status in found.items()
        }

    # -- which server -----------------------------------------------------------------------------------------------

    def _group_of(self, name: str) -> _Group:
        return next(group for group in self._groups if name in group.members)

    def _regroup(self, name: str, identity: Identity) -> _Group:
        """The group of the server that answers this target, with the target in it."""
        here = self._group_of(name)
        if here.identity is not None and _is_same_server(here.identity, identity):
            return here
        there = next((one for one in self._groups if one.identity and _is_same_server(one.identity, identity)), None)
        if here.identity is None and there is None:
            here.identity = identity
            return here
        moving = list(here.members) if here.identity is None else [name]  # those of the same address go along
        if there is None:
            there = _Group(identity=identity)
            self._groups.append(there)
        for each in moving:
            there.members[each] = here.members.pop(each)
            here.budget.forget(each)
        self._groups = [group for group in self._groups if group.members]
        return there


def _is_same_server(one: Identity, other: Identity) -> bool:
    """Nothing tells the two apart, and something is the same. Where nothing at all is known, nothing is."""
    pairs = ((one.address, other.address), (one.system_identifier, other.system_identifier))
    known = [(mine, yours) for mine, yours in pairs if mine is not None and yours is not None]
    return bool(known) and all(mine == yours for mine, yours in known)
