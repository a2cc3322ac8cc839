"""Simple RNN that forecasts tomorrow's minimum temperature from the last 20 days.

    jdl prepare temperatures
    jdl train temperatures_rnn

SimpleRNN(50) twice, then Dense(1), with mean squared error: the recurrent network of many
introductions, on ten years of Melbourne. On the last fifth, the test split, repeating the last day
has an RMSE of 2.484 degrees, AR(20) by least squares 2.208 (`jdl.report.baselines`).

Expect: test rmse 2.2220 (3 seeds, max 2.2392), 11.3 s, 2 cores of an AMD EPYC
"""

from jdl import Experiment, Runtime
from jdl.data import Series
from jdl.models import RNN
from jdl.optimizers import Adam, Cosine
from jdl.tasks import Forecast

experiment = Experiment(
    model=RNN(vocab_size=0, cell="simple", hidden_size=50, num_layers=2),
    task=Forecast(),
    data=Series("daily-min-temperatures.csv", length=20, validation_fraction=0.0),
    optimizer=Adam(1e-3, schedule=Cosine()),
    epochs=20,
    batch_size=32,
    runtime=Runtime(malloc_arenas=0),
)
