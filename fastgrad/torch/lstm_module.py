"""The module LSTM, which can replace torch.nn.LSTM. The operator of one layer is in ops/lstm.py."""

from typing import Any

import torch

from fastgrad.functional.lstm import NO_ZONEOUT
from fastgrad.functional.lstm_variants import check_combination, checked_variant
from fastgrad.torch.ops.lstm import lstm
from fastgrad.torch.ops.recurrent_layer import NORMS
from fastgrad.torch.recurrent_module import RecurrentModule, States

Tensor = torch.Tensor


class LSTM(RecurrentModule):
    """torch.nn.LSTM by fastgrad's kernels: the same arguments, parameters, state_dict, inputs and outputs; and variants of it.

    `forward(input, hx)` takes sequences (T, N, C), (N, T, C) with batch_first, (T, C) or a PackedSequence, and states
    (h_0, c_0) or None, which is 0. Dropout between layers draws from PyTorch's generator. Other than torch.nn.LSTM it takes
    tensors on the CPU alone, float32 or float64; under autocast it computes in float32 and returns the dtype that
    PyTorch's would; there is no second derivative.

    The formulas of the variants are those of fastgrad.lstm. Masks of zoneout and recurrent_dropout are drawn in training,
    from PyTorch's generator, anew for every call, direction and step; in evaluation zoneout takes the expectation.

    Args:
        *args: As torch.nn.LSTM takes them: input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size.
        layer_norm: Whether x_t w_ih, h_{t-1} w_hh and, for h_t, c_t are normalised, with an eps of 1e-5. Then each
            direction of a layer has parameters gamma_x_l0 and gamma_h_l0 (4H,), gamma_c_l0 and beta_c_l0 (H,), at first 1,
            beta_c 0.
        zoneout: (p_h, p_c), the probabilities that a unit of h and of c keeps its value, from 0 and below 1.
        recurrent_dropout: The share of values of g that training sets to 0, from 0 and below 1; the others are divided by
            what is left.
        **kwargs: As torch.nn.LSTM takes them.

    Raises:
        ValueError: An argument is out of its range, as of torch.nn.LSTM, or layer_norm, zoneout or recurrent_dropout comes
            with proj_size.

    Example:
        >>> lstm = fgt.LSTM(3, 5, batch_first=True)
        >>> y, (h_n, c_n) = lstm(torch.zeros(2, 7, 3))
        >>> y.shape, h_n.shape
        (torch.Size([2, 7, 5]), torch.Size([1, 2, 5]))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Gers, Schmidhuber & Cummins 2000, "Learning to Forget: Continual Prediction with LSTM".
        Ba, Kiros & Hinton 2016, "Layer Normalization": layer_norm.
        Krueger et al. 2017, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations": zoneout.
        Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss": recurrent_dropout.
    """

    op = "lstm"
    # of an accelerated nn.LSTM, and of modules that an earlier version pickled
    layer_norm, zoneout, recurrent_dropout = False, NO_ZONEOUT, 0.0

    def __init__(
        self,
        *args: Any,
        layer_norm: bool = False,
        zoneout: tuple[float, float] = NO_ZONEOUT,
        recurrent_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        variant = checked_variant(self.op, zoneout, recurrent_dropout)
        super().__init__("LSTM", *args, **kwargs)
        check_combination(self.op, variant, bool(layer_norm), False, self.proj_size > 0)
        self.layer_norm, self.recurrent_dropout = bool(layer_norm), variant.recurrent_dropout
        self.zoneout = variant.zoneout_h, variant.zoneout_c
        if self.layer_norm:
            self._add_norms()

    def _add_norms(self) -> None:
        """Add the parameters of layer norms, behind the others of each direction."""
        names = []
        for weights in self._all_weights:
            suffix, like = weights[0].removeprefix("weight_ih"), getattr(self, weights[0])
            for name in NORMS:
                size = self.hidden_size * (1 if name.endswith("_c") else 4)
                value = like.detach().new_full((size,), float(name != "beta_c"))
                self.register_parameter(name + suffix, torch.nn.Parameter(value))
            weights += [name + suffix for name in NORMS]
            names += weights
        self._flat_weights_names = names
        self._init_flat_weights()

    def reset_parameters(self) -> None:
        """Draw weights and biases as torch.nn.LSTM does; the gammas of layer norms are 1, beta_c 0."""
        super().reset_parameters()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith(NORMS):
                    parameter.fill_(not name.startswith("beta_c"))

    def extra_repr(self) -> str:
        """torch.nn.LSTM's, with the options of variants that are given."""
        options = {
            name: getattr(self, name)
            for name, default in (("layer_norm", False), ("zoneout", NO_ZONEOUT), ("recurrent_dropout", 0.0))
            if getattr(self, name) != default
        }
        return ", ".join([super().extra_repr(), *(f"{name}={value}" for name, value in options.items())])

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(y, (h_n, c_n)), as torch.nn.LSTM's forward; of a PackedSequence y is one too."""
        return self._run(input, hx)

    def _layer(
        self, x: Tensor, weights: list[Tensor], states: Any, batch_sizes: Any, order: Any, directions: int
    ) -> States:
        h_0, c_0 = states or (None, None)
        options: dict[str, Any] = {"directions": directions, "bias": self.bias, "projects": self.proj_size > 0}
        if self.layer_norm or self.recurrent_dropout or any(self.zoneout):
            options |= {"layer_norm": self.layer_norm, "zoneout": self.zoneout}
            options["recurrent_dropout"] = self.recurrent_dropout
            if self.training and (self.recurrent_dropout or any(self.zoneout)):
                options["key"] = torch.randint(2**63 - 1, (directions,), device="cpu")
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
