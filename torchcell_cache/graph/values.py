"""Tensors as numpy arrays and back, and what a graph may hold at all."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcell_cache.codec.layout import DTYPES, FieldKey, TensorValue, field_label
from torchcell_cache.errors import UnsupportedValueError

ALLOWED = (
    "dense strided torch tensors, None, bool, int, float, str, bytes, numpy arrays and scalars, and lists, "
    "tuples and dicts of these (dict keys: None, bool, int, float, str, bytes or tuples of them)"
)

# getattr: the float8 types came to torch one by one, and a store must open where the newest is unknown.
TORCH_DTYPES = {
    code: dtype for code, (name, _) in DTYPES.items() if (dtype := getattr(torch, name, None)) is not None
}
_CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}
REINTERPRETED = {
    torch.bfloat16: torch.uint16,
    **{dtype: torch.uint8 for code, dtype in TORCH_DTYPES.items() if DTYPES[code].name.startswith("float8")},
}
"""What numpy does not know, and the integers that carry its bits there."""


def check_tensor(tensor: Tensor, label: str | FieldKey) -> int:
    """Dtype code of a tensor that can be stored.

    Raises:
        UnsupportedValueError: If it is of a subclass, sparse, quantised, of an unknown dtype or needs a
            gradient.
    """
    problem = None
    if type(tensor) is not Tensor:
        problem = f"a {type(tensor).__name__}, a subclass of Tensor"
    elif tensor.is_nested or tensor.is_quantized:
        problem = f"a {'nested' if tensor.is_nested else 'quantised'} tensor of dtype {tensor.dtype}"
    elif tensor.layout != torch.strided or tensor.is_meta:
        problem = f"a tensor of layout {tensor.layout}, dtype {tensor.dtype} on device {tensor.device}"
    elif tensor.dtype not in _CODES:
        problem = f"a tensor of dtype {tensor.dtype}"
    elif tensor.requires_grad:
        problem = "a tensor that requires a gradient"
    if problem is not None:
        raise unsupported(label, problem)
    return _CODES[tensor.dtype]


def unsupported(label: str | FieldKey, what: str) -> UnsupportedValueError:
    """The error for a value that no record can hold."""
    return UnsupportedValueError(
        f"{label if isinstance(label, str) else field_label(label)} is {what}; a record can hold {ALLOWED}",
        fix="convert it in the processor (.to_dense(), .as_tensor(), .detach(), str(...)) or delete it",
    )


def to_array(tensor: Tensor, label: str | FieldKey = "tensor") -> TensorValue:
    """A tensor as dtype code and C-contiguous numpy array; no copy if it already is contiguous on the CPU."""
    code = check_tensor(tensor, label)
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    carrier = REINTERPRETED.get(plain.dtype)
    try:
        return TensorValue(code, (plain if carrier is None else plain.view(carrier)).numpy())
    except ValueError as error:
        raise unsupported(
            label, f"a tensor of shape {tuple(tensor.shape)}, which numpy refuses ({error})"
        ) from None


def to_tensor(value: TensorValue) -> Tensor:
    """The tensor of a dtype code and a writable native-endian array, sharing its memory.

    Raises:
        UnsupportedValueError: If this torch does not know the dtype.
    """
    dtype = TORCH_DTYPES.get(value.dtype)
    if dtype is None:
        raise unsupported(
            "stored tensor", f"of dtype {DTYPES[value.dtype].name}, which torch {torch.__version__} lacks"
        )
    if value.array.size == 0:
        # from_numpy gives an empty tensor strides of 0, which .view(other dtype) then refuses.
        return torch.empty(value.array.shape, dtype=dtype, device="cpu")
    tensor = torch.from_numpy(value.array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def is_same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements in the same memory, seen the same way."""
    if one is other:
        return True
    return (
        type(one) is type(other) is Tensor
        and one.layout == other.layout == torch.strided
        and (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
        and one.stride() == other.stride()
        and one.data_ptr() == other.data_ptr()
        and (one.is_conj(), one.is_neg()) == (other.is_conj(), other.is_neg())
    )
