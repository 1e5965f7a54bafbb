"""imet_ray's command line: one flag per stage. Parsing and printing only; the work is in `imet_ray`.

`imet_ray/cli/launch.py` is all of it; where the project is installed it is `imet-ray`.
"""

from imet_ray.cli.launch import main as main
from imet_ray.cli.launch import start

if __name__ == "__main__":
    start()
