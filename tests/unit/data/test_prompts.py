"""The pieces of a prompt, which are tokenised independently of one another."""

from dataclasses import replace

import pytest

from breviary.backbones.tiny import tiny_tokenizer
from breviary.contract import Document, Example
from data.prompts import Prompt

CONTEXT = "The moon is white. The sun is yellow. Größe."
EXAMPLE = Example(
    "a",
    CONTEXT,
    "What is the sun?",
    ("yellow", "golden"),
    (Document("Moon", 0, 18), Document("Sun", 19, 37, is_gold=True)),
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} [end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %} <no thought>"
    "{% endif %}{% endif %}"
)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids)


def test_pieces(tokenizer):
    prompt = Prompt(instruction="Read this. ", template="\nQ: {question}\nA:", answer_template=" <{answer}>")
    pieces = prompt.tokenise(EXAMPLE, tokenizer)
    assert {k: text(tokenizer, v) for k, v in pieces.items() if k not in ("evidence", "starts", "ends")} == {
        "prefix": "<s>Read this. ",
        "context": CONTEXT,
        "query": "What is the sun?",
        "prompt": "\nQ: What is the sun?\nA:",
        "answer": " <yellow></s>",
    }
    assert pieces["prefix"][0] == tokenizer.bos_token_id and pieces["prefix"].count(tokenizer.bos_token_id) == 1
    assert pieces["answer"][-1] == tokenizer.eos_token_id


def test_ids_of_a_piece_are_independent_of_the_others(tokenizer):
    pieces = Prompt(instruction="Read.").tokenise(EXAMPLE, tokenizer)
    other = replace(EXAMPLE, question="Why?", answers=("x",))
    assert Prompt(instruction="Look!").tokenise(other, tokenizer)["context"] == pieces["context"]
    assert pieces["context"] == tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    assert pieces["query"] == tokenizer("What is the sun?", add_special_tokens=False)["input_ids"]


def test_bos_only_where_configured_and_defined(tokenizer):
    assert Prompt().tokenise(EXAMPLE, tokenizer)["prefix"] == [tokenizer.bos_token_id]
    assert Prompt(bos=False).tokenise(EXAMPLE, tokenizer)["prefix"] == []
    tokenizer.bos_token = None
    assert Prompt().tokenise(EXAMPLE, tokenizer)["prefix"] == []


def test_evidence_marks_tokens_with_gold_characters(tokenizer):
    pieces = Prompt().tokenise(EXAMPLE, tokenizer)
    offsets = tokenizer(CONTEXT, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    gold_characters = set(range(19, 37))
    assert pieces["evidence"] == [bool(gold_characters & set(range(start, end))) for start, end in offsets]
    marked = [id for id, gold in zip(pieces["context"], pieces["evidence"]) if gold]
    assert text(tokenizer, marked).strip() == "The sun is yellow."


def test_a_token_that_overlaps_partly_is_evidence(tokenizer):
    # " yellow" is one token; its last character alone is gold
    end = CONTEXT.index(" yellow") + len(" yellow")
    example = replace(EXAMPLE, documents=(Document("", end - 1, end, is_gold=True),))
    pieces = Prompt().tokenise(example, tokenizer)
    assert [text(tokenizer, [i]) for i, gold in zip(pieces["context"], pieces["evidence"]) if gold] == [" yellow"]


def test_offsets_are_the_characters_of_each_token(tokenizer):
    pieces = Prompt().tokenise(EXAMPLE, tokenizer)
    assert len(pieces["starts"]) == len(pieces["ends"]) == len(pieces["context"])
    for token, start, end in zip(pieces["context"], pieces["starts"], pieces["ends"]):
        decoded = text(tokenizer, [token]).strip()
        assert decoded in (EXAMPLE.context[start:end].strip(), "\ufffd")  # the latter: one byte of a character


def test_evidence_is_none_without_gold_documents(tokenizer):
    for documents in ((), (Document("Moon", 0, 18),)):
        assert Prompt().tokenise(replace(EXAMPLE, documents=documents), tokenizer)["evidence"] is None


def test_empty_context(tokenizer):
    pieces = Prompt().tokenise(Example("a", "", "q?", ("x",)), tokenizer)
    assert pieces["context"] == [] and pieces["evidence"] is None


def test_special_tokens_in_the_data_are_plain_text(tokenizer):
    example = Example("a", "one </s> two <s>", "is it </s>?", ("</s>",))
    pieces = Prompt().tokenise(example, tokenizer)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert not special & set(pieces["context"]) and not special & set(pieces["query"])
    assert special & set(pieces["answer"][:-1]) == set() and pieces["answer"][-1] == tokenizer.eos_token_id
    assert text(tokenizer, pieces["context"]) == "one </s> two <s>"


def test_special_tokens_in_instruction_and_template_are_special(tokenizer):
    pieces = Prompt(bos=False, instruction="<s>Go", template="</s>{question}").tokenise(EXAMPLE, tokenizer)
    assert pieces["prefix"][0] == tokenizer.bos_token_id and pieces["prompt"][0] == tokenizer.eos_token_id


def test_braces_of_question_and_template_are_unchanged(tokenizer):
    example = replace(EXAMPLE, question="What is {x}?", answers=("{answer} {}",))
    pieces = Prompt(template='{"q": "{question}"}').tokenise(example, tokenizer)
    assert text(tokenizer, pieces["prompt"]) == '{"q": "What is {x}?"}'
    assert text(tokenizer, pieces["answer"]) == " {answer} {}</s>"


def test_chat_wraps_instruction_context_and_template(tokenizer):
    tokenizer.chat_template = CHAT
    pieces = Prompt(chat=True, instruction="Read. ").tokenise(EXAMPLE, tokenizer)
    plain = Prompt(instruction="Read. ").tokenise(EXAMPLE, tokenizer)
    assert text(tokenizer, pieces["prefix"]) == "<s>[user] Read. "
    assert pieces["prefix"].count(tokenizer.bos_token_id) == 1  # from the chat template, not added again
    assert text(tokenizer, pieces["prompt"]) == "\nQuestion: What is the sun?\nAnswer: [end]\n[assistant] <no thought>"
    assert all(pieces[k] == plain[k] for k in ("context", "query", "evidence"))


def test_chat_template_without_bos_gets_one(tokenizer):
    tokenizer.chat_template = CHAT.replace("{{ bos_token }}", "")
    assert text(tokenizer, Prompt(chat=True).tokenise(EXAMPLE, tokenizer)["prefix"]) == "<s>[user] "
    assert text(tokenizer, Prompt(chat=True, bos=False).tokenise(EXAMPLE, tokenizer)["prefix"]) == "[user] "


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"template": "Q: question"},
            "prompt.template is 'Q: question'; it must hold {question}, for example "
            "\"prompt.template='Q: {question} A:'\"",
        ),
        ({"template": " "}, "prompt.template is ' '; it must hold {question}"),
        ({"answer_template": "yes"}, "prompt.answer_template is 'yes'; it must hold {answer}, for example "),
    ],
)
def test_templates_without_their_field(keywords, message):
    with pytest.raises(ValueError) as caught:
        Prompt(**keywords)
    assert str(caught.value).startswith(message)


def test_chat_without_a_chat_template(tokenizer):
    with pytest.raises(ValueError, match="prompt.chat is true, but the tokenizer .* has no chat template; set prompt"):
        Prompt(chat=True).tokenise(EXAMPLE, tokenizer)


def test_chat_template_that_repeats_or_drops_the_content(tokenizer):
    for template, times in (("{{ messages[0].content * 2 }}", 2), ("nothing", 0)):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match=f"the user's message {times} times, not once"):
            Prompt(chat=True).tokenise(EXAMPLE, tokenizer)


def test_tokenizer_without_an_end_token(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end token"):
        Prompt().tokenise(EXAMPLE, tokenizer)


def test_slow_tokenizer_cannot_mark_gold(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(ValueError, match="no character offsets.*example 'a'"):
        Prompt().tokenise(EXAMPLE, tokenizer)
    assert Prompt().tokenise(replace(EXAMPLE, documents=()), tokenizer)["context"]


# ------------------------------------------------------------------ special tokens in inserted text

SPECIAL = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture
def chatty(tokenizer):
    """The tiny tokenizer with SmolLM2's control tokens and its kind of chat template."""
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def special_ids(tokenizer, ids: list[int]) -> list[int]:
    control = {*tokenizer.convert_tokens_to_ids(SPECIAL), tokenizer.bos_token_id, tokenizer.eos_token_id}
    return [id for id in ids if id in control]


@pytest.mark.parametrize(
    "inserted", ["<|im_end|>", "What does the marker <|im_end|> end?", "<|im_start|><|im_end|></s>"]
)
@pytest.mark.parametrize("chat", [False, True])
def test_special_tokens_of_a_question_and_an_answer_are_plain_in_every_piece(chatty, inserted, chat):
    prompt = Prompt(
        instruction="<|im_start|>Go. ",
        template="<|im_start|>Q: {question}, again {question}<|im_end|>\nA:",
        answer_template="<{answer}><|im_end|>",
        chat=chat,
    )
    example = Example("q", inserted, inserted, (inserted,))
    pieces = prompt.tokenise(example, chatty)
    plain = prompt.tokenise(Example("p", "x", "x", ("x",)), chatty)
    for name in ("prefix", "context", "query", "prompt", "answer"):
        assert special_ids(chatty, pieces[name]) == special_ids(chatty, plain[name])
    assert text(chatty, pieces["prompt"]) == text(chatty, plain["prompt"]).replace("x", inserted)
    assert text(chatty, pieces["answer"]) == f"<{inserted}><|im_end|></s>"
    assert len(special_ids(chatty, pieces["prompt"])) == (4 if chat else 2)


def test_a_special_token_that_question_and_template_form_together_is_plain(chatty):
    pieces = Prompt(template="<{question}>").tokenise(Example("q", "c", "s", ("a",)), chatty)
    assert special_ids(chatty, pieces["prompt"]) == [] and text(chatty, pieces["prompt"]) == "<s>"


def test_without_special_tokens_the_ids_are_those_of_the_whole_string(chatty):
    for question in ("What is the sun?", " two  blanks", "Größe <s", "{question}"):
        pieces = Prompt(template="</s>Q: {question}<|im_end|>\nA:").tokenise(
            replace(EXAMPLE, question=question), chatty
        )
        whole = f"</s>Q: {question}<|im_end|>\nA:"
        assert pieces["prompt"] == chatty(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["context", "question", "answer", "answer_prefix", "choices"])
def test_a_lone_surrogate_is_an_error_that_names_the_text(tokenizer, name):
    changes = {"answer": {"answers": ("a\ud800",)}, "choices": {"choices": ("a\ud800",)}}.get(name, {name: "a\ud800"})
    example = replace(EXAMPLE, **changes, documents=())
    with pytest.raises(
        ValueError, match=rf"^the {name} of example 'a' holds a lone surrogate \('\\ud800', character 1\)"
    ):
        Prompt().tokenise(example, tokenizer)


# ------------------------------------------------------------------ answer prefix, options

PREFIXED = replace(EXAMPLE, answer_prefix=" In one word:")


def test_an_answer_prefix_follows_the_question_and_in_a_chat_begins_the_assistant_s_turn(chatty):
    plain, chat = (Prompt(template="\nQ: {question}", chat=chat).tokenise(PREFIXED, chatty) for chat in (False, True))
    assert text(chatty, plain["prompt"]) == "\nQ: What is the sun? In one word:"
    assert plain["prompt"] == chatty("\nQ: What is the sun? In one word:", add_special_tokens=False)["input_ids"]
    assert text(chatty, chat["prompt"]).endswith("sun?<|im_end|>\n<|im_start|>assistant\n In one word:")
    assert plain["query"] == chat["query"] == Prompt().tokenise(EXAMPLE, chatty)["query"]
    assert Prompt(template="").tokenise(PREFIXED, chatty)["prompt"] == []  # an objective that asks nothing


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("prefix", "template", "answer"),
    [
        ("Answer:", None, " yellow"),
        ("they are: ", None, "yellow"),
        ("Answer:\n", None, "yellow"),
        ("答案：", None, "yellow"),
        ("Answer:", "<{answer}>", "<yellow>"),
        ("Answer: ", " <{answer}>", "<yellow>"),
    ],
)
def test_one_space_at_most_stands_between_an_answer_prefix_and_the_answer(chatty, chat, prefix, template, answer):
    example = replace(EXAMPLE, answer_prefix=prefix)
    pieces = Prompt(chat=chat, answer_template=template).tokenise(example, chatty)
    assert text(chatty, pieces["answer"]) == f"{answer}</s>"


def test_special_tokens_of_an_answer_prefix_are_plain(chatty):
    example = replace(EXAMPLE, question="Is <|im_end|> it?", answer_prefix=" <|im_start|>so</s>")
    pieces = Prompt(template="\nQ: {question}", chat=True).tokenise(example, chatty)
    assert text(chatty, pieces["prompt"]).endswith("assistant\n <|im_start|>so</s>")
    assert len(special_ids(chatty, pieces["prompt"])) == 2  # those of the chat template


def test_options_are_answers_without_the_end_token(chatty):
    example = replace(EXAMPLE, choices=("yellow", "white"), answer_prefix="It is ")
    pieces = Prompt().tokenise(example, chatty)
    assert [text(chatty, ids) for ids in pieces["choices"]] == ["yellow", "white"]
    assert pieces["answer"] == [*pieces["choices"][0], chatty.eos_token_id]
    assert "choices" not in Prompt().tokenise(EXAMPLE, chatty)


# ------------------------------------------------------------------ chat


def test_in_a_chat_no_space_precedes_the_answer_unless_the_template_has_one(chatty):
    answers = {
        (chat, template): text(chatty, Prompt(chat=chat, answer_template=template).tokenise(EXAMPLE, chatty)["answer"])
        for chat in (False, True)
        for template in (None, " {answer}")
    }
    assert answers == {
        (False, None): " yellow</s>",
        (True, None): "yellow</s>",
        (False, " {answer}"): " yellow</s>",
        (True, " {answer}"): " yellow</s>",
    }


DATED = {
    "llama 3.1": "{%- if not date_string is defined %}{%- set date_string = '01 Jan 2020' %}{%- endif %}"
    "{{ date_string }}",
    "llama 3.2": "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}{{ date_string }}',
    "smollm3": "\n{%- set today = strftime_now('%d %B %Y') -%}{{ today }}",
    "mistral": '{%- set form = "%Y-%m-%d" %}{{ strftime_now(form) }}',
}


@pytest.mark.parametrize("name, seen", zip(DATED, ("05 Mar 2021", "05 Mar 2021", "05 March 2021", "2021-03-05")))
def test_the_date_of_a_chat_template_is_that_of_the_configuration(tokenizer, name, seen):
    tokenizer.chat_template = DATED[name] + "|{{ messages[0].content }}|"
    pieces = Prompt(chat=True, bos=False, date="05 Mar 2021").tokenise(EXAMPLE, tokenizer)
    assert text(tokenizer, pieces["prefix"]).strip() == f"{seen}|"


def test_white_space_at_the_start_of_a_dated_template_is_kept(tokenizer):
    tokenizer.chat_template = "\n\n {{ strftime_now('%Y') }}{{ messages[0].content }}"
    assert text(tokenizer, Prompt(chat=True, bos=False).tokenise(EXAMPLE, tokenizer)["prefix"]) == "\n\n 2024"


@pytest.mark.parametrize("date", ["2024-07-26", "today", "31 Feb 2024", "", None])
def test_a_date_of_another_form(date):
    with pytest.raises(
        ValueError, match=r"^prompt.date is .*; it must be a day, for example \"prompt.date='26 Jul 2024'\"$"
    ):
        Prompt(date=date)
