# SPDX-License-Identifier: Apache-2.0
"""The training of the point inference network, on simulated maps of rendered tuples."""
