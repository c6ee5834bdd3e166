#!/usr/bin/env python3
"""Train the linear heads of this folder: multinomial logistic regression on MiniLM sentence vectors.

    python3 -m venv venv
    venv/bin/pip install numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1 onnxruntime==1.32.0 tokenizers==0.23.3
    venv/bin/python models/heads/train_heads.py --datasets DIR

DIR holds `banking77.csv.gz` (split, intent, text) and `twitter_financial_news_sentiment.csv.gz`
(split, sentiment, text); SOURCE.md says where they come from. Only the train split is used for fitting,
the other split for the figures. Written for each head, beside this script or to `--out`:

    <name>.head.json   labels, dimensions, name of the weights file, how it was trained, licence, source
    <name>.head.f32    little-endian f32: weights [labels, dimensions] row-major, then bias [labels]

Scores are softmax(weights . vector + bias), the vector being the mean of the last hidden states over all
tokens, L2-normalised, of the very model file in `../minilm`. Texts are cut at 128 tokens (special tokens
included) and run in groups of exactly equal length, so no vector depends on padding or on its neighbours.

The result is reproducible: the solver is deterministic, the order of the rows is the file's, one thread.
The regularisation strengths were chosen by cross-validated macro-F1 within the train split alone.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import sklearn  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import accuracy_score, f1_score  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent
MAX_TOKENS = 128
ROWS_PER_RUN = 16

HEADS = [
    {
        "name": "banking77",
        "file": "banking77.csv.gz",
        "label": "intent",
        "test_split": "test",
        "c": 10.0,
        "dataset": "BANKING77 (Casanueva et al. 2020)",
        "licence": "Apache-2.0 (weights); trained on BANKING77, CC BY 4.0",
        "source": "https://github.com/PolyAI-LDN/task-specific-datasets, commit 57ec275d8078, "
                  "banking_data/train.csv and test.csv",
    },
    {
        "name": "finance-sentiment",
        "file": "twitter_financial_news_sentiment.csv.gz",
        "label": "sentiment",
        "test_split": "valid",
        "c": 10.0,
        "dataset": "Twitter Financial News Sentiment (zeroshot)",
        "licence": "Apache-2.0 (weights); trained on Twitter Financial News Sentiment, "
                   "MIT as declared by its author",
        "source": "https://github.com/umaima-aman/Twee_Sentiment_Analysis-DeepLearning, commit 0286b19b35c7, "
                  "sent_train.csv and sent_valid.csv; data set card zeroshot/twitter-financial-news-sentiment",
    },
]


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def session(path):
    """An ONNX Runtime session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Encoder:
    """Texts to L2-normalised mean-pooled vectors; groups of equal token count, nothing is padded."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length=MAX_TOKENS)
        self.session = session(Path(folder) / "model.onnx")

    def encode(self, texts):
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        groups = {}
        for row, ids in enumerate(tokens):
            groups.setdefault(len(ids), []).append(row)
        vectors = np.empty((len(tokens), 384), dtype=np.float32)
        for length in sorted(groups):
            rows = groups[length]
            for start in range(0, len(rows), ROWS_PER_RUN):
                chunk = rows[start:start + ROWS_PER_RUN]
                ids = np.array([tokens[row] for row in chunk], dtype=np.int64)
                hidden = self.session.run(["last_hidden_state"], {
                    "input_ids": ids,
                    "attention_mask": np.ones_like(ids),
                    "token_type_ids": np.zeros_like(ids),
                })[0]
                mean = hidden.mean(axis=1)
                vectors[chunk] = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        return vectors


def read_rows(path, label):
    """(split, label, text) of every row of a gzip CSV file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        return [(row["split"], row[label], row["text"]) for row in csv.DictReader(stream)]


def load_head(json_path):
    """Labels, weights [labels, dimensions] and bias [labels] of a head on disk."""
    head = json.loads(Path(json_path).read_text())
    labels, dimensions = head["labels"], head["dimensions"]
    numbers = np.fromfile(Path(json_path).parent / head["weights"], dtype="<f4")
    cut = len(labels) * dimensions
    return labels, numbers[:cut].reshape(len(labels), dimensions), numbers[cut:]


def scores(vectors, weights, bias):
    logits = vectors @ weights.T + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def train(head, encoder, minilm, datasets, out):
    rows = read_rows(datasets / head["file"], head["label"])
    fit = [(label, text) for split, label, text in rows if split == "train"]
    test = [(label, text) for split, label, text in rows if split == head["test_split"]]
    fit_vectors = encoder.encode([text for _, text in fit])
    test_vectors = encoder.encode([text for _, text in test])

    model = LogisticRegression(C=head["c"], solver="lbfgs", max_iter=2000, tol=1e-5)
    model.fit(fit_vectors.astype(np.float64), [label for label, _ in fit])
    labels = [str(label) for label in model.classes_]
    weights = np.concatenate([model.coef_.ravel(), model.intercept_]).astype("<f4")
    weights_name = f"{head['name']}.head.f32"
    weights.tofile(out / weights_name)

    description = {
        "name": head["name"],
        "labels": labels,
        "dimensions": int(model.coef_.shape[1]),
        "weights": weights_name,
        "training": {},
        "licence": head["licence"],
        "source": head["source"],
    }
    json_path = out / f"{head['name']}.head.json"
    json_path.write_text(json.dumps(description))

    # The figures are those of the file as written, in f32, not of the estimator in memory.
    labels, matrix, bias = load_head(json_path)
    truth = [label for label, _ in test]
    guessed = [labels[index] for index in scores(test_vectors, matrix, bias).argmax(axis=1)]
    majority = max(truth.count(label) for label in set(truth)) / len(truth)
    description["training"] = {
        "dataset": head["dataset"],
        "rows": len(fit),
        "test_rows": len(test),
        "test_accuracy": round(float(accuracy_score(truth, guessed)), 4),
        "macro_f1": round(float(f1_score(truth, guessed, average="macro")), 4),
        "majority_class": round(majority, 4),
        "method": f"multinomial logistic regression, lbfgs, C = {head['c']}",
        "packages": f"scikit-learn {sklearn.__version__}, numpy {np.__version__}, "
                    f"onnxruntime {onnxruntime.__version__}",
        "encoder": "all-MiniLM-L6-v2, int8 weights; mean of the last hidden states, L2-normalised",
        "encoder_sha256": sha256(minilm / "model.onnx"),
        "max_tokens": MAX_TOKENS,
    }
    json_path.write_text(json.dumps(description, indent=1) + "\n")
    print(json.dumps({"name": head["name"], **description["training"]}), file=sys.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=Path, required=True, help="folder with the gzip CSV files")
    parser.add_argument("--minilm", type=Path, default=HERE.parent / "minilm", help="model.onnx and tokenizer.json")
    parser.add_argument("--out", type=Path, default=HERE, help="where the heads are written")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(arguments.minilm)
    for head in HEADS:
        train(head, encoder, arguments.minilm, arguments.datasets, arguments.out)


if __name__ == "__main__":
    main()
