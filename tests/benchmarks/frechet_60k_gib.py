"""The memory of Fréchet statistics of 60,000 x 2048 features: measured with their time, see frechet_60k_s."""

from tests.benchmarks.frechet_60k_s import main

if __name__ == "__main__":
    main()
