"""The names of users and groups, asked once for each number.

A number without a name is the empty string, never an error: a volume's numbers belong to the
pod's image, and this machine need not know them.
"""

import grp
import pwd


class NameCache:
    """Names by number; any thread may ask, a race costs one more look-up."""

    def __init__(self) -> None:
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def user(self, uid: int) -> str:
        """Return the user's name, or "" if this machine knows none."""
        name = self._users.get(uid)
        if name is None:
            try:
                name = pwd.getpwuid(uid).pw_name
            except (KeyError, OverflowError):
                name = ""
            self._users[uid] = name
        return name

    def group(self, gid: int) -> str:
        """Return the group's name, or "" if this machine knows none."""
        name = self._groups.get(gid)
        if name is None:
            try:
                name = grp.getgrgid(gid).gr_name
            except (KeyError, OverflowError):
                name = ""
            self._groups[gid] = name
        return name
