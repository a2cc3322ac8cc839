"""Two simple recurrent layers forecast tomorrow's lowest temperature from the last 20 days'.

    jdl train temperatures_rnn --data.path daily-min-temperatures.csv

SimpleRNN(50) twice, then Dense(1), mean squared error: the recurrent network of many introductions,
on ten years of Melbourne; the last fifth is the test. Of three seeds there, on 2 cores of an AMD
EPYC, the mean RMSE was 2.222 degrees and the largest 2.239; the day before repeated has 2.484,
AR(20) by least squares 2.208 (`jdl.baselines`).
"""

from jdl import Experiment
from jdl.data import Series
from jdl.models import RNN
from jdl.optimizers import Adam, Cosine
from jdl.tasks import Forecast

experiment = Experiment(
    model=RNN(vocabulary=0, cell="simple", units=50, layers=2),
    task=Forecast(),
    data=Series("daily-min-temperatures.csv", length=20, validation_fraction=0.0),
    optimizer=Adam(1e-3, schedule=Cosine()),
    epochs=20,
    batch_size=32,
    malloc_arenas=0,
)
