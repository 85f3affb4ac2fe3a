"""Every address that the IANA or a cloud reserves, to its edges, in every spelling."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from service.webhooks import guard
from service.webhooks.special_addresses import CLOUDS, SPECIAL_V4, SPECIAL_V6

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# The registries as they are, with the entries that are parts of others
_REGISTERED_V4 = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12
192.0.0.0/24 192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32
192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.88.99.2/32
192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
255.255.255.255/32 224.0.0.0/4
"""
REGISTERED_V4 = _REGISTERED_V4.split()
_REGISTERED_V6 = """
::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28
2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16
fc00::/7 fe80::/10 ff00::/8 fec0::/10
"""
REGISTERED_V6 = _REGISTERED_V6.split()
# Where the clouds serve credentials to their machines: AWS, Azure, Google, DigitalOcean, Hetzner,
# OpenStack, Oracle, Alibaba, Tencent, ECS tasks, EKS pods, and the IPv6 ones of AWS and Google
_METADATA = """
169.254.169.254 168.63.129.16 192.0.0.192 100.100.100.200 169.254.0.23 169.254.10.10
169.254.170.2 169.254.170.23 169.254.42.42 fd00:ec2::254 fd00:ec2::23 fd20:ce::254
fd00:c1::a9fe:a9fe
"""
METADATA = _METADATA.split()


@pytest.fixture(autouse=True)
def public(make_app):
    """No private network is allowed."""
    with make_app(WEBHOOK_ALLOWED_NETWORKS="", WEBHOOK_REQUIRE_HTTPS=0).app_context():
        yield


def edges(network):
    return network[0], network[-1]


def neighbours(networks, kind):
    """The addresses beside the edges that are in none of the networks."""
    known = [ip_network(text) for text in networks]
    highest = kind("255.255.255.255" if kind is IPv4Address else "f" * 4 + ":ffff" * 7)
    for network in known:
        for beside in (int(network[0]) - 1, int(network[-1]) + 1):
            if 0 <= beside <= int(highest) and not any(kind(beside) in other for other in known):
                yield kind(beside)


def spellings(ip):
    """URLs that reach an address; of IPv4, everything that the C library's inet_aton() reads."""
    if ip.version == 6:
        yield f"http://[{ip}]/"
        yield f"http://[{ip.exploded.upper()}]/"
        return
    number, (a, b, c, d) = int(ip), ip.packed
    yield f"http://{ip}/"
    yield f"http://{number}/"
    yield f"http://{number:#x}/"
    yield f"http://0{number:o}/"
    yield f"http://{a:#x}.{b:#o}.{c * 256 + d}/".replace("0o", "0")
    yield f"http://{a}.{number & 0xFFFFFF}/"
    yield f"http://[::ffff:{ip}]/"
    yield f"http://[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]/"
    yield f"http://[64:ff9b::{ip}]/"
    yield f"http://[64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}]/"


def is_refused(url):
    try:
        guard.check_url(url)
    except guard.ForbiddenUrl as e:
        assert "public internet" in str(e), (url, str(e))
        return True
    return False


@pytest.mark.parametrize("network", [*REGISTERED_V4, *REGISTERED_V6, *CLOUDS])
def test_a_registered_address_is_refused_in_every_spelling(network):
    for ip in edges(ip_network(network)):
        for url in spellings(ip):
            assert is_refused(url), url
        assert not guard.may_dial(str(ip))


@pytest.mark.parametrize("address", METADATA)
def test_the_metadata_of_clouds_is_refused_in_every_spelling(address):
    for url in spellings(ip_address(address)):
        assert is_refused(url), url


def test_the_tables_have_every_entry_of_the_registries():
    tables = [ip_network(text) for text in SPECIAL_V4 | SPECIAL_V6]
    for text in REGISTERED_V4 + REGISTERED_V6:
        network = ip_network(text)
        same = [table for table in tables if table.version == network.version]
        assert any(network.subnet_of(table) for table in same), text


@pytest.mark.parametrize("ip", [*neighbours([*SPECIAL_V4, *CLOUDS], IPv4Address)], ids=str)
def test_the_address_beside_a_registered_one_is_allowed(ip):
    for url in spellings(ip):
        assert not is_refused(url), url


@pytest.mark.parametrize("ip", [*neighbours(SPECIAL_V6, IPv6Address)], ids=str)
def test_of_ipv6_only_global_unicast_is_allowed(ip):
    is_global = ip in ip_network("2000::/3")
    is_embedding = any(ip in ip_network(n) for n in ("::ffff:0:0/96", "64:ff9b::/96"))
    if not is_embedding:  # there, the IPv4 address decides
        assert is_refused(f"http://[{ip}]/") is not is_global


def test_the_guard_asks_no_table_of_python(monkeypatch):
    """They differ: 3.11.7 takes 192.0.0.192 for a global address."""
    for kind in (IPv4Address, IPv6Address):
        for name in ("is_global", "is_private", "is_reserved", "is_link_local", "is_loopback"):
            monkeypatch.setattr(kind, name, property(lambda self: 1 / 0))
    assert not guard.may_dial("192.0.0.192") and not guard.may_dial("fd00:ec2::254")
    assert guard.may_dial("8.8.8.8") and guard.may_dial("2606:4700:4700::1111")
