# SPDX-License-Identifier: BSD-3-Clause
"""
The package as users get it: built once, and installed where nothing else is.

These tests install from an index, so that only ``tox -e dist`` runs them, or
``pytest tests/package``.
"""

from __future__ import annotations

import sys

import pytest

from support.package import ROOT, Built, Pipx, run


def _build(folder, *options):
    # What builds them is in this environment; that [build-system] names all of it,
    # tox shows when it builds the package for its other environments.
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder, *options, ROOT)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """
    The sdist of this checkout, and the wheel of that sdist.
    """
    folder = tmp_path_factory.mktemp("built")
    _build(folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="session")
def wheel_of_the_checkout(tmp_path_factory):
    """
    A wheel of this checkout, without an sdist in between.
    """
    folder = tmp_path_factory.mktemp("wheel")
    _build(folder, "--wheel")
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def bare(built, tmp_path_factory):
    """
    The Python of an environment with the wheel and no extra.
    """
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", f"--python={python}", "install", built.wheel)
    return python


@pytest.fixture(scope="session")
def pipx(tmp_path_factory):
    return Pipx(tmp_path_factory.mktemp("pipx"))
