# SPDX-License-Identifier: Apache-2.0
"""Tuples of views to learn from: rendered, kept in shards, augmented, labelled."""
