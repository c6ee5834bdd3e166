#!/usr/bin/env python3
"""Makes of a catalogue what can be learnt from: a text and a label of each book. A model in a process.

The text is all that is known of a book before anybody has rated it. The label is `high` when readers rate it above the median of
the books that are learnt from, else `low`.
"""

import statistics


def text_of(book):
    return f"{book['title']} by {book['authors']}"


def features(books):
    """`rows` to learn from and to test on, in which no book of the `list` appears; and the list, in its order."""
    threshold = statistics.median(float(book["average_rating"]) for book in books if book["split"] == "train")
    unrated = [{"text": text_of(book)} for book in books if book["split"] == "list"]
    apart = {book["text"] for book in unrated}
    rows = [
        {"split": book["split"], "text": text_of(book), "label": label_of(book, threshold)}
        for book in books if book["split"] != "list" and text_of(book) not in apart
    ]
    return {"threshold": threshold, "rows": rows, "list": unrated}


def label_of(book, threshold):
    return "high" if float(book["average_rating"]) > threshold else "low"


if __name__ == "__main__":
    from taskyard_model import model

    @model
    def answer(input):
        return features(input["books"])

    answer.serve()
