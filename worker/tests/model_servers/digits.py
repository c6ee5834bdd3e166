"""A model for MLServer: a classifier of scikit-learn on its own digits, with what MLServer is to know of it.

    python digits.py FOLDER HTTP_PORT GRPC_PORT METRICS_PORT
"""

import json
import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression


def main(folder, http, grpc, metrics):
    folder = Path(folder)
    images, labels = load_digits(return_X_y=True)
    # The last ones are for whoever asks.
    model = LogisticRegression(max_iter=200).fit(images[:-20], labels[:-20])
    joblib.dump(model, folder / "digits.joblib")
    (folder / "model-settings.json").write_text(json.dumps({
        "name": "digits", "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(folder / "digits.joblib"), "version": "1"},
    }))
    (folder / "settings.json").write_text(json.dumps({
        "host": "127.0.0.1", "http_port": int(http), "grpc_port": int(grpc), "metrics_port": int(metrics),
        "parallel_workers": 0,
    }))
    questions = [{"pixels": image.tolist(), "label": int(label)} for image, label in zip(images[-20:], labels[-20:])]
    (folder / "questions.json").write_text(json.dumps(questions))


main(*sys.argv[1:])
