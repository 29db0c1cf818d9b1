"""Rounds of training over the network: a server, and a reference client for devices.

aggregation.proto  the service that devices call       terms     what server and devices agree on
device      the client: one round as a straight line   caller    its calls, retried
server      one process: the run and the service       rounds    one round as a straight line
service     the calls, answered                        desk      the protocol's messages, by device
door        who may come in, and how often             store     the durable state of rounds
broadcast   the model's way to the devices             identity  keys, enrolment, trial certificates
transport   the generated classes and gRPC's settings

``secagg/PROTOCOL.md``, section 7, is written for those who build the phone's side.
"""
