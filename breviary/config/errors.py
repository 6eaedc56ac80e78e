"""TODO DOC"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from breviary.config.keys import allow_run_keys, suggest

T = TypeVar("T")


class ConfigError(ValueError):
    """Several problems of one configuration, a sentence each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def collect_errors(problems: list[str], make: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """`make(*args, **kwargs)`; where that tells of a mistake (ValueError), None, and its sentences go to `problems`."""
    try:
        return make(*args, **kwargs)
    except (ValueError, InstantiationException) as error:
        told = _user_messages(error)
        if told is None:
            raise
        problems += told
        return None


# ------------------------------------------------------------------ errors for people


def run_cli(main: Callable[[], Any], config_keys: Callable[[], list[str]]) -> None:
    """Calls `main`; a mistake in the configuration or the data ends in its sentences on stderr and exit code 2.

    config_keys gives every known key (a.b.c), for naming the nearest right one. Other errors keep their traceback.
    """
    sys.argv[1:] = allow_run_keys(sys.argv[1:])
    try:
        main()
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        _exit_with(error, config_keys)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def report_user_errors(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """For the function under hydra.main, which would print lines of its own about an error that leaves it."""

    @functools.wraps(main)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return main(cfg)
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            _exit_with(error)

    return wrapped


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """For scripts with argparse: a ValueError or a configuration error of Hydra ends the process with exit code 2.

    Each problem of a ConfigError is printed on stderr as `error: ...`, any other message once. Other errors keep their
    traceback.
    """
    try:
        yield
    except ValueError as error:
        _print_and_exit(getattr(error, "problems", [str(error)]))
    except (HydraException, OmegaConfBaseException) as error:
        _exit_with(error)


def _exit_with(error: Exception, config_keys: Callable[[], list[str]] = list) -> None:
    """Prints the sentences and exits, or raises what is no mistake of a person."""
    problems = _user_messages(error, config_keys)
    if problems is None:
        raise error
    _print_and_exit(problems)


def _print_and_exit(problems: Iterable[str]) -> NoReturn:
    """Prints each problem as `error: ...` on stderr; exit code 2."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the other processes of this machine found the same
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def _user_messages(error: Exception, config_keys: Callable[[], list[str]] = list) -> list[str] | None:
    """The sentences of a mistake that a person made; None for any other error."""
    if isinstance(error, ConfigError):
        return error.problems
    if isinstance(error, InstantiationException):  # Hydra's wrapping of what a constructor raised
        return _user_messages(error.__cause__) if isinstance(error.__cause__, ValueError) else None
    if isinstance(error, ConfigCompositionException):
        return _composition_messages(error, config_keys)
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


def _composition_messages(error: ConfigCompositionException, config_keys: Callable[[], list[str]]) -> list[str]:
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        known = config_keys()
        asked = [word.partition("=")[0] for word in sys.argv[1:] if "=" in word and word[0] not in "+~-"]
        # Hydra names the first only; of section={key: value} it tells in its cause alone what within is unknown.
        wrong = [
            key
            for key in asked
            if key not in known
            and not key.startswith("hydra.")
            and not any(name.startswith(f"{key}.") for name in known)
        ]
        within = re.search(r"full_key: (\S+)", str(error.__cause__))
        return [f"{key}: unknown key{suggest(key, known)}" for key in wrong or [within[1] if within else unknown[1]]]
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing:
        options = [line.strip() for line in text.partition("Available options in")[2].splitlines()[1:] if line.strip()]
        options = options[: next((i for i, o in enumerate(options) if " " in o), len(options))]
        return [
            f"no such configuration {missing[1]}{suggest(missing[1].rpartition('/')[2], options)}; "
            f"there are: {', '.join(options)}"
        ]
    return [" ".join(text.split())]
