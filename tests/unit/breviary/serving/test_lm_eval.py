"""Readers as models of lm-evaluation-harness: how prompts are split, what is computed, and the harness itself."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import QUESTIONS, TEXT, tiny_run

import breviary
from breviary.config.errors import ConfigError
from breviary.contract import Generation
from breviary.serving import lm_eval as adapter
from breviary.serving.lm_eval import HarnessSettings, ReaderLM, SplitPrompt, run_tasks, split_notes, split_prompt
from scripts import lm_eval as script

INSTALLED = adapter.LM is not object
SHORT = Generation(max_new_tokens=5)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    words = ["backbone.width=32", "backbone.layers=2", "backbone.heads=2", "backbone.kv_heads=1"]
    words.append("compressor.encoder_layers=1")
    return breviary.load_reader(tiny_run(home, "compressor=mean_pool", "compressor.join=depth", *words))


def request(prompt, second, doc=None, task="mine"):
    return SimpleNamespace(args=(prompt, second), doc=doc or {}, task_name=task)


def asked(question, text=TEXT):
    """A prompt as the run's own, and its document."""
    return f"{text}\nQuestion: {question}\nAnswer:", {"context": text, "question": question}


# ------------------------------------------------------------------ the split


@pytest.mark.parametrize(
    ("prompt", "doc", "expected"),
    [
        (
            "Read. LONG\n\nWhy?",
            {"context": "LONG", "question": "Why?"},
            ("Read. ", "LONG", "\n\nWhy?", "Why?", "context"),
        ),
        ("A LONG B", {"input": "\nLONG ", "question": "B?"}, ("A ", "LONG", " B", "B?", "input")),
        ("shot LONG Q LONG Q", {"text": "LONG"}, ("shot LONG Q ", "LONG", " Q", "Q", "text")),  # after the examples
        ("L\n\nQ", {"context": "", "input": "L"}, ("", "L", "\n\nQ", "Q", "input")),
        ("all", {"context": "all"}, ("", "", "all", "all", "none")),  # nothing would be asked
        (
            "Noise.\nQuestion: a?\nmore\nQuestion: Find X? Answer:",
            {"input": "Noise.\nQuestion: a?\nmore\nQuestion: Find X?"},
            (
                "",
                "Noise.\nQuestion: a?\nmore",
                "\nQuestion: Find X? Answer:",
                "Question: Find X? Answer:",
                "question mark",
            ),
        ),
        ("Which? A or B", {"question": "Which?"}, ("", "", "Which? A or B", "Which?", "none")),
    ],
)
def test_prompts_are_split_at_the_document_field(prompt, doc, expected):
    split = split_prompt(prompt, doc)
    assert (split.before, split.context, split.after, split.question, split.field) == expected
    assert split.before + split.context + split.after == prompt


def test_prompts_of_ruler_are_split_at_the_last_question():
    noise = "Some special magic numbers are hidden.\nThe grass is green."
    question = "\nWhat are all the special magic numbers for x mentioned in the provided text?"
    for header in ("", "<user>"):
        prompt = f"{header}{noise}{question} The special magic number is"
        split = split_prompt(prompt, {"input": noise + question, "outputs": ["1"]}, header)
        assert (split.before, split.context, split.field) == (header, noise, "question mark")
        assert split.after == f"{question} The special magic number is"


def test_fields_can_be_named():
    assert split_prompt("A NOTE Q", {"note": "NOTE"}, fields=("note",)).context == "NOTE"
    assert split_prompt("A NOTE Q", None).field == "none"


# ------------------------------------------------------------------ requests


def test_answers_are_those_of_the_reader(reader):
    prompts = [asked(question) for question in QUESTIONS]
    expected = reader.answer([TEXT] * 3, QUESTIONS, SHORT)
    lm = ReaderLM(reader, batch_size=2)
    settings = [{"until": [], "max_gen_toks": 5}, {"until": "", "max_gen_toks": 5}, {"max_gen_toks": 5}]
    assert lm.generate_until([request(p, s, d) for (p, d), s in zip(prompts, settings)]) == expected
    assert lm.splits == {"mine": {"context": 3}} and lm.contexts_read == 1 and lm.truncated == 0
    first = next(text for text in expected if len(text) > 1)
    place, stop = expected.index(first), first[1]
    cut = lm.generate_until([request(*prompts[place][:1], {"until": [stop], "max_gen_toks": 5}, prompts[place][1])])
    assert cut == [first.partition(stop)[0].strip()]
    assert reader.reader.context_cache is None


def test_likelihoods_are_of_the_continuation_alone_and_the_context_is_read_once(reader, monkeypatch):
    prompt, doc = asked(QUESTIONS[0])
    encoded = []
    encode = reader.reader.compressor.encode
    monkeypatch.setattr(
        reader.reader.compressor, "encode", lambda context: (encoded.append(len(context.ids)), encode(context))[1]
    )
    lm = ReaderLM(reader, batch_size=2)
    words = [" copper", " violin", " green"]
    found = lm.loglikelihood([request(prompt, word, doc) for word in words])
    assert sum(encoded) == 1 and all(value < 0 and greedy is False for value, greedy in found)
    split = SplitPrompt("", TEXT, f"\nQuestion: {QUESTIONS[0]}\nAnswer:", QUESTIONS[0], "context")
    batch, _ = reader.split_batch([split] * 3, words)
    with torch.no_grad():
        assert [value for value, _ in found] == pytest.approx((-reader.reader.loss(batch).nll).tolist(), rel=1e-4)
    [moved] = lm.loglikelihood([request(f"{prompt} ", "copper", doc)])  # the blank belongs to the continuation
    assert moved[0] == pytest.approx(found[0][0], rel=1e-5)


def test_greedy_continuations_are_marked(reader):
    prompt, doc = asked(QUESTIONS[0])
    batch, _ = reader.split_batch([split_prompt(prompt, doc)], [""])
    [decoded] = reader.reader.decode(batch, Generation(max_new_tokens=2))
    text = reader.reader.tokenizer.decode(decoded.ids)
    lm = ReaderLM(reader)
    if reader.reader.tokenizer(text, add_special_tokens=False)["input_ids"] == decoded.ids:
        assert lm.loglikelihood([request(prompt, text, doc)])[0][1] is True
    without = SimpleNamespace(loss=lambda batch: reader.reader.loss(batch), decode=reader.reader.decode)
    batch.answer.ids = torch.tensor([decoded.ids])
    batch.answer.mask = torch.ones_like(batch.answer.ids, dtype=torch.bool)
    lm.reader = without
    for hits in (True, False):  # a reader without losses of single tokens decodes
        if not hits:
            loss = reader.reader.loss(batch)
            loss.supervised = loss.token_hits = None
            without.loss = lambda batch, loss=loss: loss
        assert lm._likelihoods(batch)[0][1] is True


def test_a_context_that_does_not_fit_is_cut_in_the_middle(reader, monkeypatch):
    monkeypatch.setattr(reader, "_longest_context", lambda others: 10)
    split = split_prompt(*asked(QUESTIONS[0]))
    batch, cut = reader.split_batch([split, split_prompt(*asked(QUESTIONS[0], "Short text."))], ["", ""])
    assert cut == 1 and batch.context.lengths.max() == 10
    ids = reader.texts.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert batch.context.ids[0].tolist() == ids[:5] + ids[-5:]
    monkeypatch.setattr(reader, "_longest_context", lambda others: 0)
    with pytest.raises(ValueError, match="leaves no place for a context"):
        reader.split_batch([split], [""])


def test_whole_texts_are_refused(reader):
    with pytest.raises(NotImplementedError, match="choose tasks of output_type generate_until"):
        ReaderLM(reader).loglikelihood_rolling([])
    with pytest.raises(ValueError, match="has no chat template"):
        ReaderLM(reader).chat_template(True)


def test_notes_name_tasks_that_were_not_compressed():
    [note] = split_notes({"arc": {"none": 3, "context": 1}})
    assert note.startswith("arc: prompts split, 1 by context, 3 with no context") and "context_fields=[FIELD]" in note


# ------------------------------------------------------------------ the script


def test_settings_of_the_script():
    given = script.read_settings(["outputs/a", "tasks=[x,y]", "limit=3", "chat=true", "lengths=4k", "device=cpu"])
    assert given == {
        "run": "outputs/a",
        "tasks": ["x", "y"],
        "limit": 3,
        "chat": True,
        "lengths": "4k",
        "device": "cpu",
    }
    assert script.read_settings(["run=a=b", "tasks=x,y"]) == {"run": "a=b", "tasks": ["x", "y"]}


def test_every_wrong_word_is_named():
    with pytest.raises(ConfigError) as error:
        script.read_settings(["task=x", "limit=many", "chat=1", "batch_size=-1", "run=a", "b"])
    text = str(error.value)
    assert "unknown key task; the nearest right one is tasks" in text and "tasks is missing; e.g. tasks=[" in text
    assert all(f"{word}: wrong value; e.g. " in text for word in ("limit=many", "chat=1", "batch_size=-1"))
    assert "b: run is given twice" in text


def test_without_the_package_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(adapter, "LM", object)
    monkeypatch.setattr(script, "load_reader", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as exit:
        script.main(["outputs/a", "tasks=[x]"])
    assert exit.value.code == 2 and 'python -m pip install "lm_eval==0.4.13"' in capsys.readouterr().err


# ------------------------------------------------------------------ the harness itself


@pytest.fixture
def tasks(tmp_path):
    """A folder with definitions of two tasks on a local file."""
    rows = [{"context": TEXT, "question": q, "answers": ["copper"], "options": ["copper", "tin"]} for q in QUESTIONS]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.json}}}}\ntest_split: test\n"
    common += 'doc_to_text: "{{context}}\\nQuestion: {{question}}\\nAnswer:"\n'
    (tmp_path / "generated.yaml").write_text(
        f"task: own_generated\n{common}output_type: generate_until\ndoc_to_target: '{{{{answers[0]}}}}'\n"
        "generation_kwargs: {until: [], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "choices.yaml").write_text(
        f"task: own_choices\n{common}output_type: multiple_choice\ndoc_to_choice: options\ndoc_to_target: 0\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    return tmp_path


@pytest.mark.skipif(not INSTALLED, reason="needs the optional package lm_eval (python -m pip install lm_eval)")
def test_the_harness_runs_its_tasks_on_a_reader(reader, tasks, monkeypatch):
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # runs pip, which takes seconds
    lm = ReaderLM(reader, batch_size=4)
    results = run_tasks(lm, HarnessSettings(("own_generated", "own_choices"), include=str(tasks)))
    assert results["results"]["own_generated"]["exact_match,none"] in (0, 1 / 3, 2 / 3, 1)
    chosen = [max(sample["resps"], key=lambda one: one[0][0]) for sample in results["samples"]["own_choices"]]
    right = [sample["resps"][0] == best for sample, best in zip(results["samples"]["own_choices"], chosen)]
    assert results["results"]["own_choices"]["acc,none"] == pytest.approx(sum(right) / 3)
    assert results["breviary"]["splits"] == {"own_generated": {"context": 3}, "own_choices": {"context": 6}}
    assert results["breviary"]["contexts_read"] == 1 and results["n-samples"]["own_choices"]["effective"] == 3
