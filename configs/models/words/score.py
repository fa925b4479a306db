"""A model that is code: how often each word of a text occurs, the most frequent first."""

import collections
import json
import os


def load_model(model_folder):
    with open(os.path.join(model_folder, "stop_words.json"), encoding="utf-8") as file:
        return frozenset(json.load(file))


def predict(data, model):
    words = [word.strip(".,;:!?").lower() for word in data["text"].split()]
    counted = collections.Counter(word for word in words if word not in model)
    return {"prediction": counted.most_common(data.get("most", 3))}
