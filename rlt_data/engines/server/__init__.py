"""The engine over OpenAI-compatible servers: vLLM, SGLang, TGI, llama.cpp, hosted ones.

Reading order: ``transport`` (one request), ``probing`` (what a server can do), ``routing`` (which URL gets a request,
and what happens when it fails), ``completions`` and ``scoring`` (what is asked and how answers are read), then
``engine``, which puts them together.
"""

from rlt_data.engines.server.engine import ServerEngine

__all__ = ["ServerEngine"]
