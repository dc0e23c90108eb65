# SPDX-License-Identifier: Apache-2.0
"""`settings`: every setting with default, range and description, from the tree of them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from mv_matcher_ros.cli.console import print_json, print_table


class Form(str, Enum):
    """How to print."""

    table = 'table'
    markdown = 'markdown'
    yaml = 'yaml'
    json = 'json'


def settings(
    prefix: Annotated[str, typer.Argument(help='Only names that begin like this.')] = '',
    form: Annotated[Form, typer.Option(help='How to print.')] = Form.table,
) -> None:
    """List every setting: name, default, range, meaning."""
    from mv_matcher_ros.config import leaves, nearest_name
    from mv_matcher_ros.errors import SettingsError

    chosen = [(name, info) for name, info in leaves() if name.startswith(prefix)]
    if not chosen:
        nearest = nearest_name(prefix)
        hint = f'; did you mean "{nearest}"?' if nearest else ''
        raise SettingsError(f'no setting begins with "{prefix}"{hint}')
    rows = [(name, _text(info.default), allowed(info), info.description) for name, info in chosen]
    columns = ('setting', 'default', 'allowed', 'meaning')
    if form is Form.json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif form is Form.markdown:
        print(markdown(columns, rows), end='')
    elif form is Form.yaml:
        for name, default, values, meaning in rows:
            print(f'# {meaning} ({values})\n{name}: {default}')
    else:
        print_table('Settings', columns, rows)


def allowed(info: Any) -> str:
    """Range or choices of one pydantic FieldInfo in words."""
    if get_origin(info.annotation) is Literal:
        return ', '.join(map(str, get_args(info.annotation)))
    if info.annotation is bool:
        return 'true, false'
    words = []
    for sign in ('gt', 'ge', 'lt', 'le'):
        for entry in info.metadata:
            bound = getattr(entry, sign, None)
            if bound is not None:
                words.append(f'{ {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}[sign] } {bound:g}')
    return ' and '.join(words) or 'any text'


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'{value:g}' if isinstance(value, float) else str(value)


def markdown(columns: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> str:
    """The rows as a Markdown table."""
    lines = [f'| {" | ".join(columns)} |', f'|{" --- |" * len(columns)}']
    for name, default, values, meaning in rows:
        lines.append(f'| `{name}` | {default} | {values} | {meaning} |')
    return '\n'.join(lines) + '\n'
