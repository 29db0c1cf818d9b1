"""Rounds of training over the network: a server, and a reference client for devices.

aggregation.proto  the service that devices call
task_config        what server and devices agree on     device       the client: one round in order
rpc_client         a device's calls, retried            server       opens the run, runs its rounds
rounds             one round at the server, in order    service      the gRPC service
mailbox            messages of a round, by device       admission    sessions, rate limits, strikes
store              the durable state of rounds          model_delta  the model's way to devices
identity           keys, enrolment, certificates        transport    generated classes, gRPC options
backend            what the service asks of the round   front_ends   the service in more processes
web, web_call      the same service for browsers        web_task     what a browser holds of a run
addresses          hosts and ports that a person states

``secagg/PROTOCOL.md``, section 7, specifies the phone's side.
"""
