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
    assert all(pieces[k] == plain[k] for k in ("context", "query", "answer", "evidence"))


def test_chat_template_without_bos_gets_one(tokenizer):
    tokenizer.chat_template = CHAT.replace("{{ bos_token }}", "")
    assert text(tokenizer, Prompt(chat=True).tokenise(EXAMPLE, tokenizer)["prefix"]) == "<s>[user] "
    assert text(tokenizer, Prompt(chat=True, bos=False).tokenise(EXAMPLE, tokenizer)["prefix"]) == "[user] "


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"template": "Q: question"}, "prompt.template is 'Q: question'; it must hold {question}, for example "),
        ({"template": ""}, "prompt.template is ''; it must hold {question}"),
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
