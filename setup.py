"""What a wheel holds besides the package's own files; everything else is in pyproject.toml.

``tokenizers/``, ``simulations/`` and ``privacy/`` lie at the top of a clone, where their owners
find them, and in ``pfl_lm/shipped/`` of a wheel. ``pfl_lm.recipes.find`` reads either.

PFL_LM_KERNELS_FOR names a kind of processor, x86_64 or aarch64: the wheel then holds the C kernels
compiled for it (``pfl_lm/native/prebuilt.py``), and its name says so. Otherwise it is for every
machine, and the kernels are compiled where it is installed.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDERS = ("tokenizers", "simulations", "privacy")
MACHINE = os.environ.get("PFL_LM_KERNELS_FOR", "")


class BuildWithRecipes(build_py):
    """Copies the recipes beside the package's own files; an editable install reads the clone's."""

    def run(self):
        super().run()
        for recipe, built in self._recipes().items():
            self.mkpath(str(Path(built).parent))
            self.copy_file(recipe, built)
        if MACHINE and not self.editable_mode:
            prebuilt().build(Path("pfl_lm/native"), kernels_in(self.build_lib), MACHINE)

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), *self._recipes().values()]

    def _recipes(self):
        if self.editable_mode:
            return {}
        shipped = Path(self.build_lib) / "pfl_lm" / "shipped"
        files = [file for folder in FOLDERS for file in sorted(Path(folder).rglob("*.toml"))]
        return {str(file): str(shipped / file) for file in files}


class Wheel(bdist_wheel):
    """Names the processor and the oldest C library of a wheel that holds kernels."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = not MACHINE

    def get_tag(self):
        if not MACHINE:
            return super().get_tag()
        built = self.get_finalized_command("build_py").build_lib
        major, minor = prebuilt().least_glibc(kernels_in(built))
        return "py3", "none", f"manylinux_{major}_{minor}_{MACHINE}"


class WithKernels(Distribution):
    """A wheel with kernels is a platform's: its files belong where compiled code does."""

    def has_ext_modules(self):
        return bool(MACHINE)


def kernels_in(folder):
    return Path(folder) / "pfl_lm" / "native" / "prebuilt"


def prebuilt():
    """Return the package's own module; it needs nothing that is not in Python."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from pfl_lm.native import prebuilt

    return prebuilt


setup(distclass=WithKernels, cmdclass={"build_py": BuildWithRecipes, "bdist_wheel": Wheel})
