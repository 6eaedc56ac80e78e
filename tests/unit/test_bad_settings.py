"""Unknown keys and wrong values: one error message per problem, all of a call at once, before weights are loaded."""

import pytest
from calling import ROW, SMALL, jsonl, write

import eval as evaluation
import train as training
from breviary.config.compose import compose_config
from breviary.config.keys import CONFIGS, drop_unused_keys, validate_keys

# ------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    "words, messages",
    [
        (
            ["experiment=comi_facts", "compressor.ratoi=8"],
            ["compressor.ratoi: unknown key; the nearest right one is compressor.ratio"],
        ),
        # Several keys: Hydra stops at the first.
        (
            ["compressor=mean_pool", "compressor.lsalayers=8", "train.stepps=8", "seed=1"],
            [
                "compressor.lsalayers: unknown key; the nearest right one is compressor.lsa_layers",
                "train.stepps: unknown key; the nearest right one is train.steps",
            ],
        ),
        (["train={stepps: 3}"], ["train.stepps: unknown key; the nearest right one is train.steps"]),
        (
            ["compressor.ratoi=8", "ratio=8", "trian.steps=8", "compressor.zzz=1"],
            [
                "compressor.ratoi: unknown key; the nearest right one is compressor.ratio",
                "ratio: unknown key; the nearest right one is compressor.ratio",
                "trian.steps: unknown key; the nearest right one is train.steps",
                "compressor.zzz: unknown key",
            ],
        ),
        (["compresor=comi"], ["compresor: unknown key; the nearest right one is compressor"]),
        # Keys that Hydra adds because of their +.
        (
            [
                "+compressor.ratoi=8",
                "+train.stepps=8",
                "+prompt.templat=a",
                "+dataset.fact=8",
                "+backbone.layer=8",
                "+sead=8",
                "+compressor.decoder=8",
                "+engine.kinds=zero",
            ],
            [
                "sead: unknown key; the nearest right one is seed",
                "prompt.templat: unknown key; the nearest right one is prompt.template",
                "train.stepps: unknown key; the nearest right one is train.steps",
                "engine.kinds: unknown key; the nearest right one is engine.kind",
                "backbone.layer: unknown key; the nearest right one is backbone.layers",
                "compressor.ratoi: unknown key; the nearest right one is compressor.ratio",
                "compressor.decoder: unknown key; the nearest right one is compressor.encoder",
                "dataset.fact: unknown key; the nearest right one is dataset.facts",
            ],
        ),
    ],
)
def test_unknown_keys_are_reported_with_the_nearest_known_key(refused, words, messages):
    assert refused(training, *words) == messages


def test_an_unknown_choice_is_reported_with_all_choices(refused):
    choices = ", ".join(sorted(file.stem for file in (CONFIGS / "compressor").glob("*.yaml")))
    assert refused(training, "compressor=comii") == [
        f"no such configuration compressor/comii; the nearest right one is comi; there are: {choices}"
    ]


def test_a_word_without_equals_sign(refused):
    assert refused(training, "train.steps") == ["train.steps: no value; write train.steps=VALUE"]


def test_values_of_a_wrong_type(refused):
    assert refused(
        training,
        "compressor.ratio=eight",
        "compressor.coarse=maybe",
        "train.steps=many",
        "train.warmup=null",
        "train.batch_size=1.5",
        "limits.max_context_tokens=all",
        "dataset.facts=four",
        "train.log_every=???",
        "dataset.train_size=4",
    ) == [
        "limits.max_context_tokens=all: must be a whole number or null, e.g. null",
        "train.steps=many: must be a whole number, e.g. 100",
        "train.batch_size=1.5: must be a whole number, e.g. 8",
        "train.warmup=null: must be a number, e.g. 0.1",
        "train.log_every=???: a value is missing; write train.log_every=VALUE",
        "compressor.ratio=eight: must be a whole number or null, e.g. 4",
        "compressor.coarse=maybe: must be true or false, e.g. true",
        "dataset.facts=four: must be a whole number, e.g. 4",
    ]


def test_keys_of_an_experiment_for_another_compressor_are_dropped():
    words = ["experiment=comi_facts", "compressor=full_context"]
    cfg = compose_config("train", words)
    assert drop_unused_keys(cfg, words) == ["compressor.join"] and "join" not in cfg.compressor
    misspelt = [*words, "+compressor.joins=depth"]
    cfg = compose_config("train", misspelt)
    assert drop_unused_keys(cfg, misspelt) == ["compressor.join"]
    assert validate_keys(cfg)[1] == ["compressor.joins: unknown key"]


def test_a_class_that_cannot_be_imported(refused):
    assert refused(training, "compressor._target_=my.Method") == [
        "compressor._target_=my.Method: cannot be imported (No module named 'my'); give module.Class, with its folder "
        "in the checkout or in the environment variable PYTHONPATH"
    ]


# ------------------------------------------------------------------ values

LEARNED = (
    "allowed are none, merge; the coarse stage yields integer sizes, so its weights would never receive a gradient"
)


@pytest.mark.parametrize(
    "words, messages",
    [
        (
            [
                "compressor.ratio=0",
                "compressor.learned_weights=coarse",
                "decoder.lora_targets=[q_porj]",
                "prompt.template=Q",
            ],
            [
                "compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
                f"compressor.learned_weights=coarse: {LEARNED}",
                "decoder.lora_targets=['q_porj']: must be all-linear, or a list out of q_proj, k_proj, v_proj, o_proj, "
                "gate_proj, up_proj, down_proj, e.g. [q_proj,v_proj]",
                "prompt.template is 'Q'; it must hold {question}, for example \"prompt.template='Q: {question} A:'\"",
            ],
        ),
        (
            [
                "compressor.ratio=null",
                "compressor.slots=-1",
                "compressor.learned_weights=both",
                "backbone.device=cuda",
                "compressor.join=depth",
                "compressor.encoder_layers=9",
            ],
            [
                "backbone.device=cuda: there is no GPU here; set backbone.device=auto or cpu",
                "compressor.slots=-1: must be a whole number of at least 1, e.g. 4",
                "compressor.encoder_layers=9: must be from 1 to 8 for this backbone of 9 layers, e.g. 8",
                f"compressor.learned_weights=both: {LEARNED}",
            ],
        ),
        (
            ["compressor.learned_weights=merge", "compressor.fine=false", "compressor.temperature=0"],
            [
                "compressor.learned_weights=merge: has no weights to learn with compressor.fine=false; set "
                "compressor.learned_weights=none or compressor.fine=true",
                "compressor.temperature=0: must be above 0, e.g. 1.0",
            ],
        ),
        (
            [
                "compressor=ram",
                "compressor.join=depth",
                "compressor.keep=none",
                "compressor.skim=drop",
                "compressor.quirks=true",
                "compressor.segment_size=1",
                "compressor.ratio_choices=[2,4]",
                "compressor.contrastive_weight=-1",
                "compressor.skim_temperature=0",
                "compressor.budget=exact",
                "compressor.positives=labels",
                "compressor.read=all",
            ],
            [
                "compressor.read=all: allowed are segments, whole",
                "compressor.budget=exact: allowed are nominal, strict",
                "compressor.positives=labels: allowed are evidence, answers",
                "compressor.skim_temperature=0: must be above 0, e.g. 1.0",
                "compressor.contrastive_weight=-1: must be 0 (off) or more, e.g. 1.0",
                "compressor.segment_size=1: must be at least 2 tokens, e.g. 50",
                "compressor.uniform_keep=true and compressor.ratio_choices exclude each other: both draw the ratio of "
                "a training step; set compressor.uniform_keep=false or compressor.ratio_choices=null",
                "compressor.quirks=true applies to the published form only; set compressor.join=input and "
                "compressor.encoder=null",
                "compressor.keep=none with compressor.skim=drop leaves no memory; use compressor=no_context instead",
            ],
        ),
        (
            [
                "compressor.alignment=mlp",
                "compressor.question=both",
                "compressor.lsa_layers=0",
                "compressor.lsa_init=zeros",
            ],
            [
                "compressor.alignment=mlp: allowed are lsa, linear, linear_lsa, transformer_linear, none",
                "compressor.lsa_init=zeros: allowed are pretrained, random",
                "compressor.question=both: allowed are after_context, alone",
                "compressor.lsa_layers=0: must be from 1 to 9, e.g. 1; compressor.alignment=none switches the "
                "alignment off",
            ],
        ),
        (
            ["compressor.alignment=none", "compressor.lsa_init=random"],
            [
                "compressor.lsa_init=random: compressor.alignment=none has no decoder blocks to initialise; set "
                "compressor.lsa_init=pretrained, or compressor.alignment=lsa"
            ],
        ),
        (
            ["backbone.family=gpt2", "compressor.ratio=-2"],
            [
                "backbone.family=gpt2: allowed are llama, qwen2, qwen3",
                "compressor.ratio=-2: must be a whole number of at least 1, e.g. 4",
            ],
        ),
    ],
)
def test_values_out_of_bounds(refused, words, messages):
    assert refused(training, *words, "backbone.layers=9", "dataset.train_size=4") == messages


def test_all_problems_of_a_call_are_reported_at_once(refused, tmp_path):
    assert refused(
        training,
        "+compressor.ratoi=8",
        "compressor.ratio=0",
        "train.steps=many",
        "train.batch_size=0",
        "prompt.template=Q",
        "backbone=smollm2_135m",
        f"backbone.path={tmp_path}/none",
        "dataset=jsonl",
        f"dataset.train={tmp_path}/none.jsonl",
        f"dataset.validation={write(tmp_path / 'empty.jsonl', [])}",
        "init_from=nowhere",
    ) == [
        "train.steps=many: must be a whole number, e.g. 100",
        "compressor.ratoi: unknown key; the nearest right one is compressor.ratio",
        f"backbone.path={tmp_path}/none: no such folder; for SmolLM2 run `python scripts/get_backbone.py`, else give a "
        "folder or a hub name",
        "compressor.ratio=0: must be a whole number of at least 1, e.g. 4",
        "train.batch_size=0: must be at least 1, e.g. 8",
        "init_from: nowhere: no run folder with a complete checkpoint in checkpoints/; give one that train.py printed, "
        "e.g. outputs/comi_facts/20260101T000000_ab12cd",
        "prompt.template is 'Q'; it must hold {question}, for example \"prompt.template='Q: {question} A:'\"",
        f"dataset.train is '{tmp_path}/none.jsonl', which is not a file; name a JSONL file, for example "
        "dataset.train=path/to/train.jsonl.gz",
        f"dataset.validation: {tmp_path}/empty.jsonl is empty; it must hold one JSON object per line, for example "
        "dataset.validation=path/to/validation.jsonl.gz",
    ]


# ------------------------------------------------------------------ objectives


def test_settings_that_an_objective_does_not_support(refused):
    assert refused(training, "objective=continue", "objective.context_share=1.0", "objective.hint_tokens=0") == [
        "objective.context_share=1.0: must be between 0 and 1, both excluded, e.g. 0.5",
        "objective.hint_tokens=0: must be at least 1, e.g. 8",
    ]
    assert refused(
        training,
        "objective=distill",
        "objective.top=0",
        "objective.temperature=0",
        "decoder.train=full",
        "compressor=comet",
    ) == [
        "objective.top=0: must be at least 1, e.g. 64",
        "objective.temperature=0: must be above 0, e.g. 1.0",
        "objective=distill with decoder.train=full: the teacher is the same backbone without adapters, so its weights "
        "must not change; use decoder.train=lora or frozen",
        "objective=distill: the memory of this compressor does not consist of slots; use objective=continue, or "
        "a compressor with slots, e.g. comi",
    ]


def test_texts_that_an_objective_cannot_use(refused, tmp_path):
    rows = jsonl(tmp_path, [ROW, {**ROW, "context": ""}])
    [message] = refused(training, *rows, *SMALL, "objective=continue")
    assert message.startswith("dataset train: 1 contexts of fewer than 2 tokens")
    file = write(tmp_path / "test.jsonl", [ROW, {**ROW, "context": ""}])
    assert refused(evaluation, "dataset=jsonl", f"dataset.test={file}", "objective=continue") == [
        message.replace("train", "test")
    ]
    long = jsonl(tmp_path, [{**ROW, "context": "blue " * 150}])
    [message] = refused(
        training,
        *long,
        *SMALL,
        "backbone.positions=128",
        "compressor.segment_size=32",
        "objective=distill",
        "objective.context_share=null",
    )
    assert message.startswith("dataset train: this objective's teacher reads whole contexts")


@pytest.mark.parametrize("word", ["compressor._target_=os.system", "objective._target_=builtins.eval"])
def test_a_target_that_is_no_class_is_refused(refused, word):
    [message] = refused(training, word)
    assert message.startswith(f"{word}: is a builtin_function_or_method, not a class")


@pytest.mark.parametrize("words, found", [(["engine.kind=zero"], "null"), (["engine=zero2", "engine.kind=ddp"], "set")])
def test_kind_and_settings_of_an_engine_belong_together(refused, words, found):
    [message] = refused(training, *words)
    assert f"with engine.deepspeed={found}: choose both by name, e.g. engine=zero2" in message
