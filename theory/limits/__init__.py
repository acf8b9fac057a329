"""Geometry and limits of models: what attention, positions, capacity and stored bits allow, whatever the training.

Closed forms and estimators stand beside what is measured, on made-up inputs of known truth and on the setting's model.
"""
