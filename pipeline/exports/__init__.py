"""Exported models: a card and weights in one folder.

Trainings write exports here; every room that runs a trained model reads its card, its config and its weights here.
"""
