# SPDX-License-Identifier: BSD-3-Clause
"""
What the figures in README and docs come from.
"""

import os

# A machine whose loopback address has no name is no trouble here.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
