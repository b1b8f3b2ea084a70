"""Where the project is."""

from pathlib import Path


def project_folder() -> Path:
    """The checkout this package is installed from, or the current folder where it is installed without one."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()
