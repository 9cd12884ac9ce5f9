"""Reads everything from settings.ini, the one place that states metadata and requirements."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

s = ConfigParser()
s.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
s = s["DEFAULT"]

setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    keywords=s["keywords"],
    author=s["author"],
    license=s["license"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=f">={s['min_python']}",
    classifiers=[f"Programming Language :: Python :: {v}" for v in s["pythons"].split()],
    # The report notebooks travel inside the wheel as the package gpovae.notebooks.
    packages=[*find_packages(include=["gpovae", "gpovae.*"]), "gpovae.notebooks"],
    package_dir={"gpovae.notebooks": "nbs/reports"},
    package_data={"gpovae.notebooks": ["*.ipynb"], "gpovae": ["static/*", "py.typed"]},
    install_requires=s["requirements"].split(),
    extras_require={
        k.removesuffix("_requirements"): s[k].split() for k in s if k.endswith("_requirements")
    },
    entry_points={"console_scripts": s["console_scripts"].split()},
)
