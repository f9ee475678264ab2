"""Evaluation: what samples and reconstructions are worth.

In go samples, real images and a tokenizer; out come metrics, each with the convention it was measured by. `stage.run`
is the stage behind `rdpm evaluate`. Training uses the fidelity metrics to validate, and reports and studies use the
parts. Nothing here trains or samples, except the small classifier whose features stand in for Inception's.
"""
