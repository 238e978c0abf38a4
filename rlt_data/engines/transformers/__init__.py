"""The engine for Hugging Face Transformers, on CPU, CUDA and MPS.

Reading order: ``model`` (loading, the LM head in blocks), ``cache`` (keys and values), ``sampling``, ``generation``,
``scoring``, ``engine`` (all of them together).
"""

from rlt_data.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
