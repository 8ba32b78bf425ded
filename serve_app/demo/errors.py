"""The ways a demo run can end early. Every message is one sentence that a person can act on.

    DemoError
    ├── SourceError          the recording cannot be used
    └── ServiceError         the service cannot be used
        ├── Unreachable      nothing answers at the address
        ├── Refused          it answers, and asking again would not help (401, 403, 404, 422)
        └── UnexpectedReply  it answers something this client does not understand

`WindowFailed` stands apart: one window was lost, the run goes on and counts it.
"""

from __future__ import annotations


class DemoError(Exception):
    """A run that cannot start or cannot go on."""


class SourceError(DemoError):
    """The recording cannot be used."""


class ServiceError(DemoError):
    """The service cannot be used."""


class Unreachable(ServiceError):
    """Nothing answers at the service's address."""


class Refused(ServiceError):
    """The service turned the request down for good."""


class UnexpectedReply(ServiceError):
    """The service answered something that does not follow its contract."""


class WindowFailed(Exception):
    """One window was not acknowledged; the next one may be."""
