"""The Python interface to a trained reader: texts in, answers out. `breviary.load_reader` returns it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from breviary.contract import Batch, EncodedContext, Generation, Reader
from breviary.readers.documents import QuestionMemory
from breviary.readers.views import Described, reader_facts
from breviary.runtime.memory_errors import IN_PYTHON, memory_errors
from breviary.serving.prompt_embeds import prompt_embeds


class TextReader(Described):
    """Encodes texts with a trained reader and answers questions about them.

    reader           the reader itself, for batches of tokens
    texts            (contexts, questions) -> Batch, as the run's dataset would make it (configs/text.yaml); its
                     of_parts makes one of prompts that are given whole
    generation       default decoding settings
    longest_context  number of other tokens -> the longest context in tokens that fits beside them; None = any length
    """

    def __init__(
        self, reader: Reader, texts: Any, generation: Generation, longest_context: Callable[[int], int | None]
    ):
        self.reader, self.texts, self.generation = reader.eval(), texts, generation
        self._longest_context = longest_context

    def read(self, text: str) -> EncodedContext:
        """Encodes a text once, for any number of questions.

        Raises: ValueError for a text that is too long for this reader.
        """
        batch = self._batch([text], [""])
        self._check_length(int(batch.context.lengths[0]), batch, self.generation)
        with memory_errors("encoding a text", IN_PYTHON, batch):
            [context] = self.reader.encode_contexts(batch)
        return context

    def answer_from(
        self, context: EncodedContext, questions: str | Sequence[str], generation: Generation | None = None
    ) -> str | list[str]:
        """The answer to a question about an encoded text or from a memory; a list of answers for several questions."""
        several = [questions] if isinstance(questions, str) else list(questions)
        if not several:
            return []
        batch, generation = self._questions(context, several, generation)
        with memory_errors(f"answering from a text of {context.tokens_read} tokens", IN_PYTHON, batch):
            answers = context.answer(batch, generation)
        return answers[0] if isinstance(questions, str) else answers

    def stream(self, context: EncodedContext, question: str, generation: Generation | None = None) -> Iterator[str]:
        """The same answer as `answer_from`, in pieces of text while it is decoded."""
        batch, generation = self._questions(context, [question], generation)
        return _streamed(context, batch, generation)

    def memory(self, context: EncodedContext, question: str) -> QuestionMemory:
        """The memory of a text for one question; `token_spans()` describes it, `save(file)` writes it.

        Raises: ValueError for a reader whose memory does not depend on the question: `read` returns it already.
        """
        batch, _ = self._questions(context, [question], None)
        with memory_errors(f"compressing a text of {context.tokens_read} tokens", IN_PYTHON, batch):
            return cast(QuestionMemory, context.memory(batch))

    def answer(self, texts: Sequence[str], questions: Sequence[str], generation: Generation | None = None) -> list[str]:
        """Encodes and answers a batch: one question about each text."""
        if len(texts) != len(questions):
            raise ValueError(f"{len(texts)} texts and {len(questions)} questions: give one question for each text")
        if not texts:
            return []
        batch, generation = self._batch(texts, questions), _checked(generation or self.generation)
        self._check_length(int(batch.context.lengths.max()), batch, generation)
        with memory_errors("answering", IN_PYTHON, batch):
            return self.reader.answer(batch, generation)

    def prompt_embeds(self, texts: Sequence[str], questions: Sequence[str]) -> list[Tensor]:
        """Embeddings (tokens, width) of each prompt with its compressed text, for servers that take these (vLLM).

        Raises: ValueError for a reader whose memory is no sequence of input embeddings, and for a text too long.
        """
        batch = self._batch(texts, questions)
        self._check_length(int(batch.context.lengths.max()), batch, self.generation)
        with memory_errors("compressing texts", IN_PYTHON, batch):
            return prompt_embeds(self.reader, batch)

    def load(self, file: str | Path) -> EncodedContext:
        """An encoded text or a memory that this reader saved, in this or another process.

        Raises: ValueError for a damaged file and for a file of another reader, with the difference.
        """
        return self.reader.load_saved(file)

    def split_batch(self, splits: Sequence[Any], answers: Sequence[str], new_tokens: int = 0) -> tuple[Batch, int]:
        """Prompts that another program made, and the number of those whose context was cut in the middle to fit.

        splits      with the texts before, context, after, question; before and after may hold special tokens
        answers     to be scored, as they are, without an end token; new_tokens  to be decoded
        The run's own prompt is not used. Raises: ValueError where question and answer alone do not fit.
        """
        batch = self.texts.of_parts(splits, answers)
        others = sum(part.ids.shape[1] for part in (batch.prefix, batch.answer))
        others += max(part.ids.shape[1] for part in (batch.prompt, batch.query)) + new_tokens
        limit = self._longest_context(others)
        longest = int(batch.context.lengths.max())
        if limit is None or longest <= limit:
            return batch, 0
        if limit < 1:
            raise ValueError(f"question and answer take {others} tokens, which leaves no place for a context")
        return self.texts.of_parts(splits, answers, limit), int((batch.context.lengths > limit).sum())

    def facts(self) -> dict[str, str]:
        """As Described."""
        weight = next(self.reader.parameters())
        dtype = str(self.reader.decoder.dtype).removeprefix("torch.")
        return {**reader_facts(self.reader), "computes": f"in {dtype} on {weight.device}"}

    def _batch(self, texts: Sequence[str], questions: Sequence[str]) -> Batch:
        return self.texts(texts, questions).to(next(self.reader.parameters()).device)

    def _questions(
        self, context: EncodedContext, questions: list[str], generation: Generation | None
    ) -> tuple[Batch, Generation]:
        """The questions as a batch without contexts, and the decoding settings."""
        if context.reader is not self.reader:
            raise ValueError(
                "this context was encoded by another reader; save it and load it here, which checks that both are equal"
            )
        _warn_of_other_questions(context, questions)
        batch, generation = self._batch([""] * len(questions), questions), _checked(generation or self.generation)
        self._check_length(context.tokens_read, batch, generation)
        return batch, generation

    def _check_length(self, tokens: int, batch: Batch, generation: Generation) -> None:
        """Raises ValueError where a context of `tokens` tokens does not fit beside question and answer."""
        others = max(part.ids.shape[1] for part in (batch.prompt, batch.query)) + batch.prefix.ids.shape[1]
        limit = self._longest_context(others + generation.max_new_tokens)
        if limit is not None and tokens > limit:
            raise ValueError(
                f"a text of {tokens} tokens: this reader accepts at most {limit} beside prefix, question "
                "and answer; give a shorter text, or train with another backbone, segment_size or ratio"
            )


def _streamed(context: EncodedContext, batch: Batch, generation: Generation) -> Iterator[str]:
    with memory_errors(f"answering from a text of {context.tokens_read} tokens", IN_PYTHON, batch):
        yield from context.stream(batch, generation)


def _warn_of_other_questions(context: EncodedContext, questions: Sequence[str]) -> None:
    """Warns where a memory that was computed for one question is used for another."""
    made_for = getattr(context, "question", None)
    if not made_for or not getattr(getattr(context.reader, "compressor", None), "needs_question", False):
        return
    others = [question for question in questions if question.split() != made_for.split()]
    if others:
        warnings.warn(
            f"this memory was computed for the question {made_for!r} and is used for {others[0]!r}: its slots hold "
            "what matters for the first; for other questions ask the encoded text, answer_from(read(text), question)",
            stacklevel=4,
        )


def _checked(generation: Generation) -> Generation:
    if generation.max_new_tokens < 1:
        raise ValueError(f"generation.max_new_tokens={generation.max_new_tokens}: must be at least 1, e.g. 32")
    if "" in generation.stop:
        raise ValueError("generation.stop holds an empty text, which would end every answer at once; e.g. stop=()")
    return replace(generation, stop=tuple(generation.stop))
