"""Where each stage's outputs lie, relative to the project's root. dvc.yaml names the same paths."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the project, whose code runs

TRAIN_IMAGES = Path("data/images/train")
TEST_IMAGES = Path("data/images/test")
DATA = Path("data")  # data/<name> is also the latent data set of a block of params.yaml's `encode`
INPUTS = Path("inputs")  # inputs/<name>: what decides a model or stage besides its data and code
CODE_HASHES = Path("code_hashes")
CURVES = Path("curves")  # curves/<model>/<phase>.csv: the figures of a training, for `dvc plots show`
RUNS = Path("runs")
REFERENCE = Path("reference")  # what extractor and judge see of the real images
KNOWN = REFERENCE / "known.json"  # the protocol, and figures of real images, copies and noise
METRICS = Path("metrics")  # metrics/<sampler>.json, metrics/<autoencoder>.json
SUMMARY = Path("summary")  # the same names: the few figures that `dvc metrics show` lists
SAMPLES = Path("samples")  # samples/<sampler>/<candidate number>.png: grids of each candidate, and other pictures
PROMOTED = Path("promoted.json")
CHAMPION = Path("champion")  # sampler/, candidate.json and pictures, as the registry keeps them
REPORT = Path("report.html")

AUTOENCODER_INFO = "autoencoder.json"  # in a latent data set, beside autoencoder.safetensors
TEXT_INFO = "text.json"  # likewise, beside text.safetensors, where a pretrained encoder embedded the captions
