"""The whole examination, in the order of its report: what others depend on comes first."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import asyncpg
from msgspec import Struct

from daemon.doctor import broker as brokers
from daemon.doctor import database, limits, process, spool
from daemon.doctor.access import Access, Account
from daemon.doctor.findings import Finding, Tell, failure, guarded, ok, skipped
from daemon.doctor.passage import NAME as PASSAGE
from daemon.doctor.passage import PASSAGE_TIMEOUT_S, try_passage
from daemon.doctor.process import Process
from daemon.settings import DaemonSettings
from daemon.subscriber import broker_from_url
from daemon.tls import tls_context
from sql.settings import SettingsError, read

TIMEOUT_S = 10.0
LIMITS_TIMEOUT_S = 60.0
"""For some thousand messages there and back, twenty at a time."""
APPLICATION_NAME = "fleetwatt-check"
_LIMITS = ("guests", "window", "queue", "retained")
_AFTER_TLS = ("mqtt5", "login", "session", "subscribe", *_LIMITS)


class Options(Struct, frozen=True):
    """What the command line can say."""

    account: Account | None = None
    """One that may publish as a device, or publish to `fleetwatt-check/#` and read it."""
    device: str | None = None
    configuration: Path = Path(limits.CONFIGURATION)


class Examination:
    """One visit."""

    def __init__(self, settings: DaemonSettings, options: Options, tell: Tell) -> None:
        """Raises SettingsError for certificates that cannot be used."""
        self._settings = settings
        self._options = options
        self._tell = tell
        self._broker = broker_from_url(
            settings.mqtt_url,
            tls=tls_context(settings),
            client_id=settings.mqtt_client_id,
            share_group=settings.mqtt_share_group,
            receive_maximum=settings.mqtt_receive_maximum,
        )
        self._process = Process("", "absent")
        self._accesses: list[Access] = []

    async def run(self) -> None:
        """Look at everything."""
        self._tell(ok("settings", "complete and valid"))
        self._process = await process.ask(self._settings)
        self._tell_all(process.judge(self._process))
        await self._examine_broker()
        runs = self._process.state != "absent"
        look = partial(asyncio.to_thread, spool.examine, self._settings, daemon_runs=runs)
        self._tell_all(await guarded("spool.folder", look, TIMEOUT_S))
        await self._examine_database()

    # The broker.

    async def _examine_broker(self) -> None:
        name, address = await brokers.find_address(self._broker)
        self._tell(name)
        if address is None:
            self._skip("broker", ("port", "tls", *_AFTER_TLS), "the broker's name has no address")
            return
        port = await brokers.try_port(self._broker)
        self._tell(port)
        if port.level == "failure":
            self._skip("broker", ("tls", *_AFTER_TLS), "the broker cannot be reached")
            return
        (tls,) = await guarded("broker.tls", _one(partial(brokers.try_tls, self._broker, address)), TIMEOUT_S)
        self._tell(tls)
        if tls.level == "failure":
            self._skip("broker", _AFTER_TLS, "TLS fails")
            return
        has_own_ids = await self._examine_session()
        if has_own_ids is None:
            self._skip("broker", _LIMITS, "the broker speaks no MQTT 5")
            return
        await self._examine_limits(address, has_own_ids=has_own_ids)

    async def _examine_session(self) -> bool | None:
        """Whether the daemon's account has shown that it may have several sessions; None where MQTT 5 is not spoken."""
        status = self._process.status
        if status and status.subscribed:
            self._tell_all(brokers.trust(self._broker, status.broker))
            return False
        if self._process.state == "silent":
            because = "a daemon may be there that does not answer, and must not lose its connection"
            self._skip("broker", ("mqtt5", "login", "session", "subscribe"), because)
            return False
        has_own_ids = False

        async def enter() -> Sequence[Finding]:
            nonlocal has_own_ids
            login = await brokers.login(self._broker)
            has_own_ids = login.has_own_ids
            return login.findings

        found = await guarded("broker.login", enter, TIMEOUT_S)
        self._tell_all(found)
        return None if any(each.name == "broker.mqtt5" and each.level == "failure" for each in found) else has_own_ids

    async def _examine_limits(self, address: str, *, has_own_ids: bool) -> None:
        guest = self._access("a guest", None, None)
        if self._options.account:
            account = self._options.account
            self._accesses.append(self._access(account.name, account.name, account.password.encode()))
        finding, is_let_in = await limits.judge_guest(guest, self._broker.username, address)
        self._tell(finding)
        if is_let_in:
            self._accesses.append(guest)
        if has_own_ids and not self._settings.mqtt_cert_file:
            self._accesses.append(self._access("the daemon's account", self._broker.username, self._broker.password))
        tried = limits.Tried()
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMITS_TIMEOUT_S):
                tried = await limits.try_out(self._accesses, self._settings.mqtt_receive_maximum)
        self._tell(limits.judge_window(tried, self._settings.mqtt_receive_maximum))
        configuration, limit = self._options.configuration, None
        if await limits.is_local(address):
            limit = await asyncio.to_thread(limits.read_limit, configuration, self._broker.port)
        self._tell(limits.judge_queue(tried, configuration, limit))
        self._tell(limits.judge_retained(tried))

    def _access(self, who: str, username: str | None, password: bytes | None) -> Access:
        # Never with the daemon's certificate, which the broker may take for its name.
        tls = tls_context(self._settings, with_certificate=False)
        return Access(who, self._broker.host, self._broker.port, tls, username, password)

    # The database.

    async def _examine_database(self) -> None:
        finding, connection = await database.try_connect(self._settings.database_url, APPLICATION_NAME)
        self._tell(finding)
        if connection is None:
            self._tell_all(database.nothing_known("the database cannot be reached"))
            self._tell(skipped(PASSAGE, "the database cannot be reached"))
            return
        try:
            await self._examine_connected(connection)
        finally:
            connection.terminate()

    async def _examine_connected(self, connection: asyncpg.Connection) -> None:
        server = None

        async def look() -> Sequence[Finding]:
            nonlocal server
            server, found = await database.examine_server(connection)
            return found

        self._tell_all(await guarded("database.server", look, TIMEOUT_S))
        (schema,) = await guarded("database.schema", _one(partial(database.examine_schema, connection)), TIMEOUT_S)
        self._tell(schema)
        if schema.level == "failure" or server is None:
            because = "the schema is not right" if server else "the server could not be examined"
            self._tell_all(database.nothing_known(because, database.AFTER_SCHEMA))
            self._tell(skipped(PASSAGE, because))
            return
        today = datetime.now(UTC).date()
        (rights,) = await guarded("database.rights", _one(partial(database.examine_rights, connection)), TIMEOUT_S)
        self._tell(rights)
        bytes_of: dict[date, int] = {}

        async def look_at_days() -> Sequence[Finding]:
            nonlocal bytes_of
            runs = self._process.state == "runs"
            found, bytes_of = await database.examine_partitions(connection, today, daemon_runs=runs)
            return [found]

        self._tell_all(await guarded("database.partitions", look_at_days, TIMEOUT_S))
        retention_days = self._settings.retention_days
        for name, check in (
            ("transactions", partial(database.examine_transactions, connection)),
            ("disk", partial(database.examine_disk, connection, server, bytes_of, today, retention_days)),
            ("rejections", partial(database.examine_rejections, connection)),
        ):
            self._tell_all(await guarded(f"database.{name}", _one(check), TIMEOUT_S))
        if rights.level == "failure" or server.is_standby or server.is_read_only:
            # What cannot be stored now would be stored later, when nobody waits for it to remove it.
            self._tell(skipped(PASSAGE, "the database would not take it"))
            return
        self._tell_all(await guarded(PASSAGE, _one(partial(self._try_passage, connection)), 2 * PASSAGE_TIMEOUT_S))

    async def _try_passage(self, connection: asyncpg.Connection) -> Finding:
        status = self._process.status
        if status is None:
            return skipped(PASSAGE, "no daemon runs here")
        if not status.subscribed or status.broker != self._broker.address:
            return skipped(PASSAGE, "the daemon is not subscribed at this broker")
        return await try_passage(self._accesses, connection, self._options.device)

    def _skip(self, room: str, names: Sequence[str], because: str) -> None:
        self._tell_all([skipped(f"{room}.{name}", because) for name in names])

    def _tell_all(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self._tell(finding)


async def examine(environ: Mapping[str, str], options: Options, tell: Tell) -> None:
    """Everything, each finding as it is made; raises SettingsError where the daemon itself would not start."""
    await Examination(read(DaemonSettings, environ), options, tell).run()


def settings_are_wrong(error: SettingsError) -> Finding:
    """The one line of a report that cannot go on."""
    return failure("settings", str(error), "correct it in /etc/fleetwatt; docs/settings.md has every variable")


def _one(check: Callable[[], Awaitable[Finding]]) -> Callable[[], Awaitable[Sequence[Finding]]]:
    async def run() -> Sequence[Finding]:
        return [await check()]

    return run
