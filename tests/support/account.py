# SPDX-License-Identifier: BSD-3-Clause

"""
What becomes of every block of code on README and on the pages of docs.

`tests/docs/test_blocks.py` holds this against the pages: a block that is not here
fails a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from .pages import PAGES, Block, blocks


@dataclass(frozen=True)
class Fate:
    """
    What becomes of a block.

    Attributes:
        test: The test that reads it from the page, as `FILE::FUNCTION` below `tests`;
            empty if there is none.
        reason: Why it is not run as it stands there; empty if it is. A test may be
            named all the same: one that does as the block says, or looks at it.
    """

    test: str = ""
    reason: str = ""


# -- tests that take their blocks from here

#: It is run by this interpreter; `HOST:2379` is an etcd.
PYTHON = Fate("docs/test_python.py::test_python_of_the_pages")
#: It is a command that starts examples/train.py, on as many nodes as it wants.
JOB = Fate("docs/test_jobs.py::test_jobs_of_the_pages")
#: It calls etcd-rendezvous to look at a run, or to end it; what it prints is an example.
COMMAND = Fate("docs/test_commands.py::test_commands_of_the_pages")

# -- others

PIP = Fate(reason="It installs into whatever environment is active; tox and CI do so.")
BENCH = Fate(
    "etcd/test_benchmarks.py::test_a_part",
    "It takes up to an hour; the test measures the least that can be measured.",
)


def launchers(test: str) -> Fate:
    """
    Name a test of the launchers.
    """
    return Fate(f"torchrun/test_launchers.py::{test}")


#: By page and heading, in the order of the page.
ACCOUNT: dict[str, dict[str, list[Fate]]] = {
    "README.md": {
        "Try it": [
            Fate(
                "torchrun/test_demo.py::test_the_demo_shows_what_it_promises",
                "The test runs the demo, in an environment that has what pip brings.",
            ),
            Fate(reason="CI runs it as it is written here, see .ci/run."),
        ],
        "Use it in a job": [
            PIP,
            Fate(
                "etcd/test_serve.py::test_every_address_is_warned_of",
                "It would serve until Ctrl-C, on a port that may be taken.",
            ),
            JOB,
            JOB,
        ],
        "When it hangs": [COMMAND, COMMAND],
    },
    "doctor.md": {
        "Doctor": [
            COMMAND,
            Fate(
                "unit/test_doctor_judgements.py::test_the_example_of_the_page",
                "It is what is printed.",
            ),
        ],
        "For programs": [COMMAND],
    },
    "benchmarks.md": {
        "Benchmarks": [BENCH],
        "Do it yourself": [BENCH, BENCH],
    },
    "errors.md": {
        'My job hangs with "Waiting to join"': [COMMAND, COMMAND],
    },
    "kubernetes.md": {
        "Kubernetes": [
            Fate(
                "etcd/test_kubernetes.py::test_documents_are_what_kubernetes_knows",
                "It needs a cluster; what is applied is held against its schemas.",
            )
        ],
        "Users": [
            Fate(
                "etcd/test_kubernetes.py::test_the_pages_commands_of_etcdctl",
                "It needs a cluster; what etcdctl does is what security.md says.",
            )
        ],
        "PyTorchJob": [
            Fate(
                "docs/test_blocks.py::test_the_job_for_kubeflow",
                "It needs a cluster; its policy is read as torchrun would.",
            )
        ],
    },
    "launchers.md": {
        "torchrun": [
            launchers("test_command_of_the_page"),
            launchers("test_variables_as_the_page_sets_them"),
        ],
        "A function": [launchers("test_the_function_of_the_page")],
        "Accelerate": [launchers("test_command_of_the_page")],
        "Lightning": [
            launchers("test_command_of_the_page"),
            Fate(
                "torchrun/test_launchers.py::test_lightning_is_told_as_on_the_page",
                "The script of the test has the same lines, and more.",
            ),
        ],
        "TorchX": [launchers("test_command_for_torchx")],
    },
    "library.md": {
        "A launcher of your own": [PYTHON],
        "Local etcd servers, for tests and experiments": [
            PYTHON,
            Fate("docs/test_python.py::test_the_fixture_of_the_page"),
        ],
        "Backend and store": [PYTHON],
        "Handler": [PYTHON, PYTHON],
    },
    "live.md": {
        "etcd-live": [launchers("test_command_of_the_page_of_live")],
        "How a round comes about": [Fate(reason="It is a drawing.")],
        "What stands in etcd": [
            Fate("etcd/test_live_page.py::test_keys_as_etcdctl_shows_them"),
            Fate("etcd/test_live_page.py::test_keys_as_etcdctl_shows_them"),
        ],
        "Rank order": [
            Fate(
                "torchrun/test_live.py::test_a_late_node_and_an_order_of_ones_own",
                "The file is one of the reader's; the test sets the variable.",
            ),
            launchers("test_command_for_an_order_of_ones_own"),
        ],
    },
    "logs.md": {
        "Metrics": [
            Fate("etcd/test_warnings.py::test_metrics_as_the_page_shows_them"),
        ],
    },
    "moving.md": {
        "Without touching the job": [
            Fate(
                "torchrun/test_install.py::test_a_job_that_says_etcd_v2",
                "The test sets the variable for a job with a script of its own.",
            ),
            PYTHON,
        ],
        "From c10d": [
            Fate(
                "unit/test_readme.py::test_torchrun_commands",
                "It is README's job without --max-restarts, and read by torchrun's parser.",
            ),
        ],
    },
    "operating.md": {
        "One member": [Fate("etcd/test_operating.py::test_one_member")],
        "Three members": [Fate("etcd/test_operating.py::test_a_member_is_replaced")],
        "When the quota is used up": [
            Fate("etcd/test_operating.py::test_the_remedy_for_a_quota")
        ],
        "A member is replaced": [
            Fate("etcd/test_operating.py::test_a_member_is_replaced")
        ],
    },
    "quickstart.md": {
        "Install": [PIP],
        "Start etcd": [
            Fate(
                "etcd/test_serve.py::test_serves_until_it_is_asked_to_end",
                "It would serve until Ctrl-C, on a port that may be taken.",
            ),
            Fate(
                "etcd/test_serve.py::test_every_address_is_warned_of",
                "Likewise.",
            ),
        ],
        "Check": [COMMAND],
        "Start the job": [
            JOB,
            Fate(JOB.test, "It is what the job says."),
        ],
        "Watch it": [COMMAND],
        "Kill a node": [
            Fate(
                "etcd/test_errors_page.py::test_a_row",
                "It is a row of the page on trouble, with other names.",
            ),
        ],
        "Clean up": [COMMAND],
    },
    "security.md": {
        "A user for the rendezvous": [
            Fate("support/users.py::switch_authentication_on"),
            Fate(
                "torchrun/test_security.py::test_a_password_is_seen_by_nobody",
                "The password is the reader's; the test sets the variables.",
            ),
        ],
        "On v2": [Fate("support/users.py::switch_v2_authentication_on")],
    },
    "slurm.md": {
        "Slurm": [
            Fate(
                "torchrun/test_slurm.py::test_nodes_meet_at_an_etcd_outside",
                "It needs a cluster; the scripts are run with stand-ins for Slurm.",
            )
        ],
    },
    "status.md": {
        "What a job is doing": [
            Fate(
                "docs/test_commands.py::test_every_call_is_understood",
                "pipx would fetch the package; README has the same without it.",
            )
        ],
        "All runs": [COMMAND],
        "One run": [COMMAND],
        "For programs": [COMMAND],
        "Taking a run away": [COMMAND],
    },
    "store.md": {
        "Store": [PYTHON, PYTHON],
    },
}


def taken_by(fate: Fate) -> list[Block]:
    """
    Return the blocks that one test takes.
    """
    return [one for page in PAGES for one in blocks(page) if fate_of(one) == fate]


def fate_of(block: Block) -> Fate | None:
    """
    Return what becomes of a block; None if nobody has said.
    """
    fates = ACCOUNT.get(block.page, {}).get(block.heading, [])
    return fates[block.number] if block.number < len(fates) else None
