"""What is computed whole has the bits of the library's own threads, however many a merge takes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lora_export.layers.threads import library_threads, one_thread_each


@pytest.fixture
def set_to():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_a_worker(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def by_library():
    with library_threads():
        return torch.get_num_threads()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_worker_computes_with_the_library_s_number(set_to, count):
    set_to(count)
    with one_thread_each():
        assert in_a_worker(torch.get_num_threads) == 1
        assert in_a_worker(by_library) == count
        with library_threads(), library_threads():
            assert torch.get_num_threads() == count
        assert in_a_worker(by_library) == count
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count
    assert by_library() == count


def test_few_rows_have_the_bits_of_the_whole_product(set_to):
    """On some processors these products have other bits with one thread."""
    generator = torch.Generator().manual_seed(0)
    cases = [
        (torch.randn(rows, rank, generator=generator), torch.randn(rank, 300, generator=generator))
        for rows in (2, 7, 11)
        for rank in (2, 8, 64)
    ]
    set_to(2)
    wanted = [b @ a for b, a in cases]

    def products():
        with library_threads():
            return [b @ a for b, a in cases]

    with one_thread_each():
        found = in_a_worker(products)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
