# SPDX-License-Identifier: BSD-3-Clause
"""
Who we are to etcd: a user's name and password, and where they are found.

No network and no torch. The password is in no repr and in no error.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ._errors import EtcdSettingError

__all__ = [
    "PASSWORD_FILE_VARIABLE",
    "PASSWORD_VARIABLE",
    "USER_VARIABLE",
    "Credentials",
    "credentials_of",
    "find_credentials",
    "refuse_pipe",
]

USER_VARIABLE: Final = "ETCD_RENDEZVOUS_USER"
PASSWORD_VARIABLE: Final = "ETCD_RENDEZVOUS_PASSWORD"  # noqa: S105 (a name)
PASSWORD_FILE_VARIABLE: Final = "ETCD_RENDEZVOUS_PASSWORD_FILE"  # noqa: S105

# The least characters of a password that is taken out of what a server says: whatever
# is shorter is in many a word.
LEAST_SECRET: Final = 4


@dataclass(frozen=True)
class Credentials:
    """
    A user of etcd.

    Attributes:
        user: The user's name.
        password_file: The path of a file that holds the password; None where it was
            given itself. It is read anew at each use, so that a password can be
            changed while we run.
    """

    user: str
    _password: str | None = field(default=None, repr=False)
    password_file: str | None = None

    def password(self) -> str:
        """
        Return the password.

        Raises:
            EtcdSettingError: The file can't be read, or is empty.
        """
        if self.password_file is None:
            return self._password or ""
        try:
            refuse_pipe(self.password_file)
            # Editors of Windows begin a file with a mark of its encoding.
            text = Path(self.password_file).read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise EtcdSettingError(
                f"The password file {self.password_file} is no text in UTF-8."
            ) from None
        except (OSError, ValueError) as error:
            raise EtcdSettingError(
                f"The password file can't be read: {self.password_file} "
                f"({getattr(error, 'strerror', None) or error})."
            ) from error
        text = _without_line_break(text)
        if not text:
            raise EtcdSettingError(f"The password file {self.password_file} is empty.")
        return text


def refuse_pipe(path: str) -> None:
    """
    Refuse what has its text only once, and until then keeps us waiting.

    Args:
        path: The path of a file that is read again and again.

    Raises:
        OSError: It is there, but no regular file.
    """
    found = Path(path)
    if found.exists() and not (found.is_file() or found.is_dir()):
        raise OSError(errno.EINVAL, "it is no regular file")


def _without_line_break(text: str) -> str:
    """
    Return a password without the line break that editors and ``echo`` leave behind.
    """
    return text.removesuffix("\n").removesuffix("\r")


def credentials_of(
    user: str | None, password: str | None, password_file: str | None
) -> Credentials | None:
    """
    Put credentials together, and see that they are whole.

    Args:
        user: The user's name.
        password: The password.
        password_file: The path of a file that holds it, in its stead.

    Returns:
        The credentials; None where nothing is given.

    Raises:
        EtcdSettingError: One is there without the other, there are two passwords, or
            the file can't be read.
    """
    if not (user or password or password_file):
        return None
    if not user:
        raise EtcdSettingError(
            "There is a password for etcd, but no user; name one with 'user', or "
            f"under a launcher in {USER_VARIABLE}."
        )
    if ":" in user:
        # As etcdctl takes both; a user's name is logged.
        raise EtcdSettingError(
            "There is a colon in the user for etcd: name the user alone, and the "
            f"password's file with 'password_file', or under a launcher set "
            f"{PASSWORD_VARIABLE}. What was given is not shown."
        )
    if not (password or password_file):
        raise EtcdSettingError(
            f"There is a user for etcd, '{user}', but no password; name its file with "
            f"'password_file', or under a launcher set {PASSWORD_VARIABLE}."
        )
    if password and password_file:
        raise EtcdSettingError(
            "There are two passwords for etcd, one of them in the file "
            f"{password_file}; leave one out."
        )
    try:
        f"{user}{password or ''}".encode()
    except UnicodeEncodeError:
        raise EtcdSettingError(
            "The user or the password for etcd is no text in UTF-8."
        ) from None
    found = Credentials(user, password or None, password_file or None)
    found.password()
    return found


def find_credentials(
    user: str | None, password_file: str | None, environ: Mapping[str, str]
) -> Credentials | None:
    """
    Find credentials in the settings, and in the environment what they leave open.

    Args:
        user: The setting of that name.
        password_file: The setting of that name.
        environ: The environment variables.

    Raises:
        EtcdSettingError: As of :func:`credentials_of`.
    """
    password = None
    if not password_file:
        password = _without_line_break(environ.get(PASSWORD_VARIABLE, ""))
        password_file = environ.get(PASSWORD_FILE_VARIABLE)
    return credentials_of(user or environ.get(USER_VARIABLE), password, password_file)
