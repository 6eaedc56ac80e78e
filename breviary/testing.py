"""Small things built in code for tests and for the tiny configurations: nothing is downloaded."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_TEXT = (
    "Question: What is the favourite colour of Zorvane? Answer: green. For the town of Velkeld the official metal "
    "is copper. The ship Quiloth has violin as lucky instrument. The lucky animal of the ship Druminne is horse. "
    "Document [1](Title: Moon) The moon is white. Document [2](Title: Sun) The sun is yellow. "
    "red blue green yellow black white brown pink purple orange grey gold copper iron silver tin zinc steel nickel "
    "lead bronze brass titanium platinum dog cat horse lion tiger bear wolf fox eagle snake rabbit mouse apple "
    "banana cherry grape lemon mango peach pear plum melon fig lime piano guitar violin drum flute harp trumpet "
    "cello organ horn banjo bell colour metal animal fruit instrument favourite official lucky town ship"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 entries trained on a fixed text: any text round-trips, common words are one token.

    BOS is <s>, the end token </s>, and padding equals the end token, as in many released models; fast, with offsets.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False)
    # Said several times: pairs that occur once are merged too, in the order of the text.
    tokenizer.train_from_iterator([f" {_TEXT}"] * 3, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False)
