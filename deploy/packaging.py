"""The build step of the wheel that setup.cfg cannot express: the built page goes into ``codevo/static``."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class BuildWithPage(build_py):
    """``build_py``, and then a copy of ``static/dist``. An editable install serves that folder itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        page = Path(__file__).parent.parent / "static" / "dist"
        if not (page / "index.html").is_file():
            raise FileNotFoundError(f"{page} is missing: build the page first (make setup)")
        target = Path(self.build_lib) / "codevo" / "static"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(page, target)
