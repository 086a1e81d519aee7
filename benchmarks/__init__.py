# SPDX-License-Identifier: BSD-3-Clause
"""
What the README's figures come from.
"""
