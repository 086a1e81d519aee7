# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The pages are all on the site, and what they say of files and names is so.

`tox -e docs` builds the site; nothing of Sphinx is needed here.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import etcd_rendezvous

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "etcd_rendezvous"
SVG = "{http://www.w3.org/2000/svg}"
# Of a module, a folder of modules: `_live/node.py`, `_v3/`.
FILE = re.compile(r"_\w+(?:/\w+\.py|\.py|/)")


def read(page):
    return (DOCS / page).read_text("utf-8")


def test_the_list_and_the_table_of_contents():
    """
    The map of the docs lists the same pages in words as in the site's table of
    contents, in the same order and under the same headings.
    """
    words, _, contents = read("index.md").partition("```{toctree}")
    listed = [
        (heading, re.findall(r"^- \[[^]]+\]\((\S+)\.md\)", section, re.MULTILINE))
        for heading, section in re.findall(
            r"^## (.*)\n((?:(?!^## ).*\n)*)", words, re.MULTILINE
        )
    ]
    in_contents = [
        (caption, re.findall(r"^(?:\w+ <)?([^\s>]+)>?$", entries, re.MULTILINE))
        for caption, entries in re.findall(
            r":hidden:\n:caption: ([^\n]*)\n\n(.*?)```", contents, re.DOTALL
        )
    ]

    assert listed == in_contents
    assert 5 == len(listed)


def test_every_page_is_in_a_list():
    """
    Every page is listed, README, CONTRIBUTING and CHANGELOG included.
    """
    listed = re.findall(r"^- \[[^]]+\]\((\S+\.md)\)", read("index.md"), re.MULTILINE)
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"}

    assert len(listed) == len(set(listed))
    assert pages | {"../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md"} == set(
        listed
    )


def test_the_reference_has_every_public_name():
    """
    The reference documents all public names, each once, and no others.
    """
    named = re.findall(
        r"^\.\. (?:auto\w+|py:data):: (\w+)$", read("reference.md"), re.MULTILINE
    )

    assert sorted(etcd_rendezvous.__all__) == sorted(named)


def test_the_map_of_files():
    """
    Every file that the page on how it works names, in its text and in its picture, is
    there; and every folder of the package.
    """
    page = read("how-it-works.md")
    (table,) = re.findall(r"^\| where … \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    drawn = [
        "".join(text.itertext())
        for text in ET.parse(DOCS / "architecture.svg").iter(f"{SVG}text")
        if text.get("class") == "file"
    ]
    in_table = re.findall(r"`([^`]+)`", table)
    files = {name for name in in_table if FILE.fullmatch(name)}
    folders = {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }

    assert {name for name in in_table if name.endswith(".py")} <= files
    assert [] == [name for name in {*files, *drawn} if not (PACKAGE / name).exists()]
    assert 30 < len(files)
    assert 6 < len(drawn)
    assert folders <= set(re.findall(r"`(_\w+)`", page))


@pytest.mark.parametrize(
    "start",
    ["a lost reply", "a setting", "a round is completed", "v2 is spoken", "an error's"],
)
def test_questions_of_a_cold_reader(start):
    """
    The map answers what someone asks who has never seen the code.
    """
    assert re.search(
        rf"^\| {start}[^|]* \| .*`_\w+[\w/]*\.py`",
        read("how-it-works.md"),
        re.MULTILINE,
    )


def test_words_of_who_waits():
    """
    The lines that the page on trouble begins with are said so: the tables that follow,
    of which every row is produced by a test, have them.
    """

    def pattern(text):
        return re.sub(r"\d+", "N", text)

    guide, _, tables = read("errors.md").partition("## By the exact words")
    lines = re.findall(r"^- `([^`]+)`: ", guide, re.MULTILINE)

    assert 5 == len(lines)
    assert [] == [line for line in lines if pattern(line) not in pattern(tables)]


def test_the_picture_is_for_light_and_dark():
    """
    The picture paints its own ground, in both modes, and says what it shows.
    """
    root = ET.parse(DOCS / "architecture.svg").getroot()
    style = root.findtext(f"{SVG}style")
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    classes = {one.get("class", "").split(" ")[0] for one in root.iter(f"{SVG}rect")}

    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    assert all(f".{name} {{" in light and f".{name} {{" in dark for name in classes)
