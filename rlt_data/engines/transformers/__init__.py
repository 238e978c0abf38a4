"""The engine over Hugging Face Transformers: CPU, CUDA and MPS.

Reading order: ``model`` (loading, the head in blocks), ``cache`` (keys and values), ``sampling``, then ``generation``
and ``scoring``, which ``engine`` puts together.
"""

from rlt_data.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
