"""The pictures of the pages: `python docs/pictures.py` runs each page that shows some and keeps what its code draws, in docs/img/."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent


def draw(page, pictures):
    """Run the page's blocks in an empty folder, and copy the pictures that they leave."""
    program = "".join(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MPLBACKEND": "Agg"}
        subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        for picture in pictures:
            shutil.copy(Path(folder, picture), DOCS / "img" / picture)


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        if pictures := re.findall(r"\]\((?:\.\./)?img/(\w+\.png)\)", page.read_text("utf-8")):
            draw(page, pictures)
            print(f"{page.relative_to(DOCS)}: {', '.join(pictures)}")
