"""Reduced precision: trained weights are cast once for inference, and norms keep the dtype of the stream."""

import pytest
import torch
from tiny_runs import tiny_run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import breviary
from breviary.backbones.stack import Stack
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import cast_for_inference, set_trainable, trained_state
from breviary.contract import Generation
from breviary.evaluation import session
from breviary.evaluation.resolve import resolve_run_config
from breviary.runs.checkpoints import best_checkpoint
from breviary.serving import loading
from data.text_pipeline import TEXT
from tests.tiny import compose_tiny, disturb

FORMS = {
    "lora": ["compressor=full_context"],
    "full": ["compressor=full_context", "decoder.train=full"],
    "frozen": ["compressor=full_context", "decoder.train=frozen"],
    "qwen3": ["compressor=mean_pool", "compressor.join=depth", "decoder.train=full", "backbone.family=qwen3"],
    "comi": ["compressor=comi", "compressor.join=input", "compressor.learned_weights=merge"],
    "comi at depth": ["compressor=comi", "compressor.join=depth"],
    "ram": ["compressor=ram", "compressor.join=input"],
    "icae": ["compressor=icae", "compressor.memory_tokens=4"],
    "tcp_ae": ["compressor=tcp_ae"],
    "comet": ["compressor=comet"],
}
GENERATION = Generation(max_new_tokens=9, min_new_tokens=9)


class CountedCasts(TorchDispatchMode):
    """Counts the casts of `weights` to another dtype."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype", args[0].dtype) != args[0].dtype:
            self.count += args[0].untyped_storage().data_ptr() in self.weights
        return func(*args, **kwargs)


def streamed(reader, batch):
    """Text of a streamed answer of 9 tokens, 8 of them decode steps; and the number of casts of weights."""
    kept = [p for m in reader.modules() if getattr(m, "is_float32", False) for p in m.parameters()]
    stream = reader.encode_contexts(batch)[0].stream(batch, GENERATION)
    with CountedCasts({*reader.parameters()} - {*kept}) as casts:
        return "".join(stream), casts.count


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_cast_once(build, ragged, form):
    """Before: LoRA of 24 matrices cast 216 weights for a streamed answer of 9 tokens. Answers and losses do not change:
    autocast rounded the same weights to bfloat16 before the same products."""
    reader = build([*FORMS[form], "backbone.dtype=bfloat16"]).eval()
    disturb(reader)
    batch = ragged.rows([0])
    with torch.no_grad():
        before, nll = streamed(reader, batch), reader.loss(ragged).nll
        stored = trained_state(reader)
        assert before[1] == 0 if form == "frozen" else before[1] > 200
        cast_for_inference(reader)
        after = streamed(reader, batch)
        assert after == (before[0], 0)
        torch.testing.assert_close(reader.loss(ragged).nll, nll, rtol=0, atol=0)
        assert not torch.is_autocast_enabled("cpu") and type(reader.decoder.mixed_precision()).__name__ == "nullcontext"
    assert all(value.dtype == torch.float32 for value in stored.values())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_float32_norms_keep_the_stream_in_bfloat16(family):
    """In training, every norm, its weight float32, returns the dtype of its input."""
    stack = Stack(TinyBackbone(family=family, layers=2, dtype="bfloat16").load())
    set_trainable(stack, "full")
    dtypes = []
    norms = [module for name, module in stack.named_modules() if "norm" in name]
    for norm in norms:
        assert norm.weight.dtype == torch.float32
        norm.register_forward_hook(lambda module, inputs, output: dtypes.append((inputs[0].dtype, output.dtype)))
    ids = torch.randint(2, 500, (2, 7))
    with stack.mixed_precision():
        states = stack.run(stack.embed(ids), range(2), torch.arange(7).expand(2, 7))
        normed = stack.norm(states)
    assert states.dtype == normed.dtype == torch.bfloat16
    assert dtypes == [(torch.bfloat16, torch.bfloat16)] * (9 if family == "qwen3" else 5)
    normed.float().sum().backward()
    assert all(norm.weight.grad.dtype == torch.float32 for norm in norms)


def test_a_float32_reader_is_not_changed(build, ragged):
    reader = build(["compressor=comi"]).eval()
    before = {name: parameter.data_ptr() for name, parameter in reader.named_parameters()}
    cast_for_inference(reader)
    assert before == {name: parameter.data_ptr() for name, parameter in reader.named_parameters()}


def test_weights_marked_float32_are_not_cast(build):
    """CoMeT's memory, COMI's weights of the gain and every norm compute in float32."""
    for words, part in ((["compressor=comet"], "memory.layers."), (FORMS["comi"], "gain.merge_")):
        reader = build([*words, "backbone.dtype=bfloat16", "decoder.train=full"])
        cast_for_inference(reader)
        dtypes = {name: parameter.dtype for name, parameter in reader.named_parameters()}
        kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
        assert any(part in name for name in kept)
        assert all(part in name or "norm" in name for name in kept), kept
        assert all(not isinstance(m, nn.RMSNorm) or m.weight.dtype == torch.float32 for m in reader.modules())


@pytest.mark.parametrize("name", ["comi", "comet"])
def test_loaded_readers_are_cast_and_keep_their_files(name, tmp_path, monkeypatch):
    """Serving and evaluation cast after loading. Files written before are still this reader's, as the hash is that of
    the stored weights."""
    run = tiny_run(tmp_path, f"compressor={name}", "backbone.dtype=bfloat16")
    with monkeypatch.context() as patch:
        for module in (loading, session):
            patch.setattr(module, "cast_for_inference", lambda reader: None)
        former = breviary.load_reader(run)
        former.read("The sky is blue.").save(tmp_path / "saved")
        answer = former.answer(["The sky is blue."], ["What is blue?"])
    reader = breviary.load_reader(run)
    assert reader.answer(["The sky is blue."], ["What is blue?"]) == answer
    assert reader.answer_from(reader.load(tmp_path / "saved"), ["What is blue?"]) == answer
    cfg = resolve_run_config(compose_tiny([f"run={run}"], "eval"), [f"run={run}"])
    evaluated = session.EvaluationSession(TEXT).load_reader(cfg, best_checkpoint(run))
    for loaded in (reader.reader, evaluated):
        dtypes = {parameter.dtype for name, parameter in loaded.named_parameters() if "lora_" in name}
        assert dtypes == {torch.bfloat16} and loaded.decoder.is_cast
