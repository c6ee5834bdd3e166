#!/usr/bin/env python3
"""Makes the data of the three applications from the data sets that they come from.

    python3 make_data.py --datasets DIR

DIR holds `banking77.csv.gz`, `twitter_financial_news_sentiment.csv.gz` and `goodbooks10k_catalogue.csv.gz`, as the SOURCE.md beside
each application describes them. The same data sets give the same files, to the byte.
"""

import argparse
import csv
import gzip
import io
import random
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUESTIONS_PER_INTENT = 6
HEADLINES = 1200
BOOKS = 4000
# No address, no person's account, no strong language: the rule of ../demo.
UNWANTED = re.compile(r"https?:|www\.|\bt\.co\b|@|\b(?:damn|hell|shit|fuck\w*|crap|idiots?|stupid|kill\w*|murder\w*|"
                      r"rape\w*|sex\w*|nazi\w*|terroris\w*|suicid\w*|dead|death|shooting|fatal|slave\w*|slavery|gangs?|"
                      r"blood|tragedy|dirty|teat)\b", re.IGNORECASE)


def read(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path, columns, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"{path.relative_to(HERE)}: {len(rows)} rows, {path.stat().st_size} bytes")


def questions(rows):
    """As many of each intent, of those that the model has not learnt from."""
    by_intent = {}
    for row in rows:
        if row["split"] == "test":
            by_intent.setdefault(row["intent"], []).append({"intent": row["intent"], "text": " ".join(row["text"].split())})
    generator = random.Random(77)
    chosen = [row for intent in sorted(by_intent) for row in generator.sample(by_intent[intent], QUESTIONS_PER_INTENT)]
    generator.shuffle(chosen)
    return chosen


def headlines(rows):
    """A random part, of those that the model has not learnt from."""
    texts = {" ".join(row["text"].split()): row["sentiment"] for row in rows
             if row["split"] == "valid" and not UNWANTED.search(row["text"]) and len(row["text"]) >= 30}
    candidates = [{"sentiment": sentiment, "text": text} for text, sentiment in sorted(texts.items())]
    random.Random(3).shuffle(candidates)
    return candidates[:HEADLINES]


def books(rows):
    chosen = random.Random(10).sample(rows, BOOKS)
    for row in chosen:
        row["year"] = row["original_publication_year"].removesuffix(".0")
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=Path, required=True, help="folder with the gzip CSV files")
    datasets = parser.parse_args().datasets
    write(HERE / "customer-service/questions.csv.gz", ["intent", "text"], questions(read(datasets / "banking77.csv.gz")))
    write(HERE / "financial-news/headlines.csv.gz", ["sentiment", "text"],
          headlines(read(datasets / "twitter_financial_news_sentiment.csv.gz")))
    write(HERE / "recommendation/books.csv.gz", ["book_id", "title", "authors", "year", "average_rating", "ratings_count"],
          books(read(datasets / "goodbooks10k_catalogue.csv.gz")))


if __name__ == "__main__":
    main()
