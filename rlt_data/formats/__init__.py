"""Render problems for teacher, student and solver, and find the tokens of their parts.

``schema`` defines the :class:`Format` (texts and tags, as data), ``template`` renders conversations with a chat
template, ``views`` renders problems with both, and ``spans`` finds token ranges by character offsets. This package
imports no model code.
"""

from rlt_data.formats.choose import choose_format, find_format
from rlt_data.formats.control import ControlTokens
from rlt_data.formats.schema import BUILT_IN, Format, Shot, load_format, model_format
from rlt_data.formats.spans import Encoding, Tokenizer, align, encode, tokens_inside
from rlt_data.formats.template import ChatTemplate
from rlt_data.formats.views import Problem, Rendered, Views

__all__ = [
    "BUILT_IN",
    "ChatTemplate",
    "ControlTokens",
    "Encoding",
    "Format",
    "Problem",
    "Rendered",
    "Shot",
    "Tokenizer",
    "Views",
    "align",
    "choose_format",
    "encode",
    "find_format",
    "load_format",
    "model_format",
    "tokens_inside",
]
