"""Access policy: one for pages, REST and CLI."""

from dataclasses import dataclass
from enum import StrEnum

from pupitre.domain.command import Command
from pupitre.domain.desktop import Desktop


class Role(StrEnum):
    ADMIN = "admin"
    TEACHER = "teacher"
    STUDENT = "student"


@dataclass(frozen=True, slots=True)
class User:
    """Someone with an account. ``id`` never changes; ``name`` is what they type (see `pupitre.domain.people.username`).

    ``display_name`` is how pages show them; empty where that is their sign-in name.
    """

    id: str
    name: str
    role: Role
    display_name: str = ""

    @property
    def title(self) -> str:
        """Name that people read."""
        return self.display_name or self.name


def may_see_desktop(user: User, desktop: Desktop) -> bool:
    """Own desktops only: what one may not see must look as if it did not exist."""
    return desktop.owner == user.id


def may_see_command(user: User, command: Command) -> bool:
    """Own commands only, as with desktops."""
    return command.user == user.id


def may_manage_users(user: User) -> bool:
    return user.role is Role.ADMIN


def may_manage_hosts(user: User) -> bool:
    """Hosts, and the cluster as a whole."""
    return user.role is Role.ADMIN


def may_edit_images(user: User) -> bool:
    """Permission to start a desktop on a host where images are edited."""
    return user.role in {Role.ADMIN, Role.TEACHER}


def may_read_audit(user: User) -> bool:
    return user.role is Role.ADMIN
