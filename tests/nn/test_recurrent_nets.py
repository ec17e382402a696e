"""Recurrent nets on real data: they learn, and end where PyTorch ends from the same weights and batches."""

from functools import cache

import numpy as np
import pytest
from real_data import digits

import fastgrad as fg

EPOCHS, BATCH = 2, 64


@cache
def rows_of_digits(dtype):
    """The rows of MNIST's images as sequences: 500 to train on, 200 held out."""
    x, y, held_x, held_y = digits(28)
    x, held_x = (a.reshape(-1, 28, 28).astype(dtype) for a in (x, held_x))
    return x[:500], y[:500], held_x[:200], held_y[:200]


def classifier(dtype):
    lstm = fg.nn.LSTM(28, 48, num_layers=2, pool="last", dtype=dtype)
    return fg.nn.Sequential(lstm, fg.nn.Dense(48, 10, "softmax", init="xavier_uniform", dtype=dtype), seed=1)


def train(model, x, y, held):
    trainer = fg.Trainer(model, optimizer=fg.optim.Adam(3e-3), clip_norm=1.0, seed=2)
    return trainer.fit(x, y, EPOCHS, BATCH, held)


@cache
def train_torch(dtype):
    """(loss of each epoch, held-out loss, held-out accuracy), batch first."""
    import torch

    model = classifier(dtype)
    lstm = torch.nn.LSTM(28, 48, 2, batch_first=True, dtype=getattr(torch, dtype))
    lstm.load_state_dict({name: torch.tensor(a) for name, a in fg.convert.to_torch(model.layers[0]).items()})
    for name, bias in lstm.named_parameters():
        # ours has one bias; two would take steps twice as long
        bias.requires_grad = not name.startswith("bias_hh")
    head = torch.nn.Linear(48, 10, dtype=getattr(torch, dtype))
    with torch.no_grad():
        head.weight[...], head.bias[...] = torch.tensor(model.layers[1].w.T), torch.tensor(model.layers[1].b)
    parameters = [p for p in (*lstm.parameters(), *head.parameters()) if p.requires_grad]
    optimizer, functional = torch.optim.Adam(parameters, 3e-3), torch.nn.functional
    x, y, held_x, held_y = (torch.tensor(a) for a in rows_of_digits(dtype))
    rng, losses = np.random.Generator(np.random.PCG64(2)), []
    for _ in range(EPOCHS):
        order, total = np.arange(len(x)), 0.0
        rng.shuffle(order)
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = functional.cross_entropy(head(lstm(x[rows])[0][:, -1]), y[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            total += len(rows) * loss.item()
        losses.append(total / len(x))
    with torch.no_grad():
        out = head(lstm(held_x)[0][:, -1])
        return losses, functional.cross_entropy(out, held_y).item(), (out.argmax(1) == held_y).double().mean().item()


def test_a_classifier_of_rows_ends_where_pytorch_ends(in_force, dtype, torch):
    x, y, *held = rows_of_digits(dtype.name)
    history = train(classifier(dtype.name), x, y, tuple(held))
    losses, held_loss, held_accuracy = train_torch(dtype.name)
    # rounding differs, and grows from step to step
    rel = 1e-2 if dtype == np.float32 else 1e-8
    assert history.loss == pytest.approx(losses, rel=rel)
    assert history.val_loss[-1] == pytest.approx(held_loss, rel=rel)
    assert history.val_accuracy[-1] == pytest.approx(held_accuracy, abs=0.01 if dtype == np.float32 else 0)


@pytest.mark.full
def test_a_classifier_of_rows_learns():
    x, y, held_x, held_y = digits(28)
    x, held_x = (a.reshape(-1, 28, 28).astype("f4") for a in (x, held_x))
    trainer = fg.Trainer(classifier("float32"), optimizer=fg.optim.Adam(3e-3), clip_norm=1.0, seed=2)
    history = trainer.fit(x, y, 10, BATCH, (held_x, held_y))
    assert history.val_accuracy[-1] > 0.93


def test_the_pictures_show_what_the_readme_says():
    pictures = pytest.importorskip("bench.pictures")
    norms = pictures.lstm_norms(np.random.default_rng(0), 3.0)
    plain = pictures.tanh_recurrence_norms(np.random.default_rng(0))
    assert norms[0] > 1e-3 * norms[-1]
    assert plain[0] < 1e-20 * plain[-1]
    depths = {name: pictures.depth_norms(block) for name, block in pictures.BLOCKS.items()}
    assert all(len(found) == pictures.DEPTH for found in depths.values())
    assert max(depths["dense, xavier"]) < 1e-6
    assert min(depths["residual"]) > 1e6
    assert 1 < min(depths["batch norm and residual"]) < max(depths["batch norm and residual"]) < 10
