"""Other libraries, before they are imported: fewer notices, polite threads."""

from __future__ import annotations

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Keep other libraries' notices out of ours, and their threads polite; they are imported after this."""
    # Threads of libgomp that spin while they wait make a model ten times slower as soon as another program wants a
    # core; a short spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
