"""load_reader: what opens, and one clear error for each thing that does not."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_run

from breviary import load_reader
from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone
from breviary.contract import Generation
from breviary.runs.checkpoints import WEIGHTS

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
    """A copy of COMI's run, to spoil."""
    return shutil.copytree(runs["comi"], tmp_path / "run")


def weights(folder):
    return next(folder.rglob(WEIGHTS))


def rewritten(folder, change):
    """The checkpoint with `change(tensors)` in place of its tensors, under the old header but for the hash."""
    file, tensors = weights(folder), load_file(weights(folder))
    with safe_open(file, framework="pt") as stream:
        metadata = {key: value for key, value in stream.metadata().items() if key != "sha256"}
    save_file(change(tensors), file, metadata=metadata)


def configured(folder, key, value):
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, key, value, force_add=True, merge=False)
    OmegaConf.save(cfg, folder / "config.yaml")


def refused(folder, **how):
    """The sentences of the error, with nothing written into the folder."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} if folder.is_dir() else {}
    with pytest.raises(ValueError) as error:
        load_reader(folder, **how)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return str(error.value).splitlines()


# ---- what opens ----


def test_the_backbone_is_found_where_it_was_or_is_given_or_in_the_cache(runs, run, tmp_path, monkeypatch):
    answer = load_reader(runs["comi"]).answer([TEXT], [QUESTION])
    configured(run, "backbone.path", "/gone/llama")
    assert load_reader(run, backbone=runs["backbone"], device="cpu").answer([TEXT], [QUESTION]) == answer
    monkeypatch.setenv("BREVIARY_CACHE", str(tmp_path / "cache"))
    shutil.copytree(runs["backbone"], tmp_path / "cache" / "backbones" / "llama")
    assert load_reader(run).answer([TEXT], [QUESTION]) == answer


def test_a_hub_name_s_files_are_the_folder_s(runs, run, monkeypatch):
    """The name is looked up in the hub's cache, here a stand-in, for the reader and for the backbone."""
    places = {"me/reader": run, "me/llama": runs["backbone"]}
    monkeypatch.setattr("breviary.serving.loading.snapshot_download", lambda name, allow_patterns: str(places[name]))
    configured(run, "backbone.path", str(runs["backbone"]))
    assert load_reader("me/reader").reader.decoder.width == 64
    config = Backbone(str(runs["backbone"])).config
    config._commit_hash = "of the hub"
    monkeypatch.setattr(Backbone, "config", property(lambda self: config))
    monkeypatch.setattr(Backbone, "problems", lambda self: [])
    assert load_reader(run, backbone="me/llama").reader.decoder.width == 64


def test_a_reader_is_ready_to_answer(runs):
    reader = load_reader(runs["comi"])
    assert not reader.reader.training and reader.generation.max_new_tokens == 6 and reader.generation.stop == ("\n",)
    assert reader.answer_from(reader.read(TEXT), []) == []
    with pytest.raises(ValueError, match="^generation.max_new_tokens=0: must be at least 1, e.g. 32$"):
        reader.answer([TEXT], [QUESTION], Generation(max_new_tokens=0))


def test_whatever_it_was_trained_to_say_it_is_asked_questions(runs, run):
    configured(run, "objective", {"_target_": "breviary.objectives.text.Reconstruct"})
    assert load_reader(run).answer([TEXT], [QUESTION]) == load_reader(runs["comi"]).answer([TEXT], [QUESTION])
    configured(run, "objective", {"_target_": "breviary.objectives.text.Continue"})
    assert load_reader(run).answer([TEXT], [QUESTION]) == load_reader(runs["comi"]).answer([TEXT], [QUESTION])


# ---- what does not ----


def test_no_such_place(tmp_path):
    [sentence] = refused(tmp_path / "gone")
    assert sentence.startswith(
        f"{tmp_path}/gone: no such folder, and nothing of that name in the hub's cache or within reach"
    )


def test_a_folder_without_a_configuration(run):
    (run / "config.yaml").unlink()
    [sentence] = refused(run)
    assert "no run folder (no config.yaml in it)" in sentence


@pytest.mark.parametrize(
    "text, told",
    [
        ("a: [", "damaged, no YAML"),
        ("\xff", "damaged, no YAML"),
        ("- a", "no run's configuration, it lacks backbone, compressor, engine"),
        ("", "no run's configuration"),
    ],
)
def test_a_configuration_that_is_none(run, text, told):
    (run / "config.yaml").write_bytes(text.encode("latin-1"))
    [sentence] = refused(run)
    assert sentence.startswith(f"{run}/config.yaml: ") and told in sentence


def test_unknown_keys_and_wrong_values_are_told_together(run):
    configured(run, "compressor.ratoi", 4)
    configured(run, "compressor.join", "sideways")
    assert [sentence.split(":")[0] for sentence in refused(run)] == ["compressor.ratoi", "compressor.join=sideways"]


def test_a_folder_without_weights(run):
    shutil.rmtree(run / "checkpoints")
    assert "no run folder with a complete checkpoint" in refused(run)[0]


@pytest.mark.parametrize("spoil", [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b"\0" * len(b)])
def test_a_truncated_file(run, spoil):
    file = weights(run)
    file.write_bytes(spoil(file.read_bytes()))
    [sentence] = refused(run)
    assert sentence.startswith(f"{file}: damaged checkpoint (")


def test_one_wrong_bit(run):
    content = bytearray(weights(run).read_bytes())
    content[-3] ^= 1
    weights(run).write_bytes(content)
    [sentence] = refused(run)
    assert sentence.startswith(f"{weights(run)}: damaged checkpoint (its values are not those that were written)")


def test_a_checkpoint_of_another_method(run, runs):
    configured(run, "compressor", OmegaConf.load(runs["ram"] / "config.yaml").compressor)
    configured(run, "compressor.join", "input")
    lines = refused(run)
    assert lines[0].endswith("weights do not fit the configured reader:") and "missing: compressor." in "".join(lines)


def test_an_unknown_a_missing_and_a_misshapen_weight(run):
    def change(tensors):
        first, second, *_ = sorted(tensors)
        kept = {name: tensor for name, tensor in tensors.items() if name != first}
        return kept | {second: torch.ones(2, 2), "extra": torch.ones(1)}

    rewritten(run, change)
    lines = refused(run)
    assert len(lines) == 4 and lines[1].startswith("  missing: decoder.layers.0") and lines[2] == "  unknown: extra"
    assert "(2, 2) in the file" in lines[3]


@pytest.mark.parametrize("key, value", [("backbone.seed", 1), ("backbone.width", 32), ("backbone.layers", 3)])
def test_another_tiny_backbone(runs, tmp_path, key, value):
    run = shutil.copytree(runs["ram"], tmp_path / "run")
    configured(run, key, value)
    lines = refused(run)
    assert "checkpoint of backbone tiny_llama" in lines[0] and lines[-1].startswith("the backbone tiny_llama (")


def test_another_backbone_is_refused_by_its_hash(run, tmp_path):
    other = TinyBackbone(layers=4, seed=5)
    other.load().save_pretrained(tmp_path / "other")
    other.tokenizer().save_pretrained(tmp_path / "other")
    lines = refused(run, backbone=tmp_path / "other")
    assert "checkpoint of backbone llama" in lines[0] and "but the backbone here is other" in lines[0]
    assert lines[-1].endswith('give its folder or hub name: load_reader(path, backbone="...")')


def test_a_backbone_that_is_nowhere(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BREVIARY_CACHE", str(tmp_path))
    configured(run, "backbone.path", "/gone/llama")
    lines = refused(run)
    assert (
        lines[0].startswith("backbone.path=/gone/llama: no such folder") and f"{tmp_path}/backbones/llama" in lines[1]
    )


@pytest.mark.parametrize("key", ["backbone", "compressor", "compressor.skimmer", "compressor.skimmer.coarse"])
def test_a_configuration_names_nothing_but_readers(runs, tmp_path, key):
    """A downloaded folder must not choose what is called."""
    run = shutil.copytree(runs["ram"], tmp_path / "run")
    if key.startswith("compressor.skimmer"):
        configured(run, "compressor.skimmer", {"_target_": "comi.grouping.GainGrouping", "coarse": True, "fine": True})
    target = tmp_path / "written"
    configured(run, key, {"_target_": "pathlib.Path.write_text", "self": str(target), "data": "x"})
    [sentence] = refused(run)
    assert sentence.startswith(f"{key}._target_=pathlib.Path.write_text: ") and not target.exists()
    configured(run, key, {"_target_": "subprocess.Popen", "args": ["touch", str(target)]})
    [sentence] = refused(run)
    assert sentence.startswith(f"{key}._target_=subprocess.Popen: is no ") and not target.exists()


def test_an_objective_is_not_asked_for(runs, tmp_path):
    """Neither what a reader was trained to say nor what measured it: an autoencoder opens, and what stands there is not called."""
    run = shutil.copytree(runs["ram"], tmp_path / "run")
    target = tmp_path / "written"
    for objective in (
        {"_target_": "pathlib.Path.write_text", "self": str(target), "data": "x"},
        {"_target_": "breviary.objectives.text.Reconstruct", "measures": {"_target_": "data.restoration.Restoration"}},
    ):
        configured(run, "objective", objective)
        assert load_reader(run).answer(["The sky is blue."], ["What colour is the sky?"]) and not target.exists()
