"""Broken tables through `mlxopt fit`: an error that names the line, or a report of what was read.

Each case is a file that this test writes; the same cases in `shared/data/bad_csv`, where that
folder is present, must end in the same way.
"""

import hashlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mlxopt.cli import app
from mlxopt.cli._cells import CellError, is_missing, read_numbers
from mlxopt.cli._table import TableError, read_table

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "bad_csv"


class Case(NamedTuple):
    data: bytes
    says: tuple[str, ...]  # what the error, or the report, must contain
    refused: bool = True
    target: str = "y"


ADMISSION = b"admit,gre,gpa\n" + b"".join(
    b"%d,%d,%.2f\n" % (i % 3 == 0, 400 + 7 * (i * 13 % 40), 2.5 + (i * 7 % 11) / 10)
    for i in range(40)
)

CASES = {
    "real_ucla_binary_code_pasted_in_row": Case(
        ADMISSION + b"1,520,3.74plt.scatter(data['gre'], marker = '+')\nplt.show()\n",
        ("line {pasted}: ", " cells where the header has "),
        target="admit",
    ),
    "real_ucla_binary_silent_label_flip": Case(
        ADMISSION, ("SHA-256", "{sha}", "rows", " read, "), refused=False, target="admit"
    ),
    "syn_BOM": Case(
        b"\xef\xbb\xbfy,a\n1,2\n", ("byte order mark", "1 read, 1 used"), refused=False
    ),
    "syn_CRLF": Case(b"y,a\r\n1,2\r\n", ("1 read, 1 used",), refused=False),
    "syn_NA_tokens": Case(
        b"y,a,b\n1,NA,3\n0,NULL,6\n1,-,9\n", ("line 4, column a: '-'", "empty the cell or write NA")
    ),
    "syn_NUL_byte": Case(b"y,a\n1,\x002\n", ("line 2: ", "NUL byte")),
    "syn_blank_lines": Case(
        b"y,a\n\n1,2\n\n0,3\n", ("2 read, 2 used", "2 blank lines: 2, 4"), refused=False
    ),
    "syn_decimal_comma": Case(b"y;a\n1;2,5\n0;3,5\n", ("line 1: ", "--delimiter ';'")),
    "syn_dup_header": Case(b"y,a,a\n1,2,3\n", ("line 1: ", "'a' occurs 2 times")),
    "syn_dup_rows": Case(
        b"y,a\n1,2\n1,2\n", ("2 read, 2 used", "1 row repeats an earlier row"), refused=False
    ),
    "syn_empty_cell": Case(
        b"y,a,b\n1,,3\n0,5,6\n",
        ("2 read, 1 used", "1 with missing values: line 2 (a)"),
        refused=False,
    ),
    "syn_empty_file": Case(b"", ("the file is empty", "A header line and rows were expected")),
    "syn_header_only": Case(b"y,a\n", ("no rows below the header (line 1)",)),
    "syn_hex_bool": Case(
        b"y,a\nTrue,0x10\nFalse,3\n", ("line 2, column a: '0x10' is hexadecimal",)
    ),
    "syn_inf_overflow": Case(
        b"y,a,b\n1,1e400,3\n0,inf,6\n", ("line 2, column a: '1e400'", "1.8e308")
    ),
    "syn_intgt253": Case(
        b"y,a\n1,9007199254740993\n",
        ("line 2, column a: '9007199254740993'", "would become 9007199254740992"),
    ),
    "syn_long_row": Case(
        b"y,a,b\n1,2,3\n0,5,6,7\n1,8,9\n", ("line 3: 4 cells where the header has 3", "'0,5,6,7'")
    ),
    "syn_missing_target_col": Case(
        b"z,a\n1,2\n", ("line 1: there is no column 'y'; the columns are z, a",)
    ),
    "syn_no_header": Case(b"1,2\n0,3\n", ("line 1: the header holds numbers (1, 2)",)),
    "syn_no_trailing_newline": Case(b"y,a\n1,2", ("1 read, 1 used",), refused=False),
    "syn_quotes_unclosed": Case(b'y,a\n1,"2\n0,3\n', ("line 2: a double quote is opened",)),
    "syn_short_row": Case(
        b"y,a,b\n1,2,3\n0,5\n1,8,9\n", ("line 3: 2 cells where the header has 3", "'0,5'")
    ),
    "syn_text_cell": Case(b"y,a,b\n1,2,3\n0,abc,6\n", ("line 3, column a: 'abc' is not a number",)),
    "syn_thousands": Case(
        b'y,a\n1,"1,234"\n0,"2,345"\n',
        ("line 2, column a: '1,234' has a thousands separator. Write 1234",),
    ),
    "syn_utf-16": Case("\ufeffy,a\n1,2\n".encode("utf-16-le"), ("line 1: ", "UTF-16", "as UTF-8")),
}
PASTED = {"here": 42, "shared": 29}  # where in either file the code begins


def check(path, case, pasted):
    outcome = CliRunner().invoke(app, ["fit", str(path), "--target", case.target])
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit)
    assert "Traceback" not in outcome.output
    told = " ".join((outcome.stderr if case.refused else outcome.stdout).split())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    for words in case.says:
        assert words.format(pasted=pasted, sha=sha) in told
    if case.refused:
        assert outcome.exit_code == 2
        assert outcome.stdout == ""
        assert str(path) in told
    else:
        # So small a table may still be too small for the model, which says so in one line.
        assert outcome.exit_code == 0 or (
            outcome.exit_code == 2 and outcome.stderr.startswith(f"Error: {path}: ")
        )


@pytest.mark.parametrize("name", CASES)
def test_written_here(name, tmp_path):
    path = tmp_path / f"{name}.csv"
    path.write_bytes(CASES[name].data)
    check(path, CASES[name], PASTED["here"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data/bad_csv beside the checkout")
@pytest.mark.parametrize("name", CASES)
def test_shared(name):
    check(SHARED / f"{name}.csv", CASES[name], PASTED["shared"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data/bad_csv beside the checkout")
def test_every_shared_file_has_a_case():
    assert {path.stem for path in SHARED.iterdir()} == set(CASES)


# --- What the reader does with a cell ------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", " ", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", " NA "]
)
def test_missing_values(text):
    values = read_numbers(["1", text, "-2.5e-3"])
    assert values[0] == 1
    assert np.isnan(values[1])
    assert values[2] == -0.0025


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("-", "write NA"),
        (".", "write NA"),
        ("n/a", "write NA"),
        ("#N/A", "write NA"),
        ("?", "write NA"),
        ("2,5", "has a decimal comma. Write 2.5."),
        ("1.234,56", "has a decimal comma. Write 1234.56."),
        ("1,234", "Write 1234, or 1.234 if"),
        ("-1,234,567", "Write -1234567."),
        ("1,234.5", "Write 1234.5."),
        ("0x10", "hexadecimal"),
        ("inf", "not finite"),
        ("-Infinity", "not finite"),
        ("1e400", "beyond the largest float64"),
        ("-1e400", "beyond the largest float64"),
        ("1e-400", "would make it 0"),
        ("0.000e5000x", "is not a number"),
        ("true", "Write 1 for true"),
        ("1_000", "is not a number"),  # Python reads 1000
        ("１２", "is not a number"),  # digits of full width: Python reads 12
        ("2024-01-05", "is not a number"),
        ("5%", "has a percent sign. Write 5."),
        ("abc%", "is not a number"),
        ("$5", "has a currency sign. Write 5."),
        ("-$ 5.5", "has a currency sign. Write -5.5."),
        ("5 €", "has a currency sign. Write 5."),
        ("$1,234.5", "has a currency sign and a thousands separator. Write 1234.5."),
        ("$five", "is not a number"),
        ("+-1", "is not a number"),
        ("9007199254740993", "would become 9007199254740992"),
        ("-9007199254740993.0", "would become -9007199254740992"),
    ],
)
@pytest.mark.parametrize("before", [["1"], ["1", "NA"]], ids=["plain", "with missing"])
def test_refused_cells(cell, says, before):
    with pytest.raises(CellError) as caught:
        read_numbers([*before, cell, "3"])
    assert caught.value.index == len(before)
    assert caught.value.cell == cell
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["9007199254740992", "9007199254740994", "1e22", "0e5000", "-0"])
def test_large_and_zero_numbers_that_fit(text):
    (value,) = read_numbers([text])
    assert value == float(text)


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=30))
def test_what_repr_writes_is_read_back_to_the_bit(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    lines = (",".join(map(repr, row)) for row in rows)
    path.write_text("y,a,b\n" + "\n".join(lines) + "\n")
    table = read_table(path, "y")
    expected = np.array(rows)
    assert table.values.tobytes() == expected[:, 1:].tobytes()
    assert read_numbers(table.outcomes).tobytes() == expected[:, 0].tobytes()


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@given(st.text("0123456789.,+-eExX_naNAinf \t", max_size=12) | st.text(max_size=12))
def test_only_plain_decimal_numbers_are_read(text):
    try:
        (value,) = read_numbers([text])
    except CellError:
        value = None
    if value is None:  # a number only where float64 cannot hold it
        written = text.strip()
        assert not NUMBER.fullmatch(written) or abs(float(written)) >= 2**53 or not float(written)
    elif np.isnan(value):
        assert is_missing(text)
    else:
        assert NUMBER.fullmatch(text.strip())
        assert value == float(text.strip())


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_but_a_table_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    for content in (data, b"y,a\n" + data):
        path.write_bytes(content)
        try:
            table = read_table(path, "y")
        except TableError:
            continue
        assert len(table.outcomes) + len(table.left_out) == table.rows_read


# --- What the reader does with a file ------------------------------------------------------------


def refuse(tmp_path, data, *args, **kwargs):
    path = tmp_path / "table.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(TableError) as caught:
        read_table(path, "y", *args, **kwargs)
    return str(caught.value)


def test_lines_are_those_of_the_file(tmp_path):
    # A quoted cell that spans lines counts as the lines it has, whatever ends them.
    for end in ("\n", "\r\n", "\r"):
        data = end.join(["", "y,a,note", "1,2,'x'", '2,3,"two', 'lines"', "", "3,x,z", ""])
        assert "line 7, column a: 'x'" in refuse(tmp_path, data, ["a"])


def test_a_bad_cell_beyond_the_first_block_keeps_its_line(tmp_path):
    data = "y,a\n" + "1,2\n" * 45_000 + "1,zwei\n"
    assert "line 45002, column a: 'zwei'" in refuse(tmp_path, data)


def test_blocks_are_joined_in_order(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("y,a\n" + "".join(f"{i},{i if i % 7 else 'NA'}\n" for i in range(45_000)))
    table = read_table(path, "y")
    kept = [i for i in range(45_000) if i % 7]
    np.testing.assert_array_equal(table.values[:, 0], kept)
    assert table.outcomes == [str(i) for i in kept]
    assert table.lines == [i + 2 for i in kept]
    assert table.left_out[1] == (9, ["a"])
    assert (table.rows_read, len(table.left_out)) == (45_000, 6429)


def test_a_column_of_text_suggests_the_columns_of_numbers(tmp_path):
    says = refuse(tmp_path, "y,city,a,b\n1,Bern,2,3\n2,Rome,3,4\n")
    assert "line 2, column city: 'Bern'" in says
    assert "--features a,b" in says


def test_suggested_features_can_be_pasted_into_a_shell(tmp_path):
    header = 'y,city,"a, b","c d","5"" pipe",$HOME'
    says = refuse(tmp_path, f"{header}\n1,Bern,2,3,4,5\n2,Rome,3,4,6,9\n3,Oslo,3,5,5,2\n")
    (_, option, columns, *_) = shlex.split(
        says.partition("Leave city out")[2].partition(", or ")[0]
    )
    assert option == "--features"
    path = tmp_path / "table.csv"
    outcome = CliRunner().invoke(app, ["fit", str(path), "--target", "y", option, columns])
    assert outcome.exit_code == 0
    assert 'a, b, c d, 5" pipe, $HOME' in " ".join(outcome.stdout.split())


def test_many_suggested_features_are_not_all_named(tmp_path):
    names = [f"c{index}" for index in range(20)]
    says = refuse(tmp_path, f"y,city,{','.join(names)}\n1,Bern{',2' * 20}\n")
    assert "--features and the names of the others (c0, " in says
    assert "c11 and 8 more)" in says


def test_a_column_of_marked_numbers_is_no_column_of_text(tmp_path):
    says = refuse(tmp_path, 'y,a,b\n1,"$1,234",2\n2,$900,3\n')
    assert "column a: '$1,234' has a currency sign and a thousands separator. Write 1234" in says
    assert says.endswith("The column has more such cells.")
    assert "more such cells" not in refuse(tmp_path, "y,a,b\n1,900,2\n2,$900,3\n")


def test_a_text_column_that_is_not_used_does_no_harm(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("y,city,a\n1,,2\n2,Rome,3\n")
    table = read_table(path, "y", ["a"])
    assert table.values.tolist() == [[2.0], [3.0]]
    assert table.unused == ["city"]
    assert table.left_out == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("y,,a\n1,2,3\n", "line 1: column 2 has no name"),
        ("Y,a\n1,2\n", "Did you mean 'Y'?"),
        ("yy\ta\n1\t2\n", "the columns are yy"),
        ("y\ta\n1\t2\n", "--delimiter tab"),
        ("y\n1\n", "only column"),
        ('y,a\n1,"2"3\n', "line 2: text follows a closing double quote"),
        ('y,a\n1,"2\n0,"3"\n', "line 3 (the row begins at line 2): text follows"),
        (b"y,a\n1,2\n1,\xe9\n", "line 3: the byte 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfy,a\n1,\xe9\n", "line 2: the byte 0xe9 is not UTF-8"),
        ("  \n\n", "the file is empty"),
        ('y,a\n1,"' + 200_000 * "1" + '"\n', "line 2: a cell has more than 131,072 characters"),
        ("y,a\n1,2,\n", "line 2: 3 cells where the header has 2"),
    ],
)
def test_refused_files(tmp_path, data, says):
    assert says in refuse(tmp_path, data)


def test_a_cell_may_be_quoted_after_a_space(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('"y", "a, b"\n 1, "2"\n3 ,4 \n')
    table = read_table(path, "y")
    assert table.features == ["a, b"]
    assert table.values.tolist() == [[2.0], [4.0]]
    assert table.outcomes == ["1", "3"]


@pytest.mark.parametrize(
    ("features", "says"),
    [(["a", "c"], "no column 'c'"), (["y"], "the target y"), (["a", "a"], "twice")],
)
def test_refused_features(tmp_path, features, says):
    assert says in refuse(tmp_path, "y,a\n1,2\n", features)


def test_no_file(tmp_path):
    with pytest.raises(TableError, match="No such file"):
        read_table(tmp_path / "none.csv", "y")
    with pytest.raises(TableError, match="directory"):
        read_table(tmp_path, "y")
