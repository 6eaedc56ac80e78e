"""An evaluation session: checks all rows of a table before any weight is loaded, then evaluates reader by reader.

Readers of one session share what does not depend on the reader: the untouched backbone's unconditional losses, and
encoded contexts where two rows encode alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from breviary.backbones.pretrained import Backbone
from breviary.backbones.tiny import TinyBackbone
from breviary.backbones.trainable import cast_for_inference, learned_parameters
from breviary.config.allowed_classes import ALL_SECTIONS, untrusted_targets
from breviary.config.answer_limits import answer_notes
from breviary.config.budget_notes import budget_notes
from breviary.config.build import ReaderSpec, build_backbone, build_reader
from breviary.config.checks import check_config, check_process_count, check_texts, read_splits
from breviary.config.context_lengths import ContextLimits
from breviary.config.errors import collect_errors, raise_problems
from breviary.config.keys import validate_keys
from breviary.config.text_pipeline import Scorer, TextPipeline, tokenised_folder
from breviary.contract import Compressor, Example, Generation, Reader
from breviary.evaluation.baselines import share_baseline
from breviary.evaluation.facts import CONDITIONS, prompt_record, training_record
from breviary.evaluation.identity import evaluation_identity, open_evaluation, stored_provenance
from breviary.evaluation.locks import lock_evaluation
from breviary.evaluation.loop import evaluate, shuffled_context_nll, unconditional_nll
from breviary.evaluation.resolve import (
    CHECKPOINTS,
    NOT_HASHED,
    baseline_config,
    evaluation_home,
    find_checkpoint,
    table_rows,
)
from breviary.evaluation.results import (
    PREDICTIONS,
    RESULTS,
    Predictions,
    merge_ranks,
    read_results,
    require_complete,
    summarise,
    write_results,
)
from breviary.evaluation.selection import SELECTION, first_questions
from breviary.memory.budget import fixed_ratio
from breviary.readers.cache import EncodingStore
from breviary.runs.checkpoints import check_checkpoint, last_checkpoint, load_trained
from breviary.runs.environment import environment
from breviary.runs.folders import config_hash, load_config
from breviary.runtime.device import peak_memory_bytes, reset_peak_memory, resolve_device
from breviary.runtime.distributed import (
    barrier,
    call_on_rank_zero,
    gather_rows,
    print_progress,
    print_rank0,
    rank,
    require_shared_folder,
    start_process_group,
    world_size,
)
from breviary.runtime.locks import release_lock
from breviary.runtime.memory_errors import LOADING, memory_errors
from breviary.runtime.spelling import own_command


class EvaluationSession:
    """Evaluates readers given by resolved configurations (breviary.evaluation.resolve).

    text  prompts, tokenising, collating and scoring (data.text_pipeline.TEXT)
    """

    def __init__(self, text: TextPipeline):
        self.text, self.environment = text, environment()
        self._unconditional: dict[Any, dict[str, float]] = {}  # by backbone, objective and tokens

    # -------------------------------------------------------------- check

    def check(self, cfg: DictConfig, problems: Sequence[str] = ()) -> tuple[list[DictConfig], Sequence[Example]]:
        """The rows of the table, the reader of `cfg` first, and the examples; no weight is loaded.

        problems  messages of the caller, reported with all others
        Raises: ConfigError with every problem of every row.
        """
        cfg, found = validate_keys(cfg)
        problems = [*problems, *found]
        if cfg.checkpoint not in CHECKPOINTS:
            problems.append(f"checkpoint={cfg.checkpoint}: allowed are {', '.join(CHECKPOINTS)}")
        for key in SELECTION:
            if cfg[key] is not None and cfg[key] < 1:
                problems.append(f"{key}={cfg[key]}: must be at least 1, or null for all")
        readers = [self._check_row(cfg, row, problems) for row in table_rows(cfg, problems)]
        splits = read_splits(readers[0].dataset, [cfg.split], problems, self.text.store, tokenised_folder(cfg))
        examples = first_questions(splits.get(cfg.split, []), cfg.examples, cfg.questions_per_context)
        for reader in readers[:1]:  # all rows have its data
            scorer = collect_errors(problems, self.scorer, reader)
            problems += scorer.example_problems(examples) if scorer is not None else []
        if not problems:
            problems += check_process_count(len(examples), world_size(), "examples")
            for reader in readers:
                collect_errors(problems, self.tokenise, reader, examples)
        raise_problems(problems)
        return readers, examples

    def _check_row(self, cfg: DictConfig, row: DictConfig, problems: list[str]) -> DictConfig:
        """One row with every key validated; appends its problems."""
        untrusted = list(untrusted_targets(row, ALL_SECTIONS))
        if untrusted:
            raise_problems([*problems, *untrusted])
        reader, found = validate_keys(row)
        backbone = build_backbone(reader)
        problems += found + check_config(reader, ReaderSpec.of(reader), backbone)
        collect_errors(problems, self.text.prompt, reader.prompt)
        if reader.run:
            find = CHECKPOINTS.get(cfg.checkpoint, last_checkpoint)
            problems += check_checkpoint("run", reader.run, find, backbone)
            problems += check_texts(reader, load_config(reader.run))
        return reader

    # -------------------------------------------------------------- parts of an evaluation

    def tokenise(self, cfg: DictConfig, examples: Sequence[Example]) -> Any:
        """The examples as tokens. Contexts that do not fit beside question and answer are cut in the middle."""
        backbone = build_backbone(cfg)
        tokenizer, prompt = backbone.tokenizer(), self.text.prompt(cfg.prompt)
        cache, limits = tokenised_folder(cfg), cfg.limits
        items = self.text.tokenise(examples, tokenizer, prompt, limits.max_context_tokens, cache, limits.truncation)
        spec = ReaderSpec.of(cfg)
        fitting = ContextLimits(spec, backbone, cfg.generation.max_new_tokens)
        raise_problems(fitting.check_data(cfg.split, items))
        limit = fitting.longest_fitting(items, fixed_ratio(spec.settings))
        if max(items.lengths) <= limit:
            return items
        if limit < 1:
            raise ValueError(
                f"question and answer take up to {fitting.other_tokens(items, 0)} tokens of the backbone's "
                f"{fitting.positions} positions; shorten prompt.template, generation.max_new_tokens or compressor.slots"
            )
        return self.text.tokenise(examples, tokenizer, prompt, limit, cache, "middle")

    @memory_errors("loading weights", LOADING)
    def load_reader(self, cfg: DictConfig, checkpoint: Path | None = None) -> Reader:
        """The reader with a checkpoint's weights; None = pretrained backbone, weights of the method as initialised.

        For inference only: trained weights are cast to the backbone's dtype once.
        """
        backbone = build_backbone(cfg)
        reader = build_reader(cfg, backbone, backbone.tokenizer())
        if checkpoint is not None:
            load_trained(checkpoint, reader, backbone.fingerprint)
        cast_for_inference(reader)
        return reader

    def scorer(self, cfg: DictConfig) -> Scorer:
        """The scores that the data set names (dataset.metrics), those of every answer where it names none.

        An objective with text metrics of its own compares with texts of its own, for which the data set's are not made.
        Raises: ValueError for wrong names.
        """
        names = cfg.dataset.get("metrics") if cfg.objective.get("measures") is None else None
        return self.text.scorer(None if names is None else list(names))

    def unconditional_nll(self, cfg: DictConfig, items: Any) -> dict[str, float]:
        """{example id: nats of the untouched backbone on the supervised tokens, without the context}.

        Empty where no metric of the objective uses it.
        """
        if cfg.objective.get("measures") is None:
            return {}
        backbone = build_backbone(cfg)
        key = (backbone.fingerprint["sha256"], str(cfg.backbone), str(cfg.objective), items.tokens_hash)
        if key not in self._unconditional:
            other = validate_keys(baseline_config(cfg, "no_context"))[0]
            collate = self.text.collator(backbone.tokenizer())
            self._unconditional[key] = unconditional_nll(self.load_reader(other), items, collate, cfg.eval_batch_size)
        return self._unconditional[key]

    # -------------------------------------------------------------- evaluate

    def evaluate(self, cfg: DictConfig) -> list[dict[str, Any]]:
        """Checks, then evaluates every row of the table on the same examples; returns their results, in order."""
        readers, examples = self.check(cfg)
        start_process_group(resolve_device(readers[0].backbone.device), readers[0].engine.timeout)
        for home in dict.fromkeys(evaluation_home(readers[0], reader) for reader in readers):
            require_shared_folder(home)
        checkpoints = [find_checkpoint(reader) for reader in readers]
        keys = [encoding_key(*pair) if cfg.variants else None for pair in zip(readers, checkpoints)]
        results: dict[int, dict[str, Any]] = {}
        current, store = None, None
        for i in order_by_encoding(keys):
            if keys[i] != current:  # only one group's encodings in memory: they take gigabytes
                current, store = keys[i], EncodingStore() if keys[i] else None
            home = evaluation_home(readers[0], readers[i])
            results[i] = self.evaluate_reader(readers[i], examples, home, checkpoints[i], store)
        return [results[i] for i in range(len(readers))]

    def evaluate_reader(
        self,
        cfg: DictConfig,
        examples: Sequence[Example],
        home: Path,
        checkpoint: Path | None,
        store: EncodingStore | None = None,
    ) -> dict[str, Any]:
        """Answers every example with one reader and writes a folder below `home`; returns the results and its `folder`.

        Finished results of the same identity (`evaluation_identity`) are returned as they are; a killed evaluation of
        the same identity continues from its predictions.
        Raises: LockedError where another process evaluates into that folder.
        """
        backbone, items = build_backbone(cfg), self.tokenise(cfg, examples)
        scorer = self.scorer(cfg)
        identity = evaluation_identity(cfg, checkpoint, backbone, items, self.text.metrics_version, scorer.further)
        lock = call_on_rank_zero(lambda: lock_evaluation(home, cfg, identity))
        try:
            folder, message = call_on_rank_zero(
                lambda: (
                    share_baseline(home, cfg, identity)
                    or open_evaluation(home, cfg, checkpoint, identity, self.environment, scorer, examples)
                )
            )
            if message:
                print_rank0(f"{cfg.reader}: {message}")
            if not (folder / RESULTS).is_file():
                self._evaluate_into(folder, cfg, backbone, items, checkpoint, store)
        finally:
            release_lock(lock)
        return self._results(folder, scorer)

    def _evaluate_into(
        self,
        folder: Path,
        cfg: DictConfig,
        backbone: Backbone | TinyBackbone,
        items: Any,
        checkpoint: Path | None,
        store: EncodingStore | None,
    ) -> None:
        """Answers what has no prediction in `folder`, and writes the results."""
        spec = ReaderSpec.of(cfg)
        notes = answer_notes(items, cfg, spec.objective.is_autoencoder) + budget_notes(items, spec.settings)
        for line in [items.report(), *notes]:
            print_rank0(f"{cfg.reader}: {line}")
        unconditional = self.unconditional_nll(cfg, items)  # before loading: one backbone in memory at a time
        is_reset = reset_peak_memory()
        reader = self.load_reader(cfg, checkpoint)
        if checkpoint is None:
            print_untrained(cfg.reader, reader)
        # Predictions of killed calls, of any number of processes.
        call_on_rank_zero(lambda: merge_ranks(folder, [example.id for example in items.examples]))
        self._answer_all(cfg, reader, items, folder, unconditional, store)
        memory = peak_of_all_ranks(is_reset)
        call_on_rank_zero(lambda: self._summarise(cfg, reader, items, folder, backbone, memory))

    def _results(self, folder: Path, scorer: Scorer) -> dict[str, Any]:
        """Stored results and their `folder`; the metrics to show are those that the data set names at present."""
        results = read_results(folder)
        shown = results.get("scoring", {}) | {"names": list(scorer.names)}
        return results | {"folder": str(folder), "scoring": scorer.record() | shown}

    def _answer_all(
        self,
        cfg: DictConfig,
        reader: Reader,
        items: Any,
        folder: Path,
        unconditional: Mapping[str, float],
        store: EncodingStore | None,
    ) -> None:
        """Answers the examples that have no prediction yet, this rank's share of them."""
        done = frozenset(Predictions(folder / PREDICTIONS).done)
        if done:
            print_rank0(f"{cfg.reader}: continues after {len(done)} predictions")
        collate = self.text.collator(build_backbone(cfg).tokenizer())
        shuffled: dict[str, float] = {}
        if reader.objective.text_metrics is not None:
            shuffled = shuffled_context_nll(reader, items, collate, cfg.eval_batch_size)
        name = PREDICTIONS if world_size() == 1 else f"predictions.rank{rank()}.jsonl"
        predictions, count = Predictions(folder / name), len(items)
        for rows in evaluate(
            reader,
            items,
            collate,
            self.scorer(cfg),
            Generation(**cfg.generation),
            cfg.eval_batch_size,
            done,
            rank(),
            world_size(),
            unconditional=unconditional,
            shuffled=shuffled,
            store=store,
        ):
            predictions.append(rows)
            answered = len(done) + world_size() * len(predictions.done - done)  # assumes equal progress on all ranks
            print_progress(f"  {cfg.reader}: {min(answered, count)}/{count} answered")
        barrier()
        print_rank0(f"  {cfg.reader}: {count}/{count} answered")

    def _summarise(
        self,
        cfg: DictConfig,
        reader: Reader,
        items: Any,
        folder: Path,
        backbone: Backbone | TinyBackbone,
        memory: dict[str, Any],
    ) -> None:
        """Writes results.json from the predictions of all ranks. Raises: ValueError where one is missing."""
        order = [example.id for example in items.examples]
        rows = merge_ranks(folder, order)
        require_complete(folder, rows, order)
        settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
        scorer = self.scorer(cfg)
        extra = {
            "data_hash": items.data_hash,
            **memory,
            **stored_provenance(folder),
            "backbone": backbone.description,
            "run": str(cfg.run or folder),
            "command": own_command(),
            "config": settings if cfg.run else None,
            "training": training_record(cfg.run, find_checkpoint(cfg)),
            "conditions": {key: settings[key] for key in CONDITIONS if key in settings},
            "prompt": self.prompt_record(cfg, reader, items),
            **self.text.scoring(rows, scorer),
        }
        summary = summarise(rows, reader.requested_ratio, aggregates=scorer.aggregates)
        if reader.objective.text_metrics is not None:
            extra |= reader.objective.text_metrics.corpus(rows)
        write_results(folder, cfg.reader, summary, extra)
        if summary["contexts_read"] < summary["n"]:
            print_rank0(
                f"  {cfg.reader}: {summary['contexts_read']} contexts encoded for {summary['n']} questions, "
                f"{1 - summary['contexts_read'] / summary['n']:.0%} of the encoding saved"
            )

    def prompt_record(self, cfg: DictConfig, reader: Reader, items: Any) -> dict[str, Any]:
        """`facts.prompt_record` of the first example, as the reader's objective puts it."""
        batch = self.text.collator(reader.tokenizer)([items[0]])
        return prompt_record(cfg, reader.objective.primary(batch), reader.tokenizer, items)


def peak_of_all_ranks(is_reset: bool) -> dict[str, Any]:
    """Maximum over ranks of the peak memory, bytes. is_reset: the peak was reset before the reader was built."""
    peak = max(gather_rows([peak_memory_bytes()]))
    return {"peak_memory_bytes": peak, "peak_memory_of": "reader" if is_reset else "process"}


def print_untrained(name: str, reader: Reader) -> None:
    """Prints a warning that names the weights which only training makes useful; nothing for a plain backbone.

    reader  without a checkpoint: learned weights of the method are random, or copies of the backbone's
    """
    counts: Counter[str] = Counter()
    for weight, parameter in learned_parameters(reader).items():
        counts[".".join(weight.split(".")[:2])] += parameter.numel()
    if counts:
        listed = ", ".join(f"{module} ({count / 1e6:.2f} M weights)" for module, count in counts.items())
        print_rank0(f"warning: {name} is untrained: {listed} as initialised; the scores are not those of the method")


def order_by_encoding(keys: Sequence[str | None]) -> list[int]:
    """Row indices, stably grouped by `encoding_key`: each group starts at its first row. None = a group of its own."""
    first = {key: keys.index(key) for key in keys}
    return sorted(range(len(keys)), key=lambda i: i if keys[i] is None else first[keys[i]])


def encoding_key(cfg: DictConfig, checkpoint: Path | None) -> str | None:
    """Equal for readers whose encoded contexts are equal; None where that is not known."""
    spec = ReaderSpec.of(cfg)
    if not issubclass(spec.compressor, Compressor) or not spec.compressor.compress_only_keys:
        return None
    if checkpoint is None and spec.compressor.has_weights:
        return None
    encoding = cfg.copy()
    encoding.compressor = spec.compressor.encode_settings(spec.settings)
    without = (*NOT_HASHED, "reader", "generation")
    return config_hash(encoding, without=without, extra=checkpoint.name if checkpoint else "untrained")
