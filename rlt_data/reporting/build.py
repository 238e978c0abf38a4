"""Build the HTML of the report: template, style and script, and blocks of data.

The data is JSON, compressed and base64-encoded, in elements that browsers neither run nor show. The script unpacks a
block when it is needed. The content security policy allows only the page's script, by its hash, and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlt_data.progress import Progress
from rlt_data.reporting.collect import TOKENS, ListedTraces
from rlt_data.reporting.overview import asset, rendered
from rlt_data.signals.registry import MEANINGS as SIGNAL_MEANINGS
from rlt_data.storage.columns import MEANINGS

#: Traces per block.
_TRACES_PER_BLOCK = 64
#: Files of the script, concatenated into one scope.
_SCRIPTS = ("data", "list", "export", "tokens", "question", "main")
_INDEX_MARKER, _BLOCKS_MARKER = "<!-- index -->", "<!-- blocks -->"


def write_page(file: Path, title: str, overview: str, selection: ListedTraces, progress: Progress) -> None:
    """Write the report as one self-contained file.

    Args:
        file: path of the file.
        title: title of the page.
        overview: HTML of the overview.
        selection: the traces to list.
        progress: advances by one for each question.
    """
    blocks = list(selection.blocks(_TRACES_PER_BLOCK))
    first_questions = [sum(len(block) for block in blocks[:number]) for number in range(len(blocks))]
    html = page(title, overview, list(selection.runs), {"blocks": first_questions})
    before_index, _, after_index = html.partition(_INDEX_MARKER)
    script, _, end = after_index.partition(_BLOCKS_MARKER)
    with file.open("w", encoding="utf-8") as opened:
        opened.write(before_index + _data_element("index", selection.index()) + script)
        for number, block in enumerate(blocks):
            questions = [selection.texts(question) for question in block]
            for position, question in enumerate(questions, first_questions[number]):
                tokens = {
                    trace["trace_id"]: {name: trace.pop(name) for name in TOKENS if name in trace}
                    for trace in question["traces"]
                }
                if any(tokens.values()):  # in a separate element, because a search reads texts only
                    opened.write(_data_element(f"tokens-{position}", tokens))
            opened.write(_data_element(f"texts-{number}", questions))
            progress.advance(len(block))
        opened.write(end)


def page(title: str, overview: str, sources: list[str], head: Mapping[str, Any]) -> str:
    """Return the HTML of the page without its data.

    Args:
        title: title of the page.
        overview: HTML of the overview.
        sources: names of the runs.
        head: further values for the script: ``blocks``, the first question of each block, or ``live`` and ``stamp``.
    """
    script = '"use strict";\n{\n' + "".join(asset(f"script/{name}.js") for name in _SCRIPTS) + "}\n"
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    return rendered(
        "page.html",
        title=title,
        version=version("rlt-data"),
        style=asset("page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        overview=overview,
        live="live" in head,
        # Names of runs are untrusted: an escaped "<" cannot start a tag.
        head=json.dumps({"sources": sources, "meanings": MEANINGS | SIGNAL_MEANINGS, **head}).replace("<", "\\u003c"),
        index_marker=_INDEX_MARKER,
        blocks_marker=_BLOCKS_MARKER,
    )


def _data_element(name: str, content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode()
    return f'<script type="text/plain" id="{name}">{packed}</script>\n'
