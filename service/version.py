"""The version of this service, told by /openapi.json, `flask version` and the User-Agent."""

VERSION = "1.0.0"
