"""Where the project is."""

from pathlib import Path

NOTEBOOKS = Path(__file__).with_name("notebooks").resolve()  # a link to the checkout's, of which a wheel has a copy


def project_folder() -> Path:
    """The checkout this package is installed from, or the current folder where it is installed without one."""
    checkout = NOTEBOOKS.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
