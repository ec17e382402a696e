"""Pictures of gradients through time and through depth, and of a forecast: `python -m bench.pictures` writes them to docs/."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fastgrad as fg

DOCS = Path(__file__).parent.parent / "docs"
STEPS, HIDDEN, ROWS = 200, 64, 16
DEPTH = 50
BLOCKS = {
    "dense, xavier": lambda: fg.nn.Dense(64, 64, "relu", init="xavier_uniform"),
    "dense, he": lambda: fg.nn.Dense(64, 64, "relu", init="he_uniform"),
    "residual": lambda: fg.nn.Residual(fg.nn.Dense(64, 64, "relu", init="xavier_uniform")),
    "batch norm and residual": lambda: fg.nn.Residual(
        fg.nn.Sequential(fg.nn.BatchNorm(64, "relu"), fg.nn.Dense(64, 64, init="xavier_uniform"))
    ),
}


def tanh_recurrence_norms(rng):
    """|dL/dh_t| by t of h_t = tanh(x_t + h_{t-1} u), the plain recurrence of Elman (1990), from a gradient of h_T alone."""
    bound = 1 / np.sqrt(HIDDEN)
    u = rng.uniform(-bound, bound, (HIDDEN, HIDDEN))
    x = rng.standard_normal((STEPS, ROWS, HIDDEN))
    h = np.zeros((STEPS + 1, ROWS, HIDDEN))
    for t in range(STEPS):
        h[t + 1] = np.tanh(x[t] + h[t] @ u)
    dh, norms = rng.standard_normal((ROWS, HIDDEN)), np.empty(STEPS)
    for t in reversed(range(STEPS)):
        norms[t] = np.linalg.norm(dh)
        dh = dh * (1 - h[t + 1] ** 2) @ u.T
    return norms


def lstm_norms(rng, forget_bias):
    """The same of an LSTM, whose forget gates start with this bias."""
    bound = 1 / np.sqrt(HIDDEN)
    w_ih, w_hh = (rng.uniform(-bound, bound, (HIDDEN, 4 * HIDDEN)) for _ in range(2))
    b = np.zeros(4 * HIDDEN)
    b[HIDDEN : 2 * HIDDEN] = forget_bias
    _, backward = fg.lstm(rng.standard_normal((ROWS, STEPS, HIDDEN)), w_ih, w_hh, b)
    norms = np.empty(STEPS)
    backward(dh_n=rng.standard_normal((ROWS, HIDDEN)), step_norms=norms)
    return norms


def gradient_flow():
    """How much of a gradient at the last step arrives at each step before it."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    curves = {"plain tanh recurrence": tanh_recurrence_norms(np.random.default_rng(0))}
    for bias in (0.0, 1.0, 3.0, 5.0):
        curves[f"LSTM, forget_bias={bias:g}"] = lstm_norms(np.random.default_rng(0), bias)
    for label, norms in curves.items():
        axes.semilogy(range(STEPS), norms / norms[-1], label=label)
    axes.set(xlabel="step t", ylabel="|dL/dh_t| / |dL/dh_T|", ylim=(1e-30, 10))
    axes.legend(loc="lower right")
    return figure


def depth_norms(block):
    """|dL/dw| of 50 dense layers 64 to 64 between two others, at the start of training on scikit-learn's digits; block makes each."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    layers = [block() for _ in range(DEPTH)]
    model = fg.nn.Sequential(fg.nn.Dense(64, 64), *layers, fg.nn.Dense(64, 10, "softmax"), seed=0)
    logits, backward = model.forward((x / 16).astype(np.float32), True, logits=True)
    backward(fg.cross_entropy(logits, y)[1])
    weights = [gradient for name, gradient in model.gradients().items() if name.endswith("w")]
    return [float(np.linalg.norm(gradient)) for gradient in weights[1:-1]]


def gradient_depth():
    """How much of a gradient arrives at each of 50 layers, with and without residuals and batch norm."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, block in BLOCKS.items():
        axes.semilogy(range(1, DEPTH + 1), depth_norms(block), label=label)
    axes.set(xlabel="layer", ylabel="|dL/dw| at the first step")
    axes.legend(loc=(0.6, 0.15))
    return figure


def co2_forecasts():
    """The guide's forecast of CO2: years that the net has not seen, each from the two years before it."""
    from statsmodels.datasets import co2

    series = co2.load_pandas().data["co2"].interpolate()
    weekly, dates, trained = series.to_numpy(np.float32), series.index, 1700
    past, ahead = np.arange(104), 104 + np.arange(52)
    starts = np.arange(0, trained - 156, 4)
    level = weekly[starts + 103, None]
    x, y = (weekly[starts[:, None] + past] - level)[:, :, None] / 5, (weekly[starts[:, None] + ahead] - level) / 5
    model = fg.nn.Sequential(fg.nn.LSTM(1, 32, pool="last", forget_bias=1.0), fg.nn.Dense(32, 52), seed=0)
    fg.Trainer(model, loss="mse", optimizer=fg.optim.Adam(5e-3), clip_norm=1.0).fit(x, y, epochs=40)

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(dates[trained - 104 :], weekly[trained - 104 :], color="grey", label="truth")
    for start in range(trained - 104, len(weekly) - 155, 52):
        level = weekly[start + 103]
        forecast = model.predict((weekly[start + past] - level)[None, :, None] / 5)[0] * 5 + level
        axes.plot(dates[start + ahead], forecast, label="forecast" if start == trained - 104 else None, color="tab:red")
    axes.set(ylabel="CO2, parts per million")
    axes.legend()
    return figure


if __name__ == "__main__":
    for picture in (gradient_flow, gradient_depth, co2_forecasts):
        picture().savefig(DOCS / f"{picture.__name__}.png", dpi=120)
