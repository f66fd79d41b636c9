"""A path in virtual time, for driving the real idle-limit machine through days in milliseconds.

Nothing here decides anything about the measurement: the world only lets connections rest, die and answer, and the
machine under test does what it would do in production. Times are seconds; nothing sleeps.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, inf

from sidecar.core.evidence import Aged, Cause, Disturbed, Ending, Noticed, Observation
from sidecar.core.identity import Identity
from sidecar.core.idle.commands import Budget, Close, Command, Open, Record, Use
from sidecar.core.idle.facts import Died, Fact, Opened, OpenFailed, Survived
from sidecar.core.idle.machine import IdleMachine
from testing.endings import fatal

VISIBLE = ("close", "fatal")  # deaths that show by themselves
ENDINGS = {
    "silent": Ending(noticed=Noticed.DEADLINE),
    "reset": Ending(noticed=Noticed.USING, signal="rst"),
    "close": Ending(noticed=Noticed.READING, signal="fin"),
    "fatal": fatal("57P05", "idle-session timeout"),
}
OWN_LIMIT = replace(ENDINGS["fatal"], own_limit=True)


@dataclass(slots=True)
class _Connection:
    opened: float
    used: float
    limit: Callable[[float], float]  # idle limit of this connection's path, at a time
    killed_at: float
    too_old_at: float
    life: int
    rest_at_most: float  # the session ends by itself after such a rest, as it was told
    ended: bool = False


@dataclass(kw_only=True)
class World:
    """How the path behaves.

    `limit(draw, now)` gives the idle limit at a time for a connection whose path was drawn as `draw` (uniform in 0…1):
    one number for a plain path, two for two populations, a step for a changed one. `kill_rate` is the rate per second
    of unrelated, unseen deaths. `restarts` are times at which the server restarts and everything open dies visibly.
    `lifetime(draw, now)` gives the age at which a connection opened then dies however busy it is. With `beats`, a
    session is held that is used every so many seconds, as the heartbeat does, and what becomes of it is told.

    The server ends each session after the rest it was told, or sooner where its clock runs ahead (`hurry` below 1).
    """

    limit: Callable[[float, float], float]
    death: str = "reset"
    seed: int = 0
    jitter: float = 0.0  # relative standard deviation of each rest's own limit
    kill_rate: float = 0.0
    deadline: float = 0.0  # what an unanswered use costs
    restarts: tuple[float, ...] = ()
    outages: tuple[tuple[float, float], ...] = ()  # (from, to): no connection can be opened, no use is answered
    lifetime: Callable[[float, float], float] = lambda draw, now: inf
    beats: float = 0.0
    keepalive_helps: bool = False  # the limit does not apply to connections with TCP keepalive
    hurry: float = 1.0
    flushes: tuple[float, ...] = ()  # the path forgets all connections, unseen
    floor: float = 5.0
    cap: float = 86400.0
    connections: int = 8
    defaults: tuple[float, ...] = ()
    history: tuple[Observation, ...] = ()

    def run(self, until: Callable[[Simulation], bool], *, give_up: float) -> Simulation:
        """Drive the machine until `until(simulation)` holds after an event, or `give_up` seconds have passed."""
        simulation = self.start()
        simulation.drive(until, give_up)
        return simulation

    def start(self) -> Simulation:
        """A machine that has just been given its budget."""
        simulation = Simulation(self)
        if self.beats:
            simulation.begin_session()
        simulation.tell(Budget(connections=self.connections))
        return simulation


@dataclass
class Simulation:
    """One run: the machine, the open connections, what was recorded and what it cost."""

    world: World
    now: float = 0.0
    observations: list[Observation] = field(default_factory=list)
    opened: int = 0
    used: int = 0
    most_open: int = 0
    cut_short: int = 0  # sessions that lived, and that the server ended because they had told it to

    def __post_init__(self) -> None:
        world = self.world
        self.random = random.Random(world.seed)
        self.machine = IdleMachine(
            target="simulated", run="run", epoch=0.0, connections=world.connections, floor=world.floor, cap=world.cap,
            defaults=world.defaults, history=world.history,
        )  # fmt: skip
        self._open: dict[int, _Connection] = {}
        self._opening: set[int] = set()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._life = 0
        for at in world.restarts:
            self._at(at, self._restart)
        for at in world.flushes:
            self._at(at, self._flush)

    def drive(self, until: Callable[[Simulation], bool], give_up: float) -> None:
        """Go on until `until` holds or the time is `give_up`."""
        while not until(self):
            deadline = self.machine.next_deadline()
            event = self._queue[0][0] if self._queue else inf
            self.now = max(self.now, min(deadline if deadline is not None else inf, event))
            if self.now > give_up:
                self.now = give_up
                return
            if deadline is not None and deadline <= event:
                self.obey(self.machine.handle_timer(self.now))
            else:
                heapq.heappop(self._queue)[2]()

    def tell(self, fact: Fact | Budget) -> None:
        self.obey(self.machine.observe(fact, self.now))

    @property
    def open_connections(self) -> int:
        return len(self._open) + len(self._opening)

    @property
    def _out(self) -> bool:
        return any(start <= self.now < end for start, end in self.world.outages)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._serial), what))

    def _identity(self) -> Identity:
        return Identity(address="10.0.0.1:5432", started_at=float(self._life), system_identifier="1", timeline=1)

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Open():
                    self._opening.add(command.connection)
                    self._at(self.now + command.after_seconds, lambda c=command: self._opened(c))
                case Use():
                    self._use(command.connection)
                case Close():
                    self._opening.discard(command.connection)
                    self._open.pop(command.connection, None)
                case Record():
                    self.observations.append(command.observation)
            self.most_open = max(self.most_open, self.open_connections)

    def _opened(self, command: Open) -> None:
        number = command.connection
        if number not in self._opening:
            return
        self._opening.discard(number)
        if self._out:
            self.tell(OpenFailed(connection=number, error="connection timed out"))
            return
        self.opened += 1
        draw, world = self.random.random(), self.world
        killed_at = self.now + self.random.expovariate(world.kill_rate) if world.kill_rate else inf
        kept_alive = world.keepalive_helps and command.keepalive is not None
        too_old_at = self.now + world.lifetime(draw, self.now)
        self._open[number] = connection = _Connection(
            self.now,
            self.now,
            lambda at: inf if kept_alive else world.limit(draw, at),
            killed_at,
            too_old_at,
            self._life,
            inf if command.rest_at_most_seconds is None else command.rest_at_most_seconds * world.hurry,
        )
        if world.death in VISIBLE and too_old_at < inf:

            def end() -> None:
                if self._open.get(number) is connection:
                    self._die(number, ENDINGS["close"])

            self._at(too_old_at, end)
        self._watch(number)
        identity = self._identity() if command.ask else Identity()
        self.tell(Opened(connection=number, identity=identity, seconds=0.0))

    def _limit(self, connection: _Connection) -> float:
        return connection.limit(self.now) * (1 + self.random.gauss(0, self.world.jitter) if self.world.jitter else 1)

    def _watch(self, number: int) -> None:
        """Where deaths are visible, the connection ends by itself at its limit; anywhere, when it was told to."""
        connection = self._open[number]
        if connection.rest_at_most < inf:
            self._at(
                connection.used + connection.rest_at_most, lambda used=connection.used: self._end_own(number, used)
            )
        if self.world.death in VISIBLE and (limit := self._limit(connection)) < inf:
            rest_began = connection.used

            def end() -> None:
                if self._open.get(number) is connection and connection.used == rest_began:
                    self._die(number, ENDINGS[self.world.death])

            self._at(rest_began + limit, end)

    def _end_own(self, number: int, rest_began: float) -> None:
        """The server keeps its word. What died unseen is gone there now, and nobody here gets to know."""
        connection = self._open.get(number)
        if connection is None or connection.used != rest_began:
            return
        forgotten = self.now - rest_began >= connection.limit(self.now) or self.now >= connection.too_old_at
        if not forgotten and self.now < connection.killed_at and connection.life == self._life and not self._out:
            self.cut_short += 1
            self._die(number, OWN_LIMIT)

    def _use(self, number: int) -> None:
        if (connection := self._open.get(number)) is None:
            return  # its death is already on the way
        self.used += 1
        idle = self.now - connection.used
        visible = self.world.death in VISIBLE
        if self._out:
            self._die(number, ENDINGS["silent"])
        elif self.now >= connection.killed_at or connection.life != self._life:
            self._die(number, ENDINGS["reset" if visible else self.world.death])
        elif not visible and (idle >= self._limit(connection) or self.now >= connection.too_old_at):
            self._die(number, ENDINGS[self.world.death])
        else:
            connection.used = self.now
            self._watch(number)
            self._tell_of(
                number, Survived(connection=number, idle_seconds=idle, seconds=0.0, identity=self._identity())
            )

    def _die(self, number: int, ending: Ending) -> None:
        connection = self._open[number]
        idle, age = self.now - connection.used, self.now - connection.opened
        died = Died(connection=number, idle_seconds=idle, age_seconds=age, ending=ending)
        self._tell_of(number, died, after=self.world.deadline if ending.noticed == Noticed.DEADLINE else 0.0)

    def _tell_of(self, number: int, fact: Died | Survived, after: float = 0.0) -> None:
        """Facts arrive after the commands of the moment, and not at all when the machine has dropped the connection."""

        def tell() -> None:
            if number in self._open:
                if isinstance(fact, Died):
                    del self._open[number]
                self.tell(fact)

        self._at(self.now + after, tell)

    def begin_session(self) -> None:
        """Hold a session until its age ends it, and tell of that as the heartbeat does."""
        world, opened = self.world, self.now
        ages = world.lifetime(self.random.random(), self.now)
        if ages == inf:
            return
        visible = world.death in VISIBLE
        beats = ceil(ages / world.beats)  # the one that is not answered

        def lost() -> None:
            ending = ENDINGS["close" if visible else world.death]
            lived, age = (beats - 1) * world.beats, ages if visible else beats * world.beats
            aged = Aged(
                outage=f"session-{next(self._serial)}",
                lived_seconds=lived,
                age_seconds=age,
                ending=ending,
                identity=self._identity(),
            )
            self.tell(Disturbed(cause=Cause.PARTITION if world.death == "silent" else Cause.UNKNOWN, aged=aged))
            self.begin_session()
            self.tell(aged)

        self._at(opened + ages if visible else opened + beats * world.beats + world.deadline, lost)

    def _flush(self) -> None:
        for connection in self._open.values():
            connection.killed_at = self.now

    def _restart(self) -> None:
        self._life += 1
        ending = fatal("57P01", "administrator")
        for number in self._open:
            self._die(number, ending)
        for number in list(self._opening):  # whatever is tried now fails; the next attempt succeeds
            self._opening.discard(number)
            self.tell(OpenFailed(connection=number, error="connection refused"))
