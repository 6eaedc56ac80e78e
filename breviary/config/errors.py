"""User errors: collected, so that all are reported at once, and printed as messages without a traceback."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from breviary.config.cli.composition import composition_messages
from breviary.config.cli.help import help_text
from breviary.config.cli.interpolations import value_message
from breviary.config.cli.words import check_words, config_name
from breviary.runtime.distributed import strip_launcher_arguments
from breviary.runtime.files import storage_message
from breviary.runtime.memory_errors import OutOfMemory

T = TypeVar("T")


# May be errors of the user, of the disk or of memory. torch raises RuntimeError for a full disk.
LIBRARY_ERRORS = (HydraException, OmegaConfBaseException, RuntimeError, SafetensorError)
USER_ERRORS = (ValueError, OSError, OutOfMemory, *LIBRARY_ERRORS)


HELP = frozenset({"--help", "-h"})


class ConfigError(ValueError):
    """All problems of one configuration, one message each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class RunFailure(Exception):
    """A run ended with values that cannot be used. A command line prints the message and exits with code 1.

    No user error, so that a sweep continues with its next run.
    """


def raise_problems(problems: Iterable[str]) -> None:
    """Raises ConfigError where there are problems; each is reported once."""
    distinct = list(dict.fromkeys(problems))
    if distinct:
        raise ConfigError(distinct)


def collect_errors(problems: list[str], function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """Returns `function(*args, **kwargs)`; on a user error, appends its messages to `problems` and returns None."""
    try:
        return function(*args, **kwargs)
    except (ValueError, InstantiationException) as error:
        messages = _user_messages(error)
        if messages is None:
            raise
        problems += messages
        return None


# ------------------------------------------------------------------ command lines


def run_cli(main: Callable[[], Any], config: str, has_flags: bool = True) -> None:
    """Runs the `main` of a Hydra entry point; a user error prints its messages on stderr and exits with code 2.

    config     name of the composed configuration, whose keys are suggested for unknown ones
    has_flags  whether it takes Hydra's flags, such as -m
    --help prints the docstring of main's module, the config groups and the keys. RUN becomes run=FOLDER.
    A RunFailure prints its message and exits with code 1. Other errors keep their traceback.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors instead of printing them
    strip_launcher_arguments()
    try:
        config = config_name(sys.argv[1:], config)
        if not HELP.isdisjoint(sys.argv[1:]):
            print(help_text(inspect.unwrap(main).__globals__["__doc__"], config, sys.argv[1:], has_flags))
            return
        words, problems = check_words(sys.argv[1:], config, has_flags)
        raise_problems(problems)
        sys.argv[1:] = words
        main()
    except RunFailure as failure:
        _print_and_exit([str(failure)], 1)
    except BrokenPipeError:  # what reads the output has ended, e.g. --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except USER_ERRORS as error:
        _exit_with(error, config)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def report_user_errors(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorator below @hydra.main, which would print its own lines about an exception."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except RunFailure as failure:
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # the sweep goes on, and ends with this failure
                print(f"error: {failure}", file=sys.stderr)
                raise
            _print_and_exit([str(failure)], 1)
        except USER_ERRORS as error:
            _exit_with(error)

    return wrapped


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """For scripts with argparse: a user error prints its messages on stderr and exits with code 2.

    Other errors keep their traceback.
    """
    try:
        yield
    except RunFailure as failure:
        _print_and_exit([str(failure)], 1)
    except ValueError as error:
        _print_and_exit(getattr(error, "problems", [str(error)]))
    except USER_ERRORS as error:
        _exit_with(error, "eval")  # the configuration that scripts compose


# ------------------------------------------------------------------ messages


def _exit_with(error: Exception, config: str | None = None) -> NoReturn:
    """Prints the messages of a user error and exits; raises any other error."""
    messages = _user_messages(error, config)
    if messages is None:
        raise error
    _print_and_exit(messages, is_own=isinstance(error, OutOfMemory) or storage_message(error) is not None)


def _print_and_exit(messages: Iterable[str], code: int = 2, is_own: bool = False) -> NoReturn:
    """is_own: of this process, such as about its disk or memory; else every process has the same messages."""
    rank, ranks = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", 1))
    if is_own or int(os.environ.get("LOCAL_RANK", 0)) == 0:
        for message in messages:
            print(f"error: {f'rank {rank}: ' if is_own and ranks > 1 else ''}{message}", file=sys.stderr)
    sys.exit(code)


def _user_messages(error: BaseException, config: str | None = None) -> list[str] | None:
    """The messages of an error that the user can fix; None for any other error."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, OutOfMemory):
        return [str(error)]
    storage = storage_message(error)
    if storage is not None:
        return [storage]
    if isinstance(error, InstantiationException):  # Hydra wraps what a constructor raised
        return _user_messages(error.__cause__) if isinstance(error.__cause__, ValueError) else None
    if isinstance(error, ConfigCompositionException):
        return composition_messages(error, config)
    if isinstance(error, OmegaConfBaseException):
        return [value_message(error)]
    if isinstance(error, HydraException):
        return [" ".join(line.strip() for line in str(error).splitlines() if not re.match(r"\s*See http", line))]
    if not isinstance(error, ValueError) or _raised_by_library(error):
        return None
    return [str(error)]


def _raised_by_library(error: BaseException) -> bool:
    """True for an error raised inside an installed library or Python itself: a defect, whose traceback is needed."""
    trace = error.__traceback__
    assert trace is not None, error
    while trace.tb_next:
        trace = trace.tb_next
    if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf"):
        return False
    file = trace.tb_frame.f_code.co_filename
    return file.startswith(("<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))))
