# SPDX-License-Identifier: Apache-2.0
"""ROS parameters declared from the settings tree, and settings read from them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

from mv_matcher_ros.config import Settings, flatten, leaves, read_settings
from mv_matcher_ros.errors import SettingsError

# Parameters that rclpy itself reads from the overrides of a node.
_OF_RCLPY = ('use_sim_time', 'start_type_description_service', 'enable_logger_service')
# What may change while the odometry node runs, and the mapping node; from everything else
# networks, buffers and maps were built.
CHANGEABLE = frozenset(
    {
        'ros.publish_tf',
        'ros.path_length',
        'tracking.coasting_s',
        'tracking.reinitialise_s',
        'tracking.degraded_inliers',
    }
)
CHANGEABLE_OF_MAP = frozenset({'ros.publish_map_tf', 'mapping.save_every_s', 'mapping.lost_after'})
_INT64 = 2**63 - 1


def declare(node: Any, changeable: frozenset[str] = CHANGEABLE) -> Settings:
    """Declare every setting as a parameter of `node`, with its overrides.

    rclpy drops overrides that nobody declares without a word, so they are compared here.

    Args:
        node: rclpy node that was just constructed.
        changeable: settings that may change while it runs; it has a callback for them.

    Returns:
        The settings with the overrides applied; names of frames have their prefix, parameters
        are as given.

    Raises:
        SettingsError: an override is unknown (the nearest known name is said), has the wrong type
            or is out of range.
    """
    where = f'parameters of {node.get_fully_qualified_name()}'
    # There is no public way to see undeclared overrides without declaring them as well.
    given = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    overrides = {
        name: value
        for name, value in given.items()
        if name not in _OF_RCLPY and not name.startswith('qos_overrides.')
    }
    settings = read_settings(overrides, where=where)
    values = flatten(settings.model_dump())
    for name, info in leaves():
        described = descriptor(name, info, read_only=name not in changeable)
        node.declare_parameter(name, values[name], described, ignore_override=True)
    return _with_prefix(settings)


def _with_prefix(settings: Settings) -> Settings:
    """`settings` whose names of frames are those that are published."""
    frames = settings.ros.frames
    names = {'map': frames.map, 'odom': frames.odom, 'body': frames.body}
    full = {key: frames.prefix + name for key, name in names.items() if name}
    # The prefix is used up: who reads these settings again must not put it there twice.
    found = frames.model_copy(update={**full, 'prefix': ''})
    changed: dict[str, Any] = {'frames': found}
    if settings.ros.guess_frame:
        changed['guess_frame'] = frames.prefix + settings.ros.guess_frame
    return settings.model_copy(update={'ros': settings.ros.model_copy(update=changed)})


def descriptor(name: str, info: Any, *, read_only: bool) -> Any:
    """rcl_interfaces/ParameterDescriptor of one setting: description, range, choices, read-only.

    Args:
        name: dotted name of the setting.
        info: its pydantic FieldInfo.
        read_only: it cannot change while the node runs.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    message = ParameterDescriptor(description=info.description or '', read_only=read_only)
    bounds = {
        key: getattr(entry, key)
        for entry in info.metadata
        for key in ('ge', 'gt', 'le', 'lt')
        if getattr(entry, key, None) is not None
    }
    low, high = bounds.get('ge', bounds.get('gt')), bounds.get('le', bounds.get('lt'))
    if get_origin(info.annotation) is Literal:
        message.additional_constraints = f'one of: {", ".join(get_args(info.annotation))}'
    elif 'gt' in bounds or 'lt' in bounds:  # a range of ROS includes its ends
        words = [f'greater than {low:g}'] if 'gt' in bounds else []
        words += [f'less than {high:g}'] if 'lt' in bounds else []
        message.additional_constraints = ', '.join(words)
    if bounds and info.annotation is int:
        message.integer_range = [
            IntegerRange(
                from_value=-_INT64 if low is None else int(low),
                to_value=_INT64 if high is None else int(high),
                step=0,
            )
        ]
    elif bounds and info.annotation is float:
        message.floating_point_range = [
            FloatingPointRange(
                from_value=-sys.float_info.max if low is None else float(low),
                to_value=sys.float_info.max if high is None else float(high),
                step=0.0,
            )
        ]
    return message


def changed(
    settings: Settings, parameters: Sequence[Any], changeable: frozenset[str] = CHANGEABLE
) -> Settings:
    """Settings after a change of parameters at run time, checked like any others.

    Args:
        settings: those before.
        parameters: rclpy Parameters that are set; those that are no settings (`use_sim_time`) are
            ignored.
        changeable: settings that the node lets change.

    Raises:
        SettingsError: a value is out of range, or the parameter cannot be changed while the node
            runs.
    """
    known = {name for name, _ in leaves()}
    news = {p.name: p.value for p in parameters if p.name in known}
    for name in news:
        if name not in changeable:
            raise SettingsError(f'{name} cannot be changed while the node runs: start it again')
    return read_settings({**flatten(settings.model_dump()), **news}, where='parameters')


def answer_changes(node: Any, changeable: frozenset[str], take: Callable[[], None]) -> None:
    """Let parameters of a node be set while it runs.

    Args:
        node: its `settings` are replaced.
        changeable: settings that may change.
        take: called when they have.
    """
    from rcl_interfaces.msg import SetParametersResult

    def answer(parameters: Sequence[Any]) -> Any:
        try:
            node.settings = changed(node.settings, parameters, changeable)
        except SettingsError as error:
            return SetParametersResult(successful=False, reason=str(error))
        take()
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(answer)
