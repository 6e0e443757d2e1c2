"""The reader of the share that one of several ranks has of a model's weights."""

from copy import copy

from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.devices.ranks import Rank


def sharded(reader: WeightsReader, rank: Rank) -> WeightsReader:
    """The share of `rank` in the weights of `reader`, of which nothing is read here.

    A rank that is alone has all of them. Raises SpecError for a model that such ranks
    cannot share.
    """
    if rank.count == 1:
        return reader
    share = copy(reader)
    share.config, share.rank = reader.config.of_rank(rank.count), rank
    share.check_cuts()
    return share
