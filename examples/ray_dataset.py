"""A Ray Dataset in, and one with the answers out; all actors, of all jobs, share the rate limit.

python examples/ray_dataset.py    (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)

Needs the extra `ray`: pip install 'omnigate[ray]'. The actors take the key from their environment, so it is
no part of the job.
"""

import tempfile

import ray

from omnigate.distributed.ray import chat_dataset

ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
reviews = ray.data.from_items([{"sku": n, "review": f"Review number {n}."} for n in range(8)])
with tempfile.TemporaryDirectory() as journals:  # on a cluster: a directory that all nodes share
    answers = chat_dataset(
        reviews,
        model="gpt-4o-mini",
        prompt="Summarise: {review}",
        id="sku",
        journal_dir=journals,
        workers=2,
        num_cpus=0.5,
    ).take_all()
print(*(answer["content"] or answer["error"] for answer in answers), sep="\n")
print(f"{sum(answer['error'] is not None for answer in answers)} of {len(answers)} failed")
ray.shutdown()
