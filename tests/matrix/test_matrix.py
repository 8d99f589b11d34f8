"""Any backbone, method and evaluation: each cell runs, or a check of the package refuses it."""

from pathlib import Path

import pytest
import torch

from lightning_vssl.backbones.tokens import filled
from tests.matrix.evaluations import EVALUATIONS, Evaluated
from tests.matrix.families import FAMILIES, Family
from tests.matrix.methods import METHODS, Trained
from tests.matrix.outcome import refusal
from tests.matrix.table import BEGIN, END, MOCO, Matrix, in_page, put_in, render

README = Path(__file__).parents[2] / "README.md"

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"))


@every_family
def test_methods_train_it_or_refuse_it_for_its_dimensions_alone(
    matrix: Matrix, family: Family
) -> None:
    refused = {one.name for one in METHODS if matrix.of_method(family, one) is not None}
    if family.backbone("").dims == 3:
        assert refused == {"MoCLR", "VITO"}
    else:
        assert refused == {"CtP", "RSPNet", "PreViTS (RSPNet)", "CVRL", "ConST-CL"}


@every_family
def test_evaluations_take_it_or_refuse_it_by_name(matrix: Matrix, family: Family) -> None:
    refused = {one.name for one in EVALUATIONS if matrix.of_evaluation(family, one) is not None}
    flat = family.backbone("").dims == 2
    assert ("human saliency" in refused) != flat
    assert ("trajectory probe" in refused) == flat
    walkers = {"SiamFC", "mask propagation"}  # they bring frames of a size of their own
    assert refused - {"human saliency", "trajectory probe"} == (walkers if family.fixed else set())
    matrix.forget(family)


def test_readme_has_what_was_found(matrix: Matrix) -> None:
    page = README.read_text(encoding="utf-8")
    assert in_page(page) == render(matrix), "run `python -m tests.matrix.table README.md`"


class TestHelper:
    """What is a refusal, and how it comes into a page."""

    def test_only_a_check_of_the_package_is_a_refusal(self) -> None:
        family = FAMILIES[0]
        small = torch.rand(1, 3, 8, 8)
        assert refusal(lambda: family.backbone("")(small), family) == (
            "this network takes a tensor (B, C, T, H, W); got shape (1, 3, 8, 8)"
        )
        assert refusal(lambda: family.backbone(""), family) is None
        with pytest.raises(ValueError, match="invalid literal"):
            refusal(lambda: int("one"), family)
        with pytest.raises(ValueError, match="shorter"):  # Python's own, in the package's line
            refusal(lambda: filled(small, (2,)), family)
        with pytest.raises(RuntimeError, match="size"):
            refusal(lambda: small + torch.rand(5), family)

    def test_equal_reasons_share_a_letter(self, tmp_path: Path) -> None:
        class Found(Matrix):
            def of_method(self, family: Family, method: Trained) -> str | None:
                return "it has no time" if method is MOCO else None

            def of_evaluation(
                self, family: Family, evaluation: Evaluated, method: Trained = MOCO
            ) -> str | None:
                size = "8 x 8 x 8" if family is FAMILIES[0] else "9 x 9 x 9"
                return f"takes clips of 4 x 4 x 4; got {size}. Cut them." if method is MOCO else ""

        lines = render(Found(tmp_path)).splitlines()
        rows = [line.split(" | ") for line in lines if line.startswith("| R3D-18")]
        assert rows[0][1:4] == ["yes", "a", "yes"]
        assert set(rows[1][1:]) == {"b", "b |"}
        assert lines[-2:] == [
            "- **a**: it has no time",
            "- **b**: takes clips of 4 x 4 x 4. Cut them",
        ]

    def test_a_page_keeps_all_but_what_stands_between_its_marks(self) -> None:
        page = f"before\n{BEGIN}\n{END}\nbehind\n"
        once = put_in(page, "one\n\ntwo\n")
        assert once == f"before\n{BEGIN}\none\n\ntwo\n{END}\nbehind\n"
        assert in_page(once) == "one\n\ntwo"
        assert put_in(once, "") == page
        with pytest.raises(ValueError, match="must hold the lines"):
            in_page(f"{END}\n{BEGIN}\n")


@pytest.mark.matrix
@every_family
def test_whichever_method_trained_it_an_evaluation_does_the_same(
    tmp_path: Path, family: Family
) -> None:
    matrix = Matrix(tmp_path)
    trained = [method for method in METHODS if matrix.of_method(family, method) is None]
    for method in trained:
        for one in EVALUATIONS:
            found = matrix.of_evaluation(family, one, method)
            assert found == matrix.of_evaluation(family, one), (method.name, one.name)
    matrix.forget(family)
