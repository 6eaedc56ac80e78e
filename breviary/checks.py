"""Everything that can be wrong with a configuration, found before any weight is loaded, and told all at once."""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from breviary.backbone import LINEAR, TRAIN_MODES
from breviary.budget import budget_problems
from breviary.build import compressor_class, compressor_settings, objective_class, objective_settings
from breviary.checkpoint import backbone_difference, read_metadata
from breviary.contract import Compressor, Example, Reader
from breviary.keys import nearest, with_run_keys
from breviary.runs import best_checkpoint, last_checkpoint

ENGINES = ("single", "ddp", "zero")
BUDGET = ("ratio", "slots", "ratio_choices")
T = TypeVar("T")


class Problems(ValueError):
    """Several problems of one configuration, a sentence each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def attempted(problems: list[str], make: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """`make(*args, **kwargs)`; where that tells of a mistake (ValueError), None, and its sentences go to `problems`."""
    try:
        return make(*args, **kwargs)
    except (ValueError, InstantiationException) as error:
        told = _sentences(error)
        if told is None:
            raise
        problems += told
        return None


def config_problems(cfg: DictConfig, backbone: Any, world_size: int = 1) -> list[str]:
    """Problems of a composed configuration; reads configuration files, no weights."""
    found = backbone.problems()
    cls, settings = compressor_class(cfg), compressor_settings(cfg)
    if attempted([], lambda: backbone.config) is not None:
        found += cls.problems(settings, backbone)
        attempted(found, backbone.tokenizer)
    elif all(key in settings for key in BUDGET):  # all that can be said without the backbone's configuration
        found += budget_problems(settings)
    found += objective_class(cfg).problems(objective_settings(cfg), cls, cfg.decoder.train)
    found += _decoder_problems(cfg) + _training_problems(cfg) + _generation_problems(cfg)
    stage = cfg.engine.deepspeed.zero_optimization.stage if cfg.engine.deepspeed else 0
    if stage == 3 and issubclass(cls, Reader) and not cls.equal_calls:
        found.append("engine=zero3: this compressor reads as many chunks as a text has, and ZeRO-3 needs equal calls on every "
                     "process; use engine=zero2")
    found += _pipeline_problems(cfg.engine, cls, stage, world_size)
    if cfg.engine.kind == "single" and world_size > 1:
        found.append(f"engine=single with {world_size} processes: use engine=ddp, zero1, zero2 or zero3")
    return found


def read_splits(cfg: DictConfig, splits: list[str], problems: list[str]) -> dict[str, list[Example]]:
    """The examples of `splits`; where something is wrong with the data, its sentences go to `problems`."""
    dataset = attempted(problems, instantiate, cfg.dataset)
    if dataset is None:
        return {}
    found = attempted(problems, dataset.problems, splits)
    problems += found or []
    if found != []:
        return {}
    return {split: attempted(problems, dataset.examples, split) or [] for split in splits}


def start_problems(cfg: DictConfig, backbone: Any) -> list[str]:
    """What keeps a training from starting from `init_from`, or from going on from the run folder `resume`."""
    found = checkpoint_problems("init_from", cfg.init_from, best_checkpoint, backbone) if cfg.init_from else []
    if cfg.resume not in ("never", "auto"):
        found += [f"{problem} (resume takes never, auto or a run folder)"
                  for problem in checkpoint_problems("resume", cfg.resume, last_checkpoint, backbone)]
    return found


def checkpoint_problems(key: str, run: str, find: Callable[[str], Path], backbone: Any) -> list[str]:
    """Whether `find(run)` gives a checkpoint of this backbone; reads its header, and hashes the backbone."""
    found: list[str] = []
    checkpoint = attempted(found, find, run)
    stored = attempted(found, read_metadata, checkpoint) if checkpoint else None
    if stored is not None and not backbone.problems():
        found += backbone_difference(checkpoint, stored["backbone"], backbone.fingerprint)
    return [f"{key}: {problem}" for problem in found]


def length_problems(cfg: DictConfig, backbone: Any, splits: dict[str, Any]) -> list[str]:
    """Examples whose tokens find no place in the backbone's positions; `splits` are tokenised."""
    positions = backbone.config.max_position_embeddings
    cls, settings = compressor_class(cfg), compressor_settings(cfg)
    reads_whole = objective_class(cfg).reads_whole
    found = []
    for name, items in splits.items():
        found += short_problems(cfg, name, items) + group_problems(cfg, name, items)
        least = others_beside(cfg, items, 0)
        if least >= positions:
            found.append(f"dataset {name}: prefix, question and answer take up to {least} tokens, the backbone has "
                         f"{positions} positions; shorten prompt.template or generation.max_new_tokens")
            continue
        longest = max(items.lengths, default=0)
        limit = fitting_length(cfg, cls, settings, positions, items)
        room = positions - others_beside(cfg, items, longest)
        if reads_whole and longest > room:
            found.append(f"dataset {name}: this objective's teacher reads whole contexts, and the longest of {longest} tokens does "
                         f"not fit beside {positions - room} further ones in the backbone's {positions} positions; set "
                         f"limits.max_context_tokens={room} to cut contexts, or shorter texts")
        if longest > limit:
            others = positions - room
            ways = [f"limits.max_context_tokens={limit} to cut contexts"] if limit else []
            ways += _larger_settings(cls, settings, positions, others, longest, limit) if others < positions else []
            again = ", of which it is one itself, to be written down," if objective_class(cfg).is_autoencoder else ""
            found.append(f"dataset {name}: the longest context of {longest} tokens does not fit beside {others} "
                         f"further ones{again} in the backbone's {positions} positions (at most {limit} here); "
                         f"set {' or '.join(ways) or 'a backbone of more positions'}")
        elif issubclass(cls, Compressor):
            found += translated_problems(cls, settings, backbone, name, items, positions - room)
    return found


def translated_problems(cls: type[Compressor], settings: dict[str, Any], backbone: Any, name: str, items: Any,
                        others: int) -> list[str]:
    """Contexts that are too long in the tokens of an encoder with a tokenizer of its own."""
    translation = cls.translation(settings, backbone)
    limit = cls.longest_context(settings, backbone.config.max_position_embeddings, others) if translation else None
    if limit is None:
        return []
    longest = max((len(translation.rows([items[i]["context"]])[0]) for i in range(len(items))), default=0)
    return [f"dataset {name}: the longest context is {longest} tokens of the tokenizer of compressor.encoder, of which at most "
            f"{limit} fit beside {others} further ones; set limits.max_context_tokens="
            f"{max(max(items.lengths) * limit // longest, 1)}, or a higher compressor.ratio"] if longest > limit else []


def others_beside(cfg: DictConfig, items: Any, context_tokens: int) -> int:
    """Most tokens that stand beside a context of at most so many: prefix, question or prompt, what is asked, and room for
    what is generated."""
    most = max(items.others, default=0)
    if objective_class(cfg).is_autoencoder:  # the context itself and the end token are asked for, in the answer's place
        most = max((other - answer + min(length, context_tokens) + 1
                    for other, answer, length in zip(items.others, items.answers, items.lengths)), default=0)
    return most + cfg.generation.max_new_tokens


def fitting_length(cfg: DictConfig, cls: type, settings: dict[str, Any], positions: int, items: Any) -> int:
    """Context tokens to which contexts must be cut so that all find a place; the longest one's where nothing is to be cut."""
    def is_fitting(tokens: int) -> bool:
        others = others_beside(cfg, items, tokens)
        limit = cls.longest_context(settings, positions, others) if others < positions else -1
        return limit is None or limit >= tokens

    least, most = 0, max(items.lengths, default=0)
    if is_fitting(most):
        return most
    while most - least > 1:  # the longer the contexts, the less fits
        middle = (least + most) // 2
        least, most = (middle, most) if is_fitting(middle) else (least, middle)
    return least


def short_problems(cfg: DictConfig, name: str, items: Any) -> list[str]:
    """Contexts that are too short for what the objective asks; `items` are tokenised."""
    fewest = objective_class(cfg).fewest_tokens(objective_settings(cfg))
    few = sum(length < fewest for length in items.lengths)
    return [f"dataset {name}: {few} contexts of fewer than {fewest} tokens, of which the objective can ask nothing; leave them "
            "out of the data, or use objective=answer"] if few else []


def group_problems(cfg: DictConfig, name: str, items: Any) -> list[str]:
    """Texts to be restored that are shorter than what one slot is to stand for: nothing would be compressed."""
    settings = compressor_settings(cfg)
    asked = [settings.get("ratio") or 1, *(settings.get("ratio_choices") or [])]
    short = [length for length in items.lengths if 0 < length < max(asked)]
    if not objective_class(cfg).is_autoencoder or not short:
        return []
    return [f"dataset {name}: {len(short)} texts, the shortest of {min(short)} tokens, are shorter than a group of "
            f"{max(asked):g} tokens (compressor.ratio, ratio_choices); lower the ratio, or take longer texts, "
            "e.g. dataset.min_words=48"]


def generation_notes(cfg: DictConfig, items: Any) -> list[str]:
    """What of `generation` keeps texts from being written down again as a whole."""
    if not objective_class(cfg).is_autoencoder:
        return []
    most, stop = cfg.generation.max_new_tokens, list(cfg.generation.stop)
    long = sum(length + 1 > most for length in items.lengths)  # the end token counts
    stopped = sum(any(text in example.context for text in stop) for example in items.examples)
    notes = [f"{long} of {len(items)} texts are longer than generation.max_new_tokens={most}: what is written of them is cut; "
             f"{max(items.lengths) + 16} would do"] if long else []
    return notes + ([f"{stopped} of {len(items)} texts hold one of generation.stop={stop}, where writing ends; "
                     "generation.stop=[] waits for the end token"] if stopped else [])


def _larger_settings(cls: type[Compressor], settings: dict[str, Any], positions: int, others: int,
                     longest: int, limit: int) -> list[str]:
    """Settings of the compressor under which `longest` tokens would fit, as key=value."""
    room = positions - others
    segment = min(room, limit)
    smaller = {"segment_size": segment} if settings.get("segment_size", 0) > segment > 0 else {}
    larger = {"ratio": -(-longest // room)} if settings.get("ratio") and not settings.get("ratio_choices") else {}
    for change in (smaller, larger, smaller | larger):
        limit = cls.longest_context(settings | change, positions, others)
        if change and (limit is None or limit >= longest):
            return [" ".join(f"compressor.{key}={value}" for key, value in change.items())]
    return []


def process_problems(examples: int, world_size: int, key: str) -> list[str]:
    """More processes than examples leave some with nothing to do."""
    if examples >= world_size:
        return []
    return [f"{world_size} processes for {examples} examples: start at most {max(examples, 1)}, or raise {key}"]


# ------------------------------------------------------------------ sections


def _decoder_problems(cfg: DictConfig) -> list[str]:
    d, found = cfg.decoder, []
    if d.train not in TRAIN_MODES:
        found.append(f"decoder.train={d.train}: allowed are {', '.join(TRAIN_MODES)}")
    if d.lora_rank < 1:
        found.append(f"decoder.lora_rank={d.lora_rank}: must be at least 1, e.g. 16")
    if not 0 <= d.lora_dropout < 1:
        found.append(f"decoder.lora_dropout={d.lora_dropout}: must be from 0 to below 1, e.g. 0.05")
    targets = d.lora_targets
    if targets != "all-linear" and (isinstance(targets, str) or not targets or set(targets) - set(LINEAR)):
        found.append(f"decoder.lora_targets={targets}: must be all-linear, or a list out of {', '.join(LINEAR)}, "
                     "e.g. [q_proj,v_proj]")
    return found


def _training_problems(cfg: DictConfig) -> list[str]:
    t, found = cfg.train, []
    for key in ("steps", "batch_size", "accumulation", "log_every"):
        if t[key] < 1:
            found.append(f"train.{key}={t[key]}: must be at least 1, e.g. {dict(steps=100, batch_size=8).get(key, 1)}")
    for key in ("eval_every", "eval_examples", "max_grad_norm", "weight_decay", "workers"):
        if t[key] < 0:
            found.append(f"train.{key}={t[key]}: must be 0 or more")
    if t.learning_rate <= 0:
        found.append(f"train.learning_rate={t.learning_rate}: must be above 0, e.g. 1e-3")
    if not 0 <= t.warmup < 1:
        found.append(f"train.warmup={t.warmup}: a fraction of the steps from 0 to below 1, e.g. 0.1")
    choices = {"optimizer": ("adamw", "sgd"), "schedule": ("cosine", "linear", "constant"),
               "wandb": ("disabled", "offline", "online")}
    for key, allowed in choices.items():
        if t[key] not in allowed:
            found.append(f"train.{key}={t[key]}: allowed are {', '.join(allowed)}")
    if cfg.engine.kind not in ENGINES:
        found.append(f"engine.kind={cfg.engine.kind}: allowed are {', '.join(ENGINES)}")
    if cfg.engine.timeout <= 0:
        found.append(f"engine.timeout={cfg.engine.timeout}: seconds, must be above 0, e.g. 900")
    if cfg.eval_batch_size < 1:
        found.append(f"eval_batch_size={cfg.eval_batch_size}: must be at least 1, e.g. 16")
    limit = cfg.limits.max_context_tokens
    if limit is not None and limit < 1:
        found.append(f"limits.max_context_tokens={limit}: must be at least 1 token, or null for no limit")
    if cfg.limits.truncation not in ("head", "tail", "middle"):
        found.append(f"limits.truncation={cfg.limits.truncation}: allowed are head, tail, middle")
    return found


def _pipeline_problems(engine: DictConfig, cls: type, stage: int, world_size: int) -> list[str]:
    """What keeps engine.ranks processes from reading one batch together."""
    if engine.ranks == 1:
        return []
    if engine.ranks < 1 or world_size % engine.ranks:
        return [f"engine.ranks={engine.ranks}: {world_size} process(es) do not divide into pipelines of so many; e.g. "
                f"engine.ranks={world_size}, or torchrun --nproc_per_node {max(engine.ranks, 1)}"]
    schedules = getattr(cls, "schedules", ())
    if not schedules:
        return [f"engine.ranks={engine.ranks}: this compressor reads a batch on one process; use engine.ranks=1"]
    found = []
    if engine.schedule not in schedules:
        found.append(f"engine.schedule={engine.schedule}: allowed are {', '.join(schedules)}")
    if stage == 3:
        found.append(f"engine.ranks={engine.ranks}: the ranks of a pipeline stand at different layers, and ZeRO's stage 3 has "
                     "all processes meet at every layer to gather its weights: they would wait for each other; use "
                     "engine=zero1, zero2 or pipeline")
    return found


def _generation_problems(cfg: DictConfig) -> list[str]:
    g, found = cfg.generation, []
    if g.max_new_tokens < 1 or not 0 <= g.min_new_tokens <= g.max_new_tokens:
        found.append(f"generation.max_new_tokens={g.max_new_tokens}, min_new_tokens={g.min_new_tokens}: must be at least 1, "
                     "and 0 up to that")
    if g.temperature < 0 or not 0 < g.top_p <= 1 or g.repetition_penalty <= 0:
        found.append(f"generation: temperature={g.temperature} must be 0 or more, top_p={g.top_p} above 0 up to 1, "
                     f"repetition_penalty={g.repetition_penalty} above 0")
    return found


# ------------------------------------------------------------------ errors for people


def run_for_people(main: Callable[[], Any], config_keys: Callable[[], list[str]]) -> None:
    """Calls `main`; a mistake in the configuration or the data ends in its sentences on stderr and exit code 2.

    config_keys gives every known key (a.b.c), for naming the nearest right one. Other errors keep their traceback.
    """
    sys.argv[1:] = with_run_keys(sys.argv[1:])
    try:
        main()
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        _tell(error, config_keys)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def tells_mistakes(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """For the function under hydra.main, which would print lines of its own about an error that leaves it."""
    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            _tell(error)

    return wrapped


def _tell(error: Exception, config_keys: Callable[[], list[str]] = list) -> None:
    """Prints the sentences and exits, or raises what is no mistake of a person."""
    problems = _sentences(error, config_keys)
    if problems is None:
        raise error
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the other processes of this machine found the same
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def _sentences(error: Exception, config_keys: Callable[[], list[str]] = list) -> list[str] | None:
    """The sentences of a mistake that a person made; None for any other error."""
    if isinstance(error, Problems):
        return error.problems
    if isinstance(error, InstantiationException):  # Hydra's wrapping of what a constructor raised
        return _sentences(error.__cause__) if isinstance(error.__cause__, ValueError) else None
    if isinstance(error, ConfigCompositionException):
        return _composition_sentences(error, config_keys)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        lines = str(error).splitlines()
        return [" ".join(line.strip() for line in lines if not re.match(r"\s*(full_key|object_type|See http)", line))]
    return None if _raised_by_library(error) else [str(error)]


def _raised_by_library(error: Exception) -> bool:
    """A ValueError of torch, say, is a defect, of theirs or ours, and its traceback is needed."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf"):
        return False
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(("<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))))


def _composition_sentences(error: ConfigCompositionException, config_keys: Callable[[], list[str]]) -> list[str]:
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        known = config_keys()
        asked = [word.partition("=")[0] for word in sys.argv[1:] if "=" in word and word[0] not in "+~-"]
        # Hydra names the first only; of section={key: value} it tells in its cause alone what within is unknown.
        wrong = [key for key in asked if key not in known and not key.startswith("hydra.")
                 and not any(name.startswith(f"{key}.") for name in known)]
        within = re.search(r"full_key: (\S+)", str(error.__cause__))
        return [f"{key}: unknown key{nearest(key, known)}" for key in wrong or [within[1] if within else unknown[1]]]
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        options = [line.strip() for line in text.partition("Available options in")[2].splitlines()[1:] if line.strip()]
        options = options[: next((i for i, o in enumerate(options) if " " in o), len(options))]
        return [f"no such configuration {missing[1]}{nearest(missing[1].rpartition('/')[2], options)}; "
                f"there are: {', '.join(options)}"]
    return [" ".join(text.split())]
