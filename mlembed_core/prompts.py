"""The one template that turns an instruction and a text into what the tokenizer sees.

Training, evaluation, search and export all import it from here: a model that was trained with one template and queried with
another loses points without any error.
"""

QUERY_TEMPLATE = "Instruct: {instruction}\nQuery: {text}"


def query_prompt(instruction: str | None) -> str:
    """The text that stands before a query, ``""`` without an instruction (ML-Embed, arXiv 2605.15081, encoder section)."""
    return "" if not instruction else QUERY_TEMPLATE.format(instruction=instruction, text="")


def format_query(text: str, instruction: str | None) -> str:
    """A query as the tokenizer sees it. Documents take no prompt: they are tokenised as they are."""
    return query_prompt(instruction) + text
