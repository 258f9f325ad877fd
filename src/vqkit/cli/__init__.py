"""The command `vqkit`: one table of commands, each a module of this room with a function `run`.

Exit codes: 0; 1, `vqkit doctor` or `vqkit lint` has found a problem; 2, bad input, or a run that
cannot go on; 130, stopped by Ctrl-C; 143, stopped by SIGTERM (a pre-empted job). After 130 and 143
of a training the same command goes on where it stopped. Under torchrun the launcher has an exit
code of its own.

This file answers `vqkit --help` and misspelt commands by itself, so that they need neither torch
nor jsonargparse. What is wrong with the input, or ends a run, is a ValueError, OSError, ImportError
or MemoryError down in the library and one line on stderr here.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Iterable, Sequence

from vqkit import __version__
from vqkit.cli.verbs import choose

COMMANDS = {
    "train": "train a tokenizer from a recipe or a file of settings",
    "evaluate": "measure a tokenizer: quality, code usage and rate side by side",
    "reference": "statistics of an image set in a file, for FID and KID against it",
    "describe": "what a quantizer is made of and what it costs, before anything runs",
    "codebook": "codes from pretrained features: extract, cluster, merge, ...",
    "analyze": "how a codebook is used: figures and their numbers",
    "export": "a run's tokenizer in its smallest form, to publish",
    "import": "a published checkpoint of other code as a tokenizer",
    "compress": "images as small .vqk files of tokens",
    "decompress": "the images of .vqk files, with the tokenizer that wrote them",
    "frequencies": "how often a tokenizer draws its codes: shortens .vqk files",
    "generate": "images of a trained generator: files, a grid, where each comes from",
    "score": "generated images: FID, precision, recall, class consistency",
    "modelability": "how well tokens can be predicted: bits per image of one small GPT",
    "tokenize": "an image set as a folder of tokens, for generation and classification",
    "detokenize": "the images of a token set, with the tokenizer that wrote it",
    "tokens": "what is in a token set: describe, verify, merge",
    "classify": "classes read from tokens: train, evaluate; and from pixels",
    "lint": "tables of printed numbers, checked for what cannot be",
    "rate-distortion": "quality over rate, beside PNG, JPEG, WebP and AVIF: curves, numbers",
    "compare": "train or load several runs; one table and one picture of them",
    "report": "one page about any number of runs, to be opened in a browser",
    "reproduce": "rows of published tables, run and measured; the ledger of them all",
    "doctor": "is a run well, and if not, what to do",
    "demo": "compare on built-in photographs, a few minutes on a CPU",
}

_RESUMING = ("train", "compare", "reproduce", "demo", "generate", "modelability", "classify")

_USAGE = """\
usage: vqkit COMMAND [NAME ...] [--option value ...]

{verbs}

  vqkit COMMAND --help   options of a command
  vqkit --version        version of vqkit
  --debug                with any command: the whole traceback of an error

exit codes: 0; 1 a problem was found (doctor, lint); 2 bad input, or a run that cannot go on;
130 stopped by Ctrl-C, 143 by SIGTERM: the same command goes on
"""

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
"""Exit codes; 130 is what shells report for Ctrl-C. `Terminated` brings its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as this module lists them.

    `arguments` are the words after `vqkit`, by default those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        resumes = words[:1] in ([one] for one in _RESUMING)
        hint = "; the same command (less --fresh) goes on from here" if resumes else ""
        _complain(f"{str(stop) or 'interrupted'}{hint}")
        return int(getattr(stop, "exit_code", INTERRUPTED))
    except BrokenPipeError:  # `vqkit describe | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            _complain(f"{error.filename}: cannot be used ({error.strerror}); choose another place")
        else:
            _complain(str(error))
        return BAD_INPUT


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        sys.stdout.write(f"vqkit {__version__}\n")
        return OK
    chosen = choose(words, COMMANDS, _USAGE, kind="command", elsewhere=_verbs)
    if chosen is None:
        return OK
    name, rest = chosen
    word = name.replace("-", "_")
    # `import` is in import_.py, `tokenize`, which Python has a module of, in tokenize_.py.
    taken = keyword.iskeyword(word) or word in sys.stdlib_module_names
    module = f"{word}_" if taken else word
    command = importlib.import_module(f"vqkit.cli.{module}")
    try:
        code = command.run(rest)
    except SystemExit as stop:  # --help of a command, which argparse ends this way
        return int(stop.code or OK)
    sys.stdout.flush()
    return code or OK


def _verbs() -> dict[str, str]:
    """Return the verbs of commands, each with its command: cluster, `codebook cluster`."""
    from vqkit.cli import analyze, codebook

    rooms: dict[str, Iterable[str]] = {"codebook": codebook.VERBS, "analyze": analyze.VERBS}
    return {verb: f"{name} {verb}" for name, verbs in rooms.items() for verb in verbs}


def _complain(text: str) -> None:
    """Write one line, whatever the message was."""
    sys.stderr.write(f"vqkit: {' '.join(text.split())}\n")
