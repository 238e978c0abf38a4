"""Settings of other libraries, made before they are imported."""

from __future__ import annotations

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Silence notices of other libraries, and let their idle threads sleep; call it before they are imported."""
    # Threads of libgomp that spin while they wait make a model ten times slower as soon as another program wants a
    # core; a short spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
