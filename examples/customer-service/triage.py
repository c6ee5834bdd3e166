#!/usr/bin/env python3
"""Tells by its words whether a question to a bank is urgent: a model in a process, cheap enough to be asked before any other.

It reads for what costs a customer money by the hour: a card or a phone that is lost, stolen or kept by a machine, and payments that
the customer knows nothing of. The patterns were written from the training rows of the data set, never from the rows of the example.
"""

import re

PATTERNS = [
    r"\b(?:stole|stolen|theft|thief|robbed|mugged|hack\w*|fraud\w*|scam\w*|compromis\w*|unauthori[sz]ed|breach\w*|freeze)\b",
    r"\bsomeone (?:else|is|has|may|might|got|used|stole|took)\b",
    r"\b(?:lost|losing|misplaced|missing|left|can'?t find|cannot find)\b.*\b(?:card|phone|wallet|purse|mobile)\b",
    r"\b(?:card|phone|wallet|purse|mobile)\b.*\b(?:lost|missing|misplaced|gone)\b",
    r"\b(?:atm|machine|it)\b.*\b(?:ate|kept|keep|took|eat|retained|swallowed|sucked)\b.*\bcard\b",
    r"\bcard\b.*\b(?:stuck|eaten|retained|swallowed|trapped)\b|\bcard (?:back|out of)\b",
    r"\b(?:suspicious|questionable|strange|unfamiliar|unrecogni[sz]ed|dispute)\b",
    r"\b(?:didn'?t|did not|don'?t|do not|never|not)\s+(?:\w+\s+){0,2}?"
    r"(?:recogni[sz]e|make|made|remember|authori[sz]e|set ?up|withdr[ae]w|approve|buy|mine)\b",
    r"\b(?:debit|payment|charge|withdrawal|transaction)\b.*\b(?:not mine|where|who|shouldn'?t be)\b",
]
URGENT = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS), re.IGNORECASE)


def triage(text):
    found = URGENT.search(text)
    return {"urgent": bool(found), "because": found.group() if found else None}


if __name__ == "__main__":
    from taskyard_model import TaskError, model

    @model
    def answer(input):
        text = input.get("text") if isinstance(input, dict) else None
        if not isinstance(text, str):
            raise TaskError("bad_input", 'the input must be {"text": "..."}')
        return triage(text)

    answer.serve()
