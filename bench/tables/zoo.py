"""Convert and check every model of the zoo: `fxgrad zoo`, from a clone.

python -m bench.tables.zoo --suite timm-families --csv bench/measured/zoo/timm-families.csv
"""

import sys

from fxgrad.commands.cli import main

if __name__ == "__main__":  # worker processes import this file too
    main(["zoo", *sys.argv[1:]])
