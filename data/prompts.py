"""Prompts: the text around context, question and answer, tokenised piece by piece.

Pieces are tokenised separately, so that the ids of a context never depend on its question and can be encoded once for
many questions.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from breviary.contract import Example
from breviary.runtime.markup import (
    ANSWER_TEMPLATES,
    QUESTION_TEMPLATE,
    missing_field,
    surrogate_problem,
    tokenise,
    tokenise_inserted,
)
from breviary.runtime.spelling import override
from data.chat.pieces import chat_pieces
from data.checks import raise_problems

# Placeholder for the user's message in a chat template. Templates strip white space, but not this.
_CONTENT = "BREVIARYCONTENT"

DATE = "%d %b %Y"  # form of prompt.date


@dataclass
class Prompt:
    """The text around context, question and answer.

    bos              start with the tokenizer's BOS, where it has one
    instruction      text before the context
    template         text after the context; must contain {question}. Empty: nothing follows the context, for objectives
                     that ask no question
    answer_template  the text to generate; must contain {answer}. None = " {answer}", with `chat` "{answer}": a chat
                     header ends in a line break, after which models answer without a space. Behind an answer prefix,
                     the prefix decides (see `template_behind`)
    chat             wrap instruction, context and template as one user turn of the tokenizer's chat template
    date             day that chat templates see as today, such as "26 Jul 2024" (the default of Llama 3.1's)
    Special tokens may be written in instruction and templates. In a context, question, answer prefix or answer they
    are plain text.
    Raises: ValueError for a template without its field, or another form of date.
    """

    bos: bool = True
    instruction: str = ""
    template: str = QUESTION_TEMPLATE
    answer_template: str | None = None
    chat: bool = False
    date: str = "26 Jul 2024"

    def __post_init__(self) -> None:
        if self.answer_template is None:
            self.answer_template = ANSWER_TEMPLATES[self.chat]
        problems = []
        if self.template:
            problems = missing_field(
                "prompt.template", self.template, "question", override("prompt.template", "Q: {question} A:")
            )
        problems += missing_field(
            "prompt.answer_template", self.answer_template, "answer", override("prompt.answer_template", " {answer}")
        )
        try:
            self._day()
        except (TypeError, ValueError):
            problems.append(
                f"prompt.date is {self.date!r}; it must be a day, for example {override('prompt.date', '26 Jul 2024')}"
            )
        raise_problems(problems)

    def _day(self) -> datetime.date:
        return datetime.datetime.strptime(self.date, DATE).date()

    def tokenise(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Lists of ids: prefix, context, query, prompt, answer; and `evidence`, `starts`, `ends`.

        prefix    BOS, chat header, instruction
        context   the context alone
        query     the bare question
        prompt    the template with the question, the chat footer and the answer prefix; without a template nothing
        answer    the first reference in its template, then the end token
        choices   the options, each as `answer` without the end token; the key is missing for an example without
        evidence  one bool per context token, True where it overlaps a gold document; None without gold documents
        compressed    the context as another tool compressed it, where the example has it; else the key is missing
        targets   one bool per context token: earlier messages of the assistant; missing for examples without messages.
                  Such examples have the pieces of data.chat.pieces: no template applies
        starts, ends  characters [start, end) of each context token in the context; None for a slow tokenizer
        Raises: ValueError where the tokenizer has no end token, no chat template (chat=True), or no character
        offsets (a slow tokenizer, gold documents), and for a lone surrogate.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end token, so answers could not end; "
                'set one in its tokenizer_config.json, for example "eos_token": "</s>"'
            )
        texts = [("context", example.context), ("question", example.question)]
        texts += [("answer", answer) for answer in example.answers]
        texts += [("choices", choice) for choice in example.choices]
        texts += [("answer_prefix", example.answer_prefix), ("compressed_context", example.compressed_context or "")]
        for name, text in texts:
            problem = surrogate_problem(text)
            if problem:
                raise ValueError(f"the {name} of example {example.id!r} {problem}")
        # A chat brings its own headers.
        header, footer = self._chat_parts(tokenizer) if self.chat and not example.messages else ("", "")
        prefix = tokenise(tokenizer, header + self.instruction)
        # Many chat templates contain BOS themselves.
        if self.bos and tokenizer.bos_token_id is not None and prefix[:1] != [tokenizer.bos_token_id]:
            prefix = [tokenizer.bos_token_id, *prefix]
        if example.messages:
            return {"prefix": prefix, **chat_pieces(example, tokenizer)}
        return {
            "prefix": prefix,
            "query": tokenise(tokenizer, example.question, plain=True),
            "prompt": tokenise_inserted(
                tokenizer,
                self.template,
                "question",
                example.question,
                end=footer,
                continuation=example.answer_prefix if self.template else "",  # "" for objectives that ask nothing
            ),
            "answer": self.answer(example.answers[0], tokenizer, example.answer_prefix),
            **self._choices_piece(example, tokenizer),
            **_context_pieces(tokenizer, example),
            **_compressed_piece(tokenizer, example),
        }

    def answer(self, reference: str, tokenizer: PreTrainedTokenizerBase, answer_prefix: str = "") -> list[int]:
        """Ids of a reference in the answer template, behind an example's `answer_prefix`, and of the end token."""
        assert self.answer_template is not None
        template = template_behind(answer_prefix if self.template else "", self.answer_template)
        return [*tokenise_inserted(tokenizer, template, "answer", reference), tokenizer.eos_token_id]

    def _choices_piece(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
        """choices, or nothing for an example without."""
        if not example.choices:
            return {}
        return {"choices": [self.answer(choice, tokenizer, example.answer_prefix)[:-1] for choice in example.choices]}

    def _chat_parts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """The chat template's text before and after the user's message."""
        if not tokenizer.chat_template:
            raise ValueError(
                f"prompt.chat is true, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "set prompt.chat=false or use an instruction-tuned backbone"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _CONTENT}],
            chat_template=_with_fixed_date(tokenizer.get_chat_template(), self._day()),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # read by Qwen3's templates: answers without reasoning
            date_string=self.date,  # read by Llama 3's
        )
        parts = text.split(_CONTENT)
        if len(parts) != 2:
            raise ValueError(
                f"prompt.chat is true, but the chat template of {tokenizer.name_or_path!r} contains the "
                f"user's message {len(parts) - 1} times, not once; set prompt.chat=false"
            )
        return parts[0], parts[1]


def template_behind(answer_prefix: str, answer_template: str) -> str:
    """An answer template with as much space before {answer} as an answer prefix asks for.

    "Answer:" is followed by one space; a prefix that ends in white space or in a full-width character by none. Without
    a prefix, and where text stands before {answer}, the template stays, but for a second space.
    """
    template = answer_template.lstrip(" ")
    if not answer_prefix or (not template.startswith("{answer}") and not answer_prefix[-1].isspace()):
        return answer_template
    is_closed = answer_prefix[-1].isspace() or unicodedata.east_asian_width(answer_prefix[-1]) in "FW"
    return template if is_closed else f" {template}"


def _with_fixed_date(template: str, day: datetime.date) -> str:
    """A chat template whose function strftime_now(format) returns `day`, not the day of the call.

    transformers accepts no function from its callers, so the template gets a macro of that name, which looks up the
    template's own formats.
    """
    if "strftime_now" not in template:
        return template
    formats = dict.fromkeys(found[1] for found in re.findall(r"""(["'])((?:(?!\1).)*%[^{}]*?)\1""", template))
    days = ", ".join(f"{form!r}: {day.strftime(form)!r}" for form in formats)
    return (
        f"{{%- set breviary_days = {{{days}}} -%}}{{%- macro strftime_now(format) -%}}"
        "{{ breviary_days[format] }}{%- endmacro +%}" + template
    )


def _compressed_piece(tokenizer: PreTrainedTokenizerBase, example: Example) -> dict[str, list[int]]:
    """compressed, as plain text; nothing for an example without."""
    if example.compressed_context is None:
        return {}
    return {"compressed": tokenise(tokenizer, example.compressed_context, plain=True)}


def _context_pieces(tokenizer: PreTrainedTokenizerBase, example: Example) -> dict[str, Any]:
    """context, evidence, starts, ends."""
    gold = [(d.start, d.end) for d in example.documents if d.is_gold]
    if not tokenizer.is_fast:
        if gold:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} provides no character offsets, which are needed to mark "
                f"gold documents (example {example.id!r}); use the fast tokenizer of this backbone"
            )
        return {
            "context": tokenise(tokenizer, example.context, plain=True),
            "evidence": None,
            "starts": None,
            "ends": None,
        }
    if not example.context:  # as in `tokenise`
        return {"context": [], "evidence": [] if gold else None, "starts": [], "ends": []}
    encoded = tokenizer(
        example.context, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    spans = encoded["offset_mapping"]
    evidence = None
    if gold:
        evidence = [any(start < gold_end and end > gold_start for gold_start, gold_end in gold) for start, end in spans]
    return {
        "context": encoded["input_ids"],
        "evidence": evidence,
        "starts": [start for start, _ in spans],
        "ends": [end for _, end in spans],
    }
