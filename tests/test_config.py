"""The settings: what each is by default, its bounds, and the sentence when it cannot be used."""

import shutil
import ssl
import subprocess
import sys

import pytest
import requests

from config import Config, ConfigError
from tests.fixtures import ROOT, new_secret

DEFAULTS = {
    "SQLALCHEMY_DATABASE_URI": "sqlite:///service.sqlite3",
    "SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 3, "max_overflow": 0, "pool_timeout": 5},
    "DATABASE_HOSTS": [],
    "MAIN_SERVER_URL": None,
    "SYSTEM_API_KEY": None,
    "MAIN_SERVER_USER_ID": None,
    "MAIN_SERVER_WEBHOOK_SECRET": None,
    "UPSTREAM_TIMEOUT": 10,
    "INIT_CACHE_SECONDS": 60,
    "WEBHOOK_TIMEOUT": 5,
    "WEBHOOK_REQUIRE_HTTPS": True,
    "WEBHOOK_ALLOWED_NETWORKS": (),
    "CA_BUNDLE": None,
    "SECRET_KEY": None,
    "SECRET_KEY_FALLBACKS": [],
    "SYSTEM_API_KEY_FALLBACKS": [],
    "METRICS_TOKEN": None,
    "TRUSTED_PROXIES": 0,
    "RETENTION_DAYS": 30,
    "LOG_LEVEL": "INFO",
    "PORT": 8000,
    "WEB_CONCURRENCY": 2,
    "WORKER_CONNECTIONS": 1000,
}


@pytest.mark.parametrize("value", [None, "", "  "], ids=["unset", "empty", "blank"])
def test_the_defaults(value):
    """What is set but empty counts as not set, as PaaS dashboards leave it."""
    env = {} if value is None else dict.fromkeys([*DEFAULTS, "DATABASE_URL", "MYSQL_URL"], value)
    assert vars(Config(env)) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("MAIN_SERVER_USER_ID", ["1", "2147483647"], ["0", "2147483648", "x"]),
        ("UPSTREAM_TIMEOUT", ["0.001", "86400"], ["0", "-1", "86400.1", "nan", "inf", "soon"]),
        ("INIT_CACHE_SECONDS", ["0", "0.5", "86400"], ["-0.1", "86400.1", "nan"]),
        ("WEBHOOK_TIMEOUT", ["0.001", "86400"], ["0", "-1", "86400.1", "nan"]),
        ("TRUSTED_PROXIES", ["0", "10"], ["-1", "11"]),
        ("RETENTION_DAYS", ["1", "3650"], ["0", "3651", "1_0", "7.0", "+7"]),
        ("PORT", ["1", "65535", " 80 "], ["0", "65536"]),
        ("WEB_CONCURRENCY", ["1", "64"], ["0", "65"]),
        ("WORKER_CONNECTIONS", ["20", "10000"], ["19", "10001", "٣", "9" * 5000]),
    ],
)
def test_the_bounds_of_each_number(name, good, bad):
    for value in good:
        assert vars(Config({name: value}))[name] == float(value)
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{name} must be .*number.*, not"):
            Config({name: value})


@pytest.mark.parametrize(
    ("value", "meant"),
    [(word, True) for word in ("1", "true", "YES", "on")]
    + [(word, False) for word in ("0", "false", "No", "off")],
)
def test_yes_and_no(value, meant):
    assert Config({"WEBHOOK_REQUIRE_HTTPS": value}).WEBHOOK_REQUIRE_HTTPS is meant


def test_what_is_neither_yes_nor_no_nor_a_level_is_refused():
    with pytest.raises(ConfigError, match="WEBHOOK_REQUIRE_HTTPS must be 1 or 0, not 'maybe'"):
        Config({"WEBHOOK_REQUIRE_HTTPS": "maybe"})
    for given in ("DEBUG", "info", "Warning", "ERROR"):
        level = Config({"LOG_LEVEL": given}).LOG_LEVEL
        assert level == given.upper()
    with pytest.raises(ConfigError, match="LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR"):
        Config({"LOG_LEVEL": "loud"})


def test_a_ca_bundle_is_a_file_of_certificates(tmp_path):
    for path, why in ((tmp_path / "none.pem", "No such file"), (tmp_path, ""), (__file__, "")):
        with pytest.raises(ConfigError, match=f"CA_BUNDLE must be a file of certificates.*{why}"):
            Config({"CA_BUNDLE": str(path)})


def test_networks_are_separated_by_commas_or_spaces():
    config = Config({"WEBHOOK_ALLOWED_NETWORKS": "10.0.0.0/8, fc00::/7 192.0.2.1"})
    networks = [str(network) for network in config.WEBHOOK_ALLOWED_NETWORKS]
    assert networks == ["10.0.0.0/8", "fc00::/7", "192.0.2.1/32"]
    for value in ("10.0.0.0/33", "10.0.0.1/8", "here"):
        with pytest.raises(ConfigError, match="WEBHOOK_ALLOWED_NETWORKS must be CIDR networks"):
            Config({"WEBHOOK_ALLOWED_NETWORKS": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAIN_SERVER_URL", "geheim.example.com"),
        ("MAIN_SERVER_URL", "ftp://geheim.example.com"),
        ("MAIN_SERVER_URL", "https://u:geheim@main.example.com"),
        ("MAIN_SERVER_URL", "https://geheim@main.example.com"),
        ("MAIN_SERVER_URL", "https://main.example.com/?key=geheim"),
        ("MAIN_SERVER_URL", "https://main.example.com/#geheim"),
        ("MAIN_SERVER_URL", "https://:80/geheim"),
        ("MAIN_SERVER_URL", "https://main.example.com:0/geheim"),
        ("MAIN_SERVER_URL", "https://main.example.com:99999/geheim"),
        ("MAIN_SERVER_URL", "https://[geheim"),
        ("MAIN_SERVER_WEBHOOK_SECRET", "geheim"),
        ("MAIN_SERVER_WEBHOOK_SECRET", "whsec_geheim"),
        ("DATABASE_URL", "geheim"),
        ("DATABASE_URL", "postgresql://u:geheim@h/n"),
        ("DATABASE_URL", "mysql://u:geheim@h:65536/n"),
        ("DATABASE_URL", "mysql://u:geheim@h:x/n"),
        ("DATABASE_URL", "mysql://u:geheim@h/"),
        ("DATABASE_URL", "mysql://u:geheim@h/n?ssl-ca=/none"),
        ("DATABASE_URL", "mysql://u:geheim@h/n?ssl-mode=maybe"),
    ],
)
def test_what_may_hold_a_secret_is_named_and_not_repeated(name, value):
    with pytest.raises(ConfigError, match=f"^{name}") as refused:
        Config({name: value})
    assert "geheim" not in str(refused.value)


def test_texts_are_taken_without_the_spaces_around_and_a_url_without_its_last_slash():
    secret = new_secret()
    config = Config(
        {
            "MAIN_SERVER_URL": " http://127.0.0.1:8080/base/ ",
            "SYSTEM_API_KEY": " key ",
            "SECRET_KEY": " secret ",
            "MAIN_SERVER_WEBHOOK_SECRET": f" {secret} ",
        }
    )
    assert config.MAIN_SERVER_URL == "http://127.0.0.1:8080/base"
    assert (config.SYSTEM_API_KEY, config.SECRET_KEY) == ("key", "secret")
    assert secret == config.MAIN_SERVER_WEBHOOK_SECRET


def test_mysql_answers_in_bounded_time_or_is_given_up():
    """A server that hangs holds no thread for ever; what others' drivers are told is left out."""
    config = Config({"DATABASE_URL": "mysql://u:p@h/n?reconnect=true"})
    assert config.SQLALCHEMY_ENGINE_OPTIONS == {
        "connect_args": {
            "charset": "utf8mb4",
            "connect_timeout": 5,
            "read_timeout": 30,
            "write_timeout": 30,
            "init_command": "SET SESSION innodb_lock_wait_timeout=10",
        },
        "isolation_level": "READ COMMITTED",
        "pool_recycle": 280,
        "pool_reset_on_return": None,
        "pool_size": 3,
        "max_overflow": 0,
        "pool_timeout": 5,
    }
    url = config.SQLALCHEMY_DATABASE_URI
    assert (url.drivername, dict(url.query)) == ("mysql+pymysql", {})


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_sqlite_in_memory_has_no_pool(url):
    assert Config({"DATABASE_URL": url}).SQLALCHEMY_ENGINE_OPTIONS == {}


@pytest.mark.parametrize(
    ("query", "certificate", "name"),
    [
        ("ssl-mode=REQUIRED", False, False),
        ("ssl-mode=VERIFY_CA&ssl-ca={ca}", True, False),
        ("ssl_ca={ca}", True, False),
        ("sslmode=verify-identity", True, True),
    ],
)
def test_what_ssl_mode_checks(query, certificate, name):
    url = f"mysql://u:p@h/n?{query.format(ca=requests.certs.where())}"
    context = Config({"DATABASE_URL": url}).SQLALCHEMY_ENGINE_OPTIONS["connect_args"]["ssl"]
    assert (context.verify_mode == ssl.CERT_REQUIRED, context.check_hostname) == (certificate, name)


def test_tls_unless_it_is_disabled():
    """Without a word it is used where the server offers it, which is what PyMySQL does."""

    def options(query):
        config = Config({"DATABASE_URL": f"mysql://u:p@h/n{query}"})
        return config.SQLALCHEMY_ENGINE_OPTIONS["connect_args"]

    assert options("?ssl-mode=PREFERRED") == options("")
    assert "ssl" not in options("")
    assert options("?ssl-mode=disabled") == options("") | {"ssl_disabled": True}
    with pytest.raises(ConfigError, match="disabled, preferred, required, verify_ca"):
        options("?ssl-mode=off")


@pytest.mark.server
def test_the_env_file_fills_what_the_environment_does_not_set(tmp_path):
    shutil.copy(ROOT / "config.py", tmp_path)
    (tmp_path / ".env").write_text("PORT=1\nWEB_CONCURRENCY=3\n")
    code = (
        "from config import Config; c = Config.from_environment(); print(c.PORT, c.WEB_CONCURRENCY)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PORT": "2"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "2 3\n"


@pytest.mark.parametrize("name", ["SYSTEM_API_KEY", "SECRET_KEY", "SYSTEM_API_KEY_FALLBACKS"])
def test_a_key_that_cannot_be_seen_whole_is_refused_and_not_repeated(name):
    for bad in ("geheim\nx", "geheim\x00x", "geheim\u202ex", "geheim\udcffx"):
        with pytest.raises(ConfigError, match=f"^{name} must hold no") as failed:
            Config({name: bad})
        assert "geheim" not in str(failed.value)
    for good in ("a key", 'quo"te', "sla/sh", "100%41", "schlüssel"):
        Config({name: good})


def test_former_keys_are_separated_by_commas():
    config = Config({"SYSTEM_API_KEY_FALLBACKS": " a key, b ,,", "SECRET_KEY_FALLBACKS": "x"})
    assert (config.SYSTEM_API_KEY_FALLBACKS, config.SECRET_KEY_FALLBACKS) == (["a key", "b"], ["x"])
