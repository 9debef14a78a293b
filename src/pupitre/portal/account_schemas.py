"""The JSON of the REST API about people: accounts, sign-ins, locks; each shape beside the function that fills it."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from pupitre.config import Settings
from pupitre.domain.people import username
from pupitre.domain.people.access import Role, User
from pupitre.domain.people.sign_in import warning
from pupitre.domain.people.throttle import Counted, Tally
from pupitre.errors import Invalid
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.schemas import moment
from pupitre.runtime.clock import now_ms

MAX_NAME, MAX_PASSWORD = 255, 4096
"""Characters that may be sent; what is longer than a name or password may be is refused in words."""


def _as_value_error(check: Callable[[str], str]) -> Callable[[str], str]:
    def checked(text: str) -> str:
        try:
            return check(text)
        except Invalid as error:
            raise ValueError(error.reason) from error

    return checked


Name = Annotated[str, StringConstraints(max_length=MAX_NAME), AfterValidator(_as_value_error(username.checked))]
DisplayName = Annotated[
    str, StringConstraints(max_length=MAX_NAME), AfterValidator(_as_value_error(username.checked_display))
]
Password = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PASSWORD)]
"""What may be sent as one; a new one that is longer than a password may be is refused in words."""


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)]
    password: Password


class Token(BaseModel):
    """Send it as ``Authorization: Bearer …``. It cannot be read again."""

    token: str
    expires: datetime


class SessionOut(BaseModel):
    """``expires``: when the sign-in ends; ``latest``: when it does however often it is extended, null of a token.

    ``warn_s`` seconds before its end people should be warned. ``now`` is this server's clock.
    """

    now: datetime
    expires: datetime
    latest: datetime | None
    warn_s: float


class SessionExtended(SessionOut):
    screens: list[str]


class LockOut(BaseModel):
    """``counted`` says by what failures were counted; ``name`` or ``address`` is null where it does not matter.

    Of a browser (``device``) there is no address.
    """

    id: str
    counted: Counted
    name: str | None
    address: str | None
    failures: int
    until: datetime


class UserOut(BaseModel):
    """``name`` is what they type to sign in, capitals or not; ``display_name`` how pages show them, empty for none."""

    id: str
    name: str
    role: Role
    display_name: str


class UserChange(BaseModel):
    """Change of a user; a field that is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")
    role: Role | None = None
    display_name: DisplayName | None = None


class UserRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Name
    role: Role
    password: Password
    display_name: DisplayName = ""


def session_out(caller: Caller, settings: Settings) -> SessionOut:
    return SessionOut(
        now=moment(now_ms()),
        expires=moment(caller.until),
        latest=moment(caller.since + settings.session_most_ms) if caller.browser else None,
        warn_s=warning(settings.session_ms) / 1000,
    )


def lock_out(lock: Tally) -> LockOut:
    counter = lock.counter
    return LockOut(
        id=counter.id,
        counted=counter.kind,
        name=counter.name or None,
        address=(counter.address or None) if counter.kind is not Counted.DEVICE else None,
        failures=lock.failures,
        until=moment(lock.until),
    )


def user_out(user: User) -> UserOut:
    return UserOut(id=user.id, name=user.name, role=user.role, display_name=user.display_name)
