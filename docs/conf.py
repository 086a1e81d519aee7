# SPDX-License-Identifier: BSD-3-Clause
"""
How Sphinx builds the site: `tox -e docs`.

The source is the whole repository, of which README, CONTRIBUTING and CHANGELOG are
pages too: a link between files is the same one on the site as where they are read.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import sys
import types

project = "etcd-rendezvous"
author = "The etcd-rendezvous authors"
project_copyright = author
version = release = importlib.metadata.version(project)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # Google-style docstrings
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"]
# Folders without pages: Sphinx would look through them, virtual environments included.
exclude_patterns = [".*", "benchmarks", "build", "dist", "examples", "src", "tests"]

# -- pages

myst_heading_anchors = 4  # Links to headings as they are written for GitHub.
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

# -- reference

default_role = "code"  # `like this` in a docstring is code.
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True  # Attributes in one list; a dataclass shows their types.
nitpicky = True
nitpick_ignore_regex = [
    # The standard library documents its own; its index is on the network.
    (
        r"py:class",
        r"(collections\.abc|contextlib|datetime|os|pathlib|socket|subprocess)\..*",
    ),
    # So does torch; docstrings call its errors by their names alone.
    (r"py:class", r"torch\..*"),
    (r"py:exc", r"(Rendezvous|Dist|QueueEmpty)\w*Error"),
    # The live handler is made by create_handler, which alone knows these.
    (
        r"py:class",
        r"etcd_rendezvous\._live\.(store\.AgentStore|settings\.LiveSettings)",
    ),
]

# -- look

html_theme = "furo"
html_title = f"{project} {version}"
html_extra_path = ["root"]  # A start page that leads to docs/.


class _WithoutTorch:
    """
    Stand in for torch, which is large: there are modules, with empty classes in them.

    What derives from a mock of autodoc's own would have the mock's signature.
    """

    @staticmethod
    def find_spec(name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "torch":
            return None
        return importlib.machinery.ModuleSpec(name, _WithoutTorch, is_package=True)

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)

        def make(name: str) -> type | types.ModuleType:
            if name.startswith("__"):
                raise AttributeError(name)
            if name.islower():  # a module, as all of torch's that we use
                return importlib.import_module(f"{spec.name}.{name}")
            # RUNNING: a value of torch's that is a default of ours.
            made = type(name, (), {"__module__": spec.name, "RUNNING": None})
            setattr(module, name, made)
            return made

        module.__getattr__ = make
        return module

    @staticmethod
    def exec_module(_: types.ModuleType) -> None:
        """
        There is nothing to run.
        """


sys.meta_path.insert(0, _WithoutTorch)
