"""Runs in the environment that has TensorFlow: ADM's evaluator on features that are given to it.

    python theirs.py EVALUATOR.py FEATURES.npz OUT.json

Nothing of the evaluator is changed. Its constructor reads Inception's graph, which no features need, so an instance is
made without it and gets what its methods use: a session, its own manifold estimator, and a softmax. The features file
holds pool, spatial and logits of both sets; an inception score is of the logits as they are. Precision and recall are
computed a second time on features times a power of two, of which float16 overflows: then the evaluator uses float32.
"""

import importlib.util
import json
import sys

import numpy as np
import tensorflow.compat.v1 as tf

_FLOAT16 = 65504.0  # the largest


def main(path: str, features: str, out: str) -> None:
    """Write the evaluator's numbers, and the versions that they were computed with."""
    spec = importlib.util.spec_from_file_location("evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tf.disable_eager_execution()
    arrays = np.load(features)
    with tf.Session() as session:
        evaluator = object.__new__(module.Evaluator)
        evaluator.sess, evaluator.softmax_batch_size = session, 512
        evaluator.manifold_estimator = module.ManifoldEstimator(session)
        evaluator.softmax_input = tf.placeholder(tf.float32, shape=[None, None])
        evaluator.softmax = tf.nn.softmax(evaluator.softmax_input)
        numbers = {}
        for name, kind in (("frechet_distance", "pool"), ("spatial_frechet_distance", "spatial")):
            if f"reference_{kind}" in arrays:
                statistics = [evaluator.compute_statistics(arrays[f"{of}_{kind}"]) for of in ("samples", "reference")]
                numbers[name] = float(statistics[0].frechet_distance(statistics[1]))
        numbers["inception_score"] = evaluator.compute_inception_score(arrays["samples_logits"])
        pools = arrays["reference_pool"], arrays["samples_pool"]
        numbers["precision"], numbers["recall"] = evaluator.compute_prec_recall(*pools)
        largest = max(np.square(pool, dtype=np.float64).sum(axis=1).max() for pool in pools)
        scale = np.float32(2.0 ** np.ceil(np.log2(_FLOAT16 / largest) / 2 + 1))  # exact, and too long for float16
        numbers["precision_float32"], numbers["recall_float32"] = evaluator.compute_prec_recall(
            *(pool * scale for pool in pools)
        )
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    with open(out, "w") as file:
        json.dump({"numbers": numbers, "versions": versions}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
