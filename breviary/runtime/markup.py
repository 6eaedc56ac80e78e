"""Text inserted into markup: templates with a field, and their token ids.

Markup (templates, instructions, chat headers) may contain special tokens. The text inserted into it never does: special
tokens in a question, an answer or a context are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Values of prompt.answer_template=null, without and with prompt.chat: a chat header ends in a line break, after which
# models answer without a space.
ANSWER_TEMPLATES = {False: " {answer}", True: "{answer}"}

# Value of prompt.template=null, for data sets without a template of their own.
QUESTION_TEMPLATE = "\nQuestion: {question}\nAnswer:"

# Fields that someone may expect in a template; a space inside the braces is a misspelling of these only.
FIELDS = ("question", "answer", "context")
_BRACES = re.compile(r"\{(\s*)([A-Za-z_]\w*|\d*)(\s*)(?:[!:.\[][^{}\"']*)?\}")


def missing_field(key: str, template: str, field: str, example: str) -> list[str]:
    """An error message where a template lacks its field.

    key      configuration key of the template
    example  how to set the key on a command line
    """
    if f"{{{field}}}" in template:
        return []
    return [f"{key} is {template!r}; it must hold {{{field}}}, for example {example}"]


def unknown_fields(key: str, template: str, field: str | None, example: str) -> list[str]:
    """Error messages for fields that a template cannot have: nothing would be inserted for them.

    field  the one that it has, such as "question"; None = none
    """
    remaining = template if field is None else template.replace(f"{{{field}}}", "\0")
    allowed = f"its only field is {{{field}}}" if field else "it has no fields"
    problems = []
    for braces in dict.fromkeys(_unknown_fields(remaining)):
        hint = "; the context stands between prompt.instruction and prompt.template" if "context" in braces else ""
        problems.append(f"{key} holds {braces}, which would stay as it is: {allowed}{hint}, for example {example}")
    if "{\0}" in remaining:
        problems.append(f"{key} holds {{{{{field}}}}}: write {{{field}}} in single braces, for example {example}")
    return problems


def _unknown_fields(template: str) -> list[str]:
    """The parts of a template that look like a field: {name}, {0}, {}, and { question } with spaces; no LaTeX."""
    return [
        match[0]
        for match in _BRACES.finditer(template)
        if (not (match[1] or match[3]) or match[2].lower() in FIELDS)
        and not re.search(r"\\[A-Za-z]+$", template[: match.start()])
    ]


def surrogate_problem(text: str) -> str | None:
    """'holds a lone surrogate (...)' where `text` does: UTF-8, and therefore a tokenizer, cannot express it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate ({ascii(text[error.start])}, character {error.start}), which is no Unicode text"
    return None


def tokenise(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    """Ids of `text` without added special tokens; `plain` tokenises special tokens in the text as plain text."""
    if not text:  # some tokenizers make a token of the empty string (a dummy space)
        return []
    # verbose=False: the tokenizer's length warning does not apply, because the reader limits the length.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]


def tokenise_inserted(
    tokenizer: Any, template: str, field: str, text: str, end: str = "", continuation: str = ""
) -> list[int]:
    """Ids of `template` with `text` in place of {field}, then of `end`, then of `continuation`.

    Special tokens of template and end are special, those of text and continuation are plain. Ids are those of the whole
    string, except where an inserted text holds a special token, or forms one with the characters around it.
    """
    markup = template.split(f"{{{field}}}")
    inserted = ["", *[text] * (len(markup) - 1)]  # before each piece of markup
    markup[-1] += end
    if continuation:
        markup, inserted = [*markup, ""], [*inserted, continuation]
    whole = "".join(part for pair in zip(inserted, markup) for part in pair)
    special = _special_tokens(tokenizer)
    own = [list(special.finditer(piece)) if special else [] for piece in markup]
    found = [match.span() for match in special.finditer(whole)] if special else []
    if special is None or _lies_in_markup(found, markup, own, [len(part) for part in inserted]):
        return tokenise(tokenizer, whole)
    ids, plain = [], ""
    for before, piece, matches in zip(inserted, markup, own):
        plain += before
        if matches:  # special from the first to the last special token; what is around them joins the text
            first, last = matches[0].start(), matches[-1].end()
            ids += tokenise(tokenizer, plain + piece[:first], plain=True) + tokenise(tokenizer, piece[first:last])
            plain = piece[last:]
        else:
            plain += piece
    return ids + tokenise(tokenizer, plain, plain=True)


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches every special token as the tokenizer does, longest first; None where it has none."""
    tokens = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
    forms = [
        (r"\s*" if tokens[text].lstrip else "") + re.escape(text) + (r"\s*" if tokens[text].rstrip else "")
        for text in sorted(tokens, key=len, reverse=True)
        if text
    ]
    return re.compile("|".join(forms)) if forms else None


def _lies_in_markup(
    found: Sequence[tuple[int, int]],
    markup: Sequence[str],
    own: Sequence[Sequence[re.Match[str]]],
    widths: Sequence[int],
) -> bool:
    """Whether the special tokens `found` in the whole string are those of the markup, at their places.

    widths  characters of the text before each piece of markup
    """
    expected, start = [], 0
    for width, piece, matches in zip(widths, markup, own):
        start += width
        expected += [(start + match.start(), start + match.end()) for match in matches]
        start += len(piece)
    return list(found) == expected
