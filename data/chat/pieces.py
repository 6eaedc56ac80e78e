"""Token ids of a chat in ChatML, with a mask of the assistant's messages.

    <|im_start|>ROLE
    TEXT<|im_end|>

Training supervises the last message, which is the answer, and each earlier message of the assistant, every one with its
<|im_end|> (CoMeT, arXiv 2602.01766; the published code leaves <|im_end|> out, so that nothing teaches to stop).
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Example
from breviary.runtime.markup import tokenise

ASSISTANT = "assistant"
START, END = "<|im_start|>{role}\n", "<|im_end|>"
_LINE = ("\n", False, False)  # behind each message: text, plain text, supervised


def chat_pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The pieces of a chat as of `Prompt.tokenise`, but for its prefix.

    context  all messages before the answer; `targets` marks the assistant's texts among them, each with its <|im_end|>
    prompt   the header of the assistant's message; answer: its text and the end token
    """
    context: list[int] = []
    targets: list[bool] = []
    for role, text, is_supervised in example.messages:
        header = (START.format(role=role), False, False)
        for part, is_plain, is_target in (header, (text, True, is_supervised), (END, False, is_supervised), _LINE):
            ids = tokenise(tokenizer, part, plain=is_plain)
            context += ids
            targets += [is_target] * len(ids)
    answer = tokenise(tokenizer, example.answers[0], plain=True)
    return {
        "context": context,
        "targets": targets,
        "query": tokenise(tokenizer, example.question, plain=True),
        "prompt": tokenise(tokenizer, START.format(role=ASSISTANT)),
        "answer": [*answer, tokenizer.eos_token_id],
        **dict.fromkeys(("evidence", "starts", "ends")),
    }
