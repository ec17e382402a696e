"""scikit-learn's MLPClassifier and MLPRegressor, computed by fastgrad: the same parameters, attributes and numbers."""

try:
    from fastgrad.sklearn.estimators import MLPClassifier, MLPRegressor
except ImportError as error:
    # 1.7 is the first with sample weights and the Poisson loss
    raise ImportError('fastgrad.sklearn needs scikit-learn from 1.7 on: pip install "fastgrad[sklearn]"') from error

__all__ = ["MLPClassifier", "MLPRegressor"]
