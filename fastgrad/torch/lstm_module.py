"""The module LSTM, which can replace torch.nn.LSTM. The operator of one layer is in ops/lstm.py."""

from typing import Any

import torch

from fastgrad.torch.ops.lstm import lstm
from fastgrad.torch.recurrent_module import RecurrentModule, States

Tensor = torch.Tensor


class LSTM(RecurrentModule):
    """torch.nn.LSTM by fastgrad's kernels: the same arguments, parameters, state_dict, inputs and outputs.

    `forward(input, hx)` takes sequences (T, N, C), (N, T, C) with batch_first, (T, C) or a PackedSequence, and states
    (h_0, c_0) or None, which is 0. Dropout between layers draws from PyTorch's generator. Other than torch.nn.LSTM it takes
    tensors on the CPU alone, float32 or float64; under autocast it computes in float32 and returns the dtype that
    PyTorch's would; there is no second derivative.

    Args:
        *args: As torch.nn.LSTM takes them: input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size.
        **kwargs: As torch.nn.LSTM takes them.

    Raises:
        ValueError: An argument is out of its range, as of torch.nn.LSTM.

    Example:
        >>> lstm = fgt.LSTM(3, 5, batch_first=True)
        >>> y, (h_n, c_n) = lstm(torch.zeros(2, 7, 3))
        >>> y.shape, h_n.shape
        (torch.Size([2, 7, 5]), torch.Size([1, 2, 5]))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Gers, Schmidhuber & Cummins 2000, "Learning to Forget: Continual Prediction with LSTM".
    """

    op = "lstm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(y, (h_n, c_n)), as torch.nn.LSTM's forward; of a PackedSequence y is one too."""
        return self._run(input, hx)

    def _layer(
        self, x: Tensor, weights: list[Tensor], states: Any, batch_sizes: Any, order: Any, directions: int
    ) -> States:
        h_0, c_0 = states or (None, None)
        options: dict[str, Any] = {"directions": directions, "bias": self.bias, "projects": self.proj_size > 0}
        return lstm(x, weights, h_0, c_0, batch_sizes, order, **options)

    def _state_tensors(self, hx: Any, batched: bool) -> States:
        if not batched and isinstance(hx, Tensor):
            hx = tuple(hx)
        if not isinstance(hx, tuple | list) or len(hx) != 2:
            got = f"{len(hx)} of them" if isinstance(hx, tuple | list) else type(hx).__name__
            raise RuntimeError(f"lstm: expects two hidden states, a tuple (h_0, c_0), got {got}")
        if not all(isinstance(state, Tensor) for state in hx):
            raise RuntimeError(
                f"lstm: both hidden states must be tensors, got {', '.join(type(s).__name__ for s in hx)}"
            )
        axes = 3 if batched else 2
        if any(state.dim() != axes for state in hx):
            kind = "batched 3-D" if batched else "unbatched 2-D"
            got = f"({hx[0].dim()}-D, {hx[1].dim()}-D)"
            raise RuntimeError(f"For {kind} input, hx and cx should also be {axes}-D but got {got} tensors")
        return hx[0], hx[1]
