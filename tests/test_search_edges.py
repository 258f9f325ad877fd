"""What `vqkit.search` does with odd layouts, no numbers, no vectors and wrong arguments."""

import subprocess
import sys

import pytest
import torch
from search_reference import BACKENDS, random_case, random_pair, reference_scores

from vqkit.search import cuda, nearest, nearest_k, nearest_with_scores
from vqkit.search.candidates import Judge


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_gradient_and_half_precision(backend):
    vectors, codes = random_pair(120, 60, 8)
    expected = nearest(vectors, codes, backend=backend)
    strided = vectors.repeat_interleave(2, 1)[:, ::2]
    assert torch.equal(nearest(strided, codes.T.contiguous().T, backend=backend), expected)
    ids, scores = nearest_with_scores(
        vectors.requires_grad_(), codes.requires_grad_(), backend=backend
    )
    assert torch.equal(ids, expected)
    assert not scores.requires_grad
    half = vectors.detach().bfloat16()
    assert torch.equal(
        nearest(half, codes, backend=backend), nearest(half.float(), codes, backend=backend)
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_that_are_no_numbers_are_refused(bad, dtype):
    vectors, codes = (tensor.to(dtype) for tensor in random_pair(12, 5, 3))
    broken, broken_codes = vectors.clone(), codes.clone()
    broken[7, 2] = broken_codes[4, 0] = bad
    for search in (nearest, nearest_with_scores, lambda *pair: nearest_k(*pair, 2)):
        with pytest.raises(ValueError, match="vectors: row 7 holds NaN or infinity"):
            search(broken, codes)
        with pytest.raises(ValueError, match="codes: row 4 holds NaN or infinity"):
            search(vectors, broken_codes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_that_overflow_are_no_reason_to_refuse(backend):
    codes = torch.tensor([[3e38, 0.0], [0.0, 3e38], [-3e38, -3e38]])
    assert nearest(codes, codes, backend=backend).tolist() == [0, 1, 2]
    assert nearest(codes.half().clamp(-60000, 60000), codes.half().clamp(-6e4, 6e4)).tolist() == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_and_codes_have_cosine_zero(backend):
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    vectors = torch.tensor([[-1.0, -1.0], [2.0, 1.0], [0.1, 5.0], [0.0, 0.0]])
    ids, scores = nearest_with_scores(vectors, codes, "cosine", backend=backend)
    assert ids.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(scores[[0, 3]], torch.zeros(2), rtol=0, atol=0)


def test_tiny_values_do_not_underflow_to_a_wrong_code():
    vectors, codes = random_pair(50, 30, 4)
    expected = reference_scores(vectors, codes, "l2").argmax(1)
    assert torch.equal(nearest(vectors * 1e-22, codes * 1e-22, backend="torch"), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_vectors(backend):
    vectors, codes = random_pair(0, 5, 3)
    assert nearest(vectors, codes, backend=backend).shape == (0,)
    assert nearest_k(vectors, codes, 2)[0].shape == (0, 2)
    assert nearest(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3)).shape == (0, 4)


@pytest.mark.parametrize(
    ("vectors", "codes", "options", "message"),
    [
        ((4, 3), (5, 3), {"metric": "l1"}, "metric='l1'.*l2, cosine, dot"),
        ((4, 3), (5, 2), {}, "must agree"),
        ((2, 4, 3), (3, 5, 3), {}, "must agree"),
        ((4, 3), (2, 5, 3), {}, "reshape"),
        ((3,), (5, 3), {}, "reshape"),
        ((4, 3), (0, 3), {}, "no code"),
        ((4, 3), (5, 3), {"backend": "annoy"}, "backend='annoy'.*torch, bf16, faiss, triton"),
        ((4, 17), (5, 17), {"backend": "faiss"}, "backend='faiss'.*17 dimensions"),
        ((4, 3), (5, 3), {"metric": "dot", "backend": "faiss"}, "use backend='torch'"),
    ],
)
def test_wrong_arguments_are_named(vectors, codes, options, message):
    with pytest.raises(ValueError, match=message):
        nearest(torch.zeros(vectors), torch.zeros(codes), **options)


def test_wrong_types_and_k_are_named():
    with pytest.raises(ValueError, match=r"vectors\.dtype"):
        nearest(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="device"):
        nearest(torch.zeros(4, 3), torch.zeros(5, 3, device="meta"))
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k={k}"):
            nearest_k(torch.zeros(4, 3), torch.zeros(5, 3), k)


@pytest.mark.slow
def test_without_faiss_everything_works_on_torch():
    # hidden in a fresh interpreter: the default must not need it, and asking for it must say so
    code = (
        "import sys, torch; sys.modules['faiss'] = None\n"
        "from vqkit.search import nearest\n"
        "z = torch.arange(6.).view(3, 2)\n"
        "assert nearest(z, z.flip(0)).tolist() == [2, 1, 0]\n"
        "try: nearest(z, z, backend='faiss')\n"
        "except ValueError as error: assert 'vqkit[search]' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_screen_tells_nearly_equal_codes_apart(metric, monkeypatch):
    """The features of an untrained network differ by a hundredth of their mean: few candidates."""
    source = torch.Generator().manual_seed(0)
    codes = torch.randn(32, generator=source) + torch.randn(900, 32, generator=source) / 100
    vectors = torch.randn(200, 32, generator=source) / 100
    compared = 0
    exact = Judge.closeness

    def counting(self, vectors, row, code):
        nonlocal compared
        compared += len(row)
        return exact(self, vectors, row, code)

    monkeypatch.setattr(Judge, "closeness", counting)
    ids = nearest(vectors, codes, metric, backend="torch")
    assert compared < 4 * len(vectors)
    wide = codes.double() if metric != "cosine" else torch.nn.functional.normalize(codes.double())
    z = vectors.double()
    score = -torch.cdist(z, wide) if metric == "l2" else z @ wide.T
    assert torch.equal(ids, score.argmax(1))


@pytest.mark.parametrize(("seed", "metric"), [(797558, "cosine"), (5171110, "cosine"), (5, "dot")])
def test_strides_of_codes_decide_no_tie(seed, metric):
    """Directions that tie in all digits: the mean must not depend on the layout of the codes."""
    vectors, codes = random_case(seed).pair()
    turned, straight = codes.T.contiguous().T, codes.contiguous()
    for backend in ("torch", "bf16"):
        ids = nearest(vectors, straight, metric, backend=backend)
        assert torch.equal(nearest(vectors, turned, metric, backend=backend), ids)
        assert torch.equal(nearest(vectors[None], turned[None], metric, backend=backend)[0], ids)


def test_what_the_gpu_can_do_is_constant_to_the_compiler():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked) == vars(cuda.has_tensor_cores)
