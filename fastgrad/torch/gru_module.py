"""The module GRU, which can replace torch.nn.GRU. The operator of one layer is in ops/gru.py."""

from typing import Any

import torch

from fastgrad.torch.ops.gru import gru
from fastgrad.torch.recurrent_module import RecurrentModule, States

Tensor = torch.Tensor


class GRU(RecurrentModule):
    """torch.nn.GRU by fastgrad's kernels: the same arguments, parameters, state_dict, inputs and outputs.

    `forward(input, hx)` takes sequences (T, N, C), (N, T, C) with batch_first, (T, C) or a PackedSequence, and the state h_0
    or None, which is 0. Dropout between layers draws from PyTorch's generator. Other than torch.nn.GRU it takes tensors on
    the CPU alone, float32 or float64; under autocast it computes in float32 and returns the dtype that PyTorch's would;
    there is no second derivative.

    Args:
        *args: As torch.nn.GRU takes them: input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional.
        **kwargs: As torch.nn.GRU takes them.

    Raises:
        ValueError: An argument is out of its range, or there is a proj_size, as of torch.nn.GRU.

    Example:
        >>> gru = fgt.GRU(3, 5, batch_first=True)
        >>> y, h_n = gru(torch.zeros(2, 7, 3))
        >>> y.shape, h_n.shape
        (torch.Size([2, 7, 5]), torch.Size([1, 2, 5]))

    References:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
    """

    op = "gru"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("gru: there is no proj_size, which is the LSTM's alone")
        super().__init__("GRU", *args, **kwargs)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(y, h_n), as torch.nn.GRU's forward; of a PackedSequence y is one too."""
        y, (h_n,) = self._run(input, hx)
        return y, h_n

    def _layer(
        self, x: Tensor, weights: list[Tensor], states: Any, batch_sizes: Any, order: Any, directions: int
    ) -> States:
        (h_0,) = states or (None,)
        return gru(x, weights, h_0, batch_sizes, order, directions=directions, bias=self.bias)

    def _state_tensors(self, hx: Any, batched: bool) -> States:
        if not isinstance(hx, Tensor):
            raise RuntimeError(f"gru: expects one hidden state, a tensor h_0, got {type(hx).__name__}")
        axes = 3 if batched else 2
        if hx.dim() != axes:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {axes}-D but got {hx.dim()}-D tensor")
        return (hx,)
