"""Strings of spoken digits, transcribed while they are heard: a causal encoder, 0.32 s behind.

    jdl prepare spoken_digit
    jdl train spoken_strings_streaming

As `spoken_strings_ctc`, with features and an encoder that see no more than eight steps of 40 ms of
what follows. `jdl.inference.transcribe.StreamingTranscriber` takes it chunk by chunk.

Expect: test wer 0.0043 (3 seeds, max 0.0056), 286 s, 1 busy core of an Intel Xeon
"""

from dataclasses import replace

from spoken_strings_ctc import experiment as strings

from jdl.audio import MelSpectrogram
from jdl.data import AudioFeatures, Scale

features = AudioFeatures(spectrogram=MelSpectrogram(padding="causal"), normalize=False)
gain, noise, _, masks = strings.data.device_transforms
scale = Scale(name="audio", offset=-6.0, divisor=4.0)

experiment = replace(
    strings,
    model=strings.model.clone(causal=True, lookahead=8, dilations=(1, 1, 2, 2, 4, 4)),
    data=replace(strings.data, device_transforms=(gain, noise, features, scale, masks)),
)
