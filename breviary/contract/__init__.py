"""The types that breviary, the methods and data exchange. Imports torch only.

Shape letters, unless a file has a legend of its own: B examples of a batch, T context tokens, Q question tokens,
P prompt tokens, A answer tokens, N tokens of any part, S segments of a context, L tokens of a segment, M memory slots,
D hidden width.
Masks are boolean, True = a real token, and are made from lengths, never from token values.
"""

from breviary.contract.batch import TASKS, Batch, Dataset, Document, Example, Tokens
from breviary.contract.memory import Context, Encoded, Footprint, KeyValueMemory, Memory, Question
from breviary.contract.reader import Compressor, Decoded, EncodedContext, Generation, LossOutput, Reader

__all__ = [
    "Batch",
    "Compressor",
    "Context",
    "Dataset",
    "Decoded",
    "Document",
    "Encoded",
    "EncodedContext",
    "Example",
    "Footprint",
    "Generation",
    "KeyValueMemory",
    "LossOutput",
    "Memory",
    "Question",
    "Reader",
    "TASKS",
    "Tokens",
]
