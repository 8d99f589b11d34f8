"""Steps of MoCo, RSPNet and PreViTS on one rank or two, and what two would do, in one process."""

import torch
from torch import Tensor

from lightning_vssl.losses import attention
from lightning_vssl.methods import moco
from lightning_vssl.methods.moco import EncodedView, MomentumQueue
from lightning_vssl.nn import queue
from lightning_vssl.nn.gather import all_reduce_sum, rank, world_size
from lightning_vssl.nn.shuffle import shuffle_order
from tests.ddp.norm import swap_norms
from tests.methods.momentum import augmented, awake, small

SIZE, STEPS = 6, 3  # 18 keys go round a queue of 12
PATCHED = {
    "queue": (queue, "gather"),  # each rank queues its own keys
    "count": (attention, "all_reduce_sum"),  # each rank divides by its own count
}


def prepared(name: str, options: dict[str, object]) -> MomentumQueue:
    method = small(name, queue_size=12, momentum=0.9, **options).double()
    awake(method)
    return method


def steps(name: str, options: dict[str, object], norms: str, broken: str = "") -> dict[str, Tensor]:
    """Three steps of SGD; each rank has its share of the batch.

    ``norms``: over the ``global`` batch, or per ``rank``.
    """
    method = prepared(name, options)
    if norms == "global":
        swap_norms(method)
    module, function = PATCHED.get(broken, (None, ""))
    kept = getattr(module, function, None)
    if module is not None:
        setattr(module, function, lambda x: x)
    try:
        return _steps(method)
    finally:
        if module is not None:
            setattr(module, function, kept)


def as_two_ranks(name: str, options: dict[str, object], shuffled: bool = True) -> dict[str, Tensor]:
    """The same with norms that see half a batch, by hand and in one process."""
    method = prepared(name, options)

    def by_halves(views: Tensor) -> EncodedView:
        maps = torch.cat([method.backbone(half) for half in views.chunk(2)])
        pooled = maps.flatten(2).mean(2)
        return EncodedView(maps, pooled, method.projector(pooled))

    def shuffled_halves(encode, x: Tensor, key: Tensor, stream: int) -> Tensor:
        order = shuffle_order(key, stream) if shuffled else torch.arange(len(x))
        codes = torch.cat([encode(half) for half in x[order].chunk(2)])
        back = torch.empty_like(order)
        for place, sample in enumerate(order.tolist()):
            back[sample] = place
        return codes[back]

    method.encode = by_halves
    kept = moco.encode_shuffled
    moco.encode_shuffled = shuffled_halves
    try:
        return _steps(method)
    finally:
        moco.encode_shuffled = kept


def _steps(method: MomentumQueue) -> dict[str, Tensor]:
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05)
    found: dict[str, Tensor] = {}
    for number in range(STEPS):
        made = augmented(method, SIZE, first=number * SIZE)
        mine = slice(rank() * SIZE // world_size(), (rank() + 1) * SIZE // world_size())
        share = {key: value[mine] for key, value in made.items() if isinstance(value, Tensor)}
        outputs = method._step(share)
        method.queue.enqueue(outputs["keys"])
        optimizer.zero_grad()
        outputs["loss"].backward()
        for name, parameter in trained.items():
            parameter.grad = all_reduce_sum(parameter.grad) / world_size()
            found[f"gradient {number} of {name}"] = parameter.grad.clone()
        for name in ("loss", *method.terms):
            found[f"{name} {number}"] = all_reduce_sum(outputs[name].detach()) / world_size()
        method.optimizer_step(0, number, optimizer)
        found[f"queue {number}"] = method.queue.keys.clone()
    found["pointer"] = method.queue.pointer.double()
    found |= {f"{name} of target": p.detach() for name, p in method.target.named_parameters()}
    return found
