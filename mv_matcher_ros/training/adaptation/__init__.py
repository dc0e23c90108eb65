# SPDX-License-Identifier: Apache-2.0
"""Adaptation to one's own recording, without labels: bilevel learning on bundle adjustment."""
