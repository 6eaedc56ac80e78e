"""load_reader: the folders that it opens, and one clear error for each that it rejects."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_run

import breviary
from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Generation
from breviary.runs.checkpoints import WEIGHTS
from breviary.serving.text_interface import _warn_of_other_questions

TEXT, QUESTION = (
    "For the town of Velkeld the official metal is copper.",
    "What is the official metal of the town of Velkeld?",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: COMI at depth on a backbone in a folder, RAM on the tiny one."""
    home = tmp_path_factory.mktemp("runs")
    tiny = TinyBackbone(layers=4)
    tiny.load().save_pretrained(home / "llama")
    tiny.tokenizer().save_pretrained(home / "llama")
    found = {"backbone": home / "llama"}
    folder = [
        "backbone=smollm2_135m",
        f"backbone.path={home}/llama",
        "backbone.dtype=float32",
        "compressor.encoder_layers=2",
    ]
    for name, words in {"comi": folder, "ram": []}.items():
        found[name] = tiny_run(home / name, f"compressor={name}", "compressor.join=depth", *words)
    return found


@pytest.fixture
def run(runs, tmp_path):
    """A copy of COMI's run that a test may damage."""
    return shutil.copytree(runs["comi"], tmp_path / "run")


def weights(folder):
    return next(folder.rglob(WEIGHTS))


def rewrite_weights(folder, change):
    """Replaces the tensors of the checkpoint by `change(tensors)`; keeps the header except the hash."""
    file, tensors = weights(folder), load_file(weights(folder))
    with safe_open(file, framework="pt") as stream:
        metadata = {key: value for key, value in stream.metadata().items() if key != "sha256"}
    save_file(change(tensors), file, metadata=metadata)


def set_key(folder, key, value):
    """Changes the configuration of a run folder."""
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, key, value, force_add=True, merge=False)
    OmegaConf.save(cfg, folder / "config.yaml")


def error_lines(folder, **options):
    """The lines of the error; checks that nothing was written into the folder."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} if folder.is_dir() else {}
    with pytest.raises(ValueError) as error:
        breviary.load_reader(folder, **options)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return str(error.value).splitlines()


# ---- accepted ----


def test_the_backbone_is_found_as_configured_as_given_and_in_the_cache(runs, run, tmp_path, monkeypatch):
    answer = breviary.load_reader(runs["comi"]).answer([TEXT], [QUESTION])
    set_key(run, "backbone.path", "/gone/llama")
    assert breviary.load_reader(run, backbone=runs["backbone"], device="cpu").answer([TEXT], [QUESTION]) == answer
    monkeypatch.setenv("BREVIARY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(runs["backbone"], tmp_path / "cache" / "backbones" / "llama")
    assert breviary.load_reader(run).answer([TEXT], [QUESTION]) == answer


def test_hub_names_are_looked_up_in_the_cache(runs, run, monkeypatch):
    """For the reader and for the backbone; a stand-in replaces the hub's cache."""
    places = {"me/reader": run, "me/llama": runs["backbone"]}
    monkeypatch.setattr(
        "breviary.serving.loading.snapshot_download", lambda name, allow_patterns, **options: str(places[name])
    )
    set_key(run, "backbone.path", str(runs["backbone"]))
    assert breviary.load_reader("me/reader").reader.decoder.width == 64
    config = Backbone(str(runs["backbone"])).config
    config._commit_hash = "of the hub"
    monkeypatch.setattr(Backbone, "config", property(lambda self: config))
    monkeypatch.setattr(Backbone, "problems", lambda self: [])
    assert breviary.load_reader(run, backbone="me/llama").reader.decoder.width == 64


def test_a_reader_is_ready_to_answer(runs):
    reader = breviary.load_reader(runs["comi"])
    assert not reader.reader.training and reader.generation.max_new_tokens == 6 and reader.generation.stop == ("\n",)
    assert reader.answer_from(reader.read(TEXT), []) == []
    with pytest.raises(ValueError, match="^generation.max_new_tokens=0: must be at least 1, e.g. 32$"):
        reader.answer([TEXT], [QUESTION], Generation(max_new_tokens=0))
    with pytest.raises(ValueError, match="^generation.stop holds an empty text, which would end every answer at once"):
        reader.answer([TEXT], [QUESTION], Generation(stop=("",)))


def test_a_sampled_answer_depends_on_seed_and_question(runs):
    """In a batch of any order, from an encoded text, and streamed."""
    reader = breviary.load_reader(runs["comi"])
    generation, other = Generation(max_new_tokens=6, temperature=1.0, seed=2), "Which ship?"
    first, second = reader.answer([TEXT, TEXT], [QUESTION, other], generation)
    assert reader.answer([TEXT, TEXT], [other, QUESTION], generation) == [second, first]
    context = reader.read(TEXT)
    assert reader.answer_from(context, [other, QUESTION], generation) == [second, first]
    assert "".join(reader.stream(context, QUESTION, generation)) == first


def test_the_training_objective_does_not_change_the_answers(runs, run):
    answer = breviary.load_reader(runs["comi"]).answer([TEXT], [QUESTION])
    for name in ("Reconstruct", "Continue"):
        set_key(run, "objective", {"_target_": f"breviary.objectives.text.{name}"})
        assert breviary.load_reader(run).answer([TEXT], [QUESTION]) == answer


# ---- rejected ----


def test_a_missing_folder(tmp_path):
    [line] = error_lines(tmp_path / "gone")
    assert line.startswith(
        f"{tmp_path}/gone: no such folder, and neither the hub's cache nor a reachable hub has this name"
    )


def test_a_folder_above_runs_and_latest(run, tmp_path, monkeypatch, capsys):
    home = tmp_path / "outputs" / "comi"
    shutil.copytree(run, home / "20260101T000000_aaaaaa")
    (home / "20260101T000000_aaaaaa" / "finished").touch()
    monkeypatch.chdir(tmp_path)
    for word in ("latest", "outputs/comi", home):
        assert breviary.load_reader(word).reader.origin["reader"]
        assert capsys.readouterr().out.startswith(f"load_reader: {word}: the only finished run, ")
    (home / "20260101T000000_aaaaaa" / "finished").unlink()
    [line] = error_lines(home)
    assert "no run below it is finished" in line


def test_a_folder_without_a_configuration(run):
    (run / "config.yaml").unlink()
    [line] = error_lines(run)
    assert "no run folder (no config.yaml in it)" in line


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "damaged, no YAML"),
        ("\xff", "damaged, no YAML"),
        ("- a", "not a run's configuration, missing: backbone, compressor, engine"),
        ("", "not a run's configuration"),
    ],
)
def test_a_file_that_is_no_configuration(run, text, message):
    (run / "config.yaml").write_bytes(text.encode("latin-1"))
    [line] = error_lines(run)
    assert line.startswith(f"{run}/config.yaml: ") and message in line


def test_unknown_keys_and_wrong_values_are_reported_together(run):
    set_key(run, "compressor.ratoi", 4)
    set_key(run, "compressor.join", "sideways")
    assert [line.split(":")[0] for line in error_lines(run)] == ["compressor.ratoi", "compressor.join=sideways"]


def test_a_folder_without_weights(run):
    shutil.rmtree(run / "checkpoints")
    assert "no run folder with a complete checkpoint" in error_lines(run)[0]


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b"\0" * len(b)])
def test_a_truncated_file(run, damage):
    file = weights(run)
    file.write_bytes(damage(file.read_bytes()))
    [line] = error_lines(run)
    assert line.startswith(f"{file}: damaged checkpoint (")


def test_one_wrong_bit(run):
    content = bytearray(weights(run).read_bytes())
    content[-3] ^= 1
    weights(run).write_bytes(content)
    [line] = error_lines(run)
    assert line.startswith(f"{weights(run)}: damaged checkpoint (the values differ from the stored hash)")


def test_a_checkpoint_of_another_method(run, runs):
    set_key(run, "compressor", OmegaConf.load(runs["ram"] / "config.yaml").compressor)
    set_key(run, "compressor.join", "input")
    lines = error_lines(run)
    assert lines[0].endswith("weights do not fit the configured reader:") and "missing: compressor." in "".join(lines)


def test_an_unknown_a_missing_and_a_misshapen_weight(run):
    def change(tensors):
        first, second, *_ = sorted(tensors)
        kept = {name: tensor for name, tensor in tensors.items() if name != first}
        return kept | {second: torch.ones(2, 2), "extra": torch.ones(1)}

    rewrite_weights(run, change)
    lines = error_lines(run)
    assert len(lines) == 4 and lines[1].startswith("  missing: decoder.layers.0") and lines[2] == "  unknown: extra"
    assert "(2, 2) in the file" in lines[3]


@pytest.mark.parametrize("key, value", [("backbone.seed", 1), ("backbone.width", 32), ("backbone.layers", 3)])
def test_another_tiny_backbone(runs, tmp_path, key, value):
    run = shutil.copytree(runs["ram"], tmp_path / "run")
    set_key(run, key, value)
    lines = error_lines(run)
    assert "checkpoint of backbone tiny_llama" in lines[0] and lines[-1].startswith("the backbone tiny_llama (")


def test_another_backbone_is_rejected_by_its_hash(run, tmp_path):
    other = TinyBackbone(layers=4, seed=5)
    other.load().save_pretrained(tmp_path / "other")
    other.tokenizer().save_pretrained(tmp_path / "other")
    lines = error_lines(run, backbone=tmp_path / "other")
    assert "checkpoint of backbone llama" in lines[0] and "but the backbone here is other" in lines[0]
    assert lines[-1].endswith('give its folder or hub name: load_reader(path, backbone="...")')


def test_a_missing_backbone(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BREVIARY_CACHE", str(tmp_path))
    set_key(run, "backbone.path", "/gone/llama")
    lines = error_lines(run)
    assert (
        lines[0].startswith("backbone.path=/gone/llama: no such folder") and f"{tmp_path}/backbones/llama" in lines[1]
    )


@pytest.mark.parametrize("key", ["backbone", "compressor", "compressor.skimmer", "compressor.skimmer.coarse"])
def test_only_classes_of_readers_may_be_named_as_targets(runs, tmp_path, key):
    """A downloaded folder must not choose which code is called."""
    run = shutil.copytree(runs["ram"], tmp_path / "run")
    if key.startswith("compressor.skimmer"):
        set_key(run, "compressor.skimmer", {"_target_": "comi.grouping.GainGrouping", "coarse": True, "fine": True})
    target = tmp_path / "written"
    set_key(run, key, {"_target_": "pathlib.Path.write_text", "self": str(target), "data": "x"})
    [line] = error_lines(run)
    assert line.startswith(f"{key}._target_=pathlib.Path.write_text: ") and not target.exists()
    set_key(run, key, {"_target_": "subprocess.Popen", "args": ["touch", str(target)]})
    [line] = error_lines(run)
    assert line.startswith(f"{key}._target_=subprocess.Popen: must be a subclass of ") and not target.exists()


def test_the_configured_objective_is_never_instantiated(runs, tmp_path):
    """Neither the objective nor its metrics: the run of an autoencoder opens, and an untrusted target is not called."""
    run = shutil.copytree(runs["ram"], tmp_path / "run")
    target = tmp_path / "written"
    for objective in (
        {"_target_": "pathlib.Path.write_text", "self": str(target), "data": "x"},
        {"_target_": "breviary.objectives.text.Reconstruct", "measures": {"_target_": "data.restoration.Restoration"}},
    ):
        set_key(run, "objective", objective)
        assert breviary.load_reader(run).answer(["The sky is blue."], ["What colour is the sky?"])
        assert not target.exists()


def test_a_memory_used_for_another_question_warns(recwarn):
    def memory(question, needs_question=True):
        reader = SimpleNamespace(compressor=SimpleNamespace(needs_question=needs_question))
        return SimpleNamespace(question=question, reader=reader)

    for context in (memory("Who?"), memory(None), memory("What?", needs_question=False), SimpleNamespace()):
        _warn_of_other_questions(context, [" Who? "])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="computed for the question 'Who\\?' and is used for 'Where\\?'"):
        _warn_of_other_questions(memory("Who?"), ["Who?", "Where?"])
