"""A trained reader used from Python: texts in, answers out. breviary.load_reader gives one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from breviary.contract import Batch, EncodedContext, Generation, Reader
from breviary.readers.documents import QuestionMemory


class TextReader:
    """Reads texts with a trained reader and answers from what it kept.

    reader      the reader itself, for batches of tokens
    texts       (contexts, questions) -> Batch, as the run's data set would put them (configs/text.yaml)
    generation  how answers are decoded where a call does not say
    limit       further tokens -> the longest context that fits beside them, in tokens; None = any
    """

    def __init__(
        self,
        reader: Reader,
        texts: Callable[[Sequence[str], Sequence[str]], Batch],
        generation: Generation,
        limit: Callable[[int], int | None],
    ):
        self.reader, self.texts, self.generation, self._limit = reader.eval(), texts, generation, limit

    def read(self, text: str) -> EncodedContext:
        """Reads a text once, whatever will be asked.

        Raises: ValueError for a text that is longer than this reader can read.
        """
        batch = self._batch([text], [""])
        self._check(int(batch.context.lengths[0]), batch, self.generation)
        [kept] = self.reader.encode_contexts(batch)
        return kept

    def answer_from(
        self, kept: EncodedContext, questions: str | Sequence[str], generation: Generation | None = None
    ) -> str | list[str]:
        """The answer to a question about a text that was read, or from a memory; to several questions, a list."""
        asked = [questions] if isinstance(questions, str) else list(questions)
        if not asked:
            return []
        batch, generation = self._asked(kept, asked, generation)
        answers = kept.answer(batch, generation)
        return answers[0] if isinstance(questions, str) else answers

    def stream(self, kept: EncodedContext, question: str, generation: Generation | None = None) -> Iterator[str]:
        """The same answer as `answer_from`, its text given as it is decoded."""
        return kept.stream(*self._asked(kept, [question], generation))

    def memory(self, kept: EncodedContext, question: str) -> QuestionMemory:
        """What is kept of a text for one question: `parts()` shows it, `save(file)` keeps it.

        Raises: ValueError for a reader whose memory does not depend on the question: what `read` gives is it then.
        """
        return kept.memory(self._asked(kept, [question], None)[0])

    def answer(self, texts: Sequence[str], questions: Sequence[str], generation: Generation | None = None) -> list[str]:
        """Reads and answers a batch: one question on each text."""
        if len(texts) != len(questions):
            raise ValueError(f"{len(texts)} texts and {len(questions)} questions: give one question for each text")
        if not texts:
            return []
        batch, generation = self._batch(texts, questions), _usable(generation or self.generation)
        self._check(int(batch.context.lengths.max()), batch, generation)
        return self.reader.answer(batch, generation)

    def load(self, file: str | Path) -> EncodedContext:
        """What a text or a memory of this very reader saved, in this or another process.

        Raises: ValueError for a damaged file, and for one of another reader, with what differs.
        """
        return self.reader.load_saved(file)

    # -------------------------------------------------------------- pieces

    def _batch(self, texts: Sequence[str], questions: Sequence[str]) -> Batch:
        return self.texts(texts, questions).to(next(self.reader.parameters()).device)

    def _asked(
        self, kept: EncodedContext, questions: list[str], generation: Generation | None
    ) -> tuple[Batch, Generation]:
        if kept.reader is not self.reader:
            raise ValueError(
                "this was read by another reader; save it and load it here, which checks that the two are alike"
            )
        batch, generation = self._batch([""] * len(questions), questions), _usable(generation or self.generation)
        self._check(kept.tokens_read, batch, generation)
        return batch, generation

    def _check(self, tokens: int, batch: Batch, generation: Generation) -> None:
        """Raises ValueError where a context of so many tokens does not fit beside question and answer."""
        others = max(part.ids.shape[1] for part in (batch.prompt, batch.query)) + batch.prefix.ids.shape[1]
        limit = self._limit(others + generation.max_new_tokens)
        if limit is not None and tokens > limit:
            raise ValueError(
                f"a text of {tokens} tokens: this reader reads at most {limit} beside prefix, question "
                "and answer; give a shorter text, or train with another backbone, segment_size or ratio"
            )


def _usable(generation: Generation) -> Generation:
    if generation.max_new_tokens < 1:
        raise ValueError(f"generation.max_new_tokens={generation.max_new_tokens}: must be at least 1, e.g. 32")
    return replace(generation, stop=tuple(generation.stop))
