"""Sound as arrays: files, spectra and mel features, their inversion, and effects."""

from jdl.audio.effects import add_noise, convolve, phase_vocoder, time_stretch
from jdl.audio.files import SUFFIXES, read_audio, resample
from jdl.audio.inversion import griffin_lim, mel_to_power
from jdl.audio.mel import MelSpectrogram, dct_matrix, mel_filter_bank, power_to_db
from jdl.audio.spectra import hann, istft, num_frames, stft

__all__ = [
    "SUFFIXES",
    "MelSpectrogram",
    "add_noise",
    "convolve",
    "dct_matrix",
    "griffin_lim",
    "hann",
    "istft",
    "mel_filter_bank",
    "mel_to_power",
    "num_frames",
    "phase_vocoder",
    "power_to_db",
    "read_audio",
    "resample",
    "stft",
    "time_stretch",
]
