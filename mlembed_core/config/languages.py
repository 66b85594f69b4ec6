"""Names of languages: natural ones by ISO-639-3 (what the recipe and mteb speak), programming ones by a list of our own."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import AfterValidator

# Lower case, as files and people name them. The recipe's collection has some forty; a new one is a word here.
NAMES = (
    "ada apl assembly awk bash batch c c# c++ clojure cmake cobol coffeescript common_lisp css cuda d dart delphi dockerfile elixir elm "
    "emacs_lisp erlang f# fortran go graphql groovy haskell hcl html java javascript julia kotlin latex lua makefile matlab nim "
    "objective-c ocaml pascal perl php powershell prolog protobuf python r racket ruby rust scala scheme shell smalltalk solidity sql "
    "swift systemverilog tcl typescript vba verilog vhdl visual_basic yaml zig"
)
PROGRAMMING_LANGUAGES = frozenset(NAMES.split())


@cache
def _known() -> frozenset[str]:
    import pycountry  # its tables take some 50 ms to read: only where a language is named

    return frozenset(language.alpha_3 for language in pycountry.languages)


def _check_language(value: str) -> str:
    if value not in _known():
        import pycountry

        found = pycountry.languages.get(alpha_2=value) or pycountry.languages.get(name=value.capitalize())
        hint = f"; did you mean {found.alpha_3!r}?" if found else ""
        raise ValueError(f"{value!r} is no ISO-639-3 code of a language (three small letters, like 'deu'){hint}")
    return value


def _check_programming_language(value: str) -> str:
    if value not in PROGRAMMING_LANGUAGES:
        raise ValueError(f"{value!r} is no programming language known here (there are: {', '.join(sorted(PROGRAMMING_LANGUAGES))})")
    return value


Language = Annotated[str, AfterValidator(_check_language)]
ProgrammingLanguage = Annotated[str, AfterValidator(_check_programming_language)]
