"""Prompts as embeddings: vLLM's format, and plain transformers gives the reader's answers from them."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from tiny_runs import QUESTIONS, TEXT, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from breviary import load_reader
from breviary.serving import push
from breviary.serving.export import ExportSource
from breviary.serving.export_prompts import MODEL, REQUESTS, check_embeds, read_prompts
from breviary.serving.prompt_embeds import decode_embeds, encode_embeds
from breviary.serving.push import push_problems
from scripts import export
from tests.tiny import compose_tiny

FORMS = {"comi": ["compressor=comi"], "icae": ["compressor=icae", "compressor.memory_tokens=4"]}
REFUSED = {
    "comi at depth": (["compressor=comi", "compressor.join=depth"], "the slots join at depth"),
    "keys and values": (["compressor=snapkv"], "the memory of CacheSelection is keys and values of every layer"),
    "comet": (["compressor=comet"], "Comet holds state in every layer"),
}


@pytest.fixture
def questions(tmp_path):
    """A JSONL file of three questions about one text."""
    file = tmp_path / "questions.jsonl"
    rows = [json.dumps({"context": TEXT[: 150 + 30 * n], "question": one}) for n, one in enumerate(QUESTIONS)]
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.mark.parametrize("form", FORMS)
def test_transformers_gives_the_reader_s_answers_from_the_embeddings(form, tmp_path, questions, capsys):
    """The merged weights and the request alone; the reader is not used."""
    run, out = tiny_run(tmp_path, "backbone.layers=2", *FORMS[form]), tmp_path / "served"
    export.main([str(run), "--output", str(out), "--prompt-embeds", str(questions)])
    model = AutoModelForCausalLM.from_pretrained(out / MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / MODEL)
    reader, answers = load_reader(run), []
    requests = [json.loads(line) for line in (out / REQUESTS).read_text().splitlines()]
    for request in requests:
        embeds = decode_embeds(request["prompt_embeds"])
        assert embeds.dim() == 2 and embeds.shape[1] == model.config.hidden_size  # vllm.inputs.EmbedsPrompt
        # The bare model knows no stop texts and no shortest answer: both are the reader's settings.
        ids = model.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            do_sample=False,
            max_new_tokens=request["max_tokens"],
            min_new_tokens=4,
            pad_token_id=0,
        )
        text = tokenizer.decode(ids[0], skip_special_tokens=True)
        answers.append(min((text.partition(stop)[0] for stop in request["stop"]), key=len, default=text).strip())
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    own = reader.answer([row["context"] for row in rows], [row["question"] for row in rows])
    assert answers == own and len(set(own)) > 1
    assert {request["model"] for request in requests} == {"served"} and requests[0]["temperature"] == 0
    page = (out / "README.md").read_text()
    assert "vllm serve model --served-model-name served --enable-prompt-embeds" in page
    assert str(tmp_path) not in page and "requests.jsonl has a request a line" in capsys.readouterr().out


@pytest.mark.parametrize("form", REFUSED)
def test_other_memories_are_refused_with_the_reason(form):
    words, reason = REFUSED[form]
    with pytest.raises(ValueError, match="--prompt-embeds: .*prompt embeddings enter the decoder below its first") as e:
        check_embeds(SimpleNamespace(cfg=compose_tiny(words)))
    assert reason in str(e.value)


def test_a_refused_run_is_not_loaded_and_nothing_is_written(tmp_path, questions, capsys, monkeypatch):
    run = tiny_run(tmp_path, "backbone.layers=3", *REFUSED["comi at depth"][0])
    with pytest.raises(ValueError, match="prompt_embeds: the slots join at depth, and .*compressor.join=input"):
        load_reader(run).prompt_embeds([TEXT], [QUESTIONS[0]])
    monkeypatch.setattr(ExportSource, "load_reader", None)
    with pytest.raises(SystemExit) as ended:
        export.main([str(run), "--output", str(tmp_path / "out"), "--prompt-embeds", str(questions)])
    assert ended.value.code == 2 and "--prompt-embeds: the slots join at depth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["", "[1]", '{"context": 3, "question": "x"}', '{"question": "x"}'])
def test_a_line_without_texts_is_named(line, questions):
    questions.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1 has no text context") as error:
        read_prompts(questions)
    assert '{"context": "...", "question": "..."}' in str(error.value)


def test_only_the_rows_of_a_view_are_encoded():
    """torch.save of a view would write the whole tensor."""
    whole = torch.arange(4000.0).view(1000, 4)
    text = encode_embeds(whole[3:5])
    assert torch.equal(decode_embeds(text), whole[3:5]) and len(text) < 3000


# ------------------------------------------------------------------ --push


class FakeHub:
    """In place of HfApi: records calls; `error` is raised by the upload."""

    calls: list = []
    error = None

    def create_repo(self, repo, **options):
        self.calls.append(("create", repo, options))

    def upload_folder(self, **options):
        if self.error:
            raise self.error
        self.calls.append(("upload", options))
        return type("Commit", (), {"commit_url": "https://hub/me/comi/commit/1"})


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(push, "HfApi", FakeHub)
    monkeypatch.setattr(push, "hub_problem", lambda: None)
    return FakeHub


def test_only_with_push_a_folder_is_uploaded(hub, tmp_path, monkeypatch, capsys):
    source = SimpleNamespace(backbone=SimpleNamespace(dtype="float32"))
    monkeypatch.setattr(export, "find_run", str)
    monkeypatch.setattr(export, "ExportSource", SimpleNamespace(open=lambda *_: source))
    monkeypatch.setattr(export, "export_run", lambda *_: 1)
    export.main(["run", "--output", str(tmp_path / "a")])
    assert hub.calls == []
    export.main(["run", "--output", str(tmp_path / "b"), "--push", "me/comi"])
    (create, repo, options), (upload, sent) = hub.calls
    assert (create, repo, options) == ("create", "me/comi", {"private": True, "exist_ok": True})
    assert upload == "upload" and sent["repo_id"] == "me/comi" and sent["folder_path"] == str(tmp_path / "b")
    assert "https://hub/me/comi/commit/1" in capsys.readouterr().out


def test_what_the_hub_refuses_is_said_and_the_folder_stays(hub, tmp_path, monkeypatch):
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 401})()
    monkeypatch.setattr(hub, "error", HfHubHTTPError("401 Unauthorized", response=response))
    with pytest.raises(ValueError, match=r"--push me/comi: the hub refused \(401 Unauthorized\); .* is complete"):
        push.push_folder(tmp_path, "me/comi")


def test_a_push_that_cannot_succeed_is_refused_before_the_export(hub, monkeypatch):
    assert push_problems(None) == push_problems("me/comi") == []
    assert "must begin with a user or organisation" in push_problems("comi")[0]
    assert "no name of the hub" in push_problems("me/co mi")[0]
    monkeypatch.setattr(push, "hub_problem", lambda: "HF_HUB_OFFLINE is set")
    assert push_problems("me/comi") == [
        "--push me/comi: HF_HUB_OFFLINE is set; export without --push, and upload the folder where there is a network"
    ]
