"""The code that MLflow copies into every model: as little as can be.

What it names must stay importable, so that models saved once open with every later version.
"""

from mlflow.models import set_model

from storage.serving.pyfunc import ServedModel

set_model(ServedModel())
