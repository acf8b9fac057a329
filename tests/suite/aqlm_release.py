"""What the release of AQLM leaves of matrices beyond the golden ones: `hnmse` for one or three seeds each.

Vahe1994/AQLM@e79a896, `AQEngine.quantize`, run on one CPU thread as the golden rows were (shared/golden, method AQLM):
`torch.manual_seed(s)` and `random.seed(s)` before it, 100 iterations of k-means at most, 100 steps of Adam at a rate of
1e-4, relative tolerance 0.01, codebooks and scales in float32. Matrices are `make(seed, weights, 128, 256)`.
"""

ROWS = [
    {"seed": 13, "weights": "gaussian", "stages": 2, "bits": 8, "length": 8, "beam": 1,
     "hnmse": [0.023308, 0.022706, 0.023181]},
    {"seed": 13, "weights": "gaussian", "stages": 1, "bits": 8, "length": 4, "beam": 1,
     "hnmse": [0.030135, 0.030430, 0.030720]},
    {"seed": 13, "weights": "gaussian", "stages": 2, "bits": 4, "length": 4, "beam": 1,
     "hnmse": [0.044303, 0.043848, 0.044634]},
    {"seed": 13, "weights": "gaussian", "stages": 4, "bits": 4, "length": 8, "beam": 1,
     "hnmse": [0.044555, 0.045168, 0.046180]},
    {"seed": 13, "weights": "gaussian", "stages": 1, "bits": 8, "length": 4, "beam": 4,
     "hnmse": [0.027893]},
    {"seed": 13, "weights": "student", "stages": 2, "bits": 8, "length": 8, "beam": 1,
     "hnmse": [0.022967, 0.022566, 0.022838]},
    {"seed": 13, "weights": "student", "stages": 1, "bits": 8, "length": 4, "beam": 1,
     "hnmse": [0.031719, 0.031262, 0.031682]},
    {"seed": 13, "weights": "student", "stages": 2, "bits": 4, "length": 4, "beam": 1,
     "hnmse": [0.048504, 0.048843, 0.048872]},
    {"seed": 13, "weights": "student", "stages": 4, "bits": 4, "length": 8, "beam": 1,
     "hnmse": [0.046618, 0.047382, 0.045741]},
    {"seed": 13, "weights": "student", "stages": 1, "bits": 8, "length": 4, "beam": 4,
     "hnmse": [0.029513]},
    {"seed": 14, "weights": "gaussian", "stages": 2, "bits": 8, "length": 8, "beam": 1,
     "hnmse": [0.021942, 0.022355, 0.022074]},
    {"seed": 14, "weights": "gaussian", "stages": 1, "bits": 8, "length": 4, "beam": 1,
     "hnmse": [0.029566, 0.028834, 0.029617]},
    {"seed": 14, "weights": "gaussian", "stages": 2, "bits": 4, "length": 4, "beam": 1,
     "hnmse": [0.041604, 0.041905, 0.041785]},
    {"seed": 14, "weights": "gaussian", "stages": 4, "bits": 4, "length": 8, "beam": 1,
     "hnmse": [0.042512, 0.042943, 0.043029]},
    {"seed": 14, "weights": "gaussian", "stages": 1, "bits": 8, "length": 4, "beam": 4,
     "hnmse": [0.027086]},
    {"seed": 14, "weights": "student", "stages": 2, "bits": 8, "length": 8, "beam": 1,
     "hnmse": [0.021713, 0.021481, 0.021541]},
]  # fmt: skip
