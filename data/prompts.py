"""What a reader is shown of an example, piece by piece.

The pieces are tokenised apart, so that a context's ids never depend on its question and can be read once for many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Example

_CONTENT = "BREVIARYCONTENT"  # stands for the user's words in a chat template; templates trim white space, not this


@dataclass
class Prompt:
    """The text around context, question and answer.

    bos              begin with the tokenizer's BOS, where it has one
    instruction      stands before the context
    template         stands after the context; holds {question}
    answer_template  what the reader is to write; holds {answer}
    chat             wrap instruction, context and template as one user turn of the tokenizer's chat template
    Special tokens may be written into instruction and template; what looks like one in a context, a query or an
    answer is plain text.
    Raises ValueError for a template without its field.
    """

    bos: bool = True
    instruction: str = ""
    template: str = "\nQuestion: {question}\nAnswer:"
    answer_template: str = " {answer}"
    chat: bool = False

    def __post_init__(self) -> None:
        for key, text, needed, right in (
            ("template", self.template, "{question}", "'Q: {question} A:'"),
            ("answer_template", self.answer_template, "{answer}", "' {answer}'"),
        ):
            if needed not in text:
                raise ValueError(f"prompt.{key} is {text!r}; it must hold {needed}, for example prompt.{key}={right}")

    def tokenise(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Lists of ids: prefix, context, query, prompt, answer; and `evidence`, `starts`, `ends`.

        prefix    BOS, chat header, instruction
        context   the context alone
        query     the bare question
        prompt    the template with the question in it, and the chat footer
        answer    the first reference in its template, then the end token
        evidence  one bool per context token, True where it overlaps a gold document; None without gold documents
        starts, ends  the characters [start, end) of each context token in the context; None from a slow tokenizer
        Raises ValueError where the tokenizer has no end token, no chat template (chat=True), or no character
        offsets (a slow tokenizer, gold documents).
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end token, so answers could not end; "
                'set one in its tokenizer_config.json, for example "eos_token": "</s>"'
            )
        header, footer = self._chat_parts(tokenizer) if self.chat else ("", "")
        prefix = _ids(tokenizer, header + self.instruction)
        # Many chat templates write BOS themselves.
        if self.bos and tokenizer.bos_token_id is not None and prefix[:1] != [tokenizer.bos_token_id]:
            prefix = [tokenizer.bos_token_id, *prefix]
        return {
            "prefix": prefix,
            "query": _ids(tokenizer, example.question, plain=True),
            "prompt": _ids(tokenizer, self.template.replace("{question}", example.question) + footer),
            "answer": [
                *_ids(tokenizer, self.answer_template.replace("{answer}", example.answers[0]), plain=True),
                tokenizer.eos_token_id,
            ],
            **_context_pieces(tokenizer, example),
        }

    def _chat_parts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        if not tokenizer.chat_template:
            raise ValueError(
                f"prompt.chat is true, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "set prompt.chat=false or take an instruction-tuned backbone"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _CONTENT}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )  # Qwen3's templates read it: answers are wanted without a train of thought
        parts = text.split(_CONTENT)
        if len(parts) != 2:
            raise ValueError(
                f"prompt.chat is true, but the chat template of {tokenizer.name_or_path!r} writes the "
                f"user's words {len(parts) - 1} times, not once; set prompt.chat=false"
            )
        return parts[0], parts[1]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> list[int]:
    # Some tokenizers make a token of nothing at all (a dummy space).
    # Not verbose: how long a text may be is the reader's affair, which the tokenizer's own warning knows nothing of.
    return (
        tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]
        if text
        else []
    )


def _context_pieces(tokenizer: PreTrainedTokenizerBase, example: Example) -> dict[str, Any]:
    """context, evidence, starts, ends."""
    gold = [(d.start, d.end) for d in example.documents if d.is_gold]
    if not tokenizer.is_fast:
        if gold:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} gives no character offsets, which marking gold "
                f"documents needs (example {example.id!r}); use the fast tokenizer of this backbone"
            )
        return {"context": _ids(tokenizer, example.context, plain=True), "evidence": None, "starts": None, "ends": None}
    if not example.context:  # some tokenizers make a token of nothing at all
        return {"context": [], "evidence": [] if gold else None, "starts": [], "ends": []}
    encoded = tokenizer(
        example.context, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    spans = encoded["offset_mapping"]
    evidence = [any(start < g_end and end > g_start for g_start, g_end in gold) for start, end in spans]
    return {
        "context": encoded["input_ids"],
        "evidence": evidence if gold else None,
        "starts": [start for start, _ in spans],
        "ends": [end for _, end in spans],
    }
