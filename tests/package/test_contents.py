# SPDX-License-Identifier: BSD-3-Clause
"""
What is in the sdist and in the wheel.
"""

from __future__ import annotations

import email.parser
import sys
import tarfile
import zipfile

from support.package import ROOT, run

# What hatchling adds of itself.
OF_HATCHLING = {"PKG-INFO"}


def contents(wheel):
    """
    Return the files of a wheel, by name.
    """
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def checked_in():
    """
    Return the names of the files that belong to the project.
    """
    done = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    )
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def info(built):
    """
    Return the name of the folder of metadata in the wheel.
    """
    name, version, *_ = built.wheel.name.split("-")
    return f"{name}-{version}.dist-info"


def test_the_wheel_has_the_package_alone(built):
    """
    The wheel has all modules, the mark of types, the licence and the metadata: no
    tests, no benchmarks, nothing else.
    """
    modules = {
        name.removeprefix("src/")
        for name in checked_in()
        if name.startswith("src/etcd_rendezvous/")
    }
    metadata = {
        f"{info(built)}/{name}"
        for name in (
            *("METADATA", "RECORD", "WHEEL", "entry_points.txt"),
            "licenses/LICENSE",
        )
    }

    found = contents(built.wheel)

    assert found.keys() == modules | metadata
    assert "etcd_rendezvous/py.typed" in found
    assert found[f"{info(built)}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"Root-Is-Purelib: true" in found[f"{info(built)}/WHEEL"]
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_has_what_is_checked_in(built):
    """
    The sdist has no stray file, and all that is needed to build and to test.
    """
    with tarfile.open(built.sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {name for name in checked_in() if name.split("/")[0] in ("src", "tests")}

    assert names - OF_HATCHLING <= checked_in()
    assert needed <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "tox.ini"} <= names


def test_wheels_of_sdist_and_checkout_are_equal(built, wheel_of_the_checkout):
    """
    Who builds from the sdist gets byte for byte what the checkout gives.
    """
    assert contents(built.wheel) == contents(wheel_of_the_checkout)


def test_metadata(built):
    """
    The metadata says what the package is; torch is no part of a plain install.
    """
    text = contents(built.wheel)[f"{info(built)}/METADATA"].decode()
    said = email.parser.Parser().parsestr(text)
    plain = [one for one in said.get_all("Requires-Dist") if "extra ==" not in one]
    tested = {"3.10", "3.11", "3.12", "3.13"}

    assert said["Name"] == "etcd-rendezvous"
    assert said["License-Expression"] == "BSD-3-Clause"
    assert said["License-File"] == "LICENSE"
    assert said["Requires-Python"] == ">=3.10"
    assert said["Description-Content-Type"] == "text/markdown"
    assert {"cli", "demo", "etcd"} == set(said.get_all("Provides-Extra"))
    assert {"python-etcd", "urllib3"} == {
        one.split("<")[0].split("!")[0].split(">")[0] for one in plain
    }
    assert "Typing :: Typed" in said.get_all("Classifier")
    assert tested == {
        one.rpartition(" ")[2]
        for one in said.get_all("Classifier")
        if one.startswith("Programming Language :: Python :: 3.")
    }


def test_twine(built):
    """
    The description renders, and the metadata is sound.
    """
    checked = run(
        *(sys.executable, "-m", "twine", "check", "--strict"), built.sdist, built.wheel
    )

    assert checked.stdout.count("PASSED") == 2
