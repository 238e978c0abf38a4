"""The page as HTML: the skeleton with style, script and what it says of itself, and blocks of data.

Data is JSON, compressed and in base64, in elements that no browser runs or shows; the page unpacks a block when it is
looked at. The page's security policy lets nothing run but its own script, by its hash, and nothing be fetched.
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
from rlt_data.reporting.collect import TOKENS, TraceSelection
from rlt_data.reporting.overview import asset, rendered

#: Traces of one block.
_TRACES_A_BLOCK = 64
#: Parts of the script, which share one scope.
_SCRIPTS = ("data", "list", "question", "main")
_INDEX, _CHUNKS = "<!-- index -->", "<!-- chunks -->"


def write_page(file: Path, title: str, overview: str, collection: TraceSelection, progress: Progress) -> None:
    """Write the page as one file that needs nothing else.

    Args:
        file: where to.
        title: of the page.
        overview: the HTML of its upper part.
        collection: the traces to browse.
        progress: told of every question.
    """
    groups = list(collection.chunks(_TRACES_A_BLOCK))
    firsts = [sum(len(group) for group in groups[:number]) for number in range(len(groups))]
    text = page(title, overview, list(collection.runs), {"chunks": firsts})
    before, _, rest = text.partition(_INDEX)
    script, _, after = rest.partition(_CHUNKS)
    with file.open("w", encoding="utf-8") as opened:
        opened.write(before + _block("index", collection.index()) + script)
        for number, group in enumerate(groups):
            questions = [collection.texts(each) for each in group]
            for place, question in enumerate(questions, firsts[number]):
                tokens = {
                    trace["trace_id"]: {name: trace.pop(name) for name in TOKENS if name in trace}
                    for trace in question["traces"]
                }
                if any(tokens.values()):  # apart, because a search looks at texts alone
                    opened.write(_block(f"tokens-{place}", tokens))
            opened.write(_block(f"texts-{number}", questions))
            progress.advance(len(group))
        opened.write(after)


def page(title: str, overview: str, sources: list[str], more: Mapping[str, Any]) -> str:
    """Return the page without its data.

    Args:
        title: of the page.
        overview: the HTML of its upper part.
        sources: names of the sources.
        more: what else the script is told: ``chunks``, the first question of each block, or ``live`` and ``stamp``.
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
        live="live" in more,
        # "<" begins no tag in it: the head may hold names that others chose.
        head=json.dumps({"sources": sources, **more}).replace("<", "\\u003c"),
        index_marker=_INDEX,
        chunks_marker=_CHUNKS,
    )


def _block(name: str, content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode()
    return f'<script type="text/plain" id="{name}">{packed}</script>\n'
