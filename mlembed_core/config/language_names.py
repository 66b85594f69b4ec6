"""English names of languages and scripts, for pages that people read: data card and report call one thing by one name."""

from __future__ import annotations


def language_name(code: str) -> str:
    """The English name of an ISO 639-3 code, the code itself where it has none."""
    import pycountry

    if code == "mul":
        return "several languages"
    found = pycountry.languages.get(alpha_3=code) or pycountry.language_families.get(alpha_3=code)
    return str(found.name) if found else code


def script_name(code: str) -> str:
    """The English name of an ISO 15924 code."""
    import pycountry

    found = pycountry.scripts.get(alpha_4=code)
    return "no script of its own" if code == "Zyyy" else str(found.name) if found else code
