"""The addresses that no webhook may reach, as the IANA and the clouds list them."""

from ipaddress import IPv4Network, IPv6Network

# https://www.iana.org/assignments/iana-ipv4-special-registry, as of 2026-11, and multicast. Refused
# whether reachable from everywhere or not: no receiver lives in any of them. A list of our own,
# since Python's differs from one version to the next
SPECIAL_V4 = {
    "0.0.0.0/8": "this network (RFC 791)",
    "10.0.0.0/8": "private use (RFC 1918)",
    "100.64.0.0/10": "shared address space (RFC 6598)",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "169.254.0.0/16": "link local (RFC 3927)",
    "172.16.0.0/12": "private use (RFC 1918)",
    # DS-Lite, the dummy address, PCP and TURN anycast, NAT64 discovery are parts of this one
    "192.0.0.0/24": "IETF protocol assignments (RFC 6890)",
    "192.0.2.0/24": "documentation, TEST-NET-1 (RFC 5737)",
    "192.31.196.0/24": "AS112-v4 (RFC 7535)",
    "192.52.193.0/24": "AMT (RFC 7450)",
    "192.88.99.0/24": "6to4 relay anycast (RFC 7526)",
    "192.168.0.0/16": "private use (RFC 1918)",
    "192.175.48.0/24": "direct delegation AS112 service (RFC 7534)",
    "198.18.0.0/15": "benchmarking (RFC 2544)",
    "198.51.100.0/24": "documentation, TEST-NET-2 (RFC 5737)",
    "203.0.113.0/24": "documentation, TEST-NET-3 (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved, and the limited broadcast (RFC 1112, RFC 919)",
}

# https://www.iana.org/assignments/iana-ipv6-special-registry, as of 2026-11, and what else is no
# global unicast. The mapped addresses and NAT64's are not here: the IPv4 address in them decides
SPECIAL_V6 = {
    "::/96": "unspecified, loopback, IPv4-compatible (RFC 4291)",
    "::ffff:0:0:0/96": "IPv4-translated (RFC 2765)",
    "64:ff9b:1::/48": "local-use IPv4/IPv6 translation (RFC 8215)",
    "100::/64": "discard only (RFC 6666)",
    "100:0:0:1::/64": "dummy prefix (RFC 9780)",
    # Teredo, benchmarking, AMT, AS112-v6, ORCHID, ORCHIDv2 and DRIP are parts of this one
    "2001::/23": "IETF protocol assignments (RFC 2928)",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4 (RFC 3056)",
    "2620:4f:8000::/48": "direct delegation AS112 service (RFC 7534)",
    "3fff::/20": "documentation (RFC 9637)",
    "5f00::/16": "segment routing (RFC 9602)",
    "fc00::/7": "unique local (RFC 4193)",
    "fe80::/10": "link local (RFC 4291)",
    "fec0::/10": "site local (RFC 3879)",
    "ff00::/8": "multicast (RFC 4291)",
}

# Where clouds serve credentials to their machines on a public address. The other such services are
# at 169.254.169.254 and other link-local addresses, 100.100.100.200, 192.0.0.192 and fd00:ec2::254
CLOUDS = {"168.63.129.16/32": "Azure's wire server"}

# Of IPv6, global unicast is all that the IANA has given out (RFC 4291, 2.4)
GLOBAL_V6 = IPv6Network("2000::/3")
# The last 32 bits are an IPv4 address: mapped (RFC 4291, 2.5.5.2), and NAT64 (RFC 6052)
EMBEDDING = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")

FORBIDDEN_V4 = tuple(IPv4Network(network) for network in SPECIAL_V4 | CLOUDS)
FORBIDDEN_V6 = tuple(IPv6Network(network) for network in SPECIAL_V6)
