"""The HTML of a result in a notebook: a line, a small table and a figure."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

WIDTH = 620  # pixels of a figure


def shown(line: str, rows: Sequence[dict[str, str]], png: bytes | None) -> str:
    """The HTML of a line of text, a table of rows with the same columns, and a figure."""
    parts = [f"<pre>{escape(line)}</pre>"]
    if rows:
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row.values())}</tr>" for row in rows)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if png:
        parts.append(f'<img alt="figure" width="{WIDTH}" src="data:image/png;base64,{b64encode(png).decode()}">')
    return "\n".join(parts)
