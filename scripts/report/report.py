"""Make one HTML page of results: tables beside published numbers, curves, pictures.

    python scripts/report.py [RESULTS ...] --out FOLDER [--embed]

RESULTS are folders that hold records (results/): what is below them, and what their index.yaml says
of it. The page, FOLDER/index.html, needs no network and no server. A click on a number opens its
record: the line that made it, its lineage, its curve. Pictures stay where they are and are shown
from there; --embed puts them into the page, so that it can be sent alone.
"""


from core import files
from core.command import Parser, command
from core.config import as_path
from core.errors import UserError
from core.records import COMMITTED
from scripts.report import page
from scripts.report.gather import gather


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/report.py", __doc__)
    parser.add_argument("results", nargs="*", type=as_path, default=[COMMITTED], metavar="RESULTS",
                        help="folders of records (results)")
    parser.add_argument("--out", required=True, type=as_path, metavar="FOLDER",
                        help="where index.html is written")
    parser.add_argument("--embed", action="store_true", help="put the pictures into the page")
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a file; name a folder")
    path = files.replaceable(arguments.out / "index.html", page.START.encode())
    text = page.page(gather(arguments.results), arguments.results, arguments.out,
                     embed=arguments.embed)
    files.mkdir(arguments.out)
    files.write_bytes(path, text.encode())
    print(arguments.out / "index.html")
