"""`EXPERIMENTS`: all of them, in the order of the page."""

from theory import blau_2019_perception, huang_2024_billm, waterfall_figures
from theory.bounds import (
    chee_2023_incoherence,
    chen_2025_babai,
    lifar_2026_watersic,
    lybrand_2021_gpfq,
    malinovskii_2025_linearity,
    zhang_2023_spfq,
    zhang_2025_optq,
    zhang_2025_order,
    zhang_2025_qronos,
    zhang_2025_supnorm,
)
from theory.entropy import (
    coded_against_grouped,
    codes,
    description_length,
    exponents,
    mantissa_noise,
    puzzle,
    tails,
    zip_selection,
)
from theory.expansion import equal_bits, franco_2025_null_space
from theory.experiment import Experiment
from theory.grids import block_sizes, distance, element_formats, one_outlier
from theory.limits import (
    crowding,
    flipped_models,
    guo_2026_membership,
    hidden_states,
    intrinsic_dimension,
    liu_2023_middle,
    liu_2024_kivi,
    su_2021_rope,
)
from theory.spectra import experiments as spectra

EXPERIMENTS: tuple[Experiment, ...] = (
    *waterfall_figures.EXPERIMENTS,
    zhang_2025_optq.EXPERIMENT,
    zhang_2025_supnorm.EXPERIMENT,
    zhang_2025_order.EXPERIMENT,
    lybrand_2021_gpfq.EXPERIMENT,
    zhang_2023_spfq.EXPERIMENT,
    zhang_2025_qronos.EXPERIMENT,
    *chee_2023_incoherence.EXPERIMENTS,
    chen_2025_babai.EXPERIMENT,
    *lifar_2026_watersic.EXPERIMENTS,
    malinovskii_2025_linearity.EXPERIMENT,
    *spectra.EXPERIMENTS,
    *franco_2025_null_space.EXPERIMENTS,
    *equal_bits.EXPERIMENTS,
    *distance.EXPERIMENTS,
    *element_formats.EXPERIMENTS,
    block_sizes.EXPERIMENT,
    one_outlier.EXPERIMENT,
    blau_2019_perception.EXPERIMENT,
    *huang_2024_billm.EXPERIMENTS,
    *puzzle.EXPERIMENTS,
    codes.EXPERIMENT,
    *tails.EXPERIMENTS,
    exponents.EXPERIMENT,
    coded_against_grouped.EXPERIMENT,
    mantissa_noise.EXPERIMENT,
    zip_selection.EXPERIMENT,
    *description_length.EXPERIMENTS,
    *crowding.EXPERIMENTS,
    su_2021_rope.EXPERIMENT,
    liu_2023_middle.EXPERIMENT,
    guo_2026_membership.EXPERIMENT,
    intrinsic_dimension.EXPERIMENT,
    *hidden_states.EXPERIMENTS,
    *flipped_models.EXPERIMENTS,
    liu_2024_kivi.EXPERIMENT,
)
