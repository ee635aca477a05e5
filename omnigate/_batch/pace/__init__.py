"""How fast a batch sends, and how many calls it has in flight: one policy, in modules of one concept each.

What limits what. A limit belongs to what enforces it:

    who enforces it                            what it bounds               module
    -----------------------------------------  ---------------------------  -----------------------------
    the gateway, for a key                     calls per minute             `pacer`, asked by `gate`
    the provider, for a model (of a key)       calls in flight; below one   `concurrency`, `interval`,
                                               of them, calls per minute    asked by `upstream`
    the same, by the batch's word              tokens per minute            `tokens`, asked by `upstream`
    the machine, for an address                open connections             `descriptors`
    an outage, of an address or of a provider  one probe at a time          `breaker`

So there is one pacer for each event loop, address and key, one adaptive limit for each model behind it, and
one breaker and one bound of connections for the address. All batches that meet at one of them take turns, one
send each (`queue`). Within a batch, resends precede new sends. Whenever a slot is freed or a limit raised,
the next that can use it is woken.

What a failure says (`signs`). Every failure is one of: the gateway's own limit, a rejection by anyone else,
an outage, exhausted descriptors, a failure that may come from load, or the item's own.

* Rejections (429) say that the rate was too high, and nothing about the item. They cut the limit: in half at
  most, once per round trip. At one call in flight they lengthen an interval between sends instead. They use
  up none of the item's attempts.
* A call that could not connect, or that met a provider or gateway that is down (502 to 504, an open circuit),
  says nothing about the item as long as nobody else succeeds. Such failures use up the item's attempts only
  once another call, sent after the first of them, has succeeded, or if the model is known for items that fail
  so. After a few in a row the breaker opens: everything waits, except for one probe at a time, sent after a
  backoff of up to 30 s. The first success closes it.
* Any failure that may come from load cuts the limit only while cutting helps (`blame`). If the rate of
  failures does not fall with the limit, the failures have another cause: that rate is excused from then on,
  and the limit is restored. An item that fails three times is one sign.
* Latencies are load only if they follow the limit: `concurrency` compares levels, not times.

What is waited for. An item waits for the window, a provider or the end of an outage for `max_wait_seconds` in
all, by its own batch's setting. Then it fails with what it waited for (`patience`). While nothing gets
through, items that have not been read yet wait as well, or a batch would take that long for each of them.
Waiting for a free slot is not counted: slots are freed by calls, which have timeouts of their own.

Everything but `gate`, `upstream` and `patience` is sans-I/O: times come in, "go" or "not before t" comes out.
There is no background task: the first waiter of each queue watches the clock.
"""
