"""The engine for OpenAI-compatible servers: vLLM, SGLang, TGI, llama.cpp and hosted ones.

Reading order: ``transport`` (one request), ``probing`` (what a server can do), ``routing`` (which URL gets a request,
retries), ``completions`` and ``scoring`` (requests and their responses), ``engine`` (all of them together).
"""

from rlt_data.engines.server.engine import ServerEngine

__all__ = ["ServerEngine"]
