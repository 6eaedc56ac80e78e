"""Prompts: the text around context, question and answer, tokenised piece by piece.

Pieces are tokenised separately, so that the ids of a context never depend on its question and can be encoded once for
many questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Example

# Placeholder for the user's message in a chat template. Templates strip white space, but not this.
_CONTENT = "BREVIARYCONTENT"


@dataclass
class Prompt:
    """The text around context, question and answer.

    bos              start with the tokenizer's BOS, where it has one
    instruction      text before the context
    template         text after the context; must contain {question}
    answer_template  the text to generate; must contain {answer}
    chat             wrap instruction, context and template as one user turn of the tokenizer's chat template
    Special tokens may be written in instruction and template. In a context, query or answer they are plain text.
    Raises: ValueError for a template without its field.
    """

    bos: bool = True
    instruction: str = ""
    template: str = "\nQuestion: {question}\nAnswer:"
    answer_template: str = " {answer}"
    chat: bool = False

    def __post_init__(self) -> None:
        for key, text, field, example in (
            ("template", self.template, "{question}", "'Q: {question} A:'"),
            ("answer_template", self.answer_template, "{answer}", "' {answer}'"),
        ):
            if field not in text:
                raise ValueError(f"prompt.{key} is {text!r}; it must hold {field}, for example prompt.{key}={example}")

    def tokenise(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Lists of ids: prefix, context, query, prompt, answer; and `evidence`, `starts`, `ends`.

        prefix    BOS, chat header, instruction
        context   the context alone
        query     the bare question
        prompt    the template with the question, and the chat footer
        answer    the first reference in its template, then the end token
        evidence  one bool per context token, True where it overlaps a gold document; None without gold documents
        starts, ends  characters [start, end) of each context token in the context; None for a slow tokenizer
        Raises: ValueError where the tokenizer has no end token, no chat template (chat=True), or no character
        offsets (a slow tokenizer, gold documents).
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end token, so answers could not end; "
                'set one in its tokenizer_config.json, for example "eos_token": "</s>"'
            )
        header, footer = self._chat_parts(tokenizer) if self.chat else ("", "")
        prefix = _ids(tokenizer, header + self.instruction)
        # Many chat templates contain BOS themselves.
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
        """The chat template's text before and after the user's message."""
        if not tokenizer.chat_template:
            raise ValueError(
                f"prompt.chat is true, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "set prompt.chat=false or use an instruction-tuned backbone"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _CONTENT}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )  # Qwen3's templates read enable_thinking: False requests answers without reasoning
        parts = text.split(_CONTENT)
        if len(parts) != 2:
            raise ValueError(
                f"prompt.chat is true, but the chat template of {tokenizer.name_or_path!r} contains the "
                f"user's message {len(parts) - 1} times, not once; set prompt.chat=false"
            )
        return parts[0], parts[1]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> list[int]:
    """Ids of `text` without added special tokens; `plain` tokenises special tokens in the text as plain text."""
    if not text:  # some tokenizers make a token of the empty string (a dummy space)
        return []
    # verbose=False: the tokenizer's length warning does not apply, because the reader limits the length.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]


def _context_pieces(tokenizer: PreTrainedTokenizerBase, example: Example) -> dict[str, Any]:
    """context, evidence, starts, ends."""
    gold = [(d.start, d.end) for d in example.documents if d.is_gold]
    if not tokenizer.is_fast:
        if gold:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} provides no character offsets, which are needed to mark "
                f"gold documents (example {example.id!r}); use the fast tokenizer of this backbone"
            )
        return {"context": _ids(tokenizer, example.context, plain=True), "evidence": None, "starts": None, "ends": None}
    if not example.context:  # as in `_ids`
        return {"context": [], "evidence": [] if gold else None, "starts": [], "ends": []}
    encoded = tokenizer(
        example.context, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    spans = encoded["offset_mapping"]
    evidence = [any(start < gold_end and end > gold_start for gold_start, gold_end in gold) for start, end in spans]
    return {
        "context": encoded["input_ids"],
        "evidence": evidence if gold else None,
        "starts": [start for start, _ in spans],
        "ends": [end for _, end in spans],
    }
