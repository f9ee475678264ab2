"""Agreement with ADM's own evaluator, run from its own code under TensorFlow in an environment beside this one."""
