# SPDX-License-Identifier: Apache-2.0
"""Which image topics there are: a hint for whoever waits on the wrong ones."""

from __future__ import annotations

from typing import Any

RAW, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_MOST = 6  # a robot may have dozens


def published(node: Any, kind: str) -> list[str]:
    """Topics of a type that somebody else than `node` publishes, sorted; the first few."""
    own = {publisher.topic_name for publisher in node.publishers}
    topics = [
        topic
        for topic in _of_types(node, (kind,))
        if node.count_publishers(topic) > (topic in own)
    ]
    return topics[:_MOST]


def listened_to(node: Any) -> list[str]:
    """Image topics, raw or compressed, that somebody subscribes to, sorted; the first few."""
    topics = _of_types(node, (RAW, COMPRESSED))
    return [topic for topic in topics if node.count_subscribers(topic)][:_MOST]


def _of_types(node: Any, kinds: tuple[str, ...]) -> list[str]:
    return sorted(
        topic for topic, types in node.get_topic_names_and_types() if set(types) & set(kinds)
    )
