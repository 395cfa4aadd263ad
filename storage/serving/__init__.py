"""Inference: a registered model as files, from pixels to verdict, and its MLflow face.

`detector.Detector` opens any model and predicts, `save.save_model` makes one that MLflow serves.
"""
