# SPDX-License-Identifier: BSD-3-Clause
"""
User and password: where they are found, and that nobody sees the password.
"""

from __future__ import annotations

import os

import pytest

from etcd_rendezvous import EtcdClient, EtcdSettingError
from etcd_rendezvous._credentials import (
    PASSWORD_FILE_VARIABLE,
    PASSWORD_VARIABLE,
    USER_VARIABLE,
)
from etcd_rendezvous._settings import parse_settings

SECRET = "xyzzy-42"


@pytest.fixture
def file(tmp_path):
    """
    A file that holds the password.
    """
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    return path


def found(config=None, endpoint="localhost", **environ):
    return parse_settings(endpoint, config or {}, startup_timeout=0, environ=environ)


def refusal(config=None, **environ):
    with pytest.raises(EtcdSettingError) as caught:
        found(config, **environ)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_nobody():
    """
    Without a user, and with variables that are empty, there are no credentials.
    """
    assert found().credentials is None
    empty = {USER_VARIABLE: "", PASSWORD_VARIABLE: "", PASSWORD_FILE_VARIABLE: ""}
    assert found(**empty).credentials is None


def test_from_the_environment(file):
    """
    User and password, or the password's file, are found in the environment.
    """
    who = found(**{USER_VARIABLE: "alice", PASSWORD_VARIABLE: SECRET}).credentials
    assert (who.user, who.password(), who.password_file) == ("alice", SECRET, None)

    # As a Kubernetes secret has it that was made with `echo`.
    who = found(
        **{USER_VARIABLE: "alice", PASSWORD_VARIABLE: SECRET + "\n"}
    ).credentials
    assert who.password() == SECRET

    environ = {USER_VARIABLE: "alice", PASSWORD_FILE_VARIABLE: str(file)}
    who = found(**environ).credentials
    assert ("alice", SECRET, str(file)) == (who.user, who.password(), who.password_file)


def test_settings_come_first(file):
    """
    What the settings say wins over the environment.
    """
    config = {"user": "bob", "password_file": str(file)}
    other = {USER_VARIABLE: "alice", PASSWORD_VARIABLE: "another"}

    who = found(config, **other).credentials
    assert (who.user, who.password()) == ("bob", SECRET)


def test_file_is_read_anew(file):
    """
    A password that is changed in its file is the new one from then on.
    """
    who = found({"user": "alice", "password_file": str(file)}).credentials
    file.write_text("other\r\n")
    assert who.password() == "other"
    file.write_text("two\nlines\n\n")
    assert who.password() == "two\nlines\n"
    # As editors of Windows write it.
    file.write_bytes(b"\xef\xbb\xbfmarked\r\n")
    assert who.password() == "marked"
    file.unlink()
    with pytest.raises(EtcdSettingError, match="password file can't be read"):
        who.password()


def test_halves_are_refused(file):
    """
    A user without a password, a password without a user, and two passwords.
    """
    assert "'alice', but no password" in refusal(**{USER_VARIABLE: "alice"})
    assert PASSWORD_VARIABLE in refusal({"user": "alice"})
    for environ in (
        {PASSWORD_VARIABLE: SECRET},
        {PASSWORD_FILE_VARIABLE: str(file)},
    ):
        said = refusal(**environ)
        assert "a password for etcd, but no user" in said
        assert USER_VARIABLE in said
    two = {
        USER_VARIABLE: "alice",
        PASSWORD_VARIABLE: SECRET,
        PASSWORD_FILE_VARIABLE: str(file),
    }
    assert "two passwords" in refusal(**two)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff", "text"),
    ],
)
def test_file_that_is_no_use(tmp_path, content, words):
    """
    A file that is not there, empty or no text is refused with its path.
    """
    path = tmp_path / "it"
    if content is not None:
        path.write_bytes(content)
    said = refusal({"user": "alice", "password_file": str(path)})

    assert str(path) in said
    assert words in said


def test_file_that_can_be_read_once_alone(tmp_path):
    """
    A pipe is refused, and not waited for.
    """
    path = tmp_path / "pipe"
    os.mkfifo(path)
    said = refusal({"user": "alice", "password_file": str(path)})

    assert f"can't be read: {path} (it is no regular file)" in said


def test_user_and_password_in_one():
    """
    What etcdctl takes as a user, with the password, is refused and not shown.
    """
    both = f"alice:{SECRET}"

    assert "a colon in the user" in refusal({"user": both})
    assert "is not shown" in refusal(**{USER_VARIABLE: both, PASSWORD_VARIABLE: "x"})


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("localhost", False),
        ("127.0.0.1:1,[::1]", False),
        ("https://etcd-1", False),
        ("etcd-1", True),
        ("https://etcd-1,http://10.0.0.1", True),
    ],
)
def test_clear_text(endpoint, warned):
    """
    A password that would leave the machine in clear text is warned of.
    """
    environ = {USER_VARIABLE: "alice", PASSWORD_VARIABLE: SECRET}
    notes = found(endpoint=endpoint, **environ).notes

    assert warned == any("in clear text" in note for note in notes)
    assert not found(endpoint=endpoint).notes


def test_nobody_sees_the_password(file):
    """
    It is in no repr and in no log line; user and file are.
    """
    settings = found(**{USER_VARIABLE: "alice", PASSWORD_VARIABLE: SECRET})
    client = EtcdClient("localhost", user="alice", password=SECRET)
    from_file = found({"user": "alice", "password_file": str(file)})

    shown = [
        repr(settings),
        repr(settings.credentials),
        settings.in_words("v3"),
        repr(client),
        repr(vars(client)),
        repr(vars(client._transport)),
        repr(from_file),
        from_file.in_words("v3"),
    ]
    assert all(SECRET not in text for text in shown)
    assert "user=alice" in settings.in_words("v3")
    assert f"user=alice, password_file={file}" in from_file.in_words("v3")


def test_of_a_client(file):
    """
    A client takes them as arguments, and refuses halves, too; it reads no variables.
    """
    EtcdClient("localhost", user="alice", password=SECRET)
    EtcdClient("localhost", user="alice", password_file=str(file))
    for half in (
        {"user": "alice"},
        {"password": SECRET},
        {"password_file": str(file)},
        {"user": "alice", "password": SECRET, "password_file": str(file)},
    ):
        with pytest.raises(EtcdSettingError) as caught:
            EtcdClient("localhost", **half)
        assert SECRET not in str(caught.value)


def test_what_is_no_text():
    """
    Bytes of the environment that are no UTF-8 are refused, and not shown.
    """
    odd = b"secret-\xff".decode("utf-8", "surrogateescape")
    said = refusal(**{USER_VARIABLE: "alice", PASSWORD_VARIABLE: odd})

    assert "no text in UTF-8" in said
    assert "secret" not in said
