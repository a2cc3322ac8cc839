"""LSTM that forecasts next month's airline passengers from the last twelve months.

    jdl prepare airline_passengers
    jdl train airline_lstm

The inputs are logarithms of the counts minus those of the year before; without either transform a
recurrent network does worse than repeating the last month. Ten epochs were best on validation
months. On the last third, repeating the last month has an RMSE of 50.26 thousand, and AR(12) by
least squares 20.11, which this does not beat.

Expect: test rmse 21.5321 (3 seeds, max 22.3742), 4.2 s, 2 cores of an AMD EPYC
"""

from jdl import Experiment, Runtime
from jdl.data import Series
from jdl.models import RNN
from jdl.optimizers import Adam, Cosine
from jdl.tasks import Forecast

experiment = Experiment(
    model=RNN(vocab_size=0, hidden_size=32),
    task=Forecast(),
    data=Series(
        "airline-passengers.csv",
        length=12,
        log=True,
        difference=12,
        test_fraction=0.33,
        validation_fraction=0.0,
    ),
    optimizer=Adam(1e-2, schedule=Cosine()),
    epochs=10,
    batch_size=16,
    runtime=Runtime(malloc_arenas=0),
)
