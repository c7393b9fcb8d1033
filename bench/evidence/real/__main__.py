"""`python -m bench.evidence.real`."""

from bench.evidence.real.run import main

if __name__ == "__main__":
    main()
