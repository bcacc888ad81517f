"""Elsewhere: a second device where there is none, on which tensors of two devices cannot meet.

A `Far` tensor says that it lies on CUDA and holds its numbers on the CPU. An operator that gets far and
near tensors together raises, as CUDA does; a near tensor without axes counts as a number, as it does there.
Neither kernels nor gradients of a GPU are tried: that takes one.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

FAR = torch.device("cuda", 0)
MOVES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class Far(Tensor):
    """A tensor that says it is elsewhere."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor):
        shape = torch.empty_strided(near.shape, near.stride(), dtype=near.dtype, device="meta")
        made = Tensor._make_subclass(cls, shape)
        made.near = near
        return made

    @property
    def device(self):
        return FAR

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with Elsewhere():
            return function(*args, **(kwargs or {}))


class Elsewhere(TorchDispatchMode):
    """While entered, FAR is a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        is_far = any(isinstance(x, Far) for x in given)
        near = [x for x in given if not isinstance(x, Far) and x.ndim]
        if is_far and near and function.overloadpacket not in MOVES:
            raise RuntimeError(f"{function} got tensors of two devices, {tuple(near[0].shape)} is on the CPU")
        found = function(*_brought(args), **_brought(kwargs))
        if function._schema.is_mutable:
            return args[0]
        goes_far = is_far if asked is None else torch.device(asked) == FAR
        return tree_map_only(Tensor, Far, found) if goes_far else found


def _brought(x):
    return tree_map_only(Far, lambda far: far.near, x)
