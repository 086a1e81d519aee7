# SPDX-License-Identifier: BSD-3-Clause

"""
Tools of the tests: scripted servers, a fault-injecting proxy, etcd binaries.

`tests/conftest.py` puts the folder `tests` on `sys.path`, so a test writes
``from support.proxy import FaultProxy`` or ``from support.scripted import
ScriptedServer, reply``.  Nothing in here imports torch or the library.
"""
