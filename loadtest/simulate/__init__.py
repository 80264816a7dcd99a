"""A week of a service with up to millions of sessions, simulated: what scaling costs, and who has to wait.

`python -m loadtest.simulate --peak-sessions 1000000 --days 7` drives `serve_app.autoscaling.Scaler`, Serve's default
policy and `serve_app.ingress.placement.Placement`, the code of the service itself, through a made-up week. What is
assumed, and printed with the result:

- Time goes in steps of 10 s. Sessions are numbers per engine, not objects: in a step, sessions end first, then those
  that wait take the free slots, first come, first served, in the order that `Placement` says. Who finds a slot in the
  step of their arrival has not waited; everybody else has waited whole steps.
- Sessions arrive at random (Poisson) at the pace of the day curve: two humps, weekends three quarters of a weekday; the
  peak of the week is `--peak-sessions`. They last five minutes on average (exponential). Nobody gives up or parks.
- Bursts: four a day, 3 to 8 % more arrivals for ten minutes. A flash crowd: on the fourth day at 15:00, 25 % more
  within three minutes, for half an hour. Spot loss: three times a day 1 to 3 % of the engines vanish at once, without
  notice. A zone outage: on the sixth day at 20:00 a third of the engines vanish, and their zone gives none for an hour.
- An engine is one GPU. Slots and step times are those of `configs/gpus.yaml`: derived, not measured, unless it says so.
  All policies, and the oracle, have the same slots.
- A new engine takes 90 to 210 s (machine, image, weights, graphs; evenly spread) until it has sessions, and costs from
  its order on; a stopped one costs 30 s more. There are as many machines to be had as are asked for.
- Policies decide once per step. Ours sees the sessions of that moment, Serve's default their mean of 30 s, its own
  default; that one is run twice, aiming at `target_share` and at `steady_share` of the slots. What is lost is seen to
  be gone at once, and ordered again.
- Sessions of engines that are lost or stopped move, before anybody new gets a slot. One that has to wait for its new
  slot counts as delayed, too.
- A session that has waited for `start_timeout_seconds` is refused.
- "Outside the outage" leaves out the outage itself and the quarter of an hour after it.
- The oracle knows the whole week. It fills engines to the last slot, orders each so that it is ready the moment it is
  needed, keeps one through a lull where that is cheaper than a new one, and has replacements ready for every loss; its
  engines take the mean start time. Nobody ever waits. No policy that must see before it acts reaches it.
"""
