# ruff: noqa: RUF001 (the odd letters are what is tested)
"""Names in titles, the classes, and the table of candidates."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from timm.data import ImageNetInfo

from lightning_vssl.curation.candidates import Candidates, read_table
from lightning_vssl.curation.titles import ClassNames, contains, words

CLASSES = ClassNames(
    ("n1", "n2", "n3", "n4", "n5"),
    (("tench", "Tinca tinca"), ("crane",), ("crane", "derrick"), (), ("crème brûlée", "!")),
)


class TestTitles:
    @pytest.mark.parametrize(
        "title",
        [
            "Tench",
            "catching a TENCH at night",
            "tench",
            "big_tench_2014.mp4",
            "a tench's life",
            "tench-fishing",
            "(tench)",
            "#tench🎣",
            "🎣tench",
            "ＴＥＮＣＨ　釣り",  # full width
            "𝐭𝐞𝐧𝐜𝐡 and 𝓉ℯ𝓃𝒸𝒽",  # mathematical letters
            "ⓣⓔⓝⓒⓗ",
            "t\u00adench",  # a soft hyphen
            "ten\u200dch\ufe0f",  # a joiner, a selector
            "\u202etench\u202c",  # told to run from right to left
            "te\u0301nch",  # a mark
            "tènch",
            "犬tench釣り",  # scripts without blanks
            "ปลาtench",
            "سمكtench",
        ],
    )
    def test_contains_the_name(self, title):
        assert contains(title, CLASSES.folded[0])

    @pytest.mark.parametrize(
        "title",
        [
            "",
            "   ",
            "tenches",  # the name, not its plural
            "stench",
            "tench2",
            "3tench",
            "ten ch",
            "tеnch",  # a Cyrillic letter in it
            "Tinca",
            "tinca, the other tincà",
            "\u200d\u200b\ufeff",
            "🎣🎣",
        ],
    )
    def test_does_not_contain_it(self, title):
        assert not contains(title, CLASSES.folded[0])

    @pytest.mark.parametrize(
        "title",
        ["Creme Brulee", "CRÈME-BRÛLÉE!", "cre\u0300me bru\u0302le\u0301e", "my crème\nbrûlée"],
    )
    def test_marks_are_dropped_on_both_sides(self, title):
        assert contains(title, CLASSES.folded[4])

    def test_words_side_by_side_and_in_order(self):
        assert contains("the tinca-TINCA of Italy", CLASSES.folded[0])
        assert not contains("tinca the tinca", CLASSES.folded[0])
        assert not contains("brulee creme", CLASSES.folded[4])

    def test_folding(self):
        assert words("STRASSE") == words("straße") == words("ﬆrasse") == " strasse "
        assert words("Ørsted") == " ørsted "  # a letter of its own
        assert words("yellow lady’s-slipper") == words("Yellow lady's slipper")
        assert words("İznik") == " iznik "
        assert words("½ x²") == " 1 2 x2 "

    def test_a_name_in_a_script_without_case(self):
        (name,) = ClassNames(("n",), (("柴犬",),)).folded[0]
        assert contains("可愛い柴犬の一日", [name])
        assert not contains("犬柴", [name])


class TestClasses:
    def test_imagenet(self):
        classes = ClassNames.imagenet()
        info = ImageNetInfo()
        assert len(classes) == 1000
        assert all(classes.folded)
        for label in (0, 281, 999):
            name = info.index_to_label_name(label)
            assert classes.label(name) == label
            first = info.index_to_description(label).split(", ")[0]
            assert contains(f"my {first}!", classes.folded[label])
            assert classes.label(first.upper()) == label
        assert len(classes.names[2]) == 5  # the great white shark

    def test_a_name_of_several_classes(self):
        with pytest.raises(ValueError, match=r"called 'crane': give n02012849 or n03126707"):
            ClassNames.imagenet().label("crane")
        assert CLASSES.label("derrick") == 2

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("unicorn", "unknown class 'unicorn'"),
            ("", "unknown class ''"),
            ("!", "unknown class '!'"),
            ("n4", "class 'n4' has no name or synonym"),
        ],
    )
    def test_no_such_class(self, query, message):
        with pytest.raises(ValueError, match=message):
            CLASSES.label(query)

    def test_a_file(self, tmp_path):
        file = tmp_path / "classes.csv"
        file.write_text('\ufeffclass,names\na,Disc | round thing\n"b, c",Ring\nd,\n', "utf-8")
        assert ClassNames.read(file) == ClassNames(
            ("a", "b, c", "d"), (("Disc", "round thing"), ("Ring",), ())
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("class\na\n", "has no column names"),
            ("", "has no column class, names"),
            ("class,names\n", "0 classes"),
            ("class,names\na,x\na,y\n", "class 'a' stands twice"),
            ("class,names\na,x\n ,y\n", "row 2: the class is empty"),
        ],
    )
    def test_a_wrong_file(self, tmp_path, text, message):
        file = tmp_path / "classes.csv"
        file.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=message):
            ClassNames.read(file)
        with pytest.raises(FileNotFoundError, match="no table of classes"):
            ClassNames.read(tmp_path / "none.csv")


def csv(folder: Path, text: str, name: str = "candidates.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


class TestCandidates:
    def test_csv(self, tmp_path):
        file = csv(
            tmp_path,
            "\ufefftitle,class,more,path,start,end\r\n"
            '"A ""tench"", caught\nat night",n1,x,a.mp4,,\r\n'
            "NA,derrick,,b.mp4,1.5,12\r\n"
            ",n5,,c.mp4,,8\r\n",
        )
        found = Candidates.read(file, CLASSES)
        assert len(found) == 3
        assert found.paths.to_pylist() == ["a.mp4", "b.mp4", "c.mp4"]
        assert found.titles.to_pylist() == ['A "tench", caught\nat night', "NA", ""]
        assert found.labels.tolist() == [0, 2, 4]
        assert found.starts.tolist() == [0, 1.5, 0]
        assert np.array_equal(found.ends, [np.nan, 12, 8], equal_nan=True)
        assert found.titled().tolist() == [True, False, False]

    def test_parquet_says_the_same(self, tmp_path):
        rows = {"path": ["a", "b"], "title": ["ＴＥＮＣＨ", None], "class": ["n1", "tinca tinca"]}
        file = tmp_path / "candidates.parquet"
        pq.write_table(pa.table(rows), file)
        found = Candidates.read(file, CLASSES)
        assert found.titles.to_pylist() == ["ＴＥＮＣＨ", ""]
        assert found.titled().tolist() == [True, False]
        again = Candidates.read(
            csv(tmp_path, "path,title,class\na,ＴＥＮＣＨ,n1\nb,,n1\n"), CLASSES
        )
        assert again.digest() == found.digest()
        coded = pa.table(rows).set_column(2, "class", pa.array(rows["class"]).dictionary_encode())
        pq.write_table(coded, file)
        assert Candidates.read(file, CLASSES).digest() == found.digest()

    def test_the_digest_knows_every_part(self, tmp_path):
        table = "path,title,class\na,tench,n1\nb,crane,n2\n"
        one = Candidates.read(csv(tmp_path, table), CLASSES).digest()
        for other in (table.replace("tench", "trench"), table.replace("n2", "n3")):
            assert Candidates.read(csv(tmp_path, other), CLASSES).digest() != one
        names = ClassNames(CLASSES.ids, (("tench",), *CLASSES.names[1:]))
        assert Candidates.read(csv(tmp_path, table), names).digest() != one

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("a,t,n1\nb,t,unicorn\n", r"csv, row 2 \(b\): unknown class 'unicorn'"),
            ("a,t,n4\n", r"row 1 \(a\): class 'n4' has no name or synonym"),
            ("a,t,crane\n", r"row 1 \(a\): several classes are called 'crane': give n2 or n3"),
            ("a,t,\n", r"row 1 \(a\): unknown class ''"),
            ("a,t,n1\n,t,n1\n", r"row 2 \(no path\): the path is empty"),
            ("a,t,n1\na,t,n2\na,u,tench\n", r"row 3 \(a\): stands above already"),
            ("a,t\n", r"candidates.csv cannot be read as a table: .*Expected 3 columns, got 2"),
            ("", "lists no candidates"),
        ],
    )
    def test_wrong_rows(self, tmp_path, rows, message):
        file = csv(tmp_path, "path,title,class\n" + rows)
        with pytest.raises(ValueError, match=message):
            Candidates.read(file, CLASSES)

    @pytest.mark.parametrize(
        ("span", "message"),
        [
            ("x,", r"row 1: start 'x' is no number of seconds"),
            ("-1,", r"row 1 \(a\): start and end are no sec"),
            ("5,5", r"row 1 \(a\): start and end are no sec"),
        ],
    )
    def test_wrong_seconds(self, tmp_path, span, message):
        file = csv(tmp_path, f"path,title,class,start,end\na,t,n1,{span}\n")
        with pytest.raises(ValueError, match=message):
            Candidates.read(file, CLASSES)

    def test_wrong_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no table of candidates at .*path, title"):
            Candidates.read(tmp_path / "none.csv", CLASSES)
        with pytest.raises(ValueError, match=r"ends in .csv or .parquet"):
            Candidates.read(csv(tmp_path, "x", "a.txt"), CLASSES)
        with pytest.raises(ValueError, match="no column title, class: it has path"):
            Candidates.read(csv(tmp_path, "path\na\n"), CLASSES)
        with pytest.raises(ValueError, match="has no header"):
            Candidates.read(csv(tmp_path, ""), CLASSES)
        with pytest.raises(ValueError, match="cannot be read as a table"):
            Candidates.read(csv(tmp_path, "PAR?", "a.parquet"), CLASSES)
        with pytest.raises(ValueError, match="several columns path"):
            Candidates.read(csv(tmp_path, "path,path,title,class\na,b,t,n1\n"), CLASSES)
        latin = tmp_path / "latin.csv"
        latin.write_bytes("path,title,class\na,Fußball,n1\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"cannot be read as a table: 'utf-8' codec"):
            Candidates.read(latin, CLASSES)
        latin.write_bytes(b"path,title,class\n" + b"a,tench,n1\n" * 9999 + b"b,\xdf,n1\n")
        with pytest.raises(ValueError, match=r"cannot be read as a table: .*UTF8"):
            Candidates.read(latin, CLASSES)
        numbers = tmp_path / "numbers.parquet"
        pq.write_table(pa.table({"path": [1], "title": ["t"], "class": ["n1"]}), numbers)
        with pytest.raises(ValueError, match="column path is of type int64"):
            Candidates.read(numbers, CLASSES)

    def test_other_columns_stay(self, tmp_path):
        table = read_table(csv(tmp_path, "path,class,kept\na,b,True\n"), ("path",), "videos")
        assert table.column("kept").to_pylist() == ["True"]
