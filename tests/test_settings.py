"""The settings: where they come from, what they take, how they complain, and that they keep secrets."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sidecar.settings.loading import ConfigurationError, load_http, load_settings
from sidecar.settings.model import Section, Settings, keys
from sidecar.settings.url import DatabaseUrl
from sidecar.settings.values import Duration, Whole, format_duration, parse_duration

ROOT = Path(__file__).parent.parent
URL = "postgresql+asyncpg://app@db.internal:5432/app"
SECRET = "hunter2-4f1b9c"


def faults(flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, file: Path | None = None):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(flags or {}, environ or {}, file)
    return caught.value.faults


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return file

    return write


class TestSources:
    def test_a_url_in_the_environment_is_enough(self) -> None:
        settings = load_settings({}, {"SIDECAR_TARGET_URL": URL, "PATH": "/bin"})
        assert list(settings.targets) == ["default"]
        assert settings.targets["default"].display == "db.internal:5432/app"
        assert (settings.http.port, settings.http.admin_port) == (8080, 9091)

    def test_flags_beat_environment_beats_file_beats_defaults(self, write: Any) -> None:
        file = write(
            f"targets: {{default: {{url: '{URL}'}}}}\nhttp: {{port: 1001, admin_port: 1002}}\nlog: {{level: error}}"
        )
        environ = {"SIDECAR_HTTP__PORT": "2001", "SIDECAR_LOG__LEVEL": "debug"}
        settings = load_settings({"http.port": "3001", "log.format": None}, environ, file)
        assert settings.http.port == 3001
        assert settings.log.level == "debug"
        assert settings.http.admin_port == 1002
        assert settings.log.format == "json"

    def test_one_key_of_one_target_is_overridden_and_nothing_else(self, write: Any) -> None:
        file = write(f"""
            targets:
              orders: &common {{url: {URL}, pool: {{size: 7, timeout: 3s}}, idle: {{floor: 1s}}}}
              stock: *common
        """)
        environ = {
            "SIDECAR_TARGETS__ORDERS__POOL__SIZE": "9",
            "SIDECAR_TARGETS__DEFAULT__URL": "postgres://app@elsewhere",
            "SIDECAR_TARGETS__STOCK__APPLICATION__POOL_RECYCLE": "-1",
        }
        targets = load_settings({}, environ, file).targets
        assert (targets["orders"].pool.size, targets["orders"].pool.timeout) == (9, 3.0)
        assert targets["orders"].idle.floor == 1.0
        assert targets["stock"].pool.size == 7
        assert targets["stock"].application is not None
        assert targets["stock"].application.pool_recycle == -1
        assert targets["orders"].application is None
        assert targets["default"].host == "elsewhere"

    def test_yaml_merge_keys_may_be_overridden(self, write: Any) -> None:
        file = write(
            f"targets: {{a: &a {{url: {URL}, tls: {{mode: require}}}}, b: {{<<: *a, tls: {{mode: disable}}}}}}"
        )
        targets = load_settings({}, {}, file).targets
        assert (targets["a"].tls.mode, targets["b"].tls.mode) == ("require", "disable")

    def test_the_environment_names_the_file_and_a_flag_another(self, write: Any, tmp_path: Path) -> None:
        file = write(f"targets: {{from_flag: {{url: '{URL}'}}}}")
        other = tmp_path / "other.yaml"
        other.write_text(f"targets: {{from_environment: {{url: '{URL}'}}}}")
        environ = {"SIDECAR_CONFIG": str(other)}
        assert list(load_settings({}, environ).targets) == ["from_environment"]
        assert list(load_settings({}, environ, file).targets) == ["from_flag"]

    def test_a_heading_with_nothing_under_it_means_the_defaults(self, write: Any) -> None:
        file = write(f"targets:\n  default:\n    url: {URL}\n    pool:\n    application:\nhttp:\n")
        settings = load_settings({}, {}, file)
        assert settings.targets["default"].pool.size == 2
        assert settings.targets["default"].application is None
        assert settings.http.port == 8080

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("SIDECAR_HTTP_PORT", "SIDECAR_HTTP__PORT"),
            ("SIDECAR_HTTP", "SIDECAR_HTTP__PORT"),
            ("SIDECAR_TARGETURL", "SIDECAR_TARGET_URL"),
            ("SIDECAR_TARGETS__ORDERS__PASSWORDFILE", "SIDECAR_TARGETS__ORDERS__PASSWORD_FILE"),
            ("SIDECAR_CONFIG_FILE", "SIDECAR_CONFIG"),
        ],
    )
    def test_an_unknown_variable_is_a_fault(self, name: str, nearest: str) -> None:
        assert faults(environ={"SIDECAR_TARGET_URL": URL, name: SECRET}) == (
            f"{name}: unknown variable: the nearest is {nearest}",
        )

    def test_the_same_key_by_two_names_is_a_fault(self) -> None:
        environ = {"SIDECAR_TARGETS__DEFAULT__URL": URL, "SIDECAR_TARGET_URL": URL}
        assert faults(environ=environ) == (
            "SIDECAR_TARGET_URL: says the same as SIDECAR_TARGETS__DEFAULT__URL: takes one of both",
        )

    def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_left_alone(self) -> None:
        links = {
            "SIDECAR_SERVICE_HOST": "10.0.0.1",
            "SIDECAR_SERVICE_PORT": "8080",
            "SIDECAR_SERVICE_PORT_HTTP": "8080",
            "SIDECAR_PORT": "tcp://10.0.0.1:8080",
            "SIDECAR_PORT_8080_TCP": "tcp://10.0.0.1:8080",
            "SIDECAR_PORT_8080_TCP_PROTO": "tcp",
            "SIDECAR_PORT_8080_TCP_PORT": "8080",
            "SIDECAR_PORT_8080_TCP_ADDR": "10.0.0.1",
            "SIDECAR_ORDERS_DB_SERVICE_HOST": "10.0.0.2",
            "SIDECAR_ORDERS_DB_PORT_5432_TCP": "tcp://10.0.0.2:5432",
        }
        assert load_settings({}, {"SIDECAR_TARGET_URL": URL} | links).http.port == 8080
        # Without the Service the same name is somebody's slip.
        assert len(faults(environ={"SIDECAR_TARGET_URL": URL, "SIDECAR_PORT": "8080"})) == 1

    def test_faults_name_the_variable_and_the_flag_they_came_from_and_come_all_at_once(self, write: Any) -> None:
        file = write(f"targets: {{default: {{url: '{URL}'}}}}\nreadiness: {{grace: -1}}")
        environ = {"SIDECAR_TARGETS__DEFAULT__POOL__SIZE": "many", "SIDECAR_FOO": ""}
        assert faults({"log.level": "loud"}, environ, file) == (
            "SIDECAR_FOO: unknown variable: the nearest is SIDECAR_LOG__FORMAT",
            "targets.default.pool.size (SIDECAR_TARGETS__DEFAULT__POOL__SIZE): not a whole number: "
            "takes a whole number from 1 to 100",
            "readiness.grace: not a duration: takes 0s to 1h",
            "log.level (on the command line): unknown word: takes 'debug', 'info', 'warning' or 'error'",
        )

    def test_a_variable_cannot_reach_into_what_is_no_section(self, write: Any) -> None:
        file = write("targets: [default]")
        assert faults(environ={"SIDECAR_TARGET_URL": URL}, file=file) == (
            "targets: not a section: takes keys of its own",
        )

    def test_a_file_that_cannot_be_read_is_a_fault(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.yaml"
        assert faults(environ={"SIDECAR_CONFIG": str(missing)}) == (
            f"{missing}: cannot be read: No such file or directory: takes the path of a YAML file",
        )
        assert faults(file=tmp_path) == (f"{tmp_path}: cannot be read: Is a directory: takes the path of a YAML file",)
        assert faults(environ={"SIDECAR_CONFIG": "", "SIDECAR_TARGET_URL": URL}) == (
            "SIDECAR_CONFIG: empty: takes the path of a YAML file, or unset it",
        )

    def test_where_a_sidecar_answers_is_known_without_targets(self, write: Any) -> None:
        file = write("http: {port: 1001, admin_port: 1002}")
        http = load_http({"SIDECAR_CONFIG": str(file), "SIDECAR_HTTP__PORT": "2001"})
        assert (http.port, http.admin_port) == (2001, 1002)
        with pytest.raises(ConfigurationError, match=re.escape("http.port (SIDECAR_HTTP__PORT): out of range")):
            load_http({"SIDECAR_HTTP__PORT": "65536"})


class TestValues:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("350s", 350), ("10m", 600), ("8h", 28800), ("1d", 86400), ("100ms", 0.1), ("350", 350), ("1.5h", 5400)],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize(
        "text", ["", "s", "-1s", "1w", "1 minute", "1:30", "1e3", "0x10", "٣s", "1s\n", "inf", "nan"]
    )
    def test_what_is_no_duration(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a duration"):
            parse_duration(text)

    @given(st.floats(min_value=0, max_value=1e12))
    def test_a_duration_written_reads_back_the_same(self, seconds: float) -> None:
        assert parse_duration(format_duration(seconds)) == seconds

    @given(st.integers(min_value=1, max_value=10**9), st.sampled_from(["ms", "s", "m", "h", "d"]))
    def test_a_duration_is_written_no_longer_than_it_was_read(self, number: int, unit: str) -> None:
        assert len(format_duration(parse_duration(f"{number}{unit}"))) <= len(f"{number}{unit}")

    @pytest.mark.parametrize(("path", "info"), [(path, info) for path, info in keys() if info.metadata])
    def test_the_range_said_is_the_range_taken(self, path: tuple[str, ...], info: Any) -> None:
        """At every key by itself, since neighbours may object to its extremes."""
        (marker,) = info.metadata
        if isinstance(marker, Duration):
            least, most = parse_duration(marker.least), parse_duration(marker.most)
            outside: tuple[object, ...] = (least - 0.001, most + 0.001)
        elif isinstance(marker, Whole):
            least, most = marker.least, marker.most
            outside = (least - 1, most + 1)
        else:
            least, most = 1e-9, 1
            outside = (0, 1.000001, "nan")
        assert marker.read(least) == least
        assert marker.read(str(most)) == most
        for value in (*outside, None, True, "", [], {}, "1 000"):
            with pytest.raises(ValueError, match=re.escape(marker.takes)):
                marker.read(value)
        # The default is validated with everything else, so that it is in range wherever a settings object exists.
        assert marker.read(info.default) == info.default

    def test_settings_do_not_change(self) -> None:
        settings = load_settings({}, {"SIDECAR_TARGET_URL": URL})
        with pytest.raises(ValidationError, match="frozen"):
            settings.targets["default"].pool.size = 3  # type: ignore[misc]

    def test_durations_are_kept_in_seconds_and_shown_as_people_write_them(self) -> None:
        settings = load_settings({}, {"SIDECAR_TARGET_URL": URL, "SIDECAR_TARGETS__DEFAULT__POOL__RECYCLE": "90m"})
        pool = settings.targets["default"].pool
        assert (pool.recycle, pool.timeout) == (5400.0, 5.0)
        assert pool.model_dump(mode="json") == {"size": 2, "pre_ping": True, "recycle": "90m", "timeout": "5s"}
        assert type(pool)().recycle == "auto"


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "scheme", "host", "port", "database", "user"),
        [
            ("postgresql+asyncpg://app@db:6432/orders", "postgresql+asyncpg", "db", 6432, "orders", "app"),
            ("postgresql://app@db/orders", "postgresql", "db", 5432, "orders", "app"),
            ("postgres://app@db", "postgres", "db", 5432, "app", "app"),
            ("postgres://app@db:/", "postgres", "db", 5432, "app", "app"),
            ("postgres://app@10.0.0.1:1/x", "postgres", "10.0.0.1", 1, "x", "app"),
            ("postgres://app@[2001:db8::1]:65535/x", "postgres", "2001:db8::1", 65535, "x", "app"),
            ("postgres://app%40tenant@db/a%2Fb", "postgres", "db", 5432, "a/b", "app@tenant"),
        ],
    )
    def test_parts(self, url: str, scheme: str, host: str, port: int, database: str, user: str) -> None:
        parsed = DatabaseUrl.parse(url)
        assert (parsed.scheme, parsed.host, parsed.port) == (scheme, host, port)
        assert (parsed.database, parsed.user, parsed.password) == (database, user, None)

    @given(user=st.text(min_size=1), password=st.text(min_size=1), database=st.text(min_size=1))
    def test_percent_encoded_parts_come_back(self, user: str, password: str, database: str) -> None:
        parts = (quote(part, safe="") for part in (user, password, database))
        parsed = DatabaseUrl.parse("postgresql://{}:{}@db.internal/{}".format(*parts))
        assert parsed.password is not None
        assert (parsed.user, parsed.password.get_secret_value(), parsed.database) == (user, password, database)

    def test_an_at_sign_and_colons_in_a_password_are_understood_unencoded(self) -> None:
        parsed = DatabaseUrl.parse("postgresql://app:a:b@c@db.internal/app")
        assert parsed.password is not None
        assert (parsed.password.get_secret_value(), parsed.host) == ("a:b@c", "db.internal")

    def test_display_has_no_credentials(self) -> None:
        assert DatabaseUrl.parse(f"postgres://app:{SECRET}@[::1]/x").display == "[::1]:5432/x"
        assert str(DatabaseUrl.parse(f"postgres://app:{SECRET}@db/x")) == "postgres://app:***@db:5432/x"

    def test_parameters_set_tls_and_the_section_may_add_to_them(self) -> None:
        parameters = "sslmode=verify-full&sslrootcert=%2Fca.pem"
        environ = {
            "SIDECAR_TARGET_URL": f"{URL}?{parameters}",
            "SIDECAR_TARGETS__DEFAULT__TLS__CERT_FILE": "/client.pem",
            "SIDECAR_TARGETS__DEFAULT__TLS__CA_FILE": "/ca.pem",
        }
        tls = load_settings({}, environ).targets["default"].tls
        assert (tls.mode, tls.ca_file, tls.cert_file) == ("verify-full", Path("/ca.pem"), Path("/client.pem"))
        assert load_settings({}, {"SIDECAR_TARGET_URL": f"{URL}?ssl=require"}).targets["default"].tls.mode == "require"

    @pytest.mark.parametrize(
        ("given", "kept", "shown"),
        [
            ("sqlite:////data/e.db", "sqlite+aiosqlite:////data/e.db", "sqlite+aiosqlite:////data/e.db"),
            ("sqlite+aiosqlite://", "sqlite+aiosqlite://", "sqlite+aiosqlite://"),
            (
                f"postgres://app:{SECRET}@db/e?sslmode=require",
                f"postgresql+asyncpg://app:{SECRET}@db/e?ssl=require",
                "postgresql+asyncpg://app:***@db:5432/e",
            ),
        ],
    )
    def test_the_store(self, given: str, kept: str, shown: str) -> None:
        store = load_settings({}, {"SIDECAR_TARGET_URL": URL, "SIDECAR_STORE__URL": given}).store
        assert store.url.get_secret_value() == kept
        assert store.display == shown


class TestSecrets:
    def test_nothing_that_can_be_printed_shows_one(self, caplog: pytest.LogCaptureFixture) -> None:
        environ = {
            "SIDECAR_TARGET_URL": f"postgresql://app:{SECRET}@db.internal/app",
            "SIDECAR_STORE__URL": f"postgresql://app:{SECRET}@db.internal/evidence",
        }
        settings = load_settings({}, environ)
        target, store = settings.targets["default"], settings.store
        logging.getLogger("sidecar.test").warning("settings %s", settings, extra={"target": target})
        shown = [
            caplog.text,
            *(str(vars(record)) for record in caplog.records),
            *(form(part) for part in (settings, target, target.url, store) for form in (repr, str)),
            str(settings.model_dump()),
            str(settings.model_dump(mode="json")),
            settings.model_dump_json(),
            target.display,
            store.display,
        ]
        assert all(SECRET not in text for text in shown)
        assert target.password is not None  # it is there all the same
        assert target.password.get_secret_value() == SECRET
        assert SECRET in store.url.get_secret_value()

    @given(st.text(), st.text(), st.sampled_from(["", "postgresql://", "postgresql://app:", "postgresql://app:x@db/"]))
    def test_no_complaint_repeats_what_it_complains_about(self, before: str, after: str, scheme: str) -> None:
        url = f"{scheme}{before}{SECRET}{after}"
        given = {"targets": {"default": {"url": url}, url: {"url": URL}}, "store": {"url": url}, url: url}
        with pytest.raises(ConfigurationError) as caught:
            load_settings({}, {"SIDECAR_LOG__LEVEL": url, "SIDECAR_HTTP__PORT": url, "SIDECAR_POLICY__SAFETY": url})
        assert SECRET not in str(caught.value)
        with pytest.raises(ValidationError) as direct:
            Settings.model_validate(given)
        assert SECRET not in "".join(error["msg"] for error in direct.value.errors())

    @pytest.mark.parametrize(
        "at", [("url",), ("password",), ("pool",), ("pool", "size"), ("tls", "mode"), ("idle", "cap")]
    )
    def test_no_fault_shows_a_value_wherever_it_stands(self, at: tuple[str, ...], write: Any) -> None:
        section: object = f"postgresql://app:{SECRET}"
        for key in reversed(at):
            section = {key: section}
        file = write(yaml.safe_dump({"targets": {"default": {"url": URL} | section}}))
        assert SECRET not in "".join(faults(file=file))


class TestDocumentation:
    def test_every_setting_says_what_it_means(self) -> None:
        undocumented = [
            f"{section.__name__}.{name}"
            for section in Section.__subclasses__()
            for name, info in section.model_fields.items()
            if not (info.description or "").endswith(".")
        ]
        assert not undocumented

    def test_the_example_has_every_key_and_only_what_is_taken(self) -> None:
        example = ROOT / "config.example.yaml"
        settings = load_settings({}, {}, example)
        tree = yaml.safe_load(example.read_text())

        def lies_in(part: Any, path: tuple[str, ...]) -> bool:
            return not path or (path[0] in part and lies_in(part[path[0]], path[1:]))

        patterns = [tuple(name.replace("*", "default") for name in path) for path, _ in keys()]
        assert [path for path in patterns if not lies_in(tree, path)] == []

        # What it shows as the defaults are the defaults; what it sets beside them, it says.
        bare = Settings.model_validate({"targets": {"default": {"url": str(settings.targets["default"].url)}}})
        different = {
            path
            for path in patterns
            if _at(settings.model_dump(), path) != _at(bare.model_dump(), path) and path[-1] != "url"
        }
        assert different == {
            ("targets", "default", "password_file"),
            ("targets", "default", "tls", "mode"),
            ("targets", "default", "tls", "ca_file"),
            ("targets", "default", "application", "pool_recycle"),
            ("targets", "default", "application", "pool_pre_ping"),
            ("targets", "default", "application", "checkout_p99"),
        }

    def test_every_key_of_the_example_follows_a_comment(self) -> None:
        """A comment may introduce several keys in a row, but none stands before the first comment of its section."""
        commented = False
        for line in (ROOT / "config.example.yaml").read_text().splitlines():
            stripped = line.strip()
            if stripped.startswith("#"):
                commented = True
            elif stripped.endswith(":"):
                commented = False
            elif stripped:
                assert commented, line


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = None if tree is None else tree[name]
    return tree


def test_loading_the_settings_loads_no_driver_and_no_server() -> None:
    script = "import sys, sidecar.settings.loading; print(*(name.partition('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sqlalchemy", "asyncpg", "aiohttp"} & set(loaded)
