"""Every error a caller can get: its status and its message, declared once."""

import random
from typing import Any


class ApiError(Exception):
    """Base of the errors returned as JSON: `status`, `message`, and `errors`, which maps field
    names to messages; `headers` are added to the response. Not raised directly."""

    status = 500
    message = "Internal server error"

    def __init__(
        self,
        message: str | None = None,
        *,
        errors: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.message = message or self.message
        self.errors = errors
        self.headers = headers or {}
        super().__init__(self.message)


class Unauthorized(ApiError):
    status, message = 401, "Unauthorized"


class MissingCredentials(ApiError):
    status, message = 401, "Missing or invalid credentials"


class InvalidApiKey(ApiError):
    status, message = 401, "Invalid api_key"


class InvalidIngestKey(ApiError):
    status, message = 401, "Invalid ingest_key"


class InvalidSignature(ApiError):
    status, message = 401, "Invalid signature"


class UserIdRequired(ApiError):
    status, message = 400, "user_id is required with api_key"


class TargetUserNotFound(ApiError):
    status, message = 404, "Target user not found or inactive"


class ManagerInactive(ApiError):
    status, message = 403, "Manager inactive. Contact support."


class BadRequest(ApiError):
    """A parameter or the body does not have the documented shape."""

    status, message = 400, "Bad request"


class DailyLimitReached(ApiError):
    status, message = 429, "Daily number limit reached"


class NoNumberReceived(ApiError):
    status, message = 404, "No number received"


class UnableToGetNumber(ApiError):
    status, message = 500, "Unable to get number"


class _Later(ApiError):
    """An error that passes: who asks again after Retry-After may be lucky."""

    def __init__(self) -> None:
        # Spread, so that those who come together do not come back together
        super().__init__(headers={"Retry-After": str(random.randint(5, 15))})


class NumbersBusy(_Later, UnableToGetNumber):
    """As many calls as may are waiting for the main server, in all or of this user."""

    status = 503


class CountriesUnavailable(ApiError):
    status, message = 500, "Could not fetch service data"


class SystemConfigurationError(ApiError):
    status, message = 500, "System configuration error"


class ServiceFetchFailed(ApiError):
    status, message = 500, "Service fetch failed"


class InitBusy(_Later, ServiceFetchFailed):
    """The same for init."""

    status = 503


class TooManyTries(ApiError):
    status, message = 429, "Too many tries."


class StillSending(TooManyTries):
    """A user sends one webhook by hand at a time, in each process."""

    message = "A webhook of yours is still being sent. Try again in a moment."


class AwaitingApproval(ApiError):
    """The key is right, but its user is not approved yet."""

    status, message = 403, "Your account is awaiting approval. Your operator can tell you more."


class FormExpired(ApiError):
    status, message = 400, "This form has expired or is not ours. Load the page again."


class NotFound(ApiError):
    status, message = 404, "There is no such page."


class Busy(_Later):
    """No database connection became free in time."""

    status, message = 503, "The service is busy. Try again in a moment."


class SchemaNotCurrent(ApiError):
    """The code is newer than the tables."""

    status, message = 503, "The database schema is not current: run `flask db upgrade`"


class Unhealthy(ApiError):
    status, message = 503, "Service unavailable"


class MainServerRefused(ApiError):
    """The main server answered init with an error; its status and message are passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
