"""A Dask DataFrame in, and one with the answers out; all workers of the cluster share the rate limit.

python examples/dask_frame.py    (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)

Needs the extra `dask`: pip install 'omnigate[dask]'. The workers take the key from their environment, so it
is no part of the graph.
"""

import tempfile

import dask.dataframe
import pandas
from distributed import Client, LocalCluster

from omnigate.distributed.dask import chat_frame


def main() -> None:
    reviews = pandas.DataFrame({"sku": range(8), "review": [f"Review number {n}." for n in range(8)]})
    with (
        tempfile.TemporaryDirectory() as journals,  # on a cluster: a directory that all workers share
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        frame = dask.dataframe.from_pandas(reviews, npartitions=4)
        answers = chat_frame(
            frame, model="gpt-4o-mini", prompt="Summarise: {review}", id="sku", journal_dir=journals
        )
        result = answers.compute()
    print(*result["content"], sep="\n")
    print(f"{result['error'].notna().sum()} of {len(result)} failed; {result['cost_usd'].sum():.6f} USD")


if __name__ == "__main__":  # the cluster's processes import this file
    main()
