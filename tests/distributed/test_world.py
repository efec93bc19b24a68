"""The collectives mean the same at every world size, carry their gradients, and name who does not come."""

import os
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist

from dist_ssl.distributed import rendezvous, world
from dist_ssl.distributed.rendezvous import LOOPBACK, interface_of, own_addresses, own_end
from dist_ssl.distributed.world import Waits, World, joined
from dist_ssl.errors import UserError
from tests.ranks import Ranks


def rows(world: World) -> torch.Tensor:
    whole = torch.arange(24, dtype=torch.float64).reshape(8, 3)
    return whole.chunk(world.size)[world.rank].clone().requires_grad_()


def gathered(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    x = rows(world)
    all_rows = world.gather(x)
    weights = torch.arange(8, dtype=torch.float64)[:, None] * (world.rank + 1)
    (all_rows * weights).sum().backward()
    assert x.grad is not None
    return all_rows.detach(), x.grad


def summed(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.full((3,), float(world.rank + 1), dtype=torch.float64, requires_grad=True)
    total = world.sum(x)
    (total * (world.rank + 1)).sum().backward()
    assert x.grad is not None
    return total.detach(), x.grad


@pytest.mark.parametrize("size", [1, 2, 4])
def test_gather_is_in_rank_order_and_sums_gradients_back(ranks: Ranks, size: int) -> None:
    results = ranks.run(gathered, size)
    factor = sum(range(1, size + 1))
    expected = torch.arange(8, dtype=torch.float64)[:, None].expand(8, 3) * factor
    for rank, (whole, grad) in enumerate(results):
        assert torch.equal(whole, torch.arange(24, dtype=torch.float64).reshape(8, 3))
        assert torch.equal(grad, expected.chunk(size)[rank])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_sum_sums_values_and_gradients(ranks: Ranks, size: int) -> None:
    total = float(sum(range(1, size + 1)))
    for value, grad in ranks.run(summed, size):
        assert torch.equal(value, torch.full((3,), total, dtype=torch.float64))
        assert torch.equal(grad, torch.full((3,), total, dtype=torch.float64))


def agreements(world: World) -> tuple[int, list[int], float, list[int], str]:
    pending = world.agree_later(world.rank, -world.rank)
    mean = world.mean(torch.tensor(float(world.rank)))
    told = world.share("from 0" if world.rank == 0 else None)
    return world.agree(10 - world.rank), pending.result(), float(mean), world.collect(world.rank), told


def test_agreements_are_equal_on_all_ranks(ranks: Ranks) -> None:
    for answer in ranks.run(agreements, 4):
        assert answer == (10, [3, 0], 1.5, [0, 1, 2, 3], "from 0")


def exchanged(world: World) -> tuple[object, list[object]]:
    plain = {"float": 0.1 + 0.2, "text": "ä" * (world.rank * 1000), "list": [None, True, [-7, 1 << 60]]}
    return world.share(plain if world.rank == 0 else None), world.collect([plain, world.rank])


@pytest.mark.parametrize("size", [1, 3])
def test_plain_values_of_any_length_arrive_as_they_are(ranks: Ranks, size: int) -> None:
    expected = [exchanged(World(rank=rank))[1][0] for rank in range(size)]
    for shared, collected in ranks.run(exchanged, size):
        assert shared == expected[0][0]  # type: ignore[index]
        assert collected == expected


def unpicklable(world: World) -> str:
    try:
        world.collect(Path("x"))
    except TypeError as error:
        return str(error)
    return ""


def test_objects_are_not_sent(ranks: Ranks) -> None:
    assert all("not JSON serializable" in text for text in ranks.run(unpicklable, 2))


def test_a_world_of_one_needs_no_group() -> None:
    assert agreements(World()) == (10, [0, 0], 0.0, [0], "from 0")


def test_who_fails_waits_for_nobody_to_leave_the_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface_of(LOOPBACK))
    try:
        with (
            pytest.raises(ZeroDivisionError),
            joined(tmp_path / "meeting" / "rendezvous.json", Waits(20, 20), grouped=True),
        ):
            raise ZeroDivisionError
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def connections(world: World) -> int:
    """Number of this rank's connections once it has exchanged in the ways of a run on several machines."""
    apart = replace(world, shared_memory=None)
    apart.agree(world.rank)
    apart.share("x")
    apart.collect(world.rank)
    own = psutil.Process().net_connections("tcp")
    found = sum(one.status == psutil.CONN_ESTABLISHED for one in own)
    apart.agree(0)  # no rank ends before all have counted
    return found


def test_a_rank_connects_with_those_that_it_exchanges_with() -> None:
    ranks = Ranks(8)
    try:
        counts = ranks.run(connections, 8)
    finally:
        ranks.close()
    of_store, ring, tree = 1, 2, 3
    assert max(counts[1:]) <= of_store + ring + tree, "with every other one it would be 1 + 2 * 7"


@pytest.mark.parametrize(
    ("address", "one_machine", "found"),
    [(LOOPBACK, True, ("lo", "=lo")), ("10.1.2.3", False, ("ib0", None)), ("10.9.9.9", False, (None, None))],
)
def test_gloo_takes_the_card_that_reaches_the_others_and_nccl_is_left_alone_between_machines(
    address: str, one_machine: bool, found: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(monkeypatch)
    rendezvous.choose_interface(address, one_machine=one_machine)
    assert (os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")) == found


def test_a_card_that_is_named_is_for_both_and_one_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch)
    with pytest.raises(UserError, match=r"cluster.interface=ib9: .* has no network interface of this name") as caught:
        rendezvous.use_interface("ib9")
    assert "It has ib0, lo" in caught.value.remedy
    rendezvous.use_interface("ib0")
    rendezvous.choose_interface(LOOPBACK, one_machine=True)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ib0", "=ib0")


def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two network interfaces, of which the environment says nothing."""
    own = {"lo": LOOPBACK, "ib0": "10.1.2.3"}
    found = {name: [SimpleNamespace(address=address, family=socket.AF_INET)] for name, address in own.items()}
    monkeypatch.setattr(rendezvous.psutil, "net_if_addrs", lambda: found)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # is put back as it was
        monkeypatch.delenv(name)


def asked_for_all(world: World) -> tuple[bool, object, object, object, str]:
    return world.alone, gathered(world), summed(world), agreements(world), os.environ["CUBLAS_WORKSPACE_CONFIG"]


def test_a_world_of_one_may_have_groups_and_its_exchanges_mean_the_same() -> None:
    ranks = Ranks(1, grouped=True)
    try:
        ((alone, all_rows, total, agreed, workspace),) = ranks.run(asked_for_all, 1)
    finally:
        ranks.close()
    assert not alone
    for found, wanted in ((all_rows, gathered(World())), (total, summed(World()))):
        assert all(map(torch.equal, found, wanted))
    assert agreed == agreements(World())
    assert workspace == ":4096:8"  # under torchrun too: without it a GPU refuses to multiply deterministically


def test_addresses_of_this_machine_can_be_reached() -> None:
    assert own_addresses()[-1] == LOOPBACK
    assert interface_of(LOOPBACK) is not None
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert own_end(LOOPBACK, port) == LOOPBACK
    assert own_end(LOOPBACK, port, seconds=0.2) is None


class Started(Exception):  # noqa: N818
    """The process group was asked for."""


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_nccl_is_told_its_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    asked: dict[str, object] = {}

    def init(backend: str, **options: object) -> None:
        asked.update(options, backend=backend)
        raise Started

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(world, "own_device", lambda *_: torch.device(device))
    monkeypatch.setattr(world, "torchrun_store", lambda _: None)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Started), joined(None):
        pass
    expected = ("nccl", torch.device(device)) if device != "cpu" else ("gloo", None)
    assert (asked["backend"], asked["device_id"]) == expected


def test_ranks_that_torchrun_starts_again_do_not_find_the_addresses_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun keeps its store, as this process does for the same port."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    stores = []
    for start in ("0", "1"):
        for name, value in {**place, "TORCHELASTIC_RESTART_COUNT": start}.items():
            monkeypatch.setenv(name, value)
        stores.append(world.torchrun_store(timedelta(seconds=20)))
    stores[0].set("address", "of a rank that has ended")
    assert stores[0].check(["address"])
    assert not stores[1].check(["address"])
